"""Connecting: what is said, and every way in which it can fail, in one line."""

import base64
import json
import os
import stat
import time
from pathlib import Path

import pytest
import yaml
from emulated import kubeconfig

from workshop_lib import connect
from workshop_lib.cluster.kubernetes import KubernetesCluster, access
from workshop_lib.errors import ConnectError


def refused(*args, **options):
    with pytest.raises(ConnectError) as error:
        connect(*args, **options)
    line = str(error.value)
    assert "\n" not in line
    return line


def jwt(**claims):
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=")
             for p in ({"alg": "none"}, claims)]  # fmt: skip
    return ".".join([*parts, "x"])


def test_it_says_what_it_will_touch_and_changes_nothing(emulator, config, capsys):
    cluster = connect("kind", kubeconfig=str(config))
    cluster.close()
    said = capsys.readouterr().out
    assert said == f"context test, server {emulator.url} (v1.36.0), namespace workshop\n"
    assert cluster.profile == "kind"
    assert emulator.changes() == []


def test_the_environment_names_file_and_namespace(emulator, config, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", f"/nowhere{os.pathsep}{config}")
    monkeypatch.setenv("WORKSHOP_NAMESPACE", "ada")
    cluster = connect("eks")
    cluster.close()
    assert cluster.namespace == "ada"


def test_no_file(config, monkeypatch, tmp_path):
    assert refused("eks") == (
        f"there is no kubeconfig at {tmp_path}/.kube/config; get one with: "
        "aws eks update-kubeconfig --name <cluster>, or set KUBECONFIG to where it is"
    )
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    assert "no kubeconfig at /nowhere/config; get one with: kind export" in refused("kind")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "file is empty"),
        ("apiVersion: v1\nclusters: [\n", "line 3"),
        ("just words", "malformed"),
        ("- a\n- list\n", "malformed"),
        ("apiVersion: v1\nkind: Config\n", "has no current-context; it has: none"),
        ("contexts: 3\n", "malformed"),
        ("contexts: [{name: x}]\ncurrent-context: x\n", "malformed"),
        ("contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n",
         "Expected object with name c"),
        (yaml.safe_dump(kubeconfig("https://127.0.0.1:1")).replace(
            "server:", "certificate-authority-data: abc\n    server:"), "malformed"),
        ("contexts: [{name: x, context: {}}]\ncurrent-context: x\n", "Expected key cluster"),
    ],
)  # fmt: skip
def test_malformed_files(config, text, problem):
    config.write_text(text)
    line = refused("eks", kubeconfig=str(config))
    assert problem in line and str(config) in line


def test_a_file_that_may_not_be_read(config):
    if os.getuid() == 0:
        config.unlink()
        config.mkdir()  # root may read everything, but no folder
    else:
        config.chmod(0)
    assert f"kubeconfig {config}: " in refused("eks", kubeconfig=str(config))


def test_a_token_that_says_it_has_expired(config, emulator):
    config.write_text(yaml.safe_dump(kubeconfig(emulator.url, jwt(exp=time.time() - 60))))
    line = refused("eks", kubeconfig=str(config))
    assert "the token of user 'ada' (context 'test'" in line and "expired at 20" in line
    assert line.endswith("log in again (aws sso login, or new keys), then connect again")
    assert emulator.requests == [], "the server need not be asked"


def test_credentials_that_do_not_count(config, emulator):
    config.write_text(yaml.safe_dump(kubeconfig(emulator.url, "stale")))
    line = refused("eks", kubeconfig=str(config))
    assert "does not accept the credentials" in line and "log in again" in line
    assert len(emulator.sent("GET", "/version")) == 2, "once more with credentials read anew"


def test_nobody_answers(config, quick):
    config.write_text(yaml.safe_dump(kubeconfig("http://127.0.0.1:9")))
    line = refused("eks", kubeconfig=str(config))
    assert line.startswith("http://127.0.0.1:9 does not answer:") and "VPN" in line
    assert "0x" not in line


def plugin(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(path),
                     "args": []}}  # fmt: skip


CREDENTIAL = (
    'echo "{\\"apiVersion\\": \\"client.authentication.k8s.io/v1beta1\\", \\"kind\\": '
    '\\"ExecCredential\\", \\"status\\": {\\"token\\": \\"$(cat %s)\\"}}"'
)


EMPTY = {"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential",
         "status": {}}  # fmt: skip


def with_user(config, emulator, user):
    settings = kubeconfig(emulator.url)
    settings["users"][0]["user"] = user
    config.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("echo 'The SSO session has expired' >&2; exit 255",
         "exec: process returned 255. The SSO session has expired; log in again (aws sso login"),
        (None, "exec: No such file or directory: 'no-such-aws'; install it, or write its whole"),
        ("echo Please log in", "exec: failed to decode process output"),
        ('echo "{}"', "missing key 'apiVersion'"),
        (f"echo '{json.dumps(EMPTY)}'", "aws printed no credentials"),
    ],
)  # fmt: skip
def test_a_plugin_that_gives_nothing(config, emulator, tmp_path, capfd, said, problem):
    user = plugin(tmp_path / "aws", said or "")
    if said is None:
        user["exec"]["command"] = "no-such-aws"
    with_user(config, emulator, user)
    line = refused("eks", kubeconfig=str(config))
    assert "the credentials of user 'ada' (context 'test'" in line and problem in line
    assert capfd.readouterr().err == ""


def test_a_token_that_cannot_be_one(config, emulator):
    with_user(config, emulator, {"token": "good\ntoken"})
    line = refused("eks", kubeconfig=str(config))
    assert "the token of user 'ada'" in line and "cut off or pasted wrongly? log in again" in line


def test_a_plugin_that_does_not_answer(config, emulator, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "PLUGIN_S", 0.5)
    with_user(config, emulator, plugin(tmp_path / "aws", "exec sleep 5"))
    line = refused("eks", kubeconfig=str(config))
    assert f"{tmp_path}/aws did not answer within 0.5 s; run it by hand to see why; log" in line


def test_a_plugin_gives_a_certificate(config, emulator, tmp_path):
    said = {
        "apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential",
        "status": {"clientCertificateData": "CERT", "clientKeyData": "KEY"},
    }  # fmt: skip
    (tmp_path / "said").write_text(json.dumps(said))
    user = plugin(tmp_path / "aws", f"cat {tmp_path}/said")
    settings = kubeconfig("https://127.0.0.1:1")
    settings["users"][0]["user"] = user
    config.write_text(yaml.safe_dump(settings))
    configuration = access.load_access("eks", kubeconfig=config).client.configuration
    assert Path(configuration.cert_file).read_text() == "CERT"
    assert Path(configuration.key_file).read_text() == "KEY"


def test_a_plugin_beside_its_kubeconfig_is_told_of_the_cluster(config, emulator, tmp_path):
    user = plugin(tmp_path / "get-token", CREDENTIAL % (tmp_path / "token")
                  + f"\nenv > {tmp_path}/seen; pwd >> {tmp_path}/seen")  # fmt: skip
    user["exec"] |= {"command": "./get-token", "provideClusterInfo": True,
                     "env": [{"name": "AWS_PROFILE", "value": "ada"}]}  # fmt: skip
    (tmp_path / "token").write_text("good-token")
    with_user(config, emulator, user)
    connect("eks", kubeconfig=str(config)).close()
    seen = (tmp_path / "seen").read_text()
    assert "AWS_PROFILE=ada" in seen and emulator.url in seen and f"\n{tmp_path}\n" in seen


def test_a_token_file_ends_with_a_line(config, emulator, tmp_path):
    """Found by trying: Python refuses a header with a line's end in it."""
    (tmp_path / "token").write_text("good-token\n")
    with_user(config, emulator, {"tokenFile": "token"})
    connect("eks", kubeconfig=str(config)).close()


def test_several_files_are_one(config, emulator, tmp_path, monkeypatch):
    """One has the users, one the rest, one is empty, one is not there."""
    settings = kubeconfig(emulator.url)
    (tmp_path / "users").write_text(yaml.safe_dump({"users": settings.pop("users")}))
    config.write_text(yaml.safe_dump(settings))
    (tmp_path / "empty").write_text("")
    several = [str(tmp_path / "empty"), str(config), "/nowhere", str(tmp_path / "users")]
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(several))
    connect("eks").close()


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [("not a url", "contains invalid character"), ("socks5://127.0.0.1:9", "pip install PySocks")],
)
def test_a_proxy_that_cannot_be_used(config, emulator, proxy, problem):
    settings = kubeconfig(emulator.url)
    settings["clusters"][0]["cluster"]["proxy-url"] = proxy
    config.write_text(yaml.safe_dump(settings))
    line = refused("eks", kubeconfig=str(config))
    assert line.startswith(f"the proxy '{proxy}' cannot be used (") and problem in line


@pytest.mark.parametrize("name", ["Ada", "a/b?x", "-a", "a" * 64, "a b", "../secrets"])
def test_a_name_that_no_namespace_has(config, emulator, name):
    with pytest.raises(ConnectError, match="is no namespace's name"):
        KubernetesCluster("kind", kubeconfig=config, namespace=name)
    assert emulator.requests == []


def test_401_reads_the_credentials_again_once(config, emulator, tmp_path, quick):
    """EKS's tokens live 15 minutes: the plugin is asked for another one in mid-session."""
    (tmp_path / "token").write_text("first")
    with_user(config, emulator, plugin(tmp_path / "aws", CREDENTIAL % (tmp_path / "token")))
    emulator.tokens = {"first"}
    cluster = KubernetesCluster("kind", kubeconfig=config)
    emulator.tokens = {"second"}
    (tmp_path / "token").write_text("second")
    assert cluster.components() == []
    emulator.tokens = set()
    with pytest.raises(ConnectError, match="does not accept the credentials"):
        cluster.components()
    cluster.close()


def test_inside_a_pod(emulator, config, monkeypatch, tmp_path):
    """In-cluster configuration is read; its address is https, so nobody answers here."""
    from kubernetes.config import incluster_config

    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", folder)
    assert "automountServiceAccountToken: true" in refused("eks")
    for name, text in (("token", "t"), ("ca.crt", ""), ("namespace", "workshop\n")):
        (folder / name).write_text(text)
    (folder / "ca.crt").write_bytes(__import__("certifi").contents().encode())
    for name, file in (("SERVICE_TOKEN_FILENAME", "token"), ("SERVICE_CERT_FILENAME", "ca.crt")):
        monkeypatch.setattr(incluster_config, name, str(folder / file))
    found = access.load_access("eks")
    assert (found.context, found.server, found.namespace) == (
        "in-cluster", "https://127.0.0.1:9", "workshop",
    )  # fmt: skip
