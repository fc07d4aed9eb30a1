"""Finding the cluster: kubeconfig, context, credentials; every problem in one line.

The official client reads the files and runs credential plugins (`aws eks get-token`). Two things
it does not do: it only logs why a plugin failed, and waits for one for ever.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3

from workshop_lib.errors import ConnectError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

__all__ = ["Access", "load_access"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own credentials."""

PLUGIN_S = 60.0
"""The longest that a credential plugin may take."""

RETRY = urllib3.Retry(
    total=5, other=0, backoff_factor=0.5, backoff_max=10.0, backoff_jitter=0.25,
    status_forcelist=(429, 502, 503, 504), allowed_methods=None, raise_on_status=False,
    retry_after_max=30,
)  # fmt: skip
"""What passes is waited for; `other`: a certificate is no more trusted a second later."""

_GET_ONE = {
    "eks": "aws eks update-kubeconfig --name <cluster>",
    "kind": "kind export kubeconfig",
}


@dataclass(frozen=True)
class Access:
    """How to reach one cluster: the context (or `in-cluster`), its server, user and namespace."""

    context: str
    server: str
    user: str
    namespace: str
    client: ApiClient

    def headers(self) -> dict[str, str]:
        """What says who we are."""
        headers = {"User-Agent": "ray-vllm-workshop"}
        token = self.client.configuration.get_api_key_with_prefix("BearerToken")
        # A file with a token often ends with a line's end, which no header may hold.
        return {**headers, "authorization": token.strip()} if token else headers


def load_access(
    profile: str, *, kubeconfig: str | Path | None = None, context: str | None = None
) -> Access:
    """Read the configuration: a file that is named, `$KUBECONFIG`, the usual file, or the pod's.

    Args:
        profile: The workshop's profile, for the line that says how to get a configuration.
        kubeconfig: A file, or several joined by `:`.
        context: A context of it; default: its current one.
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

    configuration = Configuration(retries=RETRY)
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
    return Access("in-cluster", configuration.host, "the pod's service account", namespace, client)


def _from_files(paths: str, context: str | None, profile: str) -> Access:
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    with _readable(paths):
        merged = KubeConfigMerger(paths).config
        contexts = {node["name"]: dict(node["context"].value) for node in merged["contexts"].value}
        name = context or str(merged.safe_get("current-context") or "")
    if name not in contexts:
        there = ", ".join(contexts) or "none"
        what = f"has no context {name!r}" if name else "has no current-context"
        raise ConnectError(
            f"kubeconfig {paths} {what}; it has: {there}; choose with: "
            "kubectl config use-context <name>"
        )
    settings = contexts[name]
    user = str(settings.get("user") or "nobody")
    whose = f"user {user!r} (context {name!r} in {paths})"
    log_in = f"log in again, or get new ones with: {_GET_ONE.get(profile, 'your provider')}"
    if profile == "eks":
        log_in = "log in again (aws sso login, or new keys), then connect again"
    configuration = _new_configuration()
    with _readable(paths):
        loader = KubeConfigLoader(merged, active_context=name, config_base_path=None)
        entries = _ask_plugin(merged, user, settings["cluster"], whose, log_in)
        loader.load_and_set(configuration)
    token = str(configuration.api_key.get("BearerToken") or "")
    if entries and not (token or configuration.cert_file or "username" in entries):
        raise ConnectError(
            f"the credentials of {whose} cannot be had: its entries {', '.join(entries)} gave "
            f"none; {log_in}"
        )
    if not (token.strip().isascii() and token.strip().isprintable()):
        raise ConnectError(
            f"the token of {whose} holds characters that no token has: was it cut off or pasted "
            f"wrongly? {log_in}"
        )
    if (expires := _expiry(token)) < time.time():
        when = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise ConnectError(f"the token of {whose} expired at {when}; {log_in}")
    namespace = str(settings.get("namespace") or "default")
    return Access(name, configuration.host, user, namespace, _client(configuration, paths))


def _expiry(token: str) -> float:
    """When a token runs out by its own words (a JWT's `exp`)."""
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):  # it is no JWT
        claims = token.split(".")[1]
        decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(decoded["exp"])
    return float("inf")


def _client(configuration: Configuration, paths: str) -> ApiClient:
    """The official client; its connections are set up here, through a proxy if there is one."""
    from kubernetes.client import ApiClient

    try:
        return ApiClient(configuration)
    except (ImportError, ValueError, urllib3.exceptions.HTTPError) as error:
        said = " ".join(str(error).split())
        if not configuration.proxy:
            raise ConnectError(f"kubeconfig {paths}: {said}") from None
        socks = "; for SOCKS: pip install PySocks" if isinstance(error, ImportError) else ""
        raise ConnectError(
            f"the proxy {configuration.proxy!r} cannot be used ({said}); "
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
        said = getattr(error, "problem", None) or "no YAML"
        raise ConnectError(
            f"kubeconfig {where}: {said}; repair the file, or get a new one"
        ) from None
    except OSError as error:
        raise ConnectError(f"kubeconfig {error.filename or paths}: {error.strerror}") from None
    except (ConfigException, LookupError, TypeError, AttributeError, ValueError) as error:
        said = " ".join(str(error).replace("Invalid kube-config file. ", "").split())
        kind = "" if isinstance(error, ConfigException) else f"{type(error).__name__}: "
        raise ConnectError(
            f"kubeconfig {paths} is malformed ({kind}{said}); repair the file, or get a new one"
        ) from None


def _ask_plugin(merged: Any, user: str, cluster: str, whose: str, log_in: str) -> dict[str, Any]:
    """Put what a user's credential plugin gives in the plugin's place; the user's entries."""
    from kubernetes.config import ConfigException
    from kubernetes.config.exec_provider import ExecProvider

    users = merged["users"] if merged.safe_get("users") else None
    node = users and users.get_with_name(user, safe=True)
    if not node:
        return {}
    entries: dict[str, Any] = node.value.get("user") or {}
    # As the client has it: these three come before a plugin.
    if not entries.get("exec") or {"token", "tokenFile", "auth-provider"} & set(entries):
        return entries
    command = entries["exec"].get("command")
    about, folder = merged["clusters"].get_with_name(cluster)["cluster"], Path(node.path).parent
    given: Future[dict[str, Any]] = Future()

    def ask() -> None:
        try:
            provider = ExecProvider(node["user"]["exec"], str(folder.absolute()), about)
            given.set_result(provider.run())
        except (ConfigException, OSError, KeyError, TypeError) as error:
            given.set_exception(error)

    threading.Thread(target=ask, name="credential plugin", daemon=True).start()
    why, help_ = f"{command} printed no credentials", log_in
    try:
        status = given.result(PLUGIN_S)
        if status.get("token"):
            new = {"token": status["token"]}
        else:
            pair = {"client-certificate-data": status["clientCertificateData"],
                    "client-key-data": status["clientKeyData"]}  # fmt: skip
            new = {key: base64.b64encode(each.encode()).decode() for key, each in pair.items()}
        node.value["user"] = {key: entries[key] for key in entries if key != "exec"} | new
        return entries
    except TimeoutError:
        why = f"{command} did not answer within {PLUGIN_S:g} s; run it by hand to see why"
    except OSError as error:
        why = f"{error.strerror}: {command!r}"
        help_ = "install it, or write its whole path into the kubeconfig"
    except ConfigException as error:
        why = " ".join(str(error).removeprefix("exec: ").split())[:300]
    except (KeyError, TypeError, AttributeError):
        pass
    raise ConnectError(f"the credentials of {whose} cannot be had: exec: {why}; {help_}")
