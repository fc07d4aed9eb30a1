"""What an API server's answer means, in a line that a learner can act on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import (
    ClusterError,
    ConflictError,
    ConnectError,
    ForbiddenError,
    ManifestError,
    NotFoundError,
    WorkshopError,
)

__all__ = ["Answer", "problem"]

_CANNOT = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" '
    r'in API group "(?P<group>[^"]*)"(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_SCHEMA = ("failed to create typed patch object", "failed to convert new object")
_DUMP = re.compile(r"^Invalid value: (?:[\[{&]|[\w.]+\{).*[\]})]: (?=.)")
"""A value as the server quotes it; of a Job it is the whole pod, thousands of characters."""
_FIXED = ("field is immutable", "is immutable after creation", "may not change once set")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read whole: its status and its body."""

    status: int
    text: str

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty one when it is none."""
        try:
            body = json.loads(self.text)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def ok(self) -> bool:
        """Whether the server did what was asked."""
        return 200 <= self.status < 300

    @property
    def message(self) -> str:
        """What the server says about it."""
        said = self.json().get("message") or self.text
        return " ".join(str(said).split())[:600] or f"HTTP {self.status} without a word"

    @property
    def causes(self) -> list[dict[str, Any]]:
        """The single reasons of a refusal."""
        return list((self.json().get("details") or {}).get("causes") or [])

    @property
    def fixed_fields(self) -> list[str]:
        """The fields that cannot change any more, when nothing else was wrong with an object."""
        fixed = [any(said in str(each.get("message")) for said in _FIXED) for each in self.causes]
        if self.status != 422 or not all(fixed):
            return []
        return sorted({str(each.get("field")) for each in self.causes})

    @property
    def is_missing_kind(self) -> bool:
        """404 because nobody serves such a path: the kind's operator is not installed."""
        return self.status == 404 and self.json().get("kind") != "Status"


def problem(answer: Answer, what: str) -> WorkshopError:
    """The error for an answer that is no success; `what` was asked, such as `Job/model`."""
    status, message = answer.status, answer.message
    # Server-side apply answers 500 to a field that the schema does not have.
    if message.startswith(_SCHEMA) or (status == 400 and "strict decoding error" in message):
        return ManifestError(f"{what}: {_schema_problem(message)}; correct the manifest")
    if status == 401:
        return ConnectError(
            f"{what}: the server does not accept the credentials ({message}), also after "
            "reading them again; log in again (EKS: aws sso login), then connect again"
        )
    if status == 403:
        return _forbidden(message, what)
    if status == 404:
        return NotFoundError(f"{what}: {message}")
    if status == 409:
        return ConflictError(f"{what}: {message}")
    if status in (400, 422):
        wrong = [
            f"{cause['field']}: {_DUMP.sub('', ' '.join(str(cause['message']).split()))}"
            for cause in answer.causes
            if cause.get("field", "<nil>") != "<nil>"  # a custom resource's rules did not look
        ]
        said = "; ".join(dict.fromkeys(wrong)) or message
        return ManifestError(f"{what}: {said}; correct the manifest or parameter")
    if status == 429:
        return ClusterError(f"{what}: the server is busy ({message}); try again in a minute")
    return ClusterError(
        f"{what}: the server answered {status}: {message}; try again, and if it "
        "stays so tell who administers the cluster"
    )


def _schema_problem(message: str) -> str:
    """The field, out of the server's sentence about its schema."""
    message = re.sub(r"&value\.valueUnstructured\{Value:(.*?)\}", r"\1", message)
    message = re.sub(r"^failed to convert new object .*Kind=\w+: ", "", message)
    said = message.partition("): ")[2] if message.startswith(_SCHEMA) else message
    path, _, why = (said or message).partition(": ")
    if why.startswith("field not declared"):
        return f"there is no field {path.lstrip('.')}"
    return (said or message).lstrip(".")


def _forbidden(message: str, what: str) -> ForbiddenError:
    found = _CANNOT.search(message)
    if found is None:  # a quota, or the namespace's Pod Security: the server explains
        return ForbiddenError(f"{what}: refused: {message}")
    verb, resource, group = found["verb"], found["resource"], found["group"]
    # Of a Namespace the server says that it lies in itself; only a ClusterRole can allow it all.
    namespace = "" if resource == "namespaces" else found["namespace"]
    where = f"namespace {namespace!r}" if namespace else "the whole cluster"
    verbs = '["patch", "create"]' if verb == "patch" else f'["{verb}"]'
    rule = f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: {verbs}}}'
    return ForbiddenError(
        f"{what}: user {found['user']!r} may not {verb} {resource} in {where}; "
        f"ask for this rule in a {'Role' if namespace else 'ClusterRole'}: {rule}"
    )
