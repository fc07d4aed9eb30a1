"""The labs' catalogue: every break is one change that renders, and no report gives it away."""

import doctest
import importlib
import pkgutil

import pytest

from workshop_lib.cluster import manifests
from workshop_lib.errors import ClusterError, NotFoundError, WorkshopError
from workshop_lib.production import labs

PROFILES = ("local", "eks", "kind")
NAMES = [labs.plan(number).name for number in labs.table()["lab"]]
ASKED_FOR = {
    "stale-address", "wrong-port", "missing-model", "too-much-kv", "no-gpus", "killed-worker",
    "killed-engine", "failing-probe",
}  # fmt: skip


def test_the_catalogue():
    assert set(NAMES) >= ASKED_FOR
    assert labs.table()["lab"].tolist() == list(range(1, len(NAMES) + 1))
    assert labs.plan(3) is labs.plan("failing-probe")
    with pytest.raises(WorkshopError, match=r"no lab 'worng-port'; labs.table\(\) has 1 to"):
        labs.plan("worng-port")


@pytest.mark.parametrize("name", NAMES)
def test_a_report_is_no_cause(name):
    """What is shown before a learner asks has neither the name nor the wrong value."""
    plan = labs.plan(name)
    shown = labs.table().set_index("lab").loc[plan.number].to_string() + repr(labs.Lab(None, plan))
    assert name not in shown or name == plan.component  # notebook 01 has a component of this name
    for profile in PROFILES:
        for value in plan.broken(profile).values():
            assert str(value) not in plan.report
    assert len(plan.hints) == 3


def leaves(node, path=""):
    if isinstance(node, dict):
        return {p: v for k, each in node.items() for p, v in leaves(each, f"{path}/{k}").items()}
    if isinstance(node, list):
        return {p: v for k, each in enumerate(node) for p, v in leaves(each, f"{path}/{k}").items()}
    return {path: node}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_a_break_is_a_small_change_of_what_is_there(name, profile):
    plan = labs.plan(name)
    plain = manifests.render(profile, plan.component)
    broken = manifests.render(profile, plan.component, plan.broken(profile))
    changed = [
        (old.key, path)
        for old, new in zip(plain, broken, strict=True)
        for path in leaves(old.body)
        if leaves(old.body)[path] != leaves(new.body).get(path)
    ]
    if name == "killed-worker":  # nothing is wrong but that a process ends
        assert changed == []
    else:
        assert 1 <= len(changed) <= 2, changed
        assert len({key for key, _ in changed}) == 1


def test_a_quota_lets_the_scheduler_say_that_there_are_not_enough_gpus():
    """Refused by a quota there is no pod, and no Pending: in no profile is that the lesson."""
    asked = 2 * 16  # notebook 01: TOO_MANY_GPUS for each of two pods
    for profile in ("eks", "kind"):
        quota = next(i for i in manifests.render(profile, "namespace") if i.kind == "ResourceQuota")
        hard = quota.body["spec"]["hard"]
        assert int(hard.get("requests.nvidia.com/gpu", asked)) >= asked


class Recording:
    """A cluster on which some components are applied; it writes down what is asked of it."""

    profile = "local"

    def __init__(self, *there):
        self.there = list(there)
        self.asked = []

    def components(self):
        return self.there

    def get(self, component):
        raise NotFoundError(component)

    def apply(self, component, **parameters):
        self.asked.append(("apply", component))
        raise ClusterError("no")

    def delete(self, component, **_):
        self.asked.append(("delete", component))


def test_a_component_in_use_is_not_broken():
    cluster = Recording("vllm", "model")
    with pytest.raises(
        ClusterError, match=r"'vllm', which is applied; it starts after cluster.del"
    ):
        labs.start(cluster, "missing-model")
    assert cluster.asked == []


def test_half_a_lab_does_not_stay():
    cluster = Recording()
    with pytest.raises(ClusterError, match=r"^no$"):
        labs.start(cluster, "wrong-port")
    assert cluster.asked == [("apply", "lab-server"), ("delete", "lab-server")]


def test_hints_go_on_to_the_last_one():
    it = labs.Lab(Recording(), labs.plan("wrong-port"))
    said = [it.hint() for _ in range(4)]
    assert said[0].startswith("hint 1 of 3: ") and "8081" not in said[0]
    assert said[2] == said[3] and "8081" in said[2]
    assert "target_port=8000" in it.solution()


def test_what_is_not_there_is_not_repaired():
    checks = labs.Lab(Recording(), labs.plan("wrong-port")).check()
    assert not checks.passed and "lab-server is not applied" in str(checks)


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.iter_modules(labs.__path__)))
def test_examples(name):
    assert (
        doctest.testmod(importlib.import_module(f"workshop_lib.production.labs.{name}")).failed == 0
    )
