"""A state's life: found again, side by side, killed in every way, cleaned."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from local_helpers import (
    CHECKOUT,
    assert_nothing_left,
    job,
    pod_spec,
    runner_pid,
    server,
    shims,
    texts,
    until,
)

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.local.paths import StatePaths, locked, read_json
from workshop_lib.cluster.local.supervisor import RESTART_PAUSE_S, Supervisor
from workshop_lib.errors import ClusterError, NotFoundError

LONG = "echo up; sleep 600"


def python(code, *arguments, wait=True, checkout=CHECKOUT, **options):
    """Run Python code in a process of its own, as another kernel would."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{Path(__file__).parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment, cwd=checkout, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **options,
    )  # fmt: skip
    if not wait:
        return process
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def cli(*arguments, checkout=CHECKOUT):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    return subprocess.run(
        [sys.executable, "-m", "workshop_lib.cluster.local", *arguments],
        env=environment, cwd=checkout, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def supervisor_pid(cluster):
    return cluster.supervisor.identity()[0]


# -- other kernels ------------------------------------------------------------------------------


def test_state_is_found_again(cluster):
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    code = """
        import sys
        from workshop_lib import connect
        cluster = connect("local", state=sys.argv[1])
        work = cluster.get("work").wait_ready(timeout_s=300)
        print(cluster.components(), work.pods, [line.text for line in work.logs()])
        print(cluster.exec("work", ["echo", "hello"]))
        cluster.delete("work")
    """
    pods = work.pods
    assert f"['work'] {pods} ['up']\nhello\n" in python(code, cluster.paths.state)
    assert cluster.components() == [] and not shims(cluster, "Job/work")


def test_two_kernels_apply_at_once(cluster):
    code = """
        import sys
        from local_helpers import job
        from workshop_lib.cluster.local.cluster import LocalCluster
        name = sys.argv[2]
        cluster = LocalCluster(state=sys.argv[1])
        cluster.apply_objects(name, job("echo up; sleep 600", name=name)).wait_ready(timeout_s=300)
    """
    names = ["same", "same", "other", "third"]
    kernels = [python(code, cluster.paths.state, name, wait=False) for name in names]
    for kernel in kernels:
        output, _ = kernel.communicate(timeout=300)
        assert kernel.returncode == 0, output
    assert cluster.components() == ["other", "same", "third"]
    for name in cluster.components():
        assert len(shims(cluster, f"Job/{name}")) == 1
    supervisors = [
        pid for pid in processes.mentioning(cluster.paths.runtime)
        if b"supervisor.supervisord" in processes.command_line(pid)
    ]  # fmt: skip
    assert len(supervisors) == 1


def test_looking_while_another_kernel_applies_and_deletes(cluster, tmp_path):
    """Whoever looks at any instant sees a component or that it is not there, and nothing else."""
    code = """
        import sys
        from pathlib import Path
        from local_helpers import job, until
        from workshop_lib.cluster.local.cluster import LocalCluster
        cluster = LocalCluster(state=sys.argv[1])
        for remove in (cluster.clean, lambda: cluster.delete("work")) * 2:
            work = cluster.apply_objects("work", job("echo up; sleep 600"))
            work.wait_ready(timeout_s=300)
            until(Path(sys.argv[2]).exists)
            remove()
    """
    looked = tmp_path / "looked"
    other = python(code, cluster.paths.state, looked, wait=False)
    seen = set()
    while other.poll() is None:
        if "Job" in seen:
            looked.touch()
        try:
            cluster.components()
            work = cluster.get("work")
            seen.add(work.observe().body["kind"])
            seen.update(texts(work))
        except NotFoundError:
            seen.add("not there")
    assert other.returncode == 0, other.stdout.read()
    assert {"Job", "not there"} <= seen <= {"Job", "not there", "up"}


def test_state_that_another_kernel_holds_is_named(cluster, monkeypatch):
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)
    monkeypatch.setattr("workshop_lib.cluster.local.cluster.LOCK_TIMEOUT_S", 0.2)
    with locked(cluster.paths.lock, timeout_s=1), pytest.raises(ClusterError) as error:
        cluster.delete("work")
    assert f"has been locked by process {os.getpid()} for 0.2 s" in str(error.value)


def test_lock_of_a_killed_kernel_is_free(cluster):
    code = """
        import os, signal, sys
        from pathlib import Path
        from workshop_lib.cluster.local.paths import locked
        with locked(Path(sys.argv[1]), timeout_s=1):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    process = python(code, cluster.paths.lock, wait=False)
    process.communicate(timeout=300)
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)


def test_clean_while_others_wait_for_the_lock(cluster):
    """The lock file goes with the folder; who waited must not hold a lock on nothing."""
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    code = """
        import sys
        from local_helpers import job
        from workshop_lib.cluster.local.cluster import LocalCluster
        cluster = LocalCluster(state=sys.argv[1])
        print("go", flush=True)
        for _ in range(5):
            cluster.apply_objects("work", job("echo up; sleep 600"))
            cluster.clean()
    """
    kernels = [python(code, cluster.paths.state, wait=False) for _ in range(2)]
    for kernel in kernels:
        output, _ = kernel.communicate(timeout=300)
        assert kernel.returncode == 0, output
    assert_nothing_left(cluster)


def test_ctrl_c_in_the_kernel_does_not_reach_the_pods(cluster):
    code = """
        import sys
        from local_helpers import job
        from workshop_lib.cluster.local.cluster import LocalCluster
        cluster = LocalCluster(state=sys.argv[1])
        work = cluster.apply_objects("work", job("echo up; sleep 600")).wait_ready(timeout_s=300)
        print("ready", flush=True)
        work.wait_complete(timeout_s=600)
    """
    kernel = python(code, cluster.paths.state, wait=False, start_new_session=True)
    while kernel.stdout.readline().strip() != "ready":
        assert kernel.poll() is None
    running = shims(cluster, "Job/work")
    os.killpg(kernel.pid, signal.SIGINT)
    output, _ = kernel.communicate(timeout=300)
    assert "KeyboardInterrupt" in output
    work = cluster.get("work").wait_ready(timeout_s=300)
    assert shims(cluster, "Job/work") == running
    assert cluster.exec(work.pods[0], ["echo", "alive"]).stdout == "alive\n"


# -- checkouts ------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """A second checkout, in a folder whose name is as awkward as a name can be."""
    folder = tmp_path / 'it\'s 100% a #2; "copy" $HOME'
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(CHECKOUT / "workshop_lib", folder / "workshop_lib", ignore=ignore)
    (folder / "manifests").mkdir()
    yield folder
    assert cli("clean", "--all", checkout=folder).returncode == 0


def test_two_checkouts_side_by_side(cluster, copy):
    state = cluster.paths.state
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    code = """
        import sys
        from local_helpers import objects, server, texts
        from workshop_lib.cluster.local.cluster import LocalCluster
        cluster = LocalCluster(state=sys.argv[1])
        web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
        print(cluster.components(), texts(web)[0].split()[0], cluster.paths.home)
        with cluster.forward("server", 80) as url:
            assert not url.startswith(f"http://{sys.argv[2]}.")
        cluster.delete("web")
        cluster.clean()
    """
    output = python(code, state, cluster.paths.network, checkout=copy)
    assert f"['web'] listening {copy}" in output
    assert cluster.components() == ["work"]
    work.wait_ready(timeout_s=300)
    assert not (copy / ".workshop").exists()


def test_clean_finds_states_by_their_checkout(cluster, copy):
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    other = LocalCluster(state="there", home=copy)
    other.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    done = cli("clean", "--all", checkout=copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'there'" in done.stdout and cluster.paths.state not in done.stdout
    assert_nothing_left(other)
    assert cluster.get("work").wait_ready(timeout_s=300)


def test_clean_ends_what_a_deleted_checkout_left(copy):
    other = LocalCluster(state=f"t-{uuid.uuid4().hex[:8]}", home=copy)
    other.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    moved = copy.with_name("moved")
    copy.rename(moved)
    done = cli("clean", "--all", checkout=moved)
    assert not copy.exists(), "nothing makes it anew"
    moved.rename(copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert other.paths.state in done.stdout
    assert not processes.mentioning(other.paths.runtime) and not other.paths.runtime.exists()


def test_command_line(cluster, copy):
    # What a checkout left that is no more (another test's, at this moment) is told as well.
    assert "state there" not in cli("status", checkout=copy).stdout
    other = LocalCluster(state="there", home=copy)
    work = other.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    status = cli("status", checkout=copy).stdout
    assert "state there: work" in status and f"{work.pods[0]} " in status and "Running" in status
    assert cli("clean", "--state", "there", checkout=copy).returncode == 0
    assert_nothing_left(other)
    done = cli("clean", checkout=copy)
    assert done.returncode == 0 and "'there'" not in done.stdout
    wrong = cli("clean", "--state", "../x", checkout=copy)
    assert wrong.returncode == 1 and wrong.stderr.startswith("ClusterError: state name '../x'")


# -- killed processes -----------------------------------------------------------------------------


def test_killed_runner_of_a_deployment_is_replaced(cluster):
    web = cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    before, old = web.pods, runner_pid(cluster, "Deployment/server")
    old_shims = shims(cluster, "Deployment/server")
    os.kill(old, signal.SIGKILL)
    until(lambda: runner_pid(cluster, "Deployment/server") != old)
    web.wait_ready(timeout_s=300)
    assert set(before).isdisjoint(web.pods) and len(web.pods) == 2
    assert not any(map(processes.is_running, old_shims)), "its orphans were ended"
    assert len(shims(cluster, "Deployment/server")) == 2


def test_killed_runner_and_shims_leave_no_orphans(cluster):
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    old = runner_pid(cluster, "Deployment/server")
    children = processes.descendants(old)
    for pid in (old, *shims(cluster, "Deployment/server")):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(processes.is_running, children)))
    until(lambda: runner_pid(cluster, "Deployment/server") != old)
    web.wait_ready(timeout_s=300)


def test_killed_runner_of_a_job_counts_its_pods_as_failed(cluster):
    items = job("[ -e $FOLDER/go ]; new=$?; echo up; [ $new = 0 ] || sleep 600", backoffLimit=2,
                env=[{"name": "FOLDER", "value": "/kept"}])  # fmt: skip
    pod_spec(items)["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/kept"}]
    pod_spec(items)["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "switches"}}]
    items += [item for item in server() if item.kind == "PersistentVolumeClaim"]
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["up"])
    first = work.pods[0]
    started = work.observe().body["status"]["startTime"]
    os.kill(runner_pid(cluster, "Job/work"), signal.SIGKILL)
    until(lambda: texts(work) == ["up"] * 2)
    (cluster.paths.claims / "switches" / "go").touch()
    os.kill(runner_pid(cluster, "Job/work"), signal.SIGKILL)
    work.wait_complete(timeout_s=300)
    seen = work.observe()
    assert (seen.body["status"]["failed"], seen.body["status"]["succeeded"]) == (2, 1)
    assert seen.body["status"]["startTime"] == started
    assert seen.pods[0]["metadata"]["name"] == first
    assert seen.pods[0]["status"]["reason"] == "NodeLost"
    assert texts(work) == ["up"] * 3, "what the lost pods wrote can be read"


def test_killed_supervisor_is_noticed(cluster):
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(supervisor_pid(cluster), signal.SIGKILL)
    until(lambda: cluster.supervisor.identity() is None)
    with pytest.raises(ClusterError) as error:
        web.wait_ready(timeout_s=300)
    assert "Deployment/server does not run any more" in str(error.value)
    assert "cluster.apply('web')" in str(error.value)
    assert texts(work) == ["up"], "its last words can be read"
    with pytest.raises(ClusterError, match="is no running pod's name: none"):
        cluster.exec("work", ["true"])
    assert "does not run any more" in cli("status").stdout

    old = shims(cluster, "Deployment/server") + shims(cluster, "Job/work")
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    assert not any(map(processes.is_running, old)), "what the dead one had is ended first"
    with pytest.raises(ClusterError, match="Job/work does not run any more"):
        work.observe()
    cluster.delete("work")
    web.wait_ready(timeout_s=300)


def test_killed_supervisor_takes_its_workloads_along(cluster):
    """What its status calls lost does not go on using the machine."""
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(supervisor_pid(cluster), signal.SIGKILL)
    until(lambda: not processes.mentioning(cluster.paths.runtime))


def test_delete_after_a_killed_supervisor_leaves_nothing_of_it(cluster):
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(supervisor_pid(cluster), signal.SIGKILL)
    until(lambda: cluster.supervisor.identity() is None)
    cluster.delete("work")
    assert cluster.components() == ["web"]
    assert not processes.mentioning(cluster.paths.runtime)


@pytest.mark.parametrize("command", ["delete('work')", "clean()"])
def test_apply_after_an_interrupted_removal(cluster, command):
    """Ctrl-C while a pod takes its time to end; what is applied then runs all the same."""
    items = job(
        "trap 'echo told' TERM; echo up; until [ -e $FOLDER/$HOSTNAME ]; do sleep 0.1; done",
        env=[{"name": "FOLDER", "value": "/kept"}],
    )
    pod_spec(items)["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/kept"}]
    pod_spec(items)["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "switches"}}]
    pod_spec(items)["terminationGracePeriodSeconds"] = 15
    items += [item for item in server() if item.kind == "PersistentVolumeClaim"]
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["up"])
    pod, ended = work.pods[0], runner_pid(cluster, "Job/work")
    log = cluster.paths.logs / "Job.work" / pod / "main" / "0.log"
    code = f"""
        import sys
        from workshop_lib.cluster.local.cluster import LocalCluster
        LocalCluster(state=sys.argv[1]).{command}
    """
    kernel = python(code, cluster.paths.state, wait=False)
    until(lambda: "told" in log.read_text())
    kernel.send_signal(signal.SIGINT)
    output, _ = kernel.communicate(timeout=300)
    assert "KeyboardInterrupt" in output
    (cluster.paths.claims / "switches" / pod).touch()  # now it ends
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    assert work.pods[-1] != pod
    assert not processes.is_running(ended) and len(shims(cluster, "Job/work")) == 1


def test_killed_supervisor_leaves_nothing_after_clean(cluster):
    cluster.apply_objects("work", job("trap '' TERM; echo up; while true; do sleep 1; done"))
    cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    os.kill(supervisor_pid(cluster), signal.SIGKILL)
    cluster.clean()
    assert_nothing_left(cluster)


def test_stopped_supervisor_does_not_keep_clean_from_its_work(cluster):
    """SIGSTOP: alive and deaf."""
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    os.kill(supervisor_pid(cluster), signal.SIGSTOP)
    cluster.supervisor.rpc_timeout_s = 0.5
    cluster.clean()
    assert_nothing_left(cluster)


def test_machine_restart_is_noticed(cluster):
    """After a restart /tmp is empty and the checkout still says what ran."""
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    cluster.supervisor.stop()
    shutil.rmtree(cluster.paths.runtime)
    with pytest.raises(ClusterError, match="this machine was restarted"):
        web.observe()
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    cluster.supervisor.stop()
    shutil.rmtree(cluster.paths.runtime)
    cluster.delete("web")
    assert cluster.components() == []


def test_finished_job_is_known_after_a_restart(cluster):
    work = cluster.apply_objects("work", job("echo done"))
    work.wait_complete(timeout_s=300)
    cluster.supervisor.stop()
    shutil.rmtree(cluster.paths.runtime)
    again = cluster.apply_objects("work", job("echo done"))
    assert again.actions == {"Job/work": "unchanged"}
    again.wait_complete(timeout_s=300)
    assert texts(again) == ["done"] and again.pods == work.pods


def test_runner_that_cannot_start_does_not_spin(cluster):
    """The environment was deleted, or the checkout: each start fails at once."""
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    script = cluster.paths.programs / "Job.work" / "run.sh"
    lines = script.read_text().splitlines()
    script.write_text("\n".join([*lines[:-1], "exec /no/such/python"]))
    log = cluster.paths.folder / "supervisord.log"
    before = log.read_text().count("spawned: 'Job.work'")
    os.kill(runner_pid(cluster, "Job/work"), signal.SIGKILL)
    until(lambda: log.read_text().count("spawned: 'Job.work'") >= before + 4)
    spawned = [line for line in log.read_text().splitlines() if "spawned: 'Job.work'" in line]
    at = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in spawned[before:]]
    assert min(b - a for a, b in itertools.pairwise(at)) >= timedelta(seconds=RESTART_PAUSE_S)


def test_clean_goes_on_after_a_state_that_it_cannot_clean(copy):
    LocalCluster(state="a", home=copy).apply_objects("work", job("true"))
    other = LocalCluster(state="b", home=copy)
    other.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    first = StatePaths(copy, "a")
    keep = copy / "kept"
    first.folder.rename(keep)
    first.folder.write_text("no folder")
    done = cli("clean", "--all", checkout=copy)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ClusterError: ")
    assert_nothing_left(other)
    first.folder.unlink()
    keep.rename(first.folder)
    assert cli("clean", checkout=copy).returncode == 0


def test_reused_pid_is_not_the_supervisor(cluster):
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)
    cluster.supervisor.stop()
    from workshop_lib.cluster.local.paths import write_json

    bystander = subprocess.Popen(["sleep", "600"])
    write_json(cluster.paths.supervisor_pid, {"pid": bystander.pid, "ticks": 1})
    assert cluster.supervisor.identity() is None
    cluster.clean()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


# -- damaged files --------------------------------------------------------------------------------


def test_damaged_state_says_so_and_can_be_cleaned(cluster):
    cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    file = cluster.paths.objects / "Job.work.json"
    file.write_text("")  # as after a loss of power
    with pytest.raises(ClusterError, match=r"Job.work.json is damaged .*make clean"):
        cluster.get("work")
    cluster.paths.supervisor_pid.write_text("{")
    cluster.clean()
    assert_nothing_left(cluster)


def test_full_disk_is_one_line(cluster, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("workshop_lib.cluster.local.cluster.write_json", full)
    with pytest.raises(ClusterError, match=r"settings.json: No space left on device"):
        cluster.apply_objects("work", job(LONG))
    monkeypatch.undo()
    cluster.apply_objects("work", job("true")).wait_complete(timeout_s=300)


def test_folder_of_somebody_else_in_tmp_is_refused(cluster, tmp_path):
    cluster.paths.runtime.symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="belongs to another user"):
        cluster.apply_objects("work", job("true"))
    assert list(tmp_path.iterdir()) == []
    cluster.paths.runtime.unlink()


def test_runner_that_crashes_says_why(cluster):
    work = cluster.apply_objects("work", job(LONG)).wait_ready(timeout_s=300)
    file = cluster.paths.objects / "Job.work.json"
    good = file.read_text()
    file.write_text("{")
    until(
        lambda: (
            "RunnerFailed"
            in read_json(cluster.paths.statuses / "Job.work.json")["events"][-1]["reason"]
        )
    )
    file.write_text(good)
    assert any("is damaged" in message for message in work.events()["message"])
    until(lambda: not shims(cluster, "Job/work"))


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "A", "a b", "../x", "-a", "a" * 33, "a/b", "ä"])
def test_state_names(state):
    with pytest.raises(ClusterError, match="is not valid"):
        LocalCluster(state=state)


def test_longest_names_leave_room_for_sockets(new_cluster):
    """Ray puts sockets with 62 bytes of path below a pod's scratch folder; 107 is the limit."""
    cluster = new_cluster(state="s" * 32)
    name = "n" * 63
    items = job('echo "$TMPDIR"; sleep 600', name=name)
    pod_spec(items)["volumes"] = [{"name": f"v{number}", "emptyDir": {}} for number in range(12)]
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    until(lambda: texts(work))
    longest = max(len(str(path)) for path in cluster.paths.volumes.iterdir())
    assert longest + len("/session_2026-11-21_11-02-04_735874_1699123/sockets/plasma_store") <= 107
    assert len(str(cluster.paths.supervisor_socket)) <= 100


def test_states_differ_in_folder_and_network():
    one, other = StatePaths(CHECKOUT, "one"), StatePaths(CHECKOUT, "other")
    there = StatePaths(Path("/elsewhere"), "one")
    assert len({p.runtime for p in (one, other, there)}) == 3
    assert len({p.network for p in (one, other, there)}) == 3


def test_supervisor_that_does_not_start_says_why(new_cluster, monkeypatch):
    cluster = new_cluster()
    monkeypatch.setattr("workshop_lib.cluster.local.supervisor.CONFIG", "[nonsense\n{runtime}")
    with pytest.raises(ClusterError, match="supervisord ended at once: "):
        cluster.apply_objects("work", job("true"))
    assert isinstance(cluster.supervisor, Supervisor)


def test_deleting_waits_for_the_end_and_not_in_vain(cluster):
    """Pods that end when they are told so are waited for no longer than until then."""
    items = server(replicas=2)
    pod_spec(items)["terminationGracePeriodSeconds"] = 3600
    cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    cluster.delete("web")
    log = (cluster.paths.folder / "supervisord.log").read_text()
    assert "stopped: Deployment.server" in log
    assert "killing 'Deployment.server'" not in log, "the runner waited until its own time was over"
