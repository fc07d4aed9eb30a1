"""A room on a cluster: made twice, looked at, handed out, cleaned up; nobody else's is touched."""

import json
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
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.data import data_path
from workshop_lib.errors import ConflictError, NotFoundError, WorkshopError
from workshop_lib.production.room import Learner, Room, share_checks
from workshop_lib.production.room.board import read_board
from workshop_lib.production.room.command import main
from workshop_lib.production.room.kubeconfigs import write_kubeconfigs
from workshop_lib.production.room.room import in_namespace

LEARNERS = [Learner("ada", gpus=1), Learner("grace")]


@pytest.fixture
def room(cluster):
    cluster.profile = "eks"
    return Room(cluster, "friday")


def test_a_room_is_made_once_and_again_changes_nothing(emulator, room):
    # As the instructor, whose rights are all that is needed.
    roles = [o.body for o in manifests.render("eks", "instructor") if o.kind == "ClusterRole"]
    emulator.rules = [rule for role in roles for rule in role["rules"]]
    emulator.rules_everywhere = True
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
    assert room.plan([*LEARNERS, Learner("mary")])["would"].tolist() == [
        "update", "update", "create"
    ]  # fmt: skip
    assert room.cluster.namespace == "workshop", "the instructor's own stays"


def test_somebody_elses_namespace_refuses_the_whole_list(emulator, room):
    emulator.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "grace"}})
    with pytest.raises(ConflictError, match=r"grace: not the workshop's; .* nothing was changed"):
        room.apply(LEARNERS)
    assert emulator.changes() == []
    in_namespace(room.cluster, "ada").apply("namespace")  # by an administrator, for the workshop
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


def recorded_pod(emulator, namespace, recording):
    """A pod as a real cluster had it, in a learner's namespace."""
    body = json.loads(data_path(f"recorded/kubernetes/{recording}.json").read_text())["pods"][0]
    body["metadata"]["namespace"] = namespace
    body["metadata"].pop("ownerReferences", None)
    emulator.store.put(emulator.kind("Pod"), namespace, {"apiVersion": "v1", "kind": "Pod", **body})
    return body["metadata"]["name"]


def test_the_table_has_everyone(emulator, room):
    room.apply(LEARNERS)
    ada = in_namespace(room.cluster, "ada")
    ada.apply_objects("demo", objects(deployment()))
    recorded_pod(emulator, "ada", "image-pull")
    share_checks(ada, "02", CheckList([Check("answers", True, "yes")]))
    share_checks(ada, "01", CHECKED)
    rows = room.table().set_index("learner").to_dict("index")
    assert list(rows) == ["ada", "grace"]
    assert rows["ada"]["components"] == "demo" and rows["ada"]["pods"] == "0/1"
    assert rows["ada"]["checks"] == "01: 1/2, 02: 1/1" and rows["ada"]["open"] == "01: GPUs"
    assert "image" in rows["ada"]["problems"] and rows["ada"]["problems"] == "; ".join(
        finding.cause for finding in ada.diagnose()
    )
    assert rows["grace"]["pods"] == "0/0" and rows["grace"]["checks"] == "-"
    assert rows["grace"]["problems"] == "healthy"


def test_one_learner_who_cannot_be_read_hides_nobody(emulator, room):
    room.apply(LEARNERS)
    refuse = Fault("GET", "/namespaces/ada/pods", times=99, status=403)
    emulator.faults.append(refuse)
    rows = room.table().set_index("learner").to_dict("index")
    assert rows["ada"]["problems"].startswith("cannot be read: ")
    assert rows["grace"]["problems"] == "healthy"


def test_checks_are_shared_with_a_learners_rights(emulator, room, capsys):
    room.apply(LEARNERS)
    role = next(o.body for o in manifests.render("eks", "namespace") if o.kind == "Role")
    emulator.rules, emulator.rules_everywhere = role["rules"], False
    ada = in_namespace(room.cluster, "ada")
    before = ada.remains()
    share_checks(ada, "01", CheckList([Check("all nodes", False, "1 of 2", "x")]))
    share_checks(ada, "01", CHECKED)  # the cell was run again: the last counts
    assert capsys.readouterr().out.splitlines()[-1] == (
        "shared with the instructor of room friday: 1 of 2 checks"
    )
    assert emulator.refused == set()
    # They are no component: a lesson that looks whether it left something finds nothing.
    assert ada.remains() == before and check_clean(ada, before).passed
    ada.clean()
    assert read_board(ada)[:2] == ("01: 1/2", "01: GPUs")


def test_without_a_room_nothing_is_shared(emulator, cluster, capsys):
    share_checks(cluster, "01", CHECKED)
    share_checks(LocalCluster(state="t-room"), "01", CHECKED)
    assert emulator.changes() == [] and capsys.readouterr().out == ""
    for nowhere in (cluster, LocalCluster(state="t-room")):  # a mistake shows on a laptop, too
        with pytest.raises(NotFoundError, match="lesson 03 has no checks"):
            share_checks(nowhere, "03", CheckList())
        with pytest.raises(WorkshopError, match="two digits"):
            share_checks(nowhere, "ray/1", CHECKED)


def test_a_kubeconfig_is_a_learners_own(emulator, room, tmp_path, capsys):
    folder = tmp_path / "kubeconfigs"
    with pytest.raises(NotFoundError, match="ada has no account yet"):
        write_kubeconfigs(room.cluster, LEARNERS, folder)
    assert not folder.exists()
    with pytest.raises(WorkshopError, match="hours must be from"):
        write_kubeconfigs(room.cluster, LEARNERS, folder, hours=0)
    room.apply(LEARNERS)
    files = write_kubeconfigs(room.cluster, LEARNERS, folder)
    files = write_kubeconfigs(room.cluster, LEARNERS, folder)
    assert stat.S_IMODE(files["ada"].stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    config = yaml.safe_load(files["ada"].read_text())
    token = config["users"][0]["user"]["token"]
    assert token.startswith("token-ada") and token not in capsys.readouterr().out
    emulator.tokens.discard("good-token")
    learner = KubernetesCluster("eks", kubeconfig=files["ada"])
    assert learner.namespace == "ada" and learner.components() == ["learner", "namespace"]
    learner.close()


def test_cleaning_keeps_data_until_told(emulator, room):
    room.apply(LEARNERS)
    emulator.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}})
    ada = in_namespace(room.cluster, "ada")
    ada.apply("storage")
    ada.apply_objects("demo", objects(deployment()))
    share_checks(ada, "01", CHECKED)
    assert room.clean() == ["ada", "grace"]
    assert ada.components() == ["learner", "namespace"] and read_board(ada) == ("-", "-", "-")
    claims = emulator.kind("PersistentVolumeClaim")
    assert emulator.store.get(claims, "ada", "shared") is not None
    assert room.clean(data=True) == ["ada", "grace"]
    assert room.namespaces() == [] and emulator.store.get(claims, "ada", "shared") is None
    names = [b["metadata"]["name"] for b in emulator.store.list(emulator.kind("Namespace"), "")]
    assert names == ["theirs"]
    assert room.clean(data=True) == []


def test_a_laptop_has_no_rooms():
    with pytest.raises(WorkshopError, match="needs a Kubernetes cluster"):
        Room(LocalCluster(state="t-room"))


def test_the_command_changes_nothing_without_yes(emulator, config, quick, tmp_path, monkeypatch,
                                                 capsys):  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(config))
    learners = tmp_path / "l.csv"
    learners.write_text("name\nada\n")
    command = ["--profile", "kind", "--room", "friday"]
    assert main(["apply", str(learners), *command]) == 0
    assert "Nothing was changed" in capsys.readouterr().out and emulator.changes() == []
    assert main(["apply", str(learners), "--yes", *command]) == 0
    assert main(["kubeconfig", str(learners), "--folder", str(tmp_path / "k"), *command]) == 0
    said = capsys.readouterr().out
    assert "ada.kubeconfig" in said and "token-ada" not in said
    assert main(["table", *command]) == 0
    assert "ada" in capsys.readouterr().out
    assert main(["clean", "--data", *command]) == 0
    assert Room(connected(config), "friday").namespaces() == ["ada"]
    assert main(["clean", "--data", "--yes", *command]) == 0
    assert Room(connected(config), "friday").namespaces() == []
    assert main(["table", *command]) == 0
    assert "room friday: no namespaces" in capsys.readouterr().out
    bad = kubeconfig("http://127.0.0.1:1")
    config.write_text(yaml.safe_dump(bad))
    assert main(["table", *command]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err


def connected(config):
    return KubernetesCluster("kind", kubeconfig=config)


@pytest.mark.slow
def test_a_full_room_of_sixty(emulator, room):
    """Sixty are made, shown in one table and taken away, each with the longest name there is."""
    learners = [Learner(f"{'a' * 60}-{number:02}") for number in range(60)]
    room.apply(learners)
    assert room.namespaces() == [each.name for each in learners]
    table = room.table()
    assert table["learner"].tolist() == [each.name for each in learners]
    assert set(table["problems"]) == {"healthy"}
    room.clean(data=True)
    assert room.namespaces() == []
