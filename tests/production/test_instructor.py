"""The instructor's page: what it names is there, and its commands are understood."""

import re

import pytest

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kubernetes.resources import operator_hint, resource_of_kind
from workshop_lib.production.room.command import _parser

ROOT = manifests.manifests_dir().parent
TEXT = (ROOT / "notebooks/INSTRUCTOR.md").read_text()
COMMANDS = re.findall(r"^workshop room (.*?)\s*(?:#.*)?$", TEXT, re.M)
APPLIED = re.findall(r'\.apply\("([\w-]+)"(?:, (.*?))?\)', TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_room_is_understood(command, tmp_path):
    options = _parser().parse_args(command.split())
    assert (options.learners is not None) is (options.command in ("plan", "apply", "kubeconfig"))


def test_commands_cover_the_day():
    assert {command.split()[0] for command in COMMANDS} == {
        "plan", "apply", "kubeconfig", "table", "clean",
    }  # fmt: skip


@pytest.mark.parametrize(("component", "parameters"), APPLIED)
def test_every_component_and_parameter_is_there(component, parameters):
    known = manifests.parameters_of("eks", component)
    assert set(re.findall(r"(\w+)=", parameters)) <= set(known)
    assert manifests.render("eks", component)


def test_components_are_named():
    assert {name for name, _ in APPLIED} == {"instructor", "storage", "monitoring", "model"}


@pytest.mark.parametrize("kind", ["RayCluster", "ServiceMonitor"])
def test_operators_are_installed_as_the_error_says(kind):
    """What a missing CRD tells to do is what the page says."""
    command = operator_hint(resource_of_kind(kind)).partition(": ")[2]
    assert set(command.split()) <= set(TEXT.split())


def test_the_list_that_it_describes_is_read(tmp_path):
    from workshop_lib.production.room import read_roster

    file = tmp_path / "learners.csv"
    file.write_text("name,gpus,group\nada,1,team\n")
    assert [learner.gpus for learner in read_roster(file)] == [1]
