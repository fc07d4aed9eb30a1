"""`ray-node.sh` with a `ray` that dies when it is told to: which ends are tried again."""

import os
import signal
import subprocess

import pytest
from local_helpers import until

from workshop_lib.cluster.manifests import manifests_dir

SCRIPT = manifests_dir() / "base/ray-node/scripts/ray-node.sh"
RAY = """#!/bin/bash
echo "$@" >>"$RAY_TEMP_DIR/calls"
calls=$(wc -l <"$RAY_TEMP_DIR/calls")
if [ "$calls" -le "$DIES" ]; then exit 7; fi
touch "$RAY_TEMP_DIR/up"
if [ -n "$ENDS" ]; then sleep 2; exit 9; fi
exec sleep 300
"""


def start(folder, *, dies=0, ends=""):
    (folder / "ray").write_text(RAY)
    (folder / "ray").chmod(0o755)
    # What the manifest tells it; the head's port is this machine's ssh or nobody's.
    told = {
        "PATH": f"{folder}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "0",
        "HEAD_ADDRESS": "127.0.0.1:6379", "DASHBOARD_ADDRESS": "127.0.0.1:8265",
        "CLIENT_ADDRESS": "127.0.0.1:10001", "POD_IP": "127.0.0.1", "LISTEN_HOST": "127.0.0.1",
        "NUM_CPUS": "1", "NUM_GPUS": "0", "MEMORY_BYTES": "1000", "OBJECT_STORE_BYTES": "100",
        "METRICS_PORT": "1", "AGENT_PORT": "2", "WORKER_PORTS": "0-0",
        "RAY_TEMP_DIR": str(folder), "FINISH_FILE": str(folder / "finish"),
        "DIES": str(dies), "ENDS": ends, "START_LIMIT_S": "1" if ends else "60",
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(SCRIPT)], env=told, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("dies", [0, 1, 3])
def test_a_head_that_does_not_come_up_is_tried_again(tmp_path, dies):
    process = start(tmp_path, dies=dies)
    until((tmp_path / "up").exists)
    (tmp_path / "finish").write_text("3\n")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 3 and "finished with exit code 3" in said
    assert said.count("trying again") == dies
    assert len((tmp_path / "calls").read_text().splitlines()) == dies + 1


@pytest.mark.parametrize(("how", "calls"), [({"dies": 99}, 4), ({"ends": "yes"}, 1)])
def test_a_head_that_never_comes_up_or_ends_later_fails(tmp_path, how, calls):
    process = start(tmp_path, **how)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and said.rstrip().endswith("Ray ended by itself")
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


def test_told_to_stop_it_stops_ray(tmp_path):
    process = start(tmp_path)
    until((tmp_path / "up").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 143
    gone = ["pgrep", "-g", str(process.pid)]  # whoever takes in orphans may do so a moment later
    until(lambda: subprocess.run(gone, stdout=subprocess.DEVNULL, check=False).returncode == 1)
