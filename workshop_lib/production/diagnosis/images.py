"""Images that cannot be had: what the container runtime said of the pull, and what it means.

The kubelet's reasons are `ErrImagePull`, `ImagePullBackOff`, `InvalidImageName`,
`ErrImageNeverPull`, `ImageInspectError`, `RegistryUnavailable`, `SignatureValidationFailed`
(pkg/kubelet/images/types.go); the words behind are those of containerd or CRI-O and of the
registry.
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["IMAGE_REASONS", "image_trouble"]

IMAGE_REASONS = frozenset({
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
    "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed",
})  # fmt: skip

_HOST = re.compile(r"https?://([^/\"\s]+)|lookup ([\w.-]+)")

# Rule, the words of runtimes and registries, what it means, what mends it.
_PULLS: list[tuple[str, str, str, str]] = [
    ("image-platform",
     r"no match for platform|no matching manifest for|exec format error|"
     r"image operating system|does not match the specified platform",
     "The image {image} has no build for the processor architecture of the node ({arch}).",
     "build it for both (docker buildx build --platform linux/amd64,linux/arm64), or choose nodes "
     "of the processor that it is built for with nodeSelector: {{kubernetes.io/arch: ...}}"),
    ("image-rate-limit",
     r"toomanyrequests|429 Too Many Requests|pull rate limit|QPS exceeded",
     "The registry refuses the pull of {image} because too many pulls came from here.",
     "pull with credentials (imagePullSecrets), or through a mirror or pull-through cache of your "
     "own registry (ECR)"),
    ("image-disk-full",
     r"no space left on device|disk quota exceeded|input/output error",
     "The image {image} does not fit on the node's disk.",
     "give the nodes a larger root volume (vLLM and NeMo RL images take 10 to 30 GB), or use a "
     "smaller image"),
    ("image-unauthorized",
     r"unauthorized|401 Unauthorized|403 Forbidden|authentication required|no basic auth credential"
     r"|authorization (?:failed|token has expired)|access denied|access forbidden|denied:",
     "The registry does not let the cluster have {image} (unauthorized): it is private and the "
     "node has no credentials for it, or there is no such repository (registries answer the same "
     "for both).",
     "check the name; then kubectl create secret docker-registry and name it in imagePullSecrets, "
     "or on EKS give the node's role ecr:BatchGetImage"),
    ("image-not-found",
     r"not found|manifest unknown|name unknown|does not exist|404",
     "There is no image {image}: the repository or its tag does not exist.",
     "correct the image's name and tag; list the tags that exist (aws ecr list-images, or the "
     "registry's page)"),
    ("image-registry-untrusted", r"gave HTTP response to HTTPS client",
     "The registry {host} of the image {image} speaks plain HTTP, and the node's container "
     "runtime asks with HTTPS.",
     "give the registry a certificate, or tell containerd on the nodes that this one is plain: "
     "/etc/containerd/certs.d/{host}/hosts.toml"),
    ("image-registry-untrusted",
     r"x509:|failed to verify certificate|certificate (?:is|has|signed)",
     "The node does not trust the certificate of the registry {host} (image {image}): it is signed "
     "by an authority that the node does not know, has expired, or is for another name.",
     "put the authority's certificate onto the nodes (/etc/containerd/certs.d/{host}/ca.crt), or "
     "renew the registry's certificate"),
    ("image-registry-unreachable", r"no such host|server misbehaving|in name resolution",
     "DNS has no answer for the name {host}, the registry of the image {image}.",
     "correct the registry's name in the image; if it is right, the node's DNS is not: on the "
     "node, nslookup {host}"),
    ("image-registry-unreachable",
     r"dial tcp|i/o timeout|connection refused|connection reset|TLS handshake"
     r"|context deadline exceeded|network is unreachable|no route to host|EOF"
     r"|failed to do request|50[0234] ",
     "The registry {host} of the image {image} cannot be reached from the node.",
     "check the registry's name in the image; from the node: nslookup {host}; nodes in private "
     "subnets need a NAT gateway or VPC endpoints for ECR and S3"),
]  # fmt: skip


def image_trouble(view: View, pod: Json, status: Json) -> Cause:
    """Why a container's image is not there.

    Args:
        view: The snapshot.
        pod: The pod.
        status: The container's status, which waits for one of `IMAGE_REASONS`.
    """
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, message = str(waiting.get("reason")), str(waiting.get("message") or "")
    image = image_of(pod, status)
    said = _fullest(view, pod, image, message)
    quoted = said or message or reason
    if reason == "InvalidImageName":
        return _cause(
            "image-name-invalid", image, pod, quoted,
            f"The name of the image {image!r} is not one: an image name is lower case, with one "
            "tag after a colon.", "correct image: in the manifest")  # fmt: skip
    if reason == "ErrImageNeverPull":
        return _cause(
            "image-never-pulled",
            image,
            pod,
            quoted,
            f"The image {image} is not on the node, and imagePullPolicy: Never forbids pulling it.",
            "load it onto the node (kind load docker-image), or set imagePullPolicy: IfNotPresent",
        )
    if reason == "SignatureValidationFailed":
        return _cause("image-signature", image, pod, quoted,
                      f"The image {image} is not signed as the cluster's policy asks.",
                      "use an image that is signed, or ask who runs the policy")  # fmt: skip
    for rule, words, text, fix in _PULLS:
        # A registry that was not reached has said nothing about the image.
        unreached = re.search(r"no such host|dial tcp|failed to do request|TLS handshake", said)
        if rule in ("image-unauthorized", "image-not-found") and unreached:
            continue
        if re.search(words, said.replace(image, ""), re.IGNORECASE):
            host = _host(said, image)
            words_of = {"image": image, "host": host, "arch": _processor(view, pod)}
            key = host if rule.startswith("image-registry-") else image
            found = _cause(rule, key, pod, quoted, text.format(**words_of),
                           fix.format(**words_of))  # fmt: skip
            return _without_secret(view, pod, found) if rule == "image-unauthorized" else found
    return _cause("image-pull", image, pod, quoted, f"The image {image} cannot be pulled.",
                  f"kubectl describe pod {pod['metadata']['name']} has the runtime's words; try "
                  f"crictl pull {image} on the node")  # fmt: skip


def _without_secret(view: View, pod: Json, found: Cause) -> Cause:
    """The same, when the kubelet says that the pod's pull secret is not there."""
    events = view.events(pod, "FailedToRetrieveImagePullSecret")
    if not events:
        return found
    message = str(events[-1].get("message") or "")
    names = re.search(r"\(([^)]+)\)", message)
    secrets = [n.strip() for n in names[1].split(",")] if names else []
    found.cause += f" The pod's pull secret {', '.join(secrets)} is not there, or holds no key."
    found.fix = (
        f"kubectl create secret docker-registry {' '.join(secrets[:1])} in the pod's namespace, or "
        "correct imagePullSecrets; then the next try succeeds"
    )
    found.evidence.append(message)
    found.objects += [f"Secret/{name}" for name in secrets]
    return found


def _processor(view: View, pod: Json) -> str:
    """The architecture of a pod's node, or both when nobody tells."""
    node = view.find("Node", (pod.get("spec") or {}).get("nodeName")) or {}
    found = ((node.get("status") or {}).get("nodeInfo") or {}).get("architecture")
    return str(found or "arm64 against amd64")


def image_of(pod: Json, status: Json) -> str:
    """The image that a container asks for, as its spec names it."""
    spec = pod.get("spec") or {}
    for each in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        if each.get("name") == status.get("name") and each.get("image"):
            return str(each["image"])
    return str(status.get("image") or "")


def _fullest(view: View, pod: Json, image: str, message: str) -> str:
    """The runtime's own words: the waiting message often has them, else the last Failed event."""
    if re.search(r"rpc error|failed to|reading manifest|denied|not found", message):
        return message
    events = [
        str(event.get("message") or "")
        for event in view.events(pod, "Failed", "FailedPull", "InspectFailed", "ErrImageNeverPull")
    ]
    about = [text for text in events if image in text and not text.startswith("Error: ")]
    return about[-1] if about else message


def _host(said: str, image: str) -> str:
    lookup = re.search(r"lookup ([\w.-]+)", said)
    if lookup:
        return lookup[1]
    url = _HOST.search(said)
    if url and url[1]:
        return url[1]
    first = image.split("/")[0]
    return first if "." in first or ":" in first else "docker.io"


def _cause(rule: str, key: str, pod: Json, quoted: str, text: str, fix: str) -> Cause:
    return Cause(rule, key, text, [quoted], fix, Lesson.VLLM_WHEN, [ref(pod)], Depth.IMAGE)
