"""Requests to the API server: what is sent again, what is not, and when.

Every request that the workshop sends is safe to repeat (reading, server-side apply,
deleting one object by its UID), but for `exec`. So a lost connection, 429 and 5xx are
tried again with growing pauses, or when the server says (`Retry-After`); 401 is tried
once more with credentials read anew, since EKS's tokens live 15 minutes.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from workshop_lib.cluster.kubernetes.answers import Answer, problem, retry_after_s
from workshop_lib.cluster.kubernetes.resources import Resource, operator_hint, resource_of_kind
from workshop_lib.errors import ConnectError, NotFoundError, OperatorError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from workshop_lib.cluster.kubernetes.config import Access

__all__ = ["FIELD_MANAGER", "Api", "Lost", "Pauses", "in_short", "read"]

FIELD_MANAGER = "workshop"
"""The name under which the API server notes which fields are ours."""

APPLY = "application/apply-patch+yaml"

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
LIST_LIMIT = 500

Params = Mapping[str, str | Sequence[str]]


class Lost(ConnectError):
    """The connection was lost, or never came to be: nothing is known of the request."""


class Pauses:
    """How long to wait before each next try: half a second, doubled, up to ten.

    Args:
        tries: How often a request is sent at most.
        give_up_s: A server that asks for a longer pause than this is not waited for.
    """

    def __init__(self, tries: int = 6, give_up_s: float = 60.0) -> None:
        self.tries = tries
        self.give_up_s = give_up_s
        self._done = 0

    def next_s(self, asked_s: float | None = None) -> float | None:
        """The next pause in seconds, or None when it is time to give up.

        Args:
            asked_s: What the server asked for.

        Example:
            >>> pauses = Pauses(tries=2)
            >>> pauses.next_s(3.0), pauses.next_s()
            (3.0, None)
        """
        self._done += 1
        if self._done >= self.tries or (asked_s or 0.0) > self.give_up_s:
            return None
        if asked_s is not None:
            return asked_s
        longest = min(10.0, 0.5 * 2.0 ** (self._done - 1))
        return longest * random.uniform(0.5, 1.0)


class Api:
    """One API server, reached with one user's credentials.

    Args:
        load: Reads the configuration, again after a 401.
        tries: How often a request that may be repeated is sent at most.
        on_pause: Told in words why the next try waits.
    """

    def __init__(
        self,
        load: Callable[[], Access],
        *,
        tries: int = 6,
        on_pause: Callable[[str], None] | None = None,
    ) -> None:
        self._load = load
        self.tries = tries
        self.on_pause = on_pause
        self.access = load()
        self._lock = threading.Lock()

    # -- credentials ----------------------------------------------------------------------------

    def login_again(self, used: Access) -> None:
        """Read the credentials again, unless another thread has done so since `used`."""
        with self._lock:
            if self.access is used:
                fresh = self._load()
                close_connections(used)
                self.access = fresh

    def headers(self, access: Access) -> dict[str, str]:
        """What says who we are."""
        headers = {"Accept": "application/json", "User-Agent": "ray-vllm-workshop"}
        token = access.client.configuration.get_api_key_with_prefix("BearerToken")
        # A file with a token often ends with a line's end, which no header may hold.
        return {**headers, "authorization": token.strip()} if token else headers

    # -- one request ----------------------------------------------------------------------------

    def _send(
        self,
        access: Access,
        method: str,
        path: str,
        params: Params | None,
        body: Any,
        content_type: str | None,
        read_timeout_s: float,
    ) -> BaseHTTPResponse:
        """Send once; the answer's body is not read yet.

        Raises:
            Lost: No connection, or it broke.
            ConnectError: The server's certificate is not trusted.
        """
        import urllib3
        from kubernetes.client.exceptions import ApiException

        query = f"?{urlencode(params, doseq=True)}" if params else ""
        headers = self.headers(access)
        if content_type:
            headers["Content-Type"] = content_type
        try:
            answer = access.client.call_api(
                method, access.server + path + query, header_params=headers,
                body=body,
                _request_timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
            )  # fmt: skip
        except ApiException as error:  # TLS; the client calls it a status of 0
            reason = " ".join(str(error.reason).split())
            raise ConnectError(
                f"{access.server}: no trusted connection ({reason[:300]}); is the kubeconfig's "
                "certificate-authority this cluster's?"
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Lost(f"{access.server} does not answer: {in_short(error)}") from error
        response: BaseHTTPResponse = answer.response
        return response

    def open(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content_type: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> BaseHTTPResponse:
        """Send once, and once more with fresh credentials after a 401; the body is a stream.

        Raises:
            Lost: No connection, or it broke.
        """
        access = self.access
        args = (method, path, params, body, content_type, read_timeout_s)
        response = self._send(access, *args)
        if response.status == 401:
            response.drain_conn()
            response.release_conn()
            self.login_again(access)
            response = self._send(self.access, *args)
        return response

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content_type: str | None = None,
        tries: int | None = None,
    ) -> Answer:
        """Send until there is an answer that counts; any status may come back.

        Args:
            method: `GET`, `PATCH`, `POST` or `DELETE`.
            path: The path.
            params: The query.
            body: What is sent, as data.
            content_type: Its type.
            tries: How often it is sent at most; default: as often as the others.

        Raises:
            Lost: There was no answer in all tries.
        """
        import urllib3

        pauses = Pauses(tries or self.tries)
        while True:
            asked_s, lost, answer = None, None, None
            try:
                response = self.open(
                    method, path, params=params, body=body, content_type=content_type
                )
                answer = read(response)
                if not answer.is_worth_retrying:
                    return answer
                asked_s = retry_after_s(answer.headers)
                why = f"the server answers {answer.status}"
            except Lost as error:
                lost, why = error, "no answer"
            except (urllib3.exceptions.HTTPError, OSError) as error:  # while reading the body
                lost, why = Lost(f"{self.access.server}: {in_short(error)}"), "the answer broke off"
            pause_s = pauses.next_s(asked_s)
            if pause_s is None:
                if answer is not None:
                    return answer
                raise Lost(f"{lost} (tried {pauses.tries} times); is the cluster up, and a VPN?")
            if self.on_pause:
                self.on_pause(f"{why}; next try in {pause_s:.1f} s")
            time.sleep(pause_s)

    # -- objects --------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """An object, or None when it is not there.

        Raises:
            OperatorError: The cluster does not know the kind.
            WorkshopError: The server refused.
        """
        answer = self.request("GET", resource.path(namespace, name))
        if answer.status == 404 and not answer.is_missing_kind:
            return None
        return self.checked(answer, f"{resource.kind}/{name}", resource)

    def list(
        self,
        resource: Resource,
        namespace: str,
        *,
        labels: str = "",
        fields: str = "",
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects of a kind that fit, page by page, and the list's resourceVersion.

        Args:
            resource: The kind.
            namespace: Where.
            labels: A label selector.
            fields: A field selector.

        Raises:
            OperatorError: The cluster does not know the kind.
            WorkshopError: The server refused.
        """
        params = {"limit": str(LIST_LIMIT)}
        params |= {"labelSelector": labels} if labels else {}
        params |= {"fieldSelector": fields} if fields else {}
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
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion") or "")
            params["continue"] = metadata["continue"]

    def apply(
        self,
        resource: Resource,
        namespace: str,
        body: Mapping[str, Any],
        *,
        dry_run: bool = False,
        force: bool = False,
    ) -> Answer:
        """Server-side apply with strict validation; may be repeated without harm."""
        params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        params |= {"dryRun": "All"} if dry_run else {}
        params |= {"force": "true"} if force else {}
        path = resource.path(namespace, body["metadata"]["name"])
        return self.request("PATCH", path, params=params, body=body, content_type=APPLY)

    def create(
        self, resource: Resource, namespace: str, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Answer:
        """Create an object; 409 when one of that name is there already."""
        params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        params |= {"dryRun": "All"} if dry_run else {}
        return self.request(
            "POST", resource.path(namespace), params=params, body=body,
            content_type="application/json",
        )  # fmt: skip

    def delete(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> None:
        """Ask for an object's end: its dependents first, and only if it is still the same one.

        Raises:
            WorkshopError: The server refused.
        """
        metadata = body["metadata"]
        options = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Foreground",
            "preconditions": {"uid": metadata["uid"]},
        }
        answer = self.request(
            "DELETE", resource.path(namespace, metadata["name"]), body=options,
            content_type="application/json",
        )  # fmt: skip
        if answer.status in (404, 409):  # gone already; 409: another one has its name now
            return
        self.checked(answer, f"delete {resource.kind}/{metadata['name']}", resource)

    def checked(self, answer: Answer, what: str, resource: Resource) -> dict[str, Any]:
        """An answer's object.

        Raises:
            OperatorError: The cluster does not know the kind.
            WorkshopError: The answer is no success.
        """
        if answer.is_missing_kind:
            raise OperatorError(
                f"{what}: the cluster knows no {resource.kind} ({resource.api_version}): "
                f"{operator_hint(resource)}"
            )
        if not answer.ok:
            raise problem(answer, what)
        return answer.json()

    def pod(self, namespace: str, name: str) -> dict[str, Any]:
        """A pod.

        Raises:
            NotFoundError: It is not there.
        """
        body = self.get(resource_of_kind("Pod"), namespace, name)
        if body is None:
            raise NotFoundError(f"pod {name} is not there any more")
        return body

    def close(self) -> None:
        """Close the connections that wait for their next use."""
        close_connections(self.access)


def close_connections(access: Access) -> None:
    """Close the connections that wait for their next use.

    The client only forgets them, and their sockets stay open until a garbage collection.
    """
    manager = access.client.rest_client.pool_manager
    for key in manager.pools.keys():  # noqa: SIM118 (the container cannot be iterated over)
        manager.pools[key].close()
    manager.clear()


def read(response: BaseHTTPResponse) -> Answer:
    """Read an answer whole, and give its connection back."""
    try:
        text = response.data.decode(errors="replace")
    finally:
        response.release_conn()
    headers = {key.lower(): value for key, value in response.headers.items()}
    return Answer(response.status, text, headers)


def in_short(error: BaseException) -> str:
    """An exception's own words, without its object's address."""
    words = re.sub(r"^(<?[\w.]+(\([^)]*\)| object at 0x\w+>): )+", "", str(error))
    return " ".join(words.split())[:200] or type(error).__name__
