"""Containers that cannot be made: configuration, volumes, sandbox, command.

Reasons of the kubelet: `CreateContainerConfigError`, `CreateContainerError`,
`RunContainerError` (pkg/kubelet/kuberuntime), events `FailedMount`, `FailedAttachVolume`,
`FailedMapVolume`, `FailedCreatePodSandBox`, `NetworkNotReady`.
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, event_time, ref

__all__ = ["config_map_missing", "config_trouble", "hook_trouble", "mount_trouble",
           "start_trouble"]  # fmt: skip

_MISSING = re.compile(r'(configmap|secret) "([^"]+)" not found', re.IGNORECASE)
_KEY = re.compile(r"couldn't find key (\S+) in (ConfigMap|Secret) (\S+)")
_UNREFERENCED = re.compile(r"references non-existent (?:secret|config) key: (\S+)")
_SYNC = re.compile(r"failed to sync (configmap|secret) cache")
_VOLUME = re.compile(r'MountVolume\.\w+ failed for volume "([^"]+)"|volume "([^"]+)"')


def _cause(rule: str, key: str, pod: Json, quoted: str, text: str, fix: str,
           lesson: str = Lesson.WHEN, first: tuple[str, ...] = (),
           waits_for: set[str] | None = None) -> Cause:  # fmt: skip
    return Cause(rule, key, text, [quoted], fix, lesson, [*first, ref(pod)], Depth.SETUP,
                 waits_for=waits_for or set())  # fmt: skip


def missing_object(pod: Json, message: str, quoted: str = "") -> Cause | None:
    """A ConfigMap, Secret or key that is named and not there, whoever says so."""
    quoted = quoted or message
    if found := _KEY.search(message):
        kind, name = found[2], found[3].rpartition("/")[2].rstrip(".,:")
        return _cause(
            f"{kind.lower()}-key-missing", f"{name}/{found[1]}", pod, quoted,
            f"The pod wants the key {found[1]!r} of the {kind} {name!r}, and it has no such key.",
            f"kubectl describe {kind.lower()} {name} lists the keys; correct the key in the pod's "
            f"spec, or add it to the {kind}", first=(f"{kind}/{name}",))  # fmt: skip
    if found := _MISSING.search(message):
        kind = {"configmap": "ConfigMap", "secret": "Secret"}[found[1].lower()]
        name = found[2].rpartition("/")[2]
        return _cause(
            f"{kind.lower()}-missing", name, pod, quoted,
            f"The pod needs the {kind} {name!r}, and there is none of that name in its namespace.",
            f"kubectl get {kind.lower()}s shows which there are; create it, or correct the name in "
            "the pod's spec", first=(f"{kind}/{name}",))  # fmt: skip
    if found := _UNREFERENCED.search(message):
        return _cause(
            "volume-key-missing", found[1], pod, quoted,
            f"A volume of the pod names the key {found[1]!r} of a ConfigMap or Secret, and it has "
            "no such key.",
            "compare the volume's items with kubectl describe configmap or secret")  # fmt: skip
    return None


def config_trouble(pod: Json, status: Json) -> Cause | None:
    """Why a container cannot be configured (CreateContainerConfigError)."""
    waiting = (status.get("state") or {}).get("waiting") or {}
    message = str(waiting.get("message") or waiting.get("reason"))
    if found := missing_object(pod, message):
        return found
    name = str(status.get("name"))
    if _SYNC.search(message):
        return None  # the kubelet was not up to date yet, and tries again
    if claim := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return Cause("pvc-missing", claim[1],
                     f"The pod mounts the claim {claim[1]!r}, and there is none of that name.",
                     [message], "apply the claim first: cluster.apply('storage')", Lesson.WHEN,
                     [f"PersistentVolumeClaim/{claim[1]}", ref(pod)], Depth.STORAGE)  # fmt: skip
    if re.search(r"runAsNonRoot|will run as root|non-numeric user", message):
        return _cause(
            "runs-as-root",
            name,
            pod,
            message,
            f"The pod must not run as root (runAsNonRoot), and the image of container {name} "
            "starts as root or as a user that is only a name.",
            "set securityContext.runAsUser to a number other than 0 (the workshop's images: 1000)",
        )
    if re.search(r"subPath|no such file or directory|is not a directory", message):
        return _cause(
            "volume-path", name + message, pod, message,
            f"A path that container {name} mounts (a subPath, or a hostPath) is not there: "
            f"{message[:200]}", "compare volumeMounts.subPath and the volume's path with what is "
            "in the volume (on the node for hostPath); make the folder first, or correct the path",
        )  # fmt: skip
    return _cause(
        "container-config",
        name + message,
        pod,
        message,
        f"The container {name} cannot be configured: something that its spec names is "
        "missing or not allowed.",
        "correct what the message names in the pod's spec",
    )


# Rule, words, what it means, what mends it: for a container that could not be started.
_STARTS: list[tuple[str, str, str, str]] = [
    ("image-platform", r"exec format error",
     "The program of container {name} is built for another processor than the node's (arm64 "
     "against amd64).",
     "build the image for the node's processor, or set nodeSelector: {{kubernetes.io/arch: ...}}"),
    ("command-not-found", r'exec: "[^"]+": is a directory',
     "The command of container {name} is a folder, and no program: {program}.",
     "name the program in command: in the manifest"),
    ("workdir-or-mount", r"chdir to cwd|error mounting|mkdir .*read-only",
     "A mount or the working folder of container {name} cannot be set up.",
     "compare volumeMounts (mountPath, subPath) and workingDir with what is in the image: a file "
     "cannot be mounted over a folder"),
    ("command-not-found", r"executable file not found|no such file or directory",
     "The command of container {name} does not exist in its image: {program}.",
     "correct command: in the manifest (a path, or the image's own entrypoint); look: kubectl "
     "debug, or docker run --rm -it --entrypoint sh <image>"),
    ("command-not-allowed", r"permission denied",
     "The command of container {name} may not be executed: {program}.",
     "chmod +x it in the image, or start it through its interpreter: command: [bash, script.sh]; "
     "a file from a ConfigMap needs defaultMode: 0755"),
    ("gpu-driver", r"nvidia-container-cli|libcuda|nvml|CDI device|cdi",
     "The GPU cannot be given to container {name}: the node's driver or container toolkit is "
     "missing, too old for the image's CUDA, or broken.",
     "on the node: nvidia-smi; use EKS's accelerated AMI, restart the NVIDIA device plugin, or an "
     "image for an older CUDA"),
    ("memory-limit-tiny", r"memory limit too low|cgroup.*memory|OOM-killed.*init",
     "The memory limit of container {name} is too small even to start it.",
     "raise resources.limits.memory"),
    ("workdir-or-mount", r"not a directory|mount",
     "A mount or the working folder of container {name} cannot be set up.",
     "compare volumeMounts (mountPath, subPath) and workingDir with what is in the image: a file "
     "cannot be mounted over a folder"),
    ("container-name-conflict", r"failed to reserve container name|name .* is reserved",
     "The container runtime is still busy with an earlier try to make container {name}; the node "
     "is slow or its disk overloaded.",
     "wait; if it stays, look at the node's load and disk, or delete the pod"),
    ("container-start-timeout", r"context deadline exceeded",
     "The container runtime did not make container {name} in time: the node is overloaded.",
     "look at the node's load and disk: kubectl describe node; large images on slow disks do this"),
]  # fmt: skip


def hook_trouble(view: View, pod: Json, status: Json) -> Cause | None:
    """The postStart hook for which a container was stopped; None when there was none."""
    name = str(status.get("name"))
    for event in reversed(view.events(pod, "FailedPostStartHook")):
        field = str((event.get("involvedObject") or {}).get("fieldPath") or "")
        if field and f"{{{name}}}" not in field:
            continue
        return _cause(
            "post-start-hook", f"{view.top(pod)}/{name}", pod, str(event.get("message") or ""),
            f"The postStart hook of container {name} fails, and Kubernetes stops the container for "
            "it, again and again.",
            "run its command by hand (kubectl exec), correct lifecycle.postStart, or do the work "
            "in the container's own script or in an init container",
        )  # fmt: skip
    return None


def config_map_missing(view: View, pod: Json) -> Cause | None:
    """A ConfigMap that a volume of the pod names and the namespace lacks, when no event says so.

    Events are kept for an hour. Only asked of a whole list: one with the ConfigMap that
    Kubernetes itself puts into every namespace.
    """
    if view.find("ConfigMap", "kube-root-ca.crt") is None:
        return None
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        source = volume.get("configMap") or {}
        name = source.get("name")
        if name and not source.get("optional") and view.find("ConfigMap", name) is None:
            return missing_object(pod, f'configmap "{name}" not found', quoted=name)
    return None


def start_trouble(view: View, pod: Json, status: Json, message: str) -> Cause:
    """Why a container could not be made or started, from the runtime's words."""
    if found := missing_object(pod, message):
        return found
    if hook := hook_trouble(view, pod, status):
        return hook
    if not message:
        events = view.events(pod, "Failed")
        message = str(events[-1].get("message") or "") if events else ""
    name = str(status.get("name"))
    program = re.search(r'exec: "([^"]+)"', message)
    for rule, words, text, fix in _STARTS:
        if re.search(words, message, re.IGNORECASE):
            shown = program[1] if program else "see the message"
            return _cause(rule, f"{view.top(pod)}/{name}", pod, message,
                          text.format(name=name, program=shown), fix.format())  # fmt: skip
    return _cause(
        "container-start",
        f"{view.top(pod)}/{name}",
        pod,
        message or name,
        f"The container runtime cannot start container {name}"
        + (f": {message[-200:]}" if message else "."),
        f"kubectl describe pod {pod['metadata']['name']} has the runtime's words",
    )


# Rule, words, what it means, what mends it: for volumes and sandboxes.
_MOUNTS: list[tuple[str, str, str, str]] = [
    ("volume-multi-attach", r"Multi-Attach error",
     "The volume {volume} can be on one node at a time (ReadWriteOnce), and another node still has "
     "it: the pod that used it runs, or its node is lost.",
     "delete the other pod (kubectl get pods -o wide), or use a file system for many nodes "
     "(ReadWriteMany: FSx, EFS)"),
    ("csi-driver-missing",
     r"driver name \S+ not found in the list of registered CSI drivers|"
     r"CSINode .* does not contain driver|no volume plugin matched|driver .* is not installed",
     "The driver for the volume {volume} does not run on the node.",
     "kubectl get csidrivers,csinodes; install the driver (EKS add-ons: aws-ebs-csi-driver, "
     "aws-efs-csi-driver, aws-fsx-csi-driver, aws-mountpoint-s3-csi-driver)"),
    ("volume-forbidden", r"AccessDenied|UnauthorizedOperation|not authorized|permission denied"
     r"|Forbidden|No AWSAccessKey|credentials",
     "The volume {volume} may not be mounted: the driver or the pod has no right to it.",
     "check the driver's IAM role (Pod Identity or IRSA), and that bucket or file system's policy"),
    ("volume-filesystem", r"wrong fs type|bad superblock|fsck|bad option",
     "The volume {volume} cannot be mounted as the file system that is asked for.",
     "check fsType and mountOptions in the storage class, and that the node has the client "
     "(lustre, nfs-utils)"),
    ("volume-unreachable", r"timed out|timeout|Connection refused|No route to host|DeadlineExceeded"
     r"|deadline exceeded|Failed to resolve|lookup \S+",
     "The storage behind the volume {volume} does not answer from this node.",
     "check that the security group of the file system lets the nodes in (EFS: 2049; FSx for "
     "Lustre: 988 and 1018-1023), and that it has a mount target in the node's zone"),
    ("volume-missing", r"hostPath type check failed|not found|does not exist|no such file",
     "What the volume {volume} points at does not exist{path}.",
     "correct the path or name in the pod's volumes (subPath and hostPath too)"),
    ("volume-attach", r"AttachVolume\.Attach failed|FailedAttachVolume",
     "The volume {volume} cannot be attached to the pod's node.",
     "the message says why; kubectl get volumeattachments, aws ec2 describe-volumes: is it there, "
     "in the node's zone, and on no other machine?"),
]  # fmt: skip

_SANDBOX: list[tuple[str, str, str, str]] = [
    ("pod-no-address", r"failed to assign an IP address|no (?:free|available) IP|InsufficientFree"
     r"|IP addresses? available|range is full",
     "The node has no address left for the pod: its subnet or its network interfaces are full.",
     "use larger subnets, prefix delegation in the VPC CNI, or fewer pods a node"),
    ("network-plugin", r"cni|network plugin|NetworkPlugin|NetworkReady|network is not ready",
     "The node's network plugin (CNI) cannot give the pod a network.",
     "look at the CNI's pods on that node: kubectl get pods -n kube-system -o wide; restart or "
     "repair them (EKS: aws-node)"),
    ("runtime-class", r"no runtime for|RuntimeHandler|runtime handler|unknown runtime",
     "The pod asks for a runtime class that the node does not have.",
     "kubectl get runtimeclasses; take runtimeClassName out, or install the NVIDIA toolkit there"),
]  # fmt: skip


def mount_trouble(view: View, pod: Json) -> Cause | None:
    """Why a pod that has a node does not get as far as its containers, from its events."""
    kinds = ("FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox",
             "NetworkNotReady", "FailedCreatePodContainer", "FailedPrepareDynamicResources",
             "FailedToUpdateEndpoint")  # fmt: skip
    events = [e for e in view.events(pod, *kinds) if not _SYNC.search(str(e.get("message")))]
    if not events:
        return None
    # "Unable to attach or mount volumes ... timed out" only sums up what another event explains.
    telling = [e for e in events if "Unable to attach or mount" not in str(e.get("message"))]
    event = max(telling or events, key=event_time)
    message = str(event.get("message") or "")
    reason = str(event.get("reason"))
    for each in reversed(telling):
        if found := missing_object(pod, str(each.get("message"))):
            return found
    if reason in ("FailedCreatePodSandBox", "NetworkNotReady"):
        return _by_words(view, pod, message, _SANDBOX) or _cause(
            "sandbox",
            view.top(pod),
            pod,
            message,
            "The node's container runtime cannot set up the pod.",
            "read the message; look at the node (kubectl describe node) and its runtime's log",
        )
    if claim := re.search(r'persistentvolumeclaim "([^"]+)" not found', message):
        return Cause("pvc-missing", claim[1],
                     f"The pod mounts the claim {claim[1]!r}, and there is none of that name.",
                     [message], "apply the claim first: cluster.apply('storage')", Lesson.WHEN,
                     [f"PersistentVolumeClaim/{claim[1]}", ref(pod)], Depth.STORAGE)  # fmt: skip
    if account := re.search(r'serviceaccounts? "([^"]+)" not found', message):
        return _cause(
            "service-account-missing", account[1], pod, message,
            f"The pod runs as the service account {account[1]!r}, and that was deleted, or is not "
            "in its namespace.", f"kubectl create serviceaccount {account[1]}, or apply the "
            "component that brings it", first=(f"ServiceAccount/{account[1]}",),
        )  # fmt: skip
    if reason == "FailedPrepareDynamicResources":
        return _cause(
            "resource-claim-prepare", view.top(pod), pod, message,
            "The node cannot make the devices ready that the pod claims (dynamic resource "
            f"allocation): {message[-200:]}", "kubectl get pods -A -o wide shows whether the "
            "devices' DRA driver runs on that node; kubectl describe resourceclaims",
        )  # fmt: skip
    return _by_words(view, pod, message, _MOUNTS) or _cause(
        "volume-mount",
        view.top(pod),
        pod,
        message,
        "A volume of the pod cannot be mounted.",
        "read the message; kubectl describe pvc, and the log of the CSI driver's pod on that node",
    )


def _by_words(view: View, pod: Json, message: str,
              table: list[tuple[str, str, str, str]]) -> Cause | None:  # fmt: skip
    found = _VOLUME.search(message)
    volume = (found[1] or found[2]) if found else ""
    for rule, words, text, fix in table:
        if re.search(words, message, re.IGNORECASE):
            key = volume or view.top(pod)
            if rule in ("csi-driver-missing", "network-plugin", "pod-no-address"):
                key = rule
            named = re.search(r"type check failed: (\S+)", message)
            path = f" on the node: {named[1]}" if named else ""
            return _cause(rule, key, pod, message, text.format(volume=volume or "it", path=path),
                          fix)  # fmt: skip
    return None
