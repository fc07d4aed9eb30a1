"""A list of learners, what each gets, and that an instructor may give it."""

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.errors import WorkshopError
from workshop_lib.production.room import Learner, read_roster, room_objects, room_price
from workshop_lib.production.room.command import main
from workshop_lib.production.room.room import ROOM


def roster(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "name,gpus\nada,2\ngrace,\n"),
        ("l.csv", "\ufeffname, gpus\n# two people\nada, 2\n\ngrace,\n"),
        ("l.csv", "gpus,name\r\n2,ada\r\n,grace\r\n"),
        ("l.yaml", "- {name: ada, gpus: 2}\n- grace\n"),
        ("L.CSV", "name;gpus\nada;2\ngrace;\n;\n"),
        ("l.csv", "name,gpus\nada,2\ngrace,\n,\n,\n"),
        ("l.YML", "- {name: ada, gpus: 2}\n- grace\n"),
    ],
)
def test_lists_are_read(tmp_path, name, text):
    assert read_roster(roster(tmp_path, name, text)) == [Learner("ada", 2), Learner("grace")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.txt", "ada\nGrace Hopper\n", r"'Grace Hopper': write .* such as 'grace-hopper'"),
        ("l.txt", "ada\nada\n", "'ada' is there twice"),
        ("l.txt", "ada\nkube-system\n", "'kube-system' is a name that clusters use"),
        ("l.txt", "-ada\nb_c\n", r"'-ada': .* 'ada'; 'b_c': .* such as 'b-c'"),
        ("l.txt", "a" * 64, "at most 63"),
        ("l.txt", "ada; rm\n", "write lower-case"),
        ("l.txt", "José\n", "such as 'jose'"),
        ("l.txt", "李雷\n", "at most 63; nothing"),
        ("l.csv", "name,gpus\nada,2,staff\n", "'ada' has 'more'"),
        ("l.txt", "\n", "no learners"),
        ("l.csv", "who\nada\n", "one of them `name`"),
        ("l.csv", "name,gpus\nada,two\n", "gpus 'two' is not a whole number"),
        ("l.csv", "name,seat\nada,4\n", "'seat'; known: name, gpus, group"),
        ("l.yaml", "- 7\n", "7 is not a text"),
        ("l.yaml", "ada: 1\n", "not a list"),
        ("l.yaml", "- [\n", "no YAML"),
    ],
)
def test_a_wrong_list_is_refused_as_a_whole(tmp_path, name, text, said):
    with pytest.raises(WorkshopError, match=said):
        read_roster(roster(tmp_path, name, text))


def test_a_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "l.csv").write_bytes("name\nada\n".encode("utf-16"))
    with pytest.raises(WorkshopError, match="UTF-8"):
        read_roster(tmp_path / "l.csv")


def test_what_each_gets():
    found = room_objects(Learner("ada", gpus=2, group="team-a"), "eks", "friday")
    bodies = {item.key: item.body for objects in found.values() for item in objects}
    assert bodies["Namespace/ada"]["metadata"]["labels"][ROOM] == "friday"
    assert bodies["ResourceQuota/workshop"]["spec"]["hard"]["requests.nvidia.com/gpu"] == "2"
    assert bodies["RoleBinding/workshop-learner"]["subjects"][0]["name"] == "team-a"
    account = bodies["RoleBinding/workshop-learner-account"]
    assert account["subjects"] == [{"kind": "ServiceAccount", "name": "learner",
                                    "namespace": "ada"}]  # fmt: skip
    assert account["roleRef"]["name"] == bodies["Role/workshop-learner"]["metadata"]["name"]


def test_an_instructor_may_grant_what_a_learner_gets():
    """The API server refuses a Role with rights that its maker has not."""
    (base,) = (o for o in manifests.render("eks", "namespace") if o.kind == "Role")
    rendered = manifests.render("eks", "instructor")
    own = [rule for o in rendered if o.kind == "ClusterRole" for rule in o.body["rules"]]
    assert {o.kind for o in rendered} == {"ClusterRole", "ClusterRoleBinding"}

    def granted(rules):
        return {(group, resource, verb) for rule in rules for group in rule["apiGroups"]
                for resource in rule["resources"] for verb in rule["verbs"]}  # fmt: skip

    extra = granted(own) - granted(base.body["rules"])
    assert granted(base.body["rules"]) <= granted(own)
    assert {resource for _, resource, _ in extra} == {
        "namespaces", "resourcequotas", "limitranges", "serviceaccounts", "networkpolicies",
        "roles", "rolebindings", "serviceaccounts/token",
    }, "and no more"  # fmt: skip
    assert not any("*" in part for rule in granted(own) for part in rule)


def test_on_a_laptop_it_says_so_and_shows_what_a_cluster_gets(tmp_path, capsys):
    assert main(["plan", str(roster(tmp_path, "l.txt", "ada\n")), "--profile", "local"]) == 0
    said = capsys.readouterr().out
    assert "A room needs a cluster" in said and "ada, component namespace: Namespace/ada" in said
    assert main(["apply", "--profile", "local"]) == 1
    assert "needs the list of learners" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "none.csv"), "--profile", "local"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_the_overlays_have_the_same_rights_in_both_profiles():
    for component in ("learner", "instructor"):
        eks, kind = (
            yaml.safe_dump([item.body for item in manifests.render(profile, component)])
            for profile in ("eks", "kind")
        )
        assert eks == kind


def test_the_price_is_everyones_and_each_ones():
    one, twelve = (room_price(learners).splitlines()[0] for learners in (1, 12))
    assert "one learner" in one and "12 learners" in twelve and "a learner)" in twelve
