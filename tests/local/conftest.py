"""States of their own for tests, and proof that nothing of them is left.

`cluster` is a new state for one test. `busy_cluster` is one state for all tests of a
file, where something else runs all the time: starting an agent for each of them
would take longer than most of them.
"""

import uuid

import pytest
from local_helpers import assert_nothing_left, job, listening, until

from workshop_lib.cluster.kube import component_of
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.local.objects import all_objects

NEIGHBOUR = "neighbour"


def _new(**options):
    options.setdefault("state", f"t-{uuid.uuid4().hex[:12]}")
    options.setdefault("restart_backoff_s", 0.2)
    return LocalCluster(**options)


@pytest.fixture
def new_cluster():
    """Makes clusters, each in a new state, and cleans them up."""
    made = []

    def make(**options):
        made.append(_new(**options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.clean()
    for cluster in made:
        assert_nothing_left(cluster)


@pytest.fixture
def cluster(new_cluster):
    return new_cluster()


@pytest.fixture(scope="module")
def _shared():
    cluster = _new()
    neighbour = job("while true; do sleep 3600; done", name=NEIGHBOUR)
    cluster.apply_objects(NEIGHBOUR, neighbour).wait_ready(timeout_s=60)
    yield cluster
    assert cluster.get(NEIGHBOUR).table()["restarts"].sum() == 0
    cluster.clean()
    assert_nothing_left(cluster)


@pytest.fixture
def busy_cluster(_shared):
    """A state where a neighbour runs; what a test leaves is deleted, claims and all."""
    yield _shared
    claims = [b for b in all_objects(_shared.paths) if b["kind"] == "PersistentVolumeClaim"]
    for name in {component_of(body) for body in all_objects(_shared.paths)} - {NEIGHBOUR}:
        ours = [body["metadata"]["name"] for body in claims if component_of(body) == name]
        _shared.delete(name, claims=ours)
    assert _shared.components() == [NEIGHBOUR]
    until(lambda: listening(_shared.paths.network) == [])
    assert [path.name for path in _shared.paths.objects.iterdir()] == [f"Job.{NEIGHBOUR}.json"]
