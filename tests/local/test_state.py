"""A state's life: found again, side by side, killed at any moment, cleaned."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid

import pytest
from local_helpers import (
    CHECKOUT,
    agent_pid,
    assert_nothing_left,
    job,
    pod_spec,
    server,
    shims,
    texts,
    until,
)

from workshop_lib.cluster.local import processes, status
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.local.launch import stop_agent
from workshop_lib.cluster.local.paths import StatePaths, write_json
from workshop_lib.errors import ClusterError, NotFoundError

LONG = "echo up; sleep 600"


PROLOGUE = """
import sys
from local_helpers import job, server, texts, until
from workshop_lib.cluster.local.cluster import LocalCluster
cluster = LocalCluster(state=sys.argv[1])
"""


def kernel(cluster, code, *arguments, checkout=CHECKOUT, **options):
    """Run Python code about a cluster's state in a process of its own, as another kernel would."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{CHECKOUT / 'tests/local'}"}
    words = [PROLOGUE + textwrap.dedent(code), cluster.paths.state, *map(str, arguments)]
    return subprocess.Popen(
        [sys.executable, "-c", *words],
        env=environment, cwd=checkout, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def output_of(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def cli(*arguments, checkout=CHECKOUT):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(
        [sys.executable, "-m", "workshop_lib.tools.cli", *arguments],
        env=environment, cwd=checkout, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


# -- other kernels ------------------------------------------------------------------------------


def test_state_is_found_again(cluster):
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    code = """
        work = cluster.get("work").wait_ready(timeout_s=300)
        print(cluster.components(), work.pods, texts(work))
        print(cluster.exec("work", ["echo", "hello"]))
        cluster.delete("work")
    """
    pods = work.pods
    assert f"['work'] {pods} ['up']\nhello\n" in output_of(kernel(cluster, code))
    assert cluster.components() == [] and not processes.mentioning(cluster.paths.runtime)


def test_two_kernels_apply_at_once(cluster):
    code = """
        name = sys.argv[2]
        cluster.apply_objects(name, job("echo up; sleep 600", name=name)).wait_ready(timeout_s=300)
    """
    for each in [kernel(cluster, code, name) for name in ("same", "same", "other", "third")]:
        output_of(each)
    assert cluster.components() == ["other", "same", "third"]
    for name in cluster.components():
        assert len(shims(cluster, f"Job/{name}")) == 1
    agents = [
        pid for pid in processes.mentioning(cluster.paths.runtime)
        if b"workshop_lib.cluster.local.agent" in processes.command_line(pid)
    ]  # fmt: skip
    assert agents == [agent_pid(cluster)]


def test_looking_while_another_kernel_applies_and_deletes(cluster, tmp_path):
    """Whoever looks at any instant sees a component or that it is not there, and nothing else."""
    code = """
        from pathlib import Path
        for remove in (cluster.clean, lambda: cluster.delete("work")) * 2:
            work = cluster.apply_objects("work", job("echo up; sleep 600"))
            work.wait_ready(timeout_s=300)
            until(Path(sys.argv[2]).exists)
            remove()
    """
    looked = tmp_path / "looked"
    other = kernel(cluster, code, looked)
    seen = set()
    while other.poll() is None:
        if "Job" in seen:
            looked.touch()
        try:
            work = cluster.get("work")
            seen.add(work.observe().body["kind"])
            seen.update(texts(work))
        except NotFoundError:
            seen.add("not there")
        assert cluster.diagnose().verdict
    output_of(other)
    assert {"Job", "not there"} <= seen <= {"Job", "not there", "up"}


def test_locks(cluster, monkeypatch):
    """A holder is named; a killed one's lock is free; clean takes the file away under others."""
    code = """
        import os, signal
        with cluster._changing():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert kernel(cluster, code).wait(timeout=300) == -signal.SIGKILL
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)
    monkeypatch.setattr("workshop_lib.cluster.local.cluster.LOCK_TIMEOUT_S", 0.2)
    with cluster._changing(), pytest.raises(ClusterError) as error:
        cluster.delete("work")
    assert f"has been locked by process {os.getpid()} for 0.2 s" in str(error.value)
    cluster.delete("work")
    code = """
        for _ in range(3):
            cluster.apply_objects("work", job("echo up; sleep 600"))
            cluster.clean()
    """
    for each in [kernel(cluster, code) for _ in range(2)]:
        output_of(each)
    assert_nothing_left(cluster)


# -- checkouts ------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A second checkout, in a folder whose name is as awkward as a name can be."""
    folder = tmp_path / 'it\'s 100% a #2; "copy" $HOME'
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(CHECKOUT / "workshop_lib", folder / "workshop_lib", ignore=ignore)
    (folder / "manifests").mkdir()
    yield folder
    assert cli("clean", checkout=folder).returncode == 0


def test_two_checkouts_side_by_side(cluster, copy):
    state = cluster.paths.state
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    code = """
        web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
        print(cluster.components(), texts(web)[0].split()[0], cluster.paths.home)
        with cluster.forward("server", 80) as url:
            assert not url.startswith(f"http://{sys.argv[2]}.")
    """
    output = output_of(kernel(cluster, code, cluster.paths.network, checkout=copy))
    assert f"['web'] listening {copy}" in output
    listed = cli("status", checkout=copy).stdout
    assert f"state {state}: web" in listed and "Running" in listed
    done = cli("clean", checkout=copy)
    assert (done.returncode, done.stderr) == (0, "") and state in done.stdout
    assert not (copy / ".workshop").exists()
    assert cluster.get("work").wait_ready(timeout_s=300), "the first one was left alone"
    wrong = cli("clean", "--state", "../x", checkout=copy)
    assert wrong.returncode == 1 and wrong.stderr.startswith("ClusterError: state name '../x'")


def test_clean_ends_what_a_deleted_checkout_left(copy):
    other = LocalCluster(state=f"t-{uuid.uuid4().hex[:8]}", home=copy)
    other.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    moved = copy.with_name("moved")
    copy.rename(moved)
    done = cli("clean", checkout=moved)
    assert not copy.exists(), "nothing makes it anew"
    moved.rename(copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert other.paths.state in done.stdout
    assert not processes.mentioning(other.paths.runtime) and not other.paths.runtime.exists()


# -- killed processes -----------------------------------------------------------------------------

ALL_THE_TIME = """
while True:
    work = cluster.apply_objects("work", job("trap '' TERM; echo up; while :; do sleep 1; done"))
    cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    work.wait_ready(timeout_s=300)
    print("up", flush=True)
    cluster.delete("web")
    cluster.delete("work")
"""


@pytest.mark.parametrize("victims", ["kernel", "agent", "agent and shims", "all"])
def test_killed_at_any_moment(cluster, victims):
    """Whoever dies while a kernel applies and deletes: `make clean` leaves nothing."""
    for moment_s in (None, random.uniform(0.5, 2.5)):
        busy = kernel(cluster, ALL_THE_TIME, start_new_session=True)
        while moment_s is None and busy.stdout.readline().strip() != "up":
            assert busy.poll() is None
        time.sleep(moment_s or 0.0)
        with contextlib.suppress(ProcessLookupError, TypeError):  # none runs at this moment
            if victims in ("agent", "agent and shims", "all"):
                os.kill(agent_pid(cluster), signal.SIGKILL)
            if victims in ("agent and shims", "all"):
                for key in ("Job/work", "Deployment/server"):
                    for pid in shims(cluster, key):
                        os.kill(pid, signal.SIGKILL)
        if victims in ("kernel", "all"):
            os.killpg(busy.pid, signal.SIGKILL)
        else:
            busy.terminate()
        busy.communicate(timeout=300)
        done = cli("clean", "--state", cluster.paths.state)
        assert (done.returncode, done.stderr) == (0, ""), (victims, moment_s)
        assert_nothing_left(cluster)


def test_killed_agent_is_noticed(cluster):
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(agent_pid(cluster), signal.SIGKILL)
    until(lambda: status.identity(cluster.paths) is None)
    with pytest.raises(ClusterError) as error:
        web.wait_ready(timeout_s=300)
    assert "Deployment/server does not run any more" in str(error.value)
    assert "cluster.apply('web')" in str(error.value)
    assert texts(work) == ["up"], "its last words can be read"
    with pytest.raises(NotFoundError, match="is no running pod's name: none"):
        cluster.exec("work", ["true"])
    assert "does not run any more" in cli("status").stdout
    until(lambda: not processes.mentioning(cluster.paths.runtime))  # its pods ended with it

    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    with pytest.raises(ClusterError, match="Job/work does not run any more"):
        work.observe()  # what was not applied again does not start by itself
    cluster.delete("work")
    web.wait_ready(timeout_s=300)


def test_deaf_agent_does_not_keep_clean_from_its_work(cluster, monkeypatch):
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(agent_pid(cluster), signal.SIGSTOP)
    cluster.clean()
    assert_nothing_left(cluster)


def test_machine_restart_is_noticed(cluster):
    """After a restart /tmp is empty and the checkout still says what ran."""
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    done = cluster.apply_objects("done", job("echo done", name="done"))
    done.wait_complete(timeout_s=300)
    stop_agent(cluster.paths)
    shutil.rmtree(cluster.paths.runtime)
    with pytest.raises(ClusterError, match="this machine was restarted"):
        web.observe()
    pods = done.pods
    again = cluster.apply_objects("done", job("echo done", name="done"))
    assert again.actions == {"Job/done": "unchanged"}
    again.wait_complete(timeout_s=300)
    assert texts(again) == ["done"] and again.pods == pods, "what is finished stays finished"
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    stop_agent(cluster.paths)
    shutil.rmtree(cluster.paths.runtime)
    cluster.delete("web")
    assert cluster.components() == ["done"]


def test_reused_pid_is_not_the_agent(cluster):
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)
    stop_agent(cluster.paths)
    bystander = subprocess.Popen(["sleep", "600"])
    write_json(cluster.paths.agent, {"pid": bystander.pid, "ticks": 1})
    assert status.identity(cluster.paths) is None
    cluster.clean()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize("command", ["delete('work')", "clean()"])
def test_apply_after_an_interrupted_removal(cluster, command):
    """Ctrl-C while a pod takes its time to end; what is applied then runs all the same."""
    items = job("trap 'echo told; sleep 1; exit' TERM; echo up; while :; do sleep 0.1; done")
    pod_spec(items)["terminationGracePeriodSeconds"] = 15
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["up"])
    pod = work.pods[0]
    log = cluster.paths.logs / "Job.work" / pod / "main" / "0.log"
    other = kernel(cluster, f"cluster.{command}")
    until(lambda: "told" in log.read_text())
    other.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in other.communicate(timeout=300)[0]
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    assert work.pods != [pod] and len(shims(cluster, "Job/work")) == 1


def test_ctrl_c_in_the_kernel_does_not_reach_the_pods(cluster):
    code = """
        work = cluster.apply_objects("work", job("echo up; sleep 600")).wait_ready(timeout_s=300)
        print("ready", flush=True)
        work.wait_complete(timeout_s=600)
    """
    other = kernel(cluster, code, start_new_session=True)
    while other.stdout.readline().strip() != "ready":
        assert other.poll() is None
    running = shims(cluster, "Job/work")
    os.killpg(other.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in other.communicate(timeout=300)[0]
    cluster.get("work").wait_ready(timeout_s=300)
    assert shims(cluster, "Job/work") == running
    assert cluster.exec("work", ["echo", "alive"]).stdout == "alive\n"


# -- damaged files, names ------------------------------------------------------------------------


def test_damaged_state_says_so_and_can_be_cleaned(cluster):
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    (cluster.paths.objects / "Job.work.json").write_text("")  # as after a loss of power
    with pytest.raises(ClusterError, match=r"Job.work.json is damaged .*make clean"):
        cluster.get("work")
    until(lambda: "Job.work.json is damaged" in cluster.paths.agent_log.read_text())
    assert shims(cluster, "Job/work"), "it runs on"
    cluster.paths.agent.write_text("{")
    cluster.clean()
    assert_nothing_left(cluster)


def test_folder_of_somebody_else_in_tmp_is_refused(cluster, tmp_path):
    cluster.paths.runtime.symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="belongs to another user"):
        cluster.apply_objects("work", job("true"))
    assert list(tmp_path.iterdir()) == []
    cluster.paths.runtime.unlink()


def test_agent_that_does_not_start_says_why(cluster, monkeypatch, tmp_path):
    (tmp_path / "workshop_lib").mkdir()
    (tmp_path / "workshop_lib/__init__.py").write_text("raise ImportError('workshop_lib breaks')")
    monkeypatch.setattr("workshop_lib.cluster.local.launch.checkout", lambda: tmp_path)
    monkeypatch.chdir("/")
    with pytest.raises(ClusterError, match=r"the agent did not start: .*workshop_lib"):
        cluster.apply_objects("work", job("true"))


def test_states_are_apart_and_their_names_leave_room_for_sockets(new_cluster):
    """Ray puts sockets with 62 bytes of path below a pod's scratch folder; 107 is the limit."""
    for state in ("", "A", "a b", "../x", "-a", "a" * 33):
        with pytest.raises(ClusterError, match="is not valid"):
            LocalCluster(state=state)
    cluster, other = new_cluster(state="s" * 32), StatePaths(CHECKOUT, "one")
    assert {cluster.paths.runtime, cluster.paths.network}.isdisjoint({other.runtime, other.network})
    items = job("sleep 600", name="n" * 63)
    pod_spec(items)["volumes"] = [{"name": f"v{number}", "emptyDir": {}} for number in range(12)]
    cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    longest = max(len(str(path)) for path in cluster.paths.volumes.iterdir())
    assert longest + len("/session_2026-11-21_11-02-04_735874_1699123/sockets/plasma_store") <= 107
