"""Requests to the API server: objects read, applied and deleted; every refusal in a line.

Every request that the workshop sends is safe to repeat (reading, server-side apply,
deleting one object by its UID), but for `exec`. So a lost connection, 429 and 502 to 504 are
tried again with growing pauses, or when the server says (`Retry-After`); 401 is tried
once more with credentials read anew, since EKS's tokens live 15 minutes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import urllib3

from workshop_lib.cluster.kube import Json, own_pods, pod_selector
from workshop_lib.cluster.kubernetes.answers import Answer, problem
from workshop_lib.cluster.kubernetes.resources import Resource, operator_hint, resource_of_kind
from workshop_lib.errors import ConnectError, NotFoundError, OperatorError

if TYPE_CHECKING:
    from workshop_lib.cluster.kubernetes.access import Access

__all__ = ["FIELD_MANAGER", "JSON", "Api", "Lost", "in_short", "read"]

FIELD_MANAGER = "workshop"
"""The name under which the API server notes which fields are ours."""

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
LIST_LIMIT = 500
JSON, APPLY = "application/json", "application/apply-patch+yaml"

Params = Mapping[str, str | Sequence[str]]


class Lost(ConnectError):
    """The connection was lost, or never came to be: nothing is known of the request."""


class Api:
    """One API server, reached with one user's credentials; `load` reads them, again after a 401."""

    def __init__(self, load: Callable[[], Access]) -> None:
        self._load = load
        self.access = load()
        self._lock = threading.Lock()

    def login_again(self, used: Access) -> None:
        """Read the credentials again, unless another thread has done so since `used`."""
        with self._lock:
            if self.access is used:
                fresh = self._load()
                self.close()
                self.access = fresh

    def close(self) -> None:
        """Close the connections that wait for their next use; the client only forgets them."""
        manager = self.access.client.rest_client.pool_manager
        for key in manager.pools.keys():  # noqa: SIM118 (the container cannot be iterated over)
            manager.pools[key].close()
        manager.clear()

    # -- one request ----------------------------------------------------------------------------

    def open(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content_type: str | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send, and once more with fresh credentials after a 401; the body is a stream."""
        access = self.access
        url = path + (f"?{urlencode(params, doseq=True)}" if params else "")
        response = _send(access, method, url, body, content_type)
        if response.status == 401:
            response.drain_conn()
            response.release_conn()
            self.login_again(access)
            response = _send(self.access, method, url, body, content_type)
        return response

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content_type: str | None = None,
    ) -> Answer:
        """Send until there is a whole answer; any status may come back."""
        broken = ""
        for _ in range(3):
            response = self.open(method, path, params=params, body=body, content_type=content_type)
            try:
                return read(response)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                broken = in_short(error)
        raise Lost(f"{self.access.server}: its answers break off: {broken}")

    # -- objects --------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """An object, or None when it is not there."""
        answer = self.request("GET", resource.path(namespace, name))
        if answer.status == 404 and not answer.is_missing_kind:
            return None
        return self.checked(answer, f"{resource.kind}/{name}", resource)

    def workload(
        self, namespace: str, kind: str, name: str
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A workload and its pods, rank 0 or the head first; a Pod is its own."""
        body = self.get(resource_of_kind(kind), namespace, name)
        if body is None:
            raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
        if kind == "Pod":
            return body, [body]
        if (selector := pod_selector(body)) is None:
            return body, []
        return body, own_pods(body, self.list(resource_of_kind("Pod"), namespace, labels=selector))

    def list(self, resource: Resource, namespace: str, *, labels: str = "") -> list[dict[str, Any]]:
        """All objects of a kind that fit a label selector, page by page."""
        params = {"limit": str(LIST_LIMIT)} | ({"labelSelector": labels} if labels else {})
        items: list[dict[str, Any]] = []
        while True:
            answer = self.request("GET", resource.path(namespace), params=params)
            if answer.status == 410 and "continue" in params:  # the list's snapshot has expired
                del params["continue"]
                items = []
                continue
            page = self.checked(answer, f"list {resource.plural}", resource)
            # Items of a list carry no kind; readers of single objects want one.
            items += [
                {"apiVersion": resource.api_version, "kind": resource.kind, **item}
                for item in page.get("items") or []
            ]
            if not (more := (page.get("metadata") or {}).get("continue")):
                return items
            params["continue"] = more

    def apply(
        self,
        resource: Resource,
        namespace: str,
        body: Json,
        *,
        dry_run: bool = False,
        force: bool = False,
    ) -> Answer:
        """Server-side apply with strict validation; may be repeated without harm."""
        params = _strict(dry_run) | ({"force": "true"} if force else {})
        path = resource.path(namespace, body["metadata"]["name"])
        return self.request("PATCH", path, params=params, body=body, content_type=APPLY)

    def create(
        self, resource: Resource, namespace: str, body: Json, *, dry_run: bool = False
    ) -> Answer:
        """Create an object; 409 when one of that name is there already."""
        path, params = resource.path(namespace), _strict(dry_run)
        return self.request("POST", path, params=params, body=body, content_type=JSON)

    def delete(self, resource: Resource, namespace: str, body: Json) -> None:
        """Ask for an object's end: its dependents first, and only if it is still the same one."""
        metadata = body["metadata"]
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground",
                   "preconditions": {"uid": metadata["uid"]}}  # fmt: skip
        path = resource.path(namespace, metadata["name"])
        answer = self.request("DELETE", path, body=options, content_type=JSON)
        if answer.status not in (404, 409):  # gone already; 409: another one has its name now
            self.checked(answer, f"delete {resource.kind}/{metadata['name']}", resource)

    def checked(self, answer: Answer, what: str, resource: Resource) -> dict[str, Any]:
        """An answer's object; an error in the learner's words when it is no success."""
        if answer.is_missing_kind:
            raise OperatorError(
                f"{what}: the cluster knows no {resource.kind} ({resource.api_version}): "
                f"{operator_hint(resource)}"
            )
        if not answer.ok:
            raise problem(answer, what)
        return answer.json()


def _strict(dry_run: bool) -> dict[str, str]:
    params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    return params | ({"dryRun": "All"} if dry_run else {})


def _send(
    access: Access, method: str, url: str, body: Any, content_type: str | None
) -> urllib3.BaseHTTPResponse:
    from kubernetes.client.exceptions import ApiException

    headers = {"Accept": JSON, **access.headers()}
    headers |= {"Content-Type": content_type} if content_type else {}
    try:
        answer = access.client.call_api(
            method, access.server + url, header_params=headers, body=body,
            _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )  # fmt: skip
    except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
        # The official client says of a certificate: ApiException, status 0.
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.SSLError) or isinstance(error, ApiException):
            raise ConnectError(
                f"{access.server}: no trusted connection ({in_short(reason)}); is the "
                "kubeconfig's certificate-authority this cluster's?"
            ) from None
        raise Lost(
            f"{access.server} does not answer: {in_short(reason)}; is the cluster up, and a VPN?"
        ) from error
    response: urllib3.BaseHTTPResponse = answer.response
    return response


def read(response: urllib3.BaseHTTPResponse) -> Answer:
    """Read an answer whole, and give its connection back."""
    try:
        return Answer(response.status, response.data.decode(errors="replace"))
    finally:
        response.release_conn()


def in_short(error: object) -> str:
    """An exception's own words, without its object's address."""
    words = re.sub(r"^(<?[\w.]+(\([^)]*\)| object at 0x\w+>): )+", "", str(error))
    return " ".join(words.split())[:300] or type(error).__name__
