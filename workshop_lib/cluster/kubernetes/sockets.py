"""WebSockets to pods: opened with the official client, read and written frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kubernetes.answers import Answer, problem
from workshop_lib.cluster.kubernetes.api import Api, Lost
from workshop_lib.errors import ConnectError, WorkshopError

if TYPE_CHECKING:
    from kubernetes.client import Configuration
    from websocket import WebSocket

__all__ = ["Refused", "open_socket"]

OPEN_S = 45.0
"""The longest that a WebSocket may take to open; an API server gives a kubelet 30 s."""


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
    configuration = access.client.configuration
    headers = {**api.headers(access), "sec-websocket-protocol": protocols}
    del headers["Accept"]  # a kubelet answers 406 to a WebSocket that asks for JSON
    # As the client's create_websocket, which has no limit: a server that does not answer is not
    # waited for without end.
    opened = websocket.WebSocket(sslopt=_trusted(configuration), skip_utf8_validation=False)
    options: dict[str, Any] = {
        "header": [f"{key}: {value}" for key, value in headers.items()], "timeout": OPEN_S,
    }  # fmt: skip
    if configuration.proxy or configuration.proxy_headers:
        options = ws_client.websocket_proxycare(options, configuration, url, headers)
    try:
        opened.connect(url, **options)
    except websocket.WebSocketBadStatusException as error:
        body = error.resp_body or b""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
        known = {str(key).lower(): value for key, value in (error.resp_headers or {}).items()}
        raise Refused(Answer(error.status_code, text, known)) from None
    except ssl.SSLError as error:
        raise ConnectError(f"{access.server}: no trusted connection ({error})") from None
    except websocket.WebSocketTimeoutException:
        raise Lost(f"{access.server}: no WebSocket within {OPEN_S:g} s") from None
    except (websocket.WebSocketException, OSError) as error:
        raise Lost(f"{access.server}: no WebSocket: {error}") from error
    return opened


def _trusted(configuration: Configuration) -> dict[str, Any]:
    """Whom TLS trusts, and how it says who we are."""
    import ssl

    import certifi

    options: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE}
    if configuration.verify_ssl:
        authority = configuration.ssl_ca_cert or certifi.where()
        options = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": authority}
    named = {
        "certfile": configuration.cert_file, "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }  # fmt: skip
    return options | {key: value for key, value in named.items() if value}
