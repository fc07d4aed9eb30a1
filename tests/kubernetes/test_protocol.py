"""What every cluster promises a notebook, asked of each of them in the same words.

`world` gives a cluster and the means to make its pods do something. A Kubernetes cluster
has no controllers here, so its world plays them; `LocalCluster` would play the manifests
itself and needs only `render`, which is why no test looks behind the protocol.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from objects import claim, config_map, job, objects

from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.kubernetes.resources import COMPONENT


@dataclass
class KubernetesWorld:
    """A Kubernetes API whose controllers are played by the tests."""

    cluster: Any
    emulator: Any

    def run(self, *lines, name="talk", code=None):
        """The Job's pod starts and writes; with a code, it ends."""
        pod = f"{name}-0-abcde"
        if pod not in self.emulator.names("Pod"):
            self.emulator.add_pod(self.emulator.get("Job", name), pod, index=0)
            self.emulator.set_status("Job", name, ready=1, active=1)
        self.emulator.kubelet.log(pod).write(*lines)
        if code is not None:
            self.emulator.end_pod(pod, code=code)
            met = {"type": "Complete" if code == 0 else "Failed", "status": "True",
                   "reason": "CompletionsReached" if code == 0 else "BackoffLimitExceeded",
                   "message": "all done" if code == 0 else "too many failures"}  # fmt: skip
            self.emulator.set_status("Job", name, ready=0, conditions=[met])


@pytest.fixture(params=["kubernetes"])
def world(request):
    cluster = request.getfixturevalue("cluster")
    return KubernetesWorld(cluster, request.getfixturevalue("emulator"))


@pytest.fixture
def apply(world):
    return lambda *bodies, component="demo": world.cluster.apply_objects(
        component, objects(*bodies)
    )


def test_apply_tells_what_it_did_and_can_be_repeated(apply):
    first, second, third = apply(job()), apply(job()), apply(job(), config_map())
    assert first.actions == {"Job/talk": "created"}
    assert second.actions == {"Job/talk": "unchanged"}
    assert third.actions == {"Job/talk": "unchanged", "ConfigMap/settings": "created"}


def test_another_kernel_finds_what_was_applied(world, apply):
    apply(job())
    found = world.cluster.get("demo")
    assert (found.kind, found.name, found.component) == ("Job", "talk", "demo")
    assert found.observe().body["metadata"]["labels"][COMPONENT] == "demo"
    assert world.cluster.components() == ["demo"]


def test_what_is_not_there(world):
    with pytest.raises(NotFoundError, match=r"component 'demo' is not applied \(nothing is\)"):
        world.cluster.get("demo")
    with pytest.raises(NotFoundError, match=r"Job/talk is not there; start it with cluster.apply"):
        world.cluster.observe("Job", "talk")
    with pytest.raises(NotFoundError, match="is no running pod's name"):
        world.cluster.exec("talk", ["true"])
    with pytest.raises(NotFoundError, match="'talk' is no running pod's name"):
        world.cluster.forward("talk", 80).__enter__()
    with pytest.raises(WorkshopError, match="there is no component 'nothing'"):
        world.cluster.apply("nothing")


def test_a_jobs_life(world, apply):
    work = apply(job())
    world.run("starting")
    work.wait_ready(timeout_s=30)
    assert work.table()["state"].tolist() == ["Running"]
    assert [line.text for line in work.logs()] == ["starting"]
    world.run("done", code=0)
    work.wait_complete(timeout_s=30)
    assert [str(line) for line in work.logs(follow=True)] == ["[rank 0] starting", "[rank 0] done"]
    world.cluster.delete("demo")
    assert world.cluster.components() == []


def test_a_failure_quotes_the_last_words(world, apply):
    work = apply(job())
    world.run("no such model", code=1)
    with pytest.raises(ClusterError, match=r"failed after .* \(talk-0-abcde said: no such model\)"):
        work.wait_complete(timeout_s=30)


def test_a_wait_in_vain(apply):
    with pytest.raises(WaitTimeoutError, match=r"Job/talk is not ready after 0\.2 s"):
        apply(job()).wait_ready(timeout_s=0.2)


def test_a_command_in_a_pod(world, apply):
    apply(job())
    world.run()
    done = world.cluster.exec("talk-0", ["bash", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert str(done) == "out\nerr\n(exit code 3)"


def test_a_jobs_pods_cannot_change_while_it_exists(apply):
    apply(job())
    with pytest.raises(ClusterError, match=r"Job/talk: a Job's pods cannot change while it exists"):
        apply(job(image="x:2"))


def test_an_object_belongs_to_one_component(apply):
    apply(config_map())
    with pytest.raises(ClusterError, match=r"belongs to component 'demo' already; first cluster"):
        apply(config_map(), component="other")


def test_data_goes_only_by_name(world, apply):
    apply(claim(), job())
    with pytest.raises(NotFoundError, match="component 'demo' has no claim 'x'; it has shared"):
        world.cluster.delete("demo", claims=["x"])
    world.cluster.delete("demo")
    assert apply(claim(), component="demo").actions == {"PersistentVolumeClaim/shared": "unchanged"}
    world.cluster.delete("demo", claims=["shared"])
    assert apply(claim(), component="demo").actions == {"PersistentVolumeClaim/shared": "created"}
