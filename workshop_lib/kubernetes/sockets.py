"""WebSockets to pods: opened with the official client, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ConnectError, WorkshopError
from workshop_lib.kubernetes.answers import Answer, problem
from workshop_lib.kubernetes.api import Api, Lost

if TYPE_CHECKING:
    from websocket import WebSocket

__all__ = ["Refused", "open_socket"]


class Refused(Exception):
    """The server answered, but did not open the WebSocket.

    Args:
        answer: What it said.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer

    def explained(self, what: str) -> WorkshopError:
        """The error for a learner."""
        return problem(self.answer, what)


def open_socket(
    api: Api, path: str, params: Mapping[str, str | Sequence[str]], protocols: str
) -> WebSocket:
    """Open a WebSocket, with fresh credentials after a 401.

    Args:
        api: The server.
        path: Such as a pod's `…/exec`.
        params: The query; a list gives a parameter several times.
        protocols: The subprotocols that are understood, the preferred one first.

    Raises:
        Refused: The server answered something else.
        Lost: There was no answer.
        ConnectError: The server's certificate is not trusted.
    """
    access = api.access
    try:
        return _open_once(api, path, params, protocols)
    except Refused as refused:
        if refused.answer.status != 401:
            raise
    api.login_again(access)
    return _open_once(api, path, params, protocols)


def _open_once(api: Api, path: str, params: Mapping[str, Any], protocols: str) -> WebSocket:
    import ssl
    from urllib.parse import urlencode

    import websocket
    from kubernetes.stream import ws_client

    access = api.access
    url = ws_client.get_websocket_url(access.server + path) + f"?{urlencode(params, doseq=True)}"
    headers = {**api.headers(access), "sec-websocket-protocol": protocols}
    try:
        opened: WebSocket = ws_client.create_websocket(access.client.configuration, url, headers)
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
        known = {str(key).lower(): value for key, value in (error.resp_headers or {}).items()}
        raise Refused(Answer(error.status_code, text, known)) from None
    except ssl.SSLError as error:
        raise ConnectError(f"{access.server}: no trusted connection ({error})") from None
    except (websocket.WebSocketException, OSError) as error:
        raise Lost(f"{access.server}: no WebSocket: {error}") from error
    return opened
