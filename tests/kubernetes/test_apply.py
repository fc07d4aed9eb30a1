"""Applying: what is sent, what is told, and what a learner reads when it is refused."""

import base64
import json
import re
from pathlib import Path

import pytest
from objects import claim, config_map, deployment, job, objects, ray_cluster, secret, service

from workshop_lib.cluster.kube import COMPONENT
from workshop_lib.errors import (
    ClusterError,
    ConflictError,
    ConnectError,
    ForbiddenError,
    ManifestError,
    NotFoundError,
    OperatorError,
    WorkshopError,
)

HTTP = Path(__file__).parents[1] / "data" / "kubernetes" / "http"


def refused(kind, cluster, *bodies, component="demo", **options):
    with pytest.raises(kind) as error:
        cluster.apply_objects(component, objects(*bodies), **options)
    line = str(error.value)
    assert "\n" not in line
    return line


def applied(cluster, *bodies, component="demo", **options):
    return cluster.apply_objects(component, objects(*bodies), **options)


def test_a_controller_that_writes_meanwhile_is_no_change_of_ours(emulator, cluster):
    applied(cluster, deployment())
    body = emulator.get("Deployment", "server")
    body["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "7"}
    emulator.put(body)
    emulator.set_status("Deployment", "server", replicas=1)
    assert applied(cluster, deployment()).actions == {"Deployment/server": "unchanged"}


def test_a_field_that_is_no_more_applied_is_a_change(emulator, cluster):
    applied(cluster, config_map(a="1", b="2"))
    assert applied(cluster, config_map(a="1")).actions == {"ConfigMap/settings": "configured"}
    assert emulator.get("ConfigMap", "settings")["data"] == {"a": "1"}


def test_all_is_tried_before_anything_is_changed(emulator, cluster):
    applied(cluster, config_map(), service(), job())
    dry = [i for i, (m, path) in enumerate(emulator.requests) if "dryRun=All" in path]
    real = [i for i, (m, path) in enumerate(emulator.requests)
            if m == "PATCH" and "dryRun" not in path]  # fmt: skip
    assert len(dry) == len(real) == 3 and max(dry) < min(real)
    sent = emulator.sent("PATCH")
    assert all("fieldManager=workshop" in p and "fieldValidation=Strict" in p for p in sent)
    assert not any("force" in path for path in sent)


def test_one_wrong_object_changes_nothing(emulator, cluster):
    wrong = job("bad")
    wrong["spec"]["template"]["spec"]["containers"][0]["commnad"] = ["sleep"]
    line = refused(ManifestError, cluster, config_map(), wrong)
    assert line == (
        'Job/bad: there is no field spec.template.spec.containers[name="main"].commnad; correct '
        "the manifest (manifests/overlays/*/demo); nothing was changed"
    )
    assert emulator.changes() == []
    assert len(emulator.sent("PATCH", "jobs/bad")) == 1, "a 500 that is an opinion is no hiccup"


def test_a_conflict_names_field_and_manager(emulator, cluster):
    applied(cluster, config_map(a="1"))
    body = {**config_map(a="theirs"), "metadata": {"name": "settings"}}
    emulator.store.apply(emulator.kind("ConfigMap"), "workshop", body, manager="somebody-else",
                         force=True, dry_run=False)  # fmt: skip
    line = refused(ConflictError, cluster, config_map(a="2"))
    assert line == (
        'ConfigMap/settings: somebody else has set .data.a (conflict with "somebody-else"); leave '
        "it to them, or take it over with cluster.apply('demo', force=True); nothing was changed"
    )
    taken = applied(cluster, config_map(a="2"), force=True)
    assert taken.actions == {"ConfigMap/settings": "configured"}
    assert emulator.get("ConfigMap", "settings")["data"] == {"a": "2"}


def test_a_claim_is_shared_and_stays_with_the_first(emulator, cluster):
    applied(cluster, claim(), component="first")
    work = applied(cluster, claim(), job(), component="second")
    assert work.actions == {"PersistentVolumeClaim/shared": "unchanged", "Job/talk": "created"}
    assert emulator.get("PersistentVolumeClaim", "shared")["metadata"]["labels"][COMPONENT] == (
        "first"
    )
    line = refused(ClusterError, cluster, claim(size="2Gi"), component="second")
    assert line == (
        "PersistentVolumeClaim/shared: a volume cannot change while it exists (spec); first "
        "cluster.delete('first', claims=['shared']), and its data goes with it; "
        "nothing was changed"
    )


REFUSALS = json.loads((HTTP / "refusals.json").read_text())
SAID = {
    "apply-job-template": "Job/talk: a Job's pods cannot change while it exists (spec.template); "
    "first cluster.delete('demo'); nothing was changed",
    "apply-bad-quantity": "Job/bad: quantities must match the regular expression '^([+-]?[0-9.]+)"
    "([eEinumkKMGTP]*[-+]?[0-9]*)$'; correct the manifest (manifests/overlays/*/demo); "
    "nothing was changed",
    "apply-wrong-type": 'Job/bad: spec.template.spec.containers[name="main"].image: expected '
    "string, got 3; correct the manifest (manifests/overlays/*/demo); nothing was changed",
    "apply-claim-changed": "PersistentVolumeClaim/shared: a volume cannot change while it exists "
    "(spec); first cluster.delete('demo', claims=['shared']), and its data goes with it; "
    "nothing was changed",
    "apply-service-address": "Service/server: this field cannot change while it exists "
    "(spec.clusterIPs[0]); first cluster.delete('demo'); nothing was changed",
    "apply-selector-mismatch": "Deployment/server: spec.template.metadata.labels: `selector` does "
    "not match template `labels`; correct the manifest or parameter "
    "(manifests/overlays/*/demo); nothing was changed",
    "apply-custom-resource": "RayCluster/raycluster: spec.headGroupSpec: Required value; correct "
    "the manifest or parameter (manifests/overlays/*/demo); nothing was changed",
    "apply-quota": 'PersistentVolumeClaim/second: refused: persistentvolumeclaims "second" is '
    "forbidden: exceeded quota: small, requested: persistentvolumeclaims=1, used: "
    "persistentvolumeclaims=1, limited: persistentvolumeclaims=1; nothing was changed",
    "apply-pod-security": 'Pod/host: refused: pods "host" is forbidden: violates PodSecurity '
    '"baseline:latest": host namespaces (hostNetwork=true); nothing was changed',
}


@pytest.mark.parametrize("name", SAID)
def test_what_a_real_server_refused(emulator, cluster, name):
    """Each recorded refusal, once, as a line that says what is wrong and what to do."""
    request, response = REFUSALS[name]["request"], REFUSALS[name]["response"]
    body = request["body"]
    if "changed" in name or "template" in name or "address" in name:  # something was there before
        applied(cluster, {**body, "metadata": {"name": body["metadata"]["name"]}})
    sent = len(emulator.sent("PATCH"))
    emulator.fail(
        "PATCH", request["path"], status=response["status"], body=response["body"], times=9
    )
    kind = WorkshopError if response["status"] == 422 else (
        ForbiddenError if response["status"] == 403 else ManifestError)  # fmt: skip
    assert refused(kind, cluster, body) == SAID[name]
    assert len(emulator.sent("PATCH")) == sent + 1, "an opinion is no hiccup"


def test_a_quota_is_explained_by_the_server(emulator, cluster):
    said = {"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": 'services "server" is forbidden: exceeded quota: small'}  # fmt: skip
    emulator.fail("PATCH", "services/server", status=403, body=said)
    line = refused(ForbiddenError, cluster, service())
    assert 'Service/server: refused: services "server" is forbidden: exceeded quota: small' in line


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_trouble_that_passes_is_waited_for(emulator, cluster, status):
    emulator.fail("PATCH", "configmaps", status=status, times=3)
    assert applied(cluster, config_map()).actions == {"ConfigMap/settings": "created"}
    assert len(emulator.sent("PATCH")) == 5


def test_the_server_says_how_long_to_wait(emulator, cluster, monkeypatch):
    from urllib3.util import retry

    slept = []
    monkeypatch.setattr(retry.time, "sleep", lambda s: slept.append(s) if s else None)
    emulator.fail("PATCH", "configmaps", status=429, headers={"Retry-After": "7"})
    applied(cluster, config_map())
    assert slept == [7.0]


@pytest.mark.parametrize("lost", ["before", "after", "body"])
def test_a_lost_connection_leaves_nothing_unknown(emulator, cluster, lost):
    """Done or not before the connection went: the object is there once, and told as made."""
    emulator.fail("PATCH", r"jobs/talk\?(?!.*dryRun)", lost=lost)
    assert applied(cluster, config_map(), job()).actions == {
        "ConfigMap/settings": "created", "Job/talk": "created"}  # fmt: skip
    assert emulator.names("Job") == ["talk"]


def test_a_server_that_stays_away_in_the_middle(emulator, cluster):
    emulator.fail("PATCH", r"jobs/talk\?(?!.*dryRun)", lost="after", times=99)
    line = refused(ConnectError, cluster, config_map(), service(), job())
    assert "changed before: ConfigMap/settings created, Service/server created; " in line
    assert "in doubt: Job/talk; cluster.apply('demo') again is safe and completes it" in line
    emulator.faults.clear()
    assert applied(cluster, config_map(), service(), job()).actions == {
        "ConfigMap/settings": "unchanged", "Service/server": "unchanged", "Job/talk": "unchanged",
    }  # fmt: skip


def test_a_refusal_in_the_middle_says_what_was_changed(emulator, cluster):
    emulator.fail("PATCH", r"jobs/talk\?(?!.*dryRun)", status=409)
    line = refused(ConflictError, cluster, config_map(), job())
    assert "Job/talk: scripted; changed before: ConfigMap/settings created" in line


RECORDED_REFUSAL = REFUSALS["forbidden-namespace"]["response"]["body"]
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "workshop"}}
TERMINATING = {  # the NamespaceLifecycle admission's refusal; delete() would not wait for it
    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
    "message": 'configmaps "settings" is forbidden: unable to create new content in namespace '
               "workshop because it is being terminated",
    "details": {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                            "message": "namespace workshop is being terminated"}]},
}  # fmt: skip
ELSEWHERE = {**config_map(), "metadata": {"name": "settings", "namespace": "production"}}

FAULTS = {
    "a missing permission": (
        lambda e: e.forbidden.add(("patch", "jobs")), [config_map(), job()], ForbiddenError,
        "Job/talk: user 'system:serviceaccount:workshop:learner' may not patch jobs in namespace "
        "'workshop'; ask for this rule in a Role: "
        '{apiGroups: ["batch"], resources: ["jobs"], verbs: ["patch", "create"]}',
    ),
    "a namespace lies in none": (
        lambda e: e.fail("GET", "/api/v1/namespaces/workshop$", status=403, body=RECORDED_REFUSAL),
        [NAMESPACE], ForbiddenError,
        "Namespace/workshop: user 'other' may not get namespaces in the whole cluster; ask for "
        'this rule in a ClusterRole: {apiGroups: [""], resources: ["namespaces"], verbs: ["get"]}',
    ),
    "a missing operator": (
        lambda e: setattr(e, "crds", False), [config_map(), ray_cluster()], OperatorError,
        "RayCluster/raycluster: the cluster knows no RayCluster (ray.io/v1): the KubeRay operator "
        "is not installed here; who administers the cluster installs it with: helm install",
    ),
    "somebody else's object": (
        lambda e: e.put(config_map(a="theirs")), [config_map()], ConflictError,
        "ConfigMap/settings is there already in namespace 'workshop', and it is not the workshop's",
    ),
    "a namespace that ends": (
        lambda e: e.fail("PATCH", "/configmaps/", status=403, body=TERMINATING), [config_map()],
        ConflictError,
        "the namespace 'workshop' is being deleted, and takes nothing new; apply again when it is "
        "gone (kubectl get namespace workshop), or use another; nothing was changed",
    ),
    "another namespace": (
        lambda e: None, [ELSEWHERE], ManifestError,
        "manifests/base/test.yaml: ConfigMap/settings: it names the namespace 'production'",
    ),
    "another kind": (
        lambda e: None, [{**config_map(), "kind": "DaemonSet"}], ManifestError,
        "DaemonSet of v1: the workshop applies no such kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_in_the_way_is_said_and_nothing_is_changed(emulator, cluster, fault):
    prepare, bodies, kind, line = FAULTS[fault]
    prepare(emulator)
    assert refused(kind, cluster, *bodies, force=True).startswith(line)
    assert emulator.changes() == []


def test_a_namespace_that_is_not_there(cluster):
    cluster.namespace = "nowhere"
    line = refused(NotFoundError, cluster, config_map())
    assert "namespace 'nowhere' is not there; an administrator makes it with" in line


# -- tokens -------------------------------------------------------------------------------------


def token(emulator, name="auth"):
    return base64.b64decode(emulator.get("Secret", name)["data"]["auth_token"]).decode()


def test_a_token_is_made_once(emulator, cluster, capfd):
    work = applied(cluster, secret(), config_map())
    first = token(emulator)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert cluster.secret("auth", "auth_token") == first
    assert applied(cluster, secret(), config_map()).actions["Secret/auth"] == "unchanged"
    applied(cluster, {**secret(), "stringData": {"more": "x"}}, config_map())
    assert token(emulator) == first
    shown = "".join(capfd.readouterr()) + repr(work) + work._repr_html_()
    assert first not in shown and not any(first in path for _, path in emulator.requests)


def test_two_kernels_at_once_agree_on_one_token(emulator, cluster):
    """Somebody makes the Secret between our look and our creation: theirs stays."""
    made = []
    create = emulator.store.create

    def first_somebody_else(resource, namespace, body, *, manager, dry_run):
        if not dry_run and not made:
            other = json.loads(json.dumps(body))
            other["data"]["auth_token"] = base64.b64encode(b"theirs").decode()
            made.append(create(resource, namespace, other, manager=manager, dry_run=False))
        return create(resource, namespace, body, manager=manager, dry_run=dry_run)

    emulator.store.create = first_somebody_else
    applied(cluster, secret())
    assert made and token(emulator) == "theirs"


def test_a_lost_answer_does_not_change_the_token(emulator, cluster):
    emulator.fail("POST", r"secrets\?(?!.*dryRun)", lost="after")
    values = []
    put = emulator.store.put

    def noted(resource, namespace, body):
        values.append(body.get("data", {}).get("auth_token"))
        return put(resource, namespace, body)

    emulator.store.put = noted
    assert applied(cluster, secret()).actions == {"Secret/auth": "created"}
    assert len(set(values)) == 1


# -- the workshop's own manifests -----------------------------------------------------------------


def test_the_price_is_said_before_anything_is_applied(emulator, cluster, capsys):
    cluster.profile = "eks"
    emulator.fail("PATCH", "dryRun=All", times=9, status=403)
    with pytest.raises(ClusterError):
        cluster.apply("ray-cluster")
    assert "ray-cluster: $44.15 an hour on demand: 2 x p4d.24xlarge" in capsys.readouterr().out
    assert emulator.changes() == []
    emulator.faults.clear()
    cluster.profile = "kind"
    cluster.apply("vllm")
    assert "$" not in capsys.readouterr().out


@pytest.mark.parametrize("manager", ["kuberay-operator", "kubectl-edit"])
def test_what_the_operator_defaulted_is_taken_over_and_a_persons_is_not(emulator, cluster, manager):
    recorded = json.loads((HTTP / "operator-conflict.json").read_text())
    assert recorded["body"]["details"]["causes"][0]["field"].endswith(".workerGroupSpecs")
    body = json.loads(json.dumps(recorded["body"]).replace("kuberay-operator", manager))
    applied = cluster.apply("autoscale").actions
    assert applied["RayService/recommender"] == "created"
    emulator.fail("PATCH", r"rayservices/recommender\?(?!.*force)", status=409, body=body, times=9)
    if manager == "kuberay-operator":
        cluster.apply("autoscale", max_replicas=3)
        live = emulator.get("RayService", "recommender")
        assert "max_replicas: 3" in live["spec"]["serveConfigV2"]
    else:
        with pytest.raises(ConflictError, match=r"somebody else has set .*kubectl-edit"):
            cluster.apply("autoscale", max_replicas=3)
