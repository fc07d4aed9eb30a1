"""The HTTP side: paths, queries, faults."""

import contextlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from . import schema
from .kubelet import Kubelet
from .store import Problem, Store, full_name, not_found, now

Resource = namedtuple("Resource", "kind plural api_version group namespaced")
CLUSTER_WIDE = (
    "Namespace", "Node", "NodePool", "PersistentVolume", "StorageClass", "ClusterRole",
    "ClusterRoleBinding",
)  # fmt: skip
VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}
PATH = re.compile(
    r"^/(?:api|apis)/(?P<version>v1|[^/]+/[^/]+)(?:/namespaces/(?P<ns>[^/]+))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?$"
)
VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}


@dataclass
class Fault:
    """Something that goes wrong with the requests that fit, so many times.

    Attributes:
        method: The request's method.
        path: A regular expression that the path with its query must contain.
        times: How often.
        status: Answer this status instead of doing anything.
        headers: With these headers.
        body: And this body.
        lost: `before`: the connection is reset and nothing done; `after`: done, then reset;
            `body`: half of the answer's body comes, then the end.
        wait_s: Wait so long first.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: object = None
    lost: str = ""
    wait_s: float = 0.0


class Emulator:
    """A cluster of one namespace, `workshop`, served on loopback until it is closed.

    With a certificate (an `ssl.SSLContext`) it is served over TLS, as every real one is.
    """

    def __init__(self, *, crds=True, certificate=None):
        self.store = Store()
        self.kubelet = Kubelet()
        self.tokens = {"good-token"}
        self.crds = crds
        self.karpenter = True
        self.namespaces = {"workshop"}
        self.forbidden = set()
        self.rules = None
        self.rules_everywhere = False  # those of a ClusterRole, bound in the whole cluster
        self.asked = set()
        self.refused = set()
        self.faults = []
        self.requests = []
        self.exec_breaks = False
        self.grace_s = 0.05
        self.stuck = set()
        self._resources = {}
        for version, kinds in schema.KINDS.items():
            group = version.rpartition("/")[0]
            for kind in kinds:
                resource = Resource(
                    kind, schema.plural_of(kind), version, group, kind not in CLUSTER_WIDE
                )
                self._resources[version, resource.plural] = resource
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.emulator = self
        if certificate is not None:  # each connection shakes hands in its own thread
            self._http.socket = certificate.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._collect, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self):
        self._stop.set()
        self._http.stopping = True
        self._http.shutdown()
        for thread in self._threads:
            thread.join()
        self._http.server_close()

    # -- what tests do --------------------------------------------------------------------------

    def kind(self, kind):
        return next(r for r in self._resources.values() if r.kind == kind)

    def get(self, kind, name):
        return self.store.get(self.kind(kind), "workshop", name)

    def names(self, kind):
        return [b["metadata"]["name"] for b in self.store.list(self.kind(kind), "workshop")]

    def add_namespace(self, name):
        """As its controllers do: a namespace has a service account from the start."""
        with self.store.lock:
            self.namespaces.add(name)
            account = self.kind("ServiceAccount")
            if self.store.get(account, name, "default") is None:
                body = {"apiVersion": "v1", "kind": "ServiceAccount",
                        "metadata": {"name": "default", "managedFields": []}}  # fmt: skip
                self.store.new(body, name, account)
                self.store.put(account, name, body)

    def serves(self, api_version):
        """Whether the operator that brings this group version is installed."""
        return {
            "ray.io": self.crds,
            "karpenter.sh": self.karpenter,
            "monitoring.coreos.com": self.crds,
        }.get(api_version.rpartition("/")[0], True)

    def empty_namespace(self, name):
        """As its controller does: everything in a namespace goes with it."""
        with self.store.lock:
            self.namespaces.discard(name)
            for resource in self._resources.values():
                for body in self.store.list(resource, name) if resource.namespaced else []:
                    self.store.drop(resource, name, body["metadata"]["name"])

    def rule_allows(self, verb, group, plural):
        """Whether the Role whose rules are in force, if any, has this."""
        return self.rules is None or any(
            verb in rule["verbs"] and group in rule["apiGroups"] and plural in rule["resources"]
            for rule in self.rules
        )

    def put(self, body):
        """Store an object as it is, as a controller or an administrator would."""
        resource = self.kind(body["kind"])
        with self.store.lock:
            if self.store.get(resource, "workshop", body["metadata"]["name"]) is None:
                body["metadata"].setdefault("managedFields", [])
                self.store.new(body, "workshop", resource)
            return self.store.put(resource, "workshop", body)

    def set_status(self, kind, name, **status):
        body = self.get(kind, name)
        body["status"] = {**body.get("status", {}), **status}
        return self.put(body)

    def add_pod(self, owner, name, *, labels=None, index=None, state=None, containers=("main",),
                phase="Running", ready=True, **spec):  # fmt: skip
        """A pod of a workload, as its controller would make it."""
        state = state or {"running": {"startedAt": now()}}
        metadata = {"name": name, "labels": dict(labels or {}), "annotations": {}}
        if owner is not None:
            metadata["ownerReferences"] = [
                {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": True,
                 "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]  # fmt: skip
            if owner["kind"] == "Job":
                uid = owner["metadata"]["uid"]
                metadata["labels"]["batch.kubernetes.io/controller-uid"] = uid
            if index is not None:
                metadata["annotations"]["batch.kubernetes.io/job-completion-index"] = str(index)
        return self.put({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": c} for c in containers], "nodeName": "node-a",
                     "restartPolicy": "Never", **spec},
            "status": {
                "phase": phase, "podIP": "10.244.0.7",
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
                "containerStatuses": [
                    {"name": c, "state": state, "lastState": {}, "restartCount": 0, "ready": ready}
                    for c in containers],
            },
        })  # fmt: skip

    def set_state(self, pod, state, *, restarts=None, phase=None, container="main"):
        """A container's new state."""
        body = self.get("Pod", pod)
        for each in body["status"]["containerStatuses"]:
            if each["name"] == container:
                each["state"] = state
                each["restartCount"] = each["restartCount"] if restarts is None else restarts
        if phase:
            body["status"]["phase"] = phase
        return self.put(body)

    def end_pod(self, pod, code=0, container="main"):
        self.kubelet.log(pod, container).end()
        ended = {"terminated": {"exitCode": code, "finishedAt": now(), "reason": "Completed"}}
        return self.set_state(pod, ended, phase="Failed" if code else "Succeeded",
                              container=container)  # fmt: skip

    def fail(self, method, path, **what):
        """Script a fault; the first that fits and has times left is taken."""
        self.faults.append(Fault(method, path, **what))

    def sent(self, method, pattern=""):
        """The requests that came, as `path?query`."""
        return [path for m, path in self.requests if m == method and re.search(pattern, path)]

    def changes(self):
        """The requests that changed something, or would have."""
        return [(m, path) for m, path in self.requests if m != "GET" and "dryRun" not in path]

    # -- the garbage collector ------------------------------------------------------------------

    def _collect(self):
        while not self._stop.wait(0.02):
            with self.store.lock:
                for key in list(self.store.objects):
                    body = self.store.objects.get(key)
                    if body and "foregroundDeletion" in (body["metadata"].get("finalizers") or []):
                        self._collect_one(key, body)

    def _collect_one(self, key, body):
        uid = body["metadata"]["uid"]
        dependents = [
            (k, b) for k, b in self.store.objects.items()
            if any(o["uid"] == uid for o in b["metadata"].get("ownerReferences") or [])
        ]  # fmt: skip
        left = False
        for (plural, namespace, name), dependent in dependents:
            resource = next(r for r in self._resources.values() if r.plural == plural)
            since = dependent["metadata"].setdefault("deletionTimestamp", now())
            began = dependent.setdefault("_since", time.monotonic())
            if name in self.stuck or time.monotonic() - began < self.grace_s:
                left = bool(since)
            else:
                self.store.drop(resource, namespace, name)
        finalizers = [f for f in body["metadata"]["finalizers"] if f != "foregroundDeletion"]
        if not left and not finalizers:
            resource = next(r for r in self._resources.values() if r.plural == key[0])
            self.store.drop(resource, key[1], key[2])


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    stopping = False

    def handle_error(self, request, client_address):
        """A client that has gone away is no error; anything else is one of the emulator."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve()

    do_PATCH = do_POST = do_DELETE = do_GET

    # -- answers --------------------------------------------------------------------------------

    def answer(self, status, body, headers=None):
        if isinstance(body, str):
            data, kind = body.encode(), "text/plain; charset=utf-8"
        else:
            data, kind = (
                (json.dumps(body, separators=(",", ":")) + "\n").encode(),
                "application/json",
            )
        self.send_response(status)
        for key, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.fault and self.fault.lost == "after":
            self.reset()
            return
        half = self.fault and self.fault.lost == "body"
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.reset()

    def start_chunks(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunk(self, data):
        if data:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    def end_chunks(self):
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def reset(self):
        """End the connection as a crash does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def upgrade(self, protocol):
        offered = [p.strip() for p in self.headers["Sec-WebSocket-Protocol"].split(",")]
        assert protocol in offered, offered
        from .frames import accept_key

        self.send_response(101)
        for key, value in {
            "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Protocol": protocol,
            "Sec-WebSocket-Accept": accept_key(self.headers["Sec-WebSocket-Key"]),
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True

    # -- requests -------------------------------------------------------------------------------

    def serve(self):
        emulator = self.server.emulator
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size) if size else b""
        emulator.requests.append((self.command, unquote(self.path)))
        self.fault = self.take_fault()
        try:
            if self.fault:
                time.sleep(self.fault.wait_s)
                if self.fault.lost == "before":
                    self.reset()
                    return
                if self.fault.status:
                    status = {"kind": "Status", "apiVersion": "v1", "metadata": {},
                              "status": "Failure", "message": "scripted", "code":
                              self.fault.status}  # fmt: skip
                    self.answer(self.fault.status, self.fault.body or status, self.fault.headers)
                    return
            self.route(json.loads(data) if data else {})
        except Problem as problem:
            self.answer(problem.code, problem.body)

    def take_fault(self):
        for fault in self.server.emulator.faults:
            fits = fault.method == self.command and re.search(fault.path, unquote(self.path))
            if fits and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def route(self, body):
        emulator = self.server.emulator
        token = (self.headers.get("Authorization") or "").rpartition(" ")[2]
        if token not in emulator.tokens:
            raise Problem(401, "Unauthorized", "Unauthorized")
        url = urlsplit(self.path)
        pairs = parse_qsl(url.query, keep_blank_values=True)
        query = dict(pairs)
        if commands := [value for key, value in pairs if key == "command"]:
            query["command"] = commands
        if url.path == "/version":
            self.answer(200, VERSION)
            return
        if discovered := re.fullmatch(r"/apis/([^/]+/[^/]+)", url.path):
            self.discover(discovered[1])
            return
        if url.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            self.review(body)
            return
        found = PATH.match(unquote(url.path))
        resource = found and emulator._resources.get((found["version"], found["plural"]))
        if found:  # what is not there may be forbidden too
            group = found["version"].rpartition("/")[0]
            self.allowed(
                resource or Resource("", found["plural"], found["version"], group, True),
                found, query,
            )  # fmt: skip
        if resource is None or not emulator.serves(resource.api_version):
            self.answer(404, "404 page not found\n")
            return
        namespace, name = found["ns"] or "", found["name"]
        makes = self.command in ("PATCH", "POST") and resource.namespaced
        if makes and namespace not in emulator.namespaces:
            raise Problem(404, f'namespaces "{namespace}" not found', "NotFound",
                          {"name": namespace, "kind": "namespaces"})  # fmt: skip
        if found["sub"]:
            pod = emulator.store.get(resource, namespace, name)
            if pod is None:
                raise not_found(resource, name)
            if found["sub"] == "token":  # TokenRequest: a token that then counts
                token = f"token-{namespace}-{len(emulator.tokens)}"
                emulator.tokens.add(token)
                self.answer(201, {**body, "status": {"token": token}})
                return
            kubelet = emulator.kubelet
            json_only = self.headers.get("Accept", "*/*") == "application/json"
            if found["sub"] != "log" and json_only:  # as a kubelet of 1.36 does
                raise Problem(406, "only the following media types are accepted: */*",
                              "NotAcceptable")  # fmt: skip
            {"log": kubelet.stream_log, "exec": kubelet.exec, "portforward": kubelet.forward}[
                found["sub"]
            ](self, pod, query)
        elif self.command == "GET":
            self.read(resource, namespace, name, query)
        else:
            self.change(resource, namespace, name, query, body)

    def discover(self, version):
        """What a group version has; every user may ask (system:discovery)."""
        emulator = self.server.emulator
        kinds = [r for r in emulator._resources.values() if r.api_version == version]
        if not kinds or not emulator.serves(version):
            self.answer(404, "404 page not found\n")
            return
        self.answer(200, {
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
            "resources": [{"name": r.plural, "singularName": r.kind.lower(),
                           "namespaced": r.namespaced, "kind": r.kind, "verbs": []}
                          for r in kinds]})  # fmt: skip

    def review(self, body):
        """SelfSubjectAccessReview; every user may ask (system:basic-user)."""
        asked = body["spec"]["resourceAttributes"]
        assert set(asked) <= {"namespace", "verb", "group", "resource", "subresource"}, asked
        plural = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        emulator = self.server.emulator
        allowed = (asked["verb"], plural) not in emulator.forbidden and emulator.rule_allows(
            asked["verb"], asked.get("group", ""), plural
        )
        self.answer(201, {**body, "status": {"allowed": allowed}})

    def allowed(self, resource, found, query):
        """Refuse what may not be asked, as RBAC does: a request may need more than one verb."""
        emulator = self.server.emulator
        verb = VERBS[self.command]
        if verb == "get" and not found["name"]:
            verb = "list"
        plural = resource.plural + (f"/{found['sub']}" if found["sub"] else "")
        verbs = [verb]
        if found["sub"] in ("exec", "portforward"):
            verbs.append("create")  # AuthorizePodWebsocketUpgradeCreatePermission, from 1.35 on
        there = found["name"] and emulator.store.get(resource, found["ns"] or "", found["name"])
        if verb == "patch" and not there:
            verbs.append("create")  # server-side apply of what is not there
        for verb in verbs:
            emulator.asked.add((resource.group, plural, verb))
            # A Role grants nothing outside its namespace, nor across all of them.
            role = emulator.rules is not None and not emulator.rules_everywhere
            outside = role and not found["ns"]
            if (
                (verb, plural) in emulator.forbidden
                or outside
                or not emulator.rule_allows(verb, resource.group, plural)
            ):
                emulator.refused.add((resource.group, plural, verb))
                break
        else:
            return
        what = f'{full_name(resource)} "{found["name"]}"' if found["name"] else full_name(resource)
        details = {"name": found["name"], "group": resource.group, "kind": resource.plural}
        user = "system:serviceaccount:workshop:learner"
        where = f'in the namespace "{found["ns"]}"' if found["ns"] else "at the cluster scope"
        raise Problem(
            403, f'{what} is forbidden: User "{user}" cannot {verb} '
            f'resource "{plural}" in API group "{resource.group}" {where}',
            "Forbidden", {key: value for key, value in details.items() if value},
        )  # fmt: skip

    def read(self, resource, namespace, name, query):
        store = self.server.emulator.store
        if name:
            body = store.get(resource, namespace, name)
            if body is None:
                raise not_found(resource, name)
            self.answer(200, body)
        else:
            self.answer(200, self.page(resource, namespace, query))

    def page(self, resource, namespace, query):
        store = self.server.emulator.store
        with store.lock:
            items = [b for b in store.list(resource, namespace) if fits(b, query)]
            version = store.version
        start = int(query.get("continue") or 0)
        limit = int(query.get("limit") or len(items) or 1)
        metadata = {"resourceVersion": str(version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        items = [
            {k: v for k, v in item.items() if k not in ("kind", "apiVersion")}
            for item in items[start : start + limit]
        ]
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version,
                "metadata": metadata, "items": items}  # fmt: skip

    def change(self, resource, namespace, name, query, body):
        store = self.server.emulator.store
        dry_run = query.get("dryRun") == "All"
        if self.command == "PATCH":
            assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            assert query["fieldValidation"] == "Strict"
            status, result = store.apply(
                resource, namespace, body, manager=query["fieldManager"], dry_run=dry_run,
                force=query.get("force") == "true",
            )  # fmt: skip
            if resource.kind == "Namespace" and not dry_run:
                self.server.emulator.add_namespace(name)
            self.answer(status, result)
        elif self.command == "POST":
            status, result = store.create(
                resource, namespace, body, manager=query["fieldManager"], dry_run=dry_run
            )
            self.answer(status, result)
        elif name:
            answer = store.delete(resource, namespace, name, body)
            if resource.kind == "Namespace":
                self.server.emulator.empty_namespace(name)
            self.answer(200, answer)
        else:
            gone = [b for b in store.list(resource, namespace) if fits(b, query)]
            answer = self.page(resource, namespace, query)
            for each in gone:
                store.delete(resource, namespace, each["metadata"]["name"], {})
            self.answer(200, answer)


def fits(body, query):
    labels = body["metadata"].get("labels") or {}
    for term in re.split(r",(?![^(]*\))", query.get("labelSelector") or ""):
        if not term:
            continue
        key, separator, value = term.partition("=")
        if separator and labels.get(key) != value:
            return False
        if not separator and key not in labels:
            return False
    for term in filter(None, (query.get("fieldSelector") or "").split(",")):
        key, _, value = term.partition("=")
        node = body
        for part in key.split("."):
            node = (node or {}).get(part)
        if node != value:
            return False
    return True
