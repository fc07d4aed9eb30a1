"""Finding the cluster: kubeconfig, context, credentials; every problem in one line.

The official client reads the files; what it logs or raises is turned into a line that says
what to do.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kubernetes.credentials import PluginFailed, ask_plugin
from workshop_lib.errors import ConnectError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

__all__ = ["Access", "load_access"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own credentials."""

_GET_ONE = {
    "eks": "aws eks update-kubeconfig --name <cluster>",
    "kind": "kind export kubeconfig",
}


@dataclass(frozen=True)
class Access:
    """How to reach one cluster.

    Attributes:
        context: The kubeconfig's context, or `in-cluster`.
        server: The API server's URL.
        user: The kubeconfig's name for the credentials.
        namespace: The context's namespace.
        source: The file it was read from.
        client: The official client, set up with it.
    """

    context: str
    server: str
    user: str
    namespace: str
    source: str
    client: ApiClient


def load_access(
    profile: str, *, kubeconfig: str | Path | None = None, context: str | None = None
) -> Access:
    """Read the configuration: a file that is named, `$KUBECONFIG`, the usual file, or the pod's.

    Args:
        profile: The workshop's profile, for the line that says how to get a configuration.
        kubeconfig: A file, or several joined by `:`.
        context: A context of it; default: its current one.

    Raises:
        ConnectError: There is none, it is malformed, or its credentials are no more good.
    """
    paths = str(kubeconfig or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    there = [path for path in paths.split(os.pathsep) if path and Path(path).expanduser().exists()]
    if there:
        # As kubectl has it, an empty file among several counts for nothing.
        full = [path for path in there if Path(path).expanduser().stat().st_size] or there
        return _from_files(os.pathsep.join(full), context, profile)
    asked = bool(kubeconfig or context or os.environ.get("KUBECONFIG"))
    if not asked and "KUBERNETES_SERVICE_HOST" in os.environ:
        return _in_cluster()
    raise ConnectError(
        f"there is no kubeconfig at {paths}; get one with: "
        f"{_GET_ONE.get(profile, 'your cluster provider')}, or set KUBECONFIG to where it is"
    )


def _new_configuration() -> Configuration:
    from kubernetes.client import Configuration

    configuration = Configuration()
    configuration.retries = False  # the workshop decides itself what is safe to send again
    configuration.keep_alive = True  # a connection that died silently is noticed
    return configuration


def _in_cluster() -> Access:
    from kubernetes.config import ConfigException, load_incluster_config

    configuration = _new_configuration()
    try:
        load_incluster_config(configuration)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (ConfigException, OSError) as error:
        raise ConnectError(
            f"this looks like a pod, but its credentials in {SERVICE_ACCOUNT} cannot be read "
            f"({error}); set automountServiceAccountToken: true, or KUBECONFIG"
        ) from None
    client = _client(configuration, str(SERVICE_ACCOUNT))
    return Access(
        "in-cluster", configuration.host, "the pod's service account", namespace,
        str(SERVICE_ACCOUNT), client,
    )  # fmt: skip


def _from_files(paths: str, context: str | None, profile: str) -> Access:
    from kubernetes.config.kube_config import KubeConfigLoader

    merged, contexts, current = _merged(paths)
    name = context or current
    if name not in contexts:
        there = ", ".join(contexts) or "none"
        what = f"has no context {name!r}" if name else "has no current-context"
        raise ConnectError(
            f"kubeconfig {paths} {what}; it has: {there}; choose with: "
            "kubectl config use-context <name>"
        )
    settings = contexts[name]
    user = str(settings.get("user") or "nobody")
    configuration = _new_configuration()
    try:
        with _readable(paths), _heard() as heard:
            loader = KubeConfigLoader(merged, active_context=name, config_base_path=None)
            _ask_plugin_of(user, settings, merged)
            loader.load_and_set(configuration)
        said, what_to_do = " ".join(heard), _log_in(profile)
    except PluginFailed as failed:
        hint = "install it, or write its whole path into the kubeconfig"
        said, what_to_do = str(failed), _log_in(profile) if failed.is_installed else hint
    if said:
        raise ConnectError(
            f"the credentials of user {user!r} (context {name!r}) cannot be had: "
            f"{' '.join(said.split())[:300]}; {what_to_do}"
        )
    _refuse_useless(configuration, user, name, paths, profile)
    namespace = str(settings.get("namespace") or "default")
    client = _client(configuration, paths)
    return Access(name, configuration.host, user, namespace, paths, client)


def _merged(paths: str) -> tuple[Any, dict[str, dict[str, Any]], str]:
    """Kubeconfig files as one, its contexts by name, and the current one's name."""
    from kubernetes.config.kube_config import KubeConfigMerger

    with _readable(paths):
        merged = KubeConfigMerger(paths).config
        contexts = {node["name"]: dict(node["context"].value) for node in merged["contexts"].value}
        return merged, contexts, str(merged.safe_get("current-context") or "")


def _ask_plugin_of(user: str, settings: Mapping[str, Any], merged: Any) -> None:
    """Put what a user's credential plugin gives in the plugin's place.

    Raises:
        PluginFailed: It gives nothing.
    """
    node = merged["users"].get_with_name(user, safe=True) if merged.safe_get("users") else None
    if node is None:
        return
    entries = node.value.get("user") or {}
    # As the client has it: these three come before a plugin.
    if not entries.get("exec") or {"token", "tokenFile", "auth-provider"} & set(entries):
        return
    cluster = merged["clusters"].get_with_name(settings.get("cluster")).value["cluster"]
    given = ask_plugin(entries["exec"], str(Path(node.path).absolute().parent), cluster)
    rest = {key: value for key, value in entries.items() if key != "exec"}
    node.value["user"] = {**rest, **given}


def _client(configuration: Configuration, paths: str) -> ApiClient:
    """The official client; its connections are set up here, through a proxy if there is one."""
    import urllib3
    from kubernetes.client import ApiClient

    try:
        return ApiClient(configuration)
    except (ImportError, ValueError, urllib3.exceptions.HTTPError) as error:
        if not configuration.proxy:
            raise ConnectError(f"kubeconfig {paths}: {' '.join(str(error).split())}") from None
        socks = "; for SOCKS: pip install PySocks" if isinstance(error, ImportError) else ""
        raise ConnectError(
            f"the proxy {configuration.proxy!r} cannot be used ({' '.join(str(error).split())}); "
            f"correct proxy-url in the kubeconfig, or HTTPS_PROXY{socks}"
        ) from None


@contextlib.contextmanager
def _readable(paths: str) -> Iterator[None]:
    """Turn whatever the client raises about a malformed file into one line."""
    import yaml
    from kubernetes.config import ConfigException

    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else paths
        problem = getattr(error, "problem", None) or "no YAML"
        raise ConnectError(
            f"kubeconfig {where}: {problem}; repair the file, or get a new one"
        ) from None
    except ConfigException as error:
        problem = " ".join(str(error).replace("Invalid kube-config file. ", "").split())
        raise ConnectError(
            f"kubeconfig {paths} is malformed: {problem}; repair the file, or get a new one"
        ) from None
    except OSError as error:
        raise ConnectError(f"kubeconfig {error.filename or paths}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ConnectError(
            f"kubeconfig {paths} is malformed ({problem}); repair the file, or get a new one"
        ) from None


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What this thread logs as an error meanwhile, kept from the screen.

    The client does not raise when it finds no credentials: it logs, to the root logger. What
    others log at the same time is theirs.
    """
    said: list[str] = []
    here = threading.get_ident()

    def mine(record: logging.LogRecord) -> bool:
        if record.thread != here or record.levelno < logging.ERROR:
            return True
        said.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(mine)
    try:
        yield said
    finally:
        root.removeFilter(mine)


def _log_in(profile: str) -> str:
    if profile == "eks":
        return "log in again (aws sso login, or new keys), then connect again"
    return f"log in again, or get new ones with: {_GET_ONE.get(profile, 'your provider')}"


def _refuse_useless(
    configuration: Configuration, user: str, context: str, paths: str, profile: str
) -> None:
    """Say at once that a token cannot be one, or has run out by its own words (a JWT's `exp`)."""
    header = str(configuration.api_key.get("BearerToken") or "").strip()
    if not (header.isascii() and header.isprintable()):
        raise ConnectError(
            f"the token of user {user!r} (context {context!r} in {paths}) holds characters that "
            f"no token has: was it cut off or pasted wrongly? {_log_in(profile)}"
        )
    token = header.rpartition(" ")[2]
    parts = token.split(".")
    if len(parts) != 3:
        return
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expires = float(claims["exp"])
    except (ValueError, KeyError, TypeError):
        return  # another kind of token: the server will say
    if expires < time.time():
        when = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise ConnectError(
            f"the token of user {user!r} (context {context!r} in {paths}) expired at {when}; "
            f"{_log_in(profile)}"
        )
