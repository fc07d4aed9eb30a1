"""Finding the cluster: kubeconfig, context, credentials; every problem in one line.

The official client reads the files. Credential plugins (`aws eks get-token`) are run here, since
the client runs them without a limit and with this process's input: one that asks for a password,
or cannot reach its service, would hold a notebook for ever.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
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
    """How to reach one cluster.

    Attributes:
        context: The kubeconfig's context, or `in-cluster`.
        server: The API server's URL.
        user: The kubeconfig's name for the credentials.
        namespace: The context's namespace.
        client: The official client, set up with it.
    """

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
    configuration = _new_configuration()
    with _readable(paths):
        loader = KubeConfigLoader(merged, active_context=name, config_base_path=None)
        entries = _ask_plugin(whose, settings, merged, profile)
        loader.load_and_set(configuration)
    given = ("BearerToken" in configuration.api_key, configuration.cert_file,
             "username" in entries)  # fmt: skip
    if entries and not any(given):
        raise ConnectError(
            f"the credentials of {whose} cannot be had: its entries {', '.join(entries)} gave "
            f"none; {_log_in(profile)}"
        )
    _refuse_useless(configuration, whose, profile)
    namespace = str(settings.get("namespace") or "default")
    return Access(name, configuration.host, user, namespace, _client(configuration, paths))


def _client(configuration: Configuration, paths: str) -> ApiClient:
    """The official client; its connections are set up here, through a proxy if there is one."""
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
        said = getattr(error, "problem", None) or "no YAML"
        raise ConnectError(
            f"kubeconfig {where}: {said}; repair the file, or get a new one"
        ) from None
    except OSError as error:
        raise ConnectError(f"kubeconfig {error.filename or paths}: {error.strerror}") from None
    except (
        ConfigException, KeyError, TypeError, AttributeError, ValueError, IndexError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).replace("Invalid kube-config file. ", "").split())
        kind = "" if isinstance(error, ConfigException) else f"{type(error).__name__}: "
        raise ConnectError(
            f"kubeconfig {paths} is malformed ({kind}{said}); repair the file, or get a new one"
        ) from None


def _log_in(profile: str) -> str:
    if profile == "eks":
        return "log in again (aws sso login, or new keys), then connect again"
    return f"log in again, or get new ones with: {_GET_ONE.get(profile, 'your provider')}"


def _refuse_useless(configuration: Configuration, whose: str, profile: str) -> None:
    """Say at once that a token cannot be one, or has run out by its own words (a JWT's `exp`)."""
    header = str(configuration.api_key.get("BearerToken") or "").strip()
    if not (header.isascii() and header.isprintable()):
        raise ConnectError(
            f"the token of {whose} holds characters that no token has: was it cut off or pasted "
            f"wrongly? {_log_in(profile)}"
        )
    parts = header.rpartition(" ")[2].split(".")
    expires = float("inf")
    if len(parts) == 3:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # no JWT: the server will say
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
            expires = float(claims["exp"])
    if expires < time.time():
        when = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
        raise ConnectError(f"the token of {whose} expired at {when}; {_log_in(profile)}")


# -- credential plugins ---------------------------------------------------------------------------


def _ask_plugin(
    whose: str, settings: Mapping[str, Any], merged: Any, profile: str
) -> dict[str, Any]:
    """Put what a user's credential plugin gives in the plugin's place; the user's entries."""
    users = merged["users"] if merged.safe_get("users") else None
    node = users and users.get_with_name(str(settings.get("user") or "nobody"), safe=True)
    if not node:
        return {}
    entries: dict[str, Any] = node.value.get("user") or {}
    # As the client has it: these three come before a plugin.
    if not entries.get("exec") or {"token", "tokenFile", "auth-provider"} & set(entries):
        return entries
    cluster = merged["clusters"].get_with_name(settings.get("cluster")).value["cluster"]
    try:
        given = _run_plugin(entries["exec"], Path(node.path).absolute().parent, cluster)
    except _PluginError as failed:
        hint = "install it, or write its whole path into the kubeconfig"
        what_to_do = hint if failed.is_missing else _log_in(profile)
        said = " ".join(str(failed).split())[:300]
        raise ConnectError(
            f"the credentials of {whose} cannot be had: exec: {said}; {what_to_do}"
        ) from None
    node.value["user"] = {key: value for key, value in entries.items() if key != "exec"} | given
    return entries


class _PluginError(Exception):
    """A credential plugin gave nothing that can be used; its words say why."""

    def __init__(self, why: str, *, is_missing: bool = False) -> None:
        super().__init__(why)
        self.is_missing = is_missing


def _run_plugin(
    settings: Mapping[str, Any], folder: Path, cluster: Mapping[str, Any]
) -> dict[str, str]:
    """Run a kubeconfig's `exec` command; its credentials as entries of a user.

    Returns:
        `token`, or `client-certificate-data` and `client-key-data`.
    """
    for key in ("command", "apiVersion"):
        if not settings.get(key):
            raise _PluginError(f"malformed request. missing key '{key}'")
    version = settings["apiVersion"]
    about: dict[str, Any] = {"interactive": False}
    if settings.get("provideClusterInfo"):
        about["cluster"] = dict(cluster)
        for each in cluster.get("extensions") or []:
            if each.get("name") == "client.authentication.k8s.io/exec":
                about["cluster"]["config"] = each.get("extension")
    info = json.dumps({"apiVersion": version, "kind": "ExecCredential", "spec": about})
    more = {str(each["name"]): str(each["value"]) for each in settings.get("env") or []}
    command = [str(settings["command"]), *map(str, settings.get("args") or [])]
    said = _output(command, folder, {**os.environ, **more, "KUBERNETES_EXEC_INFO": info})
    try:
        answer = json.loads(said)
        if answer["apiVersion"] != version:
            raise _PluginError(
                f"{command[0]} speaks {answer['apiVersion']}, the kubeconfig {version}"
            )
        status = answer["status"]
        if status.get("token"):
            return {"token": str(status["token"])}
        pairs = (("client-certificate-data", "clientCertificateData"),
                 ("client-key-data", "clientKeyData"))  # fmt: skip
        return {entry: base64.b64encode(status[key].encode()).decode() for entry, key in pairs}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _PluginError(
            f"{command[0]} printed no credentials: {' '.join(said.split())[:100]!r}"
        ) from None


def _output(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What a command printed; it gets no input, and what it starts ends with it."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise _PluginError(f"{error.strerror}: {command[0]!r}", is_missing=True) from None
    with process:
        try:
            output, errors = process.communicate(timeout=PLUGIN_S)
        except BaseException as error:  # interrupted by the learner, too
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise _PluginError(
                f"{' '.join(command)[:120]!r} did not answer within {PLUGIN_S:g} s; run it by hand "
                "to see why"
            ) from None
    if process.returncode != 0:
        raise _PluginError(f"process returned {process.returncode}. {errors}".strip())
    return output
