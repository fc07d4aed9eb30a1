"""Applying objects: all checked on the server first, then made in order, then told.

1. Every object is looked up: is it there, is it ours, whose component is it.
2. Every object is sent as a dry run; a refusal of one changes nothing.
3. They are applied in order. Server-side apply can be sent twice without harm, so a lost
   connection is answered by sending again; if the server stays away, the error says what
   was applied, what was not, and what is in doubt.
"""

from __future__ import annotations

import base64
import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.cluster.kube import CLAIM, COMPONENT, LABELS, Json, key_of
from workshop_lib.cluster.kubernetes.answers import Answer
from workshop_lib.cluster.kubernetes.api import FIELD_MANAGER, Api, Lost
from workshop_lib.cluster.kubernetes.resources import OPERATORS, Resource, resource_of
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import (
    ClusterError,
    ConflictError,
    ManifestError,
    NotFoundError,
    WorkshopError,
)

__all__ = ["Applier", "prepared"]

GENERATE = "workshop.techpulse/generate"
"""Annotation of a Secret: the key that apply fills with a random value, once."""

MADE_BY_KUBERNETES = "ServiceAccount/default"
"""In every namespace from its first moment: to set its fields takes it from nobody."""

FIXED = {"Job": "a Job's pods", CLAIM: "a volume", "Deployment": "a Deployment's selector"}


def prepared(component: str, objects: Sequence[Object], namespace: str) -> list[dict[str, Any]]:
    """The objects as they are sent: with the workshop's labels, in the namespace.

    Pods carry the labels too, so that `kubectl logs -l` and a NetworkPolicy find them. A
    Namespace among the objects is this one.
    """
    bodies = []
    for item in objects:
        body = copy.deepcopy(item.body)
        resource = resource_of(body)
        metadata = body["metadata"]
        if resource.namespaced and metadata.setdefault("namespace", namespace) != namespace:
            raise item.error(f"it names the namespace {metadata['namespace']!r}, not yours")
        if resource.kind == "Namespace":
            metadata["name"] = namespace
        for each in (body, *_pod_templates(body)):
            metadata = each["metadata"] = each.get("metadata") or {}
            own = metadata.get("labels") or {}
            metadata["labels"] = {**own, **LABELS, COMPONENT: component}
        bodies.append(body)
    return bodies


def _pod_templates(body: dict[str, Any]) -> list[dict[str, Any]]:
    """An object's pod templates, whichever kind it is; one that is missing is refused later."""
    spec = body.get("spec") or {}
    groups = [spec]
    if body["kind"] in ("RayCluster", "RayService"):
        cluster = spec.get("rayClusterConfig") or spec
        groups = [cluster.get("headGroupSpec"), *(cluster.get("workerGroupSpecs") or [])]
    templates = [(group or {}).get("template") for group in groups]
    return [template for template in templates if isinstance(template, dict)]


def _action(before: Json | None, after: Json, body: Json) -> str:
    """What an apply did.

    Versions and times do not tell: controllers write to the same objects meanwhile. What
    counts are the fields that we set (`body`), and the set of fields that are ours.
    """
    if before is None:
        return "created"
    ours = _managed(before)  # a Secret that was made, not applied, has no such note yet
    if ours is not None and ours != _managed(after):
        return "configured"
    return "unchanged" if _picked(before, body) == _picked(after, body) else "configured"


def _managed(body: Json) -> Any:
    """The fields that are ours, as the server notes them."""
    for entry in body["metadata"].get("managedFields") or []:
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            return entry.get("fieldsV1")
    return None


def _picked(body: Any, like: Any) -> Any:
    """The part of an object that another one has too."""
    if isinstance(like, Mapping) and isinstance(body, Mapping):
        return {key: _picked(body.get(key), value) for key, value in like.items()}
    return body


@dataclass
class _Step:
    """One object on its way."""

    body: dict[str, Any]
    resource: Resource
    before: dict[str, Any] | None = None
    generated: bool = False
    done: str = ""

    @property
    def key(self) -> str:
        return key_of(self.body)


@dataclass
class Applier:
    """Applies one component; `force`: takes fields over that another manager has set."""

    api: Api
    namespace: str
    component: str
    force: bool = False
    _steps: list[_Step] = field(default_factory=list)

    def apply(self, bodies: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Make the cluster match what `prepared` returned; what was done, by `Kind/name`."""
        self._steps = [_Step(body, resource_of(body)) for body in bodies]
        for step in self._steps:
            self._look(step)
        new = [s for s in self._steps if s.resource.kind == "Namespace" and s.before is None]
        # Nothing can be tried out in a namespace that is not there yet.
        first = [step for step in self._steps if not new or not step.resource.namespaced]
        self._dry_run(first)
        for step in first if new else []:
            self._make(step)
        self._dry_run([step for step in self._steps if step not in first])
        for step in self._steps:
            if not step.done:
                self._make(step)
        return {step.key: step.done for step in self._steps}

    # -- looking --------------------------------------------------------------------------------

    def _look(self, step: _Step) -> None:
        """What is there already, and whether it may be ours."""
        before = step.before = self.api.get(
            step.resource, self.namespace, step.body["metadata"]["name"]
        )
        if before is not None:
            self._check_owner(step, before)
        key = (step.body["metadata"].get("annotations") or {}).get(GENERATE)
        if step.resource.kind == "Secret" and key:
            # A random value, or the one that it has: never another one.
            data = (before or {}).get("data") or {}
            step.generated = key not in data
            value = base64.b64encode(secrets.token_hex(32).encode()).decode()
            step.body["data"] = {**(step.body.get("data") or {}), key: data.get(key, value)}
            if before is not None and step.generated:  # refused if somebody fills it meanwhile
                version = before["metadata"]["resourceVersion"]
                step.body["metadata"]["resourceVersion"] = version

    def _check_owner(self, step: _Step, before: Json) -> None:
        labels = before["metadata"].get("labels") or {}
        if step.key == MADE_BY_KUBERNETES and not labels:
            return
        if not labels.items() >= LABELS.items():
            raise ConflictError(
                f"{step.key} is there already in namespace {self.namespace!r}, and it is not the "
                "workshop's; use another namespace, or remove it if you know that it is yours"
            )
        if before["metadata"].get("deletionTimestamp"):
            if step.resource.kind == "Namespace":
                raise self._ending()
            raise ConflictError(
                f"{step.key} is still being deleted; wait for its end with "
                f"cluster.delete({self.component!r}), then apply again"
            )
        owner = labels.get(COMPONENT)
        if step.resource.kind == CLAIM:
            # Several components may use one volume; it stays with the one that made it.
            step.body["metadata"]["labels"][COMPONENT] = owner
        elif owner != self.component:
            raise ClusterError(
                f"{step.key} belongs to component {owner!r} already; "
                f"first cluster.delete({owner!r})"
            )

    # -- changing -------------------------------------------------------------------------------

    def _dry_run(self, steps: Sequence[_Step]) -> None:
        refused: list[WorkshopError] = []
        for step in steps:
            answer = self._send(step, dry_run=True)
            if not answer.ok:
                refused.append(self._refusal(step, answer))
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise type(refused[0])(f"{refused[0]}{more}; {self._so_far()}")

    def _send(self, step: _Step, *, dry_run: bool) -> Answer:
        if step.generated and step.before is None:
            # Create, not apply: two kernels at once must not overwrite each other's value.
            return self.api.create(step.resource, self.namespace, step.body, dry_run=dry_run)
        answer = self.api.apply(
            step.resource, self.namespace, step.body, dry_run=dry_run, force=self.force
        )
        if answer.status == 409 and _is_operators(answer, step.resource):
            answer = self.api.apply(
                step.resource, self.namespace, step.body, dry_run=dry_run, force=True
            )
        return answer

    def _make(self, step: _Step) -> None:
        before = step.before
        try:
            answer = self._send(step, dry_run=False)
            if answer.status == 409 and step.generated:
                # Made at the same moment, or made by us before the answer was lost: the value
                # that is there stays.
                self._look(step)
                answer = self._send(step, dry_run=False)
        except Lost as error:
            raise Lost(f"{error}; {self._so_far(in_doubt=step)}") from None
        if not answer.ok:
            refusal = self._refusal(step, answer)
            raise type(refusal)(f"{refusal}; {self._so_far()}")
        step.done = _action(before, answer.json(), step.body)

    def _so_far(self, in_doubt: _Step | None = None) -> str:
        """What was changed before an error, so that nobody has to guess."""
        changed = [f"{s.key} {s.done}" for s in self._steps if s.done not in ("", "unchanged")]
        doubt = f"in doubt: {in_doubt.key}; " if in_doubt else ""
        if not changed and not in_doubt:
            return "nothing was changed"
        again = f"cluster.apply({self.component!r}) again is safe and completes it"
        return f"changed before: {', '.join(changed) or 'nothing'}; {doubt}{again}"

    # -- saying why not -------------------------------------------------------------------------

    def _refusal(self, step: _Step, answer: Answer) -> WorkshopError:
        """The error of a refused step, with what the workshop knows about it."""
        kind = step.resource.kind
        conflicts = [c for c in answer.causes if c.get("reason") == "FieldManagerConflict"]
        if conflicts:
            found = [f"{c['field']} ({c['message']})" for c in conflicts]
            return ConflictError(
                f"{step.key}: somebody else has set {', '.join(found)}; leave it to them, or take "
                f"it over with cluster.apply({self.component!r}, force=True)"
            )
        if step.before is not None and (fields := answer.fixed_fields):
            room = f"cluster.delete({self.component!r})"
            if kind == CLAIM:
                name, owner = (step.body["metadata"][key] for key in ("name", "labels"))
                room = f"cluster.delete({owner[COMPONENT]!r}, claims=[{name!r}])"
                room += ", and its data goes with it"
            return ClusterError(
                f"{step.key}: {FIXED.get(kind, 'this field')} cannot change while it exists "
                f"({', '.join(fields)}); first {room}"
            )
        if answer.status == 404 and f'namespaces "{self.namespace}" not found' in answer.message:
            return NotFoundError(
                f"the namespace {self.namespace!r} is not there; an administrator makes it "
                "with cluster.apply('namespace'), which also limits and guards it, or with: "
                f"kubectl create namespace {self.namespace}"
            )
        if any(cause.get("reason") == "NamespaceTerminating" for cause in answer.causes):
            return self._ending()
        try:
            self.api.checked(answer, step.key, step.resource)
        except ManifestError as error:
            return ManifestError(f"{error} (manifests/overlays/*/{self.component})")
        except WorkshopError as error:
            return error
        raise AssertionError("a refusal is no success")

    def _ending(self) -> ClusterError:
        return ConflictError(
            f"the namespace {self.namespace!r} is being deleted, and takes nothing new; apply "
            f"again when it is gone (kubectl get namespace {self.namespace}), or use another"
        )


def _is_operators(answer: Answer, resource: Resource) -> bool:
    """Whether an object's fields are held by nobody but its kind's own operator.

    KubeRay writes whole objects (to add its finalizer), and so comes to own the lists that it
    filled with defaults. What a person has set since is the person's.
    """
    if resource.group not in OPERATORS or not answer.causes:
        return False
    own = f'conflict with "{OPERATORS[resource.group][1]}"'
    return all(
        cause.get("reason") == "FieldManagerConflict" and str(cause.get("message")).startswith(own)
        for cause in answer.causes
    )
