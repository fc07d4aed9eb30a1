"""A room on a cluster: made twice, looked at, handed out, cleaned up; nobody else's is touched."""

import contextlib
import json
import re
import stat

import pytest
import yaml
from emulated import kubeconfig
from emulator import Fault
from objects import deployment, objects

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.cluster.cleaning import check_clean
from workshop_lib.cluster.kubernetes import KubernetesCluster
from workshop_lib.cluster.kubernetes.resources import operator_hint, resource_of_kind
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.data import data_path
from workshop_lib.errors import ConflictError, NotFoundError, WorkshopError
from workshop_lib.production.room import share_checks
from workshop_lib.production.room.board import read_board
from workshop_lib.production.room.command import main, parser
from workshop_lib.production.room.kubeconfigs import write_kubeconfigs
from workshop_lib.production.room.room import ROOM, Room, room_objects
from workshop_lib.production.room.roster import Learner, read_roster

LEARNERS = [Learner(name="ada", gpus=1), Learner(name="grace")]


def roster(tmp_path, text):
    (tmp_path / "l.csv").write_text(text)
    return tmp_path / "l.csv"


@pytest.mark.parametrize(
    "text",
    ["name,gpus\nada,1\ngrace,\n", "\ufeffname, gpus\nada, 1\n\ngrace,\n,\n",
     "gpus,name\r\n1,ada\r\n,grace\r\n", "name;gpus;group\nada;1;\ngrace ;\n;\n"],
)  # fmt: skip
def test_lists_are_read(tmp_path, text):
    assert read_roster(roster(tmp_path, text)) == LEARNERS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name\nada\nGrace Hopper\n", "line 3: name 'Grace Hopper': String should match"),
        ("name\nada\nada\n", "line 3: 'ada' is there twice"),
        (f"name\n{'a' * 64}\n", "at most 63 characters"),
        ("name\nada; rm\nJosé\n", "line 2: name 'ada; rm'.*; line 3: name 'José'"),
        ("name,gpus\nada,2,staff\n", "line 2: more than the columns"),
        ("name,gpus\nada,two\n", "line 2: gpus 'two': Input should be a valid integer"),
        ("name,seat\nada,4\n", "line 2: seat '4': Extra inputs are not permitted"),
        ("who\nada\n", "name .*: Field required"),
        ("\n", "no learners; write a column `name`"),
    ],
)
def test_a_wrong_list_is_refused_as_a_whole(tmp_path, text, said):
    with pytest.raises(WorkshopError, match=said):
        read_roster(roster(tmp_path, text))


def test_a_file_that_is_none_or_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "l.csv").write_bytes("name\nada\n".encode("utf-16"))
    for file, said in (("l.csv", "UTF-8"), ("none.csv", "No such file")):
        with pytest.raises(WorkshopError, match=said):
            read_roster(tmp_path / file)


def test_what_each_gets():
    found = room_objects(Learner(name="ada", gpus=2, group="team-a"), "eks", "friday")
    bodies = {item.key: item.body for parts in found.values() for item in parts}
    assert bodies["Namespace/ada"]["metadata"]["labels"][ROOM] == "friday"
    assert bodies["ResourceQuota/workshop"]["spec"]["hard"]["requests.nvidia.com/gpu"] == "2"
    assert bodies["RoleBinding/workshop-learner"]["subjects"][0]["name"] == "team-a"
    account = bodies["RoleBinding/workshop-learner-account"]
    (subject,) = account["subjects"]
    assert (subject["name"], subject["namespace"]) == ("learner", "ada")
    assert account["roleRef"]["name"] == bodies["Role/workshop-learner"]["metadata"]["name"]


def rules(component, kind):
    roles = [o.body for o in manifests.render("eks", component) if o.kind == kind]
    return [rule for role in roles for rule in role["rules"]]


def test_an_instructor_may_grant_what_a_learner_gets():
    """The API server refuses a Role with rights that its maker has not."""

    def granted(component, kind):
        return {(group, resource, verb) for rule in rules(component, kind)
                for group in rule["apiGroups"] for resource in rule["resources"]
                for verb in rule["verbs"]}  # fmt: skip

    own, learners = granted("instructor", "ClusterRole"), granted("namespace", "Role")
    assert learners <= own
    assert {resource for _, resource, _ in own - learners} == {
        "namespaces", "resourcequotas", "limitranges", "serviceaccounts", "networkpolicies",
        "roles", "rolebindings", "serviceaccounts/token",
    }, "and no more"  # fmt: skip
    assert not any("*" in part for rule in own for part in rule)


@pytest.fixture
def room(cluster):
    cluster.profile = "eks"
    return Room(cluster, "friday")


def test_a_room_is_made_once_and_again_changes_nothing(emulator, room):
    # As the instructor, whose rights are all that is needed.
    emulator.rules, emulator.rules_everywhere = rules("instructor", "ClusterRole"), True
    plan = room.plan(LEARNERS)
    assert plan["would"].tolist() == ["create", "create"] and emulator.changes() == []
    assert plan["gpus"].tolist() == ["1", "32"]
    made = room.apply(LEARNERS)
    assert made["created"].min() > 10 and made["unchanged"].tolist() == [0, 0]
    assert room.namespaces() == ["ada", "grace"]
    quota = emulator.store.get(emulator.kind("ResourceQuota"), "ada", "workshop")
    assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "1"
    again = room.apply(LEARNERS)
    assert again["created"].tolist() == again["configured"].tolist() == [0, 0]
    more = room.plan([*LEARNERS, Learner(name="mary")])
    assert more["would"].tolist() == ["update", "update", "create"]
    assert room.cluster.namespace == "workshop", "the instructor's own stays"


def test_somebody_elses_namespace_refuses_the_whole_list(emulator, room):
    emulator.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "grace"}})
    with pytest.raises(ConflictError, match=r"grace: not the workshop's; .* nothing was changed"):
        room.apply(LEARNERS)
    assert emulator.changes() == []
    room.of("ada").apply("namespace")  # by an administrator, for the workshop
    assert room.plan(LEARNERS[:1])["would"].tolist() == ["adopt"]
    room.apply(LEARNERS[:1])
    assert room.namespaces() == ["ada"]
    with pytest.raises(ConflictError, match="ada: of room friday"):
        Room(room.cluster, "monday").apply(LEARNERS[:1])


CHECKED = CheckList(
    [
        Check("all nodes", True, "2"),
        Check("GPUs", False, "0 of 8", "x"),
        Check("EFA", None, "none", applies=False),
    ]
)


def test_the_table_has_everyone_and_who_cannot_be_read_hides_nobody(emulator, room):
    room.apply(LEARNERS)
    ada = room.of("ada")
    ada.apply_objects("demo", objects(deployment()))
    # A pod as a real cluster had it.
    text = data_path("recorded/kubernetes/image-pull.json").read_text()
    pod = {"apiVersion": "v1", "kind": "Pod", **json.loads(text)["pods"][0]}
    pod["metadata"] = {**pod["metadata"], "namespace": "ada", "ownerReferences": []}
    emulator.store.put(emulator.kind("Pod"), "ada", pod)
    share_checks(ada, "02", CheckList([Check("answers", True, "yes")]))
    share_checks(ada, "01", CHECKED)
    rows = room.table().set_index("learner").to_dict("index")
    assert rows["ada"]["components"] == "demo" and rows["ada"]["pods"] == "0/1"
    assert rows["ada"]["checks"] == "01: 1/2; 02: 1/1" and rows["ada"]["open"] == "01: GPUs"
    assert "image" in rows["ada"]["problems"]
    assert rows["grace"]["pods"] == "0/0" and rows["grace"]["checks"] == "-"
    assert rows["grace"]["problems"] == "healthy"
    emulator.faults.append(Fault("GET", "/namespaces/ada/pods", times=99, status=403))
    rows = room.table().set_index("learner").to_dict("index")
    assert rows["ada"]["problems"].startswith("cannot be read: ")
    assert rows["grace"]["problems"] == "healthy"


def test_checks_are_shared_with_a_learners_rights(emulator, room, capsys):
    room.apply(LEARNERS)
    emulator.rules, emulator.rules_everywhere = rules("namespace", "Role"), False
    ada = room.of("ada")
    before = ada.remains()
    share_checks(ada, "01", CheckList([Check("all nodes", False, "1 of 2", "x")]))
    share_checks(ada, "01", CHECKED)  # the cell was run again: the last counts
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "shared with the instructor of room friday: 1 of 2 checks"
    assert emulator.refused == set()
    # They are no component: a lesson that looks whether it left something finds nothing.
    assert ada.remains() == before and check_clean(ada, before).passed
    ada.clean()
    assert read_board(ada)[:2] == ("01: 1/2", "01: GPUs")


def test_without_a_room_nothing_is_shared(emulator, cluster, capsys):
    for nowhere in (cluster, LocalCluster(state="t-room")):
        share_checks(nowhere, "01", CHECKED)
        with pytest.raises(NotFoundError, match="lesson 03 has no checks"):
            share_checks(nowhere, "03", CheckList())
    assert emulator.changes() == [] and capsys.readouterr().out == ""


def test_a_kubeconfig_is_a_learners_own(emulator, room, tmp_path, capsys):
    folder = tmp_path / "kubeconfigs"
    with pytest.raises(NotFoundError, match="ada has no account yet"):
        write_kubeconfigs(room.cluster, LEARNERS, folder)
    assert not folder.exists()
    room.apply(LEARNERS)
    for _ in range(2):
        file = write_kubeconfigs(room.cluster, LEARNERS, folder)[0]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = yaml.safe_load(file.read_text())["users"][0]["user"]["token"]
    assert token.startswith("token-ada") and token not in capsys.readouterr().out
    emulator.tokens.discard("good-token")
    with contextlib.closing(KubernetesCluster("eks", kubeconfig=file)) as learner:
        assert learner.namespace == "ada" and learner.components() == ["learner", "namespace"]


def test_cleaning_keeps_data_until_told(emulator, room):
    room.apply(LEARNERS)
    emulator.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}})
    ada = room.of("ada")
    ada.apply("storage")
    ada.apply_objects("demo", objects(deployment()))
    share_checks(ada, "01", CHECKED)
    room.clean()
    assert ada.components() == ["learner", "namespace"] and read_board(ada) == ("-", "-", "-")
    claims = emulator.kind("PersistentVolumeClaim")
    assert emulator.store.get(claims, "ada", "shared") is not None
    room.clean(data=True)
    assert room.namespaces() == [] and emulator.store.get(claims, "ada", "shared") is None
    names = [b["metadata"]["name"] for b in emulator.store.list(emulator.kind("Namespace"), "")]
    assert names == ["theirs"]
    room.clean(data=True)


def test_the_command_changes_nothing_without_yes(
    emulator, config, quick, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("KUBECONFIG", str(config))

    def run(command, *words):
        assert main([command, *map(str, words), "--profile", "kind", "--room", "friday"]) == 0
        return capsys.readouterr().out

    learners = roster(tmp_path, "name\nada\n")
    assert "Nothing was changed" in run("apply", learners) and emulator.changes() == []
    run("apply", learners, "--yes")
    said = run("kubeconfig", learners, "--folder", tmp_path / "k")
    assert "ada.kubeconfig" in said and "token-ada" not in said
    assert "Nothing was changed" in run("clean", "--data")
    assert "healthy" in run("table")
    run("clean", "--data", "--yes")
    assert "room friday: no namespaces" in run("table")
    config.write_text(yaml.safe_dump(kubeconfig("http://127.0.0.1:1")))
    assert main(["table"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "none.csv")]) == 1


@pytest.mark.slow
def test_a_full_room_of_sixty(room):
    """Sixty are made, shown in one table and taken away, each with the longest name there is."""
    learners = [Learner(name=f"{'a' * 60}-{number:02}") for number in range(60)]
    room.apply(learners)
    table = room.table()
    assert table["learner"].tolist() == [each.name for each in learners]
    assert set(table["problems"]) == {"healthy"}
    room.clean(data=True)
    assert room.namespaces() == []


# -- the instructor's page ------------------------------------------------------------------------

TEXT = (manifests.manifests_dir().parent / "notebooks/INSTRUCTOR.md").read_text()
COMMANDS = re.findall(r"^workshop room (.*?)\s*(?:#.*)?$", TEXT, re.M)
APPLIED = re.findall(r'\.apply\("([\w-]+)"(?:, (.*?))?\)', TEXT)


def test_what_the_page_names_is_there():
    understood = {parser().parse_args(command.split()).command for command in COMMANDS}
    assert understood == {"plan", "apply", "kubeconfig", "table", "clean"}
    assert {name for name, _ in APPLIED} == {"instructor", "storage", "monitoring", "model"}
    for component, parameters in APPLIED:
        known = manifests.parameters_of("eks", component)
        assert set(re.findall(r"(\w+)=", parameters)) <= set(known)
        assert manifests.render("eks", component)
    for kind in ("RayCluster", "ServiceMonitor"):  # as the error for a missing CRD says
        command = operator_hint(resource_of_kind(kind)).partition(": ")[2]
        assert set(command.split()) <= set(TEXT.split())
