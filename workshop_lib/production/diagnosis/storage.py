"""Claims without a volume, and volumes that are lost.

Events of the volume controller and of CSI's provisioner: `ProvisioningFailed`, `FailedBinding`,
`WaitForFirstConsumer`, `WaitForPodScheduled`, `ExternalProvisioning`, `Provisioning`,
`VolumeMismatch`, `ClaimLost`, `ClaimMisbound` (pkg/controller/volume/events).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.scheduling import claim_names
from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["storage_causes"]

_PROVISIONER_S = 45.0


def storage_causes(view: View, notes: list[str]) -> Iterator[Cause]:
    """Why claims are not bound, with the pods that mount them."""
    users: dict[str, list[str]] = {}
    for pod in view.pods:
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            for name in claim_names(pod):
                users.setdefault(name, []).append(ref(pod))
    for claim in view.items("persistentvolumeclaims"):
        pods = users.get(claim["metadata"]["name"], [])
        phase = (claim.get("status") or {}).get("phase")
        if phase == "Lost":
            yield _lost(view, claim, pods)
        elif phase == "Pending" and (cause := _pending(view, claim, pods, notes)):
            yield cause


def _cause(rule: str, claim: Json, pods: list[str], quoted: str, text: str, fix: str,
           key: str = "") -> Cause:  # fmt: skip
    return Cause(rule, key or ref(claim), text, [quoted], fix, Lesson.WHEN, [ref(claim), *pods],
                 Depth.STORAGE)  # fmt: skip


def _lost(view: View, claim: Json, pods: list[str]) -> Cause:
    events = view.events(claim, "ClaimLost", "ClaimMisbound")
    volume = str((claim.get("spec") or {}).get("volumeName") or "its volume")
    return _cause(
        "volume-lost", claim, pods, str(events[-1].get("message")) if events else "Lost",
        f"The claim {claim['metadata']['name']!r} has lost its volume {volume}: somebody deleted "
        "the PersistentVolume, and the data went with it unless it was retained.",
        f"kubectl delete pvc {claim['metadata']['name']}, apply it again, and fill it anew",
    )  # fmt: skip


def _pending(view: View, claim: Json, pods: list[str], notes: list[str]) -> Cause | None:
    name, spec = claim["metadata"]["name"], claim.get("spec") or {}
    wanted = spec.get("storageClassName")
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage", "")
    modes = "/".join(spec.get("accessModes") or [])
    events = view.events(claim)
    failed = [e for e in events if e.get("reason") in ("ProvisioningFailed", "FailedBinding",
                                                       "VolumeMismatch")]  # fmt: skip
    message = str(failed[-1].get("message") or "") if failed else ""
    if found := re.search(r'storageclass\S* "([^"]+)" not found', message):
        return _class_missing(view, claim, pods, message, found[1])
    if (
        wanted
        and not failed
        and view.knows("storageclasses")
        and view.items("storageclasses")
        and (view.find("StorageClass", wanted) is None)
    ):
        return _class_missing(view, claim, pods, wanted, wanted)
    if "no storage class is set" in message:
        return _cause(
            "no-default-storage-class", claim, pods, message,
            f"The claim {name!r} names no storage class, the cluster has no default one, and no "
            f"volume that was made by hand fits it ({size}, {modes}).",
            "name one: storageClassName (kubectl get storageclass lists them), or mark one as the "
            "default: kubectl annotate storageclass <name> "
            "storageclass.kubernetes.io/is-default-class=true",
        )  # fmt: skip
    if failed and failed[-1].get("reason") == "VolumeMismatch":
        return _cause(
            "volume-mismatch", claim, pods, message,
            f"The claim {name!r} names the volume {spec.get('volumeName') or '?'}, which does not "
            "fit it in size, access mode or class.",
            "make size, accessModes and storageClassName of claim and volume agree",
        )  # fmt: skip
    if message:
        return _provisioning(claim, pods, message, name, modes)
    waiting = [e for e in events if e.get("reason") in ("WaitForFirstConsumer",
                                                        "WaitForPodScheduled")]  # fmt: skip
    external = [e for e in events if e.get("reason") == "ExternalProvisioning"]
    working = [e for e in events if e.get("reason") == "Provisioning"]
    age_s = view.age_s(claim["metadata"].get("creationTimestamp"))
    if working and age_s < 600:
        notes.append(f"{ref(claim)}: its volume is being made")
        return None
    if external and age_s > _PROVISIONER_S and not working:
        said = str(external[-1].get("message") or "")
        found = re.search(r"(?:provisioner|by the external provisioner) ['\"]([\w.-]+)['\"]", said)
        driver = found[1] if found else "the class's driver"
        return _cause(
            "provisioner-missing", claim, pods, said,
            f"The claim {name!r} waits for {driver} to make its volume, and nobody does: that "
            "driver is not installed, or does not run.",
            "kubectl get pods -A | grep csi; install the driver (EKS add-ons: aws-ebs-csi-driver, "
            "aws-efs-csi-driver, aws-fsx-csi-driver)", key=driver,
        )  # fmt: skip
    if waiting or age_s < _PROVISIONER_S:
        if not pods:
            notes.append(f"{ref(claim)}: has no volume until a pod mounts it, as its class says")
        return None  # the volume is made where the pod goes: the pod says what is wrong
    if spec.get("volumeName"):
        return _cause(
            "volume-mismatch", claim, pods, str(spec["volumeName"]),
            f"The claim {name!r} is meant for the volume {spec['volumeName']}, which is not there, "
            "or belongs to another claim.",
            f"kubectl get pv {spec['volumeName']}; clear its claimRef, or take volumeName out",
        )  # fmt: skip
    return Cause(
        "unknown", ref(claim), f"The claim {name!r} has no volume, and nothing says why.",
        ["Pending"], f"kubectl describe pvc {name}; does its class {wanted or '(none)'} exist, and "
        "does its driver run?", Lesson.WHEN, [ref(claim), *pods], Depth.UNKNOWN,
    )  # fmt: skip


def _class_missing(view: View, claim: Json, pods: list[str], quoted: str, wanted: str) -> Cause:
    known = [c["metadata"]["name"] for c in view.items("storageclasses")]
    there = f"; there are: {', '.join(known)}" if known else ""
    return _cause(
        "storage-class-missing", claim, pods, quoted,
        f"The claim {claim['metadata']['name']!r} asks for the storage class {wanted!r}, and the "
        f"cluster has none of that name{there}; so it gets no volume, and the pods that mount it "
        "stay Pending.",
        f"kubectl get storageclass; make {wanted!r} (cluster.apply('storage') or the file system's "
        "driver brings it), or name one that exists: delete the claim first, its class cannot be "
        "changed", key=wanted,
    )  # fmt: skip


def _provisioning(claim: Json, pods: list[str], message: str, name: str, modes: str) -> Cause:
    table = [
        ("volume-access-mode",
         r"access ?mode|MULTI_NODE|ReadWriteMany|Only AccessModes|not supported.*mode",
         f"The class of the claim {name!r} cannot make volumes with the access mode {modes}: a "
         "disk is for one node (ReadWriteOnce), only a file system is for many.",
         "use a class of FSx, EFS or NFS for ReadWriteMany, or ask for ReadWriteOnce"),
        ("volume-forbidden", r"UnauthorizedOperation|AccessDenied|not authorized|403|credentials",
         f"The driver may not make the volume for the claim {name!r}: its IAM role may not.",
         "give the driver's service account its policy (Pod Identity), then wait for the next try"),
        ("volume-quota", r"Quota|LimitExceeded|limit exceeded|Insufficient|capacity|out of range"
         r"|InvalidParameter.*size|must be",
         f"The storage does not give a volume of the size that the claim {name!r} asks for: a "
         "quota, a limit, or a size that this kind does not have.",
         "ask for another size (FSx for Lustre: 1200Gi, 2400Gi, ...), or raise the quota in AWS"),
    ]  # fmt: skip
    for rule, words, text, fix in table:
        if re.search(words, message):
            return _cause(rule, claim, pods, message, text, fix)
    return _cause(
        "provisioning-failed", claim, pods, message,
        f"No volume could be made for the claim {name!r}; the driver says why.",
        f"mend what the message says; kubectl describe pvc {name}; kubectl describe storageclass",
    )  # fmt: skip
