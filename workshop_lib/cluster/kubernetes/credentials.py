"""Credential plugins, such as `aws eks get-token`: run with a limit, each failure in a line.

The official client runs them too, but without a limit and with this process's input: one that
asks for a password, or cannot reach its service, would hold a notebook for ever.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

__all__ = ["PLUGIN_S", "PluginFailed", "ask_plugin"]

PLUGIN_S = 60.0
"""The longest that a plugin may take."""


class PluginFailed(Exception):
    """A credential plugin gave nothing that can be used; its words say why.

    Attributes:
        is_installed: Whether there is such a command at all.
    """

    def __init__(self, why: str, *, is_installed: bool = True) -> None:
        super().__init__(why)
        self.is_installed = is_installed


def ask_plugin(
    settings: Mapping[str, Any], folder: str, cluster: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Run a kubeconfig's `exec` command and return its credentials as a user's entries.

    Args:
        settings: The `exec` of a user: command, args, env, apiVersion.
        folder: The kubeconfig's folder, from which relative paths begin.
        cluster: The kubeconfig's cluster, for plugins that ask for it.

    Returns:
        `token`, or `client-certificate-data` and `client-key-data`.

    Raises:
        PluginFailed: It is not there, failed, took too long, or printed something else.

    Example:
        >>> said = '{"apiVersion": "v1", "kind": "ExecCredential", "status": {"token": "t"}}'
        >>> ask_plugin({"apiVersion": "v1", "command": "echo", "args": [said]}, "/")
        {'token': 't'}
    """
    for key in ("command", "apiVersion"):
        if not settings.get(key):
            raise PluginFailed(f"exec: malformed request. missing key '{key}'")
    command = [str(settings["command"]), *map(str, settings.get("args") or [])]
    version = settings["apiVersion"]
    said = _run(command, folder, _environment(settings, version, cluster))
    try:
        answer = json.loads(said)
        status = answer["status"]
        if answer["apiVersion"] != version:
            raise PluginFailed(
                f"exec: {command[0]} speaks {answer['apiVersion']}, the kubeconfig {version}"
            )
        if status.get("token"):
            return {"token": str(status["token"])}
        return {
            entry: base64.b64encode(status[key].encode()).decode()
            for entry, key in (
                ("client-certificate-data", "clientCertificateData"),
                ("client-key-data", "clientKeyData"),
            )
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PluginFailed(
            f"exec: {command[0]} printed no credentials: {' '.join(said.split())[:100]!r}"
        ) from None


def _environment(
    settings: Mapping[str, Any], version: str, cluster: Mapping[str, Any] | None
) -> dict[str, str]:
    """The plugin's environment, with what it may want to know in KUBERNETES_EXEC_INFO."""
    about: dict[str, Any] = {"interactive": False}
    if settings.get("provideClusterInfo") and cluster is not None:
        about["cluster"] = dict(cluster)
        for extension in cluster.get("extensions") or []:
            if extension.get("name") == "client.authentication.k8s.io/exec":
                about["cluster"]["config"] = extension.get("extension")
    more = {str(each["name"]): str(each["value"]) for each in settings.get("env") or []}
    info = json.dumps({"apiVersion": version, "kind": "ExecCredential", "spec": about})
    return {**os.environ, **more, "KUBERNETES_EXEC_INFO": info}


def _run(command: list[str], folder: str, environment: Mapping[str, str]) -> str:
    """What a command printed."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # what it starts ends with it
        )  # fmt: skip
    except OSError as error:
        raise PluginFailed(f"exec: {error.strerror}: {command[0]!r}", is_installed=False) from None
    with process:
        try:
            output, errors = process.communicate(timeout=PLUGIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            shown = " ".join(command)[:120]
            raise PluginFailed(
                f"exec: {shown!r} did not answer within {PLUGIN_S:g} s; run it by hand to see why"
            ) from None
        except BaseException:  # interrupted by the learner: it does not go on alone
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        words = " ".join(errors.split())
        raise PluginFailed(f"exec: process returned {process.returncode}. {words}".strip())
    return output
