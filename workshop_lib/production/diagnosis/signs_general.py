"""What logs say of any program: modules, ports, files, names, connections, memory.

Wordings: CPython's exceptions, glibc's `strerror` and `getaddrinfo`, bash, Go's `net` package,
uvicorn.
"""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Lesson
from workshop_lib.production.diagnosis.logs import Sign

__all__ = ["CONNECTION_SIGNS", "PROGRAM_SIGNS"]

PROGRAM_SIGNS: tuple[Sign, ...] = (
    Sign(
        "image-platform",
        ("exec format error",),
        r"exec format error",
        "The program of {who} is built for another processor than the node's (arm64 against "
        "amd64).",
        "build the image for the node's processor, or set nodeSelector: {{kubernetes.io/arch: "
        "...}}",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "illegal-instruction",
        ("illegal instruction",),
        r"Illegal instruction",
        "The program of {who} uses instructions that this processor does not have.",
        "use a build for this processor (vLLM on a CPU wants AVX2 at least), or another node",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "disk-full",
        ("no space left on device", "disk quota exceeded"),
        r"No space left on device|Disk quota exceeded",
        "{who} writes to a disk that is full.",
        "df -h in the pod says which; enlarge the claim, delete old checkpoints, or move caches "
        "(HF_HOME, TMPDIR) to the shared volume",
        Lesson.WHEN,
    ),
    Sign(
        "port-taken",
        ("address already in use", "eaddrinuse", "port is already", "is in use"),
        r"address already in use|EADDRINUSE|Port \d+ is (?:already )?in use",
        "{who} wants a port that another process has already.",
        "give it another port, or stop the other one; with hostNetwork all pods of a node share "
        "its ports",
        Lesson.VLLM_DEPLOY,
    ),
    Sign(
        "module-missing",
        (
            "no module named",
            "cannot import name",
            "importerror",
            "cannot open shared object file",
            "version `glibc",
            "undefined symbol",
        ),
        r"(?P<what>No module named '?[\w.]+'?|ImportError: .{0,160}|cannot import name.{0,80}|"
        r"\S+\.so\S*: cannot open shared object file|version `GLIBC\S* not found|"
        r"undefined symbol: \S*)",
        "The image of {who} lacks a package that its program needs (or has another version): "
        "{what}.",
        "use an image that has it, or install it when the image is built, not when the pod starts",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "command-not-found",
        ("command not found", "can't open file", "no such file or directory"),
        r"(?:bash|sh|line \d+): .*(?:command not found|not found$|No such file or directory)|"
        r"can't open file|exec: .*not found",
        "The script of {who} calls a program or file that its image does not have.",
        "correct the path or name, use an image that has it, or mount it",
        Lesson.WHEN,
    ),
    Sign(
        "read-only",
        (
            "read-only file system",
            "permission denied",
            "permissionerror",
            "operation not permitted",
            "eacces",
        ),
        r"Read-only file system|Permission denied|PermissionError|Operation not permitted|EACCES",
        "{who} may not read or write a file: the pod's user has no right to it, or the file "
        "system is mounted read-only.",
        "set fsGroup (and runAsUser) in the pod's securityContext, write to a mounted volume or an "
        "emptyDir, or take readOnly off the mount",
        Lesson.WHEN,
    ),
    Sign(
        "variable-missing",
        (
            "unbound variable",
            "parameter null or not set",
            "parameter not set",
            "keyerror",
            "environment variable",
        ),
        r"(?P<what>\w{3,}): (?:unbound variable|parameter (?:null or )?not set)|"
        r"KeyError: '(?P<key>(?-i:[A-Z_][A-Z0-9_]{2,}))'|"
        r"(?P<said>[Ee]nvironment variable .{0,40}(?:not set|missing|required|undefined))",
        "{who} needs an environment variable that it was not given: {what}{key}{said}.",
        "set it under env: in the manifest (from a ConfigMap or Secret)",
        Lesson.WHEN,
    ),
    Sign(
        "file-missing",
        ("filenotfounderror", "no such file or directory"),
        r"(?:FileNotFoundError|No such file or directory)(?:[^']*(?P<path>: '[^']+'))?",
        "{who} opens a file that is not there{path}.",
        "check the path and that the volume with it is mounted (kubectl exec <pod> -- ls <path>)",
        Lesson.WHEN,
    ),
    Sign(
        "out-of-memory",
        (
            "memoryerror",
            "bad_alloc",
            "cannot allocate memory",
            "can't allocate memory",
            "not enough memory",
            "killed",
        ),
        r"MemoryError|std::bad_alloc|[Cc]annot allocate memory|can't allocate memory|"
        r"not enough memory|signal: killed|^\s*Killed\s*$|\d+ Killed\s",
        "{who} ran out of memory.",
        "raise resources.limits.memory, or let it need less (smaller batches, fewer workers)",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "too-many-files",
        ("too many open files", "inotify"),
        r"Too many open files|inotify.*limit|user limit on total number of inotify",
        "{who} has more files or sockets open than it may.",
        "raise the limit (ulimit -n 65536 before ray start), or the node's fs.inotify limits",
        Lesson.RAY_WHEN,
    ),
    Sign(
        "certificate",
        ("certificate verify failed", "certificate_verify_failed", "x509"),
        r"certificate verify failed|CERTIFICATE_VERIFY_FAILED|x509: certificate",
        "{who} does not trust a server's certificate: it is expired, for another name, or of an "
        "authority that the image does not know.",
        "correct the host name, or add the authority (a proxy's) to the image: SSL_CERT_FILE",
        Lesson.WHEN,
    ),
    Sign(
        "proxy",
        ("proxyerror", "to proxy", "tunnel connection failed", "proxyconnect"),
        r"(?<!broken by ')ProxyError|^(?!.*[Rr]etrying).*(?:[Uu]nable to connect to proxy|"
        r"Tunnel connection failed|proxyconnect)",
        "{who} is told to go through a proxy (HTTP_PROXY, HTTPS_PROXY), and that proxy does not "
        "answer or refuses.",
        "correct or remove HTTP_PROXY and HTTPS_PROXY; NO_PROXY must have .svc, .cluster.local and "
        "the cluster's addresses",
        Lesson.WHEN,
    ),
    Sign(
        "fake-port",
        ("invalid argument", "cannot assign requested address"),
        r"Cannot assign requested address",
        "{who} wants to listen on an address that its pod does not have.",
        "listen on 0.0.0.0, or on the pod's own address (status.podIP)",
        Lesson.VLLM_DEPLOY,
    ),
)

CONNECTION_SIGNS: tuple[Sign, ...] = (
    Sign(
        "name-not-resolved",
        (
            "name or service not known",
            "temporary failure in name resolution",
            "no such host",
            "resolve host",
            "nodename nor servname",
            "can't resolve",
            "server can't find",
            "bad address",
            "nxdomain",
            "name does not resolve",
            "failed to resolve",
            "enotfound",
            "unknown host",
            "unable to resolve",
            "getaddrinfo",
        ),
        r"Name or service not known|Temporary failure in name resolution|no such host|"
        r"(?:could not|failed to|unable to) resolve|nodename nor servname|can't resolve|"
        r"server can't find|bad address|NXDOMAIN|Name does not resolve|\bENOTFOUND\b|unknown host|"
        r"getaddrinfo (?:failed|EAI)",
        "{who} dials a name that the cluster's DNS does not know: {host}.",
        "kubectl get services shows the names there are; a single pod is reached as "
        "<hostname>.<subdomain>, where subdomain is a headless Service",
        Lesson.RAY_WHEN,
        running=True,
        target="host",
    ),
    Sign(
        "connection-refused",
        ("connection refused", "econnrefused", "errno 111", "connect to server"),
        r"connection refused|ECONNREFUSED|Errno 111|Could(?:n't| not) connect to server",
        "{who} dials {host}, and nobody listens on that port there.",
        "is the server up, and is that the port it listens on? kubectl get endpointslices",
        Lesson.RAY_WHEN,
        running=True,
        target="host",
    ),
    Sign(
        "connection-timeout",
        (
            "timed out",
            "i/o timeout",
            "connect timeout",
            "connecttimeout",
            "no route to host",
            "network is unreachable",
        ),
        r"connect(?:ion|ing)?\b.{0,80}timed out|(?<!SEC.)connect timeout|ConnectTimeout|dial tcp "
        r"\S+ i/o timeout|No route to host|Network is unreachable|"
        r"(?:nc|curl|wget|telnet).*timed out",
        "{who} dials {host} and gets no answer at all: packets are dropped on the way (a "
        "NetworkPolicy, a security group), or the address is nobody's any more.",
        "kubectl get networkpolicies; check the address and the security groups of the nodes",
        Lesson.RAY_WHEN,
        running=True,
        target="host",
    ),
)
