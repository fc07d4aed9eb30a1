"""The real notebooks, each executed once: cells run, tagged outputs agree, results are right."""

import json
import re
from pathlib import Path

import papermill
import pytest
from nbval.plugin import get_sanitize_patterns
from nbval_check import HERE, check_notebook

from workshop_lib.results import read_records
from workshop_lib.tools.execute import CHECKOUT, find_notebooks, read_notebook, stop_everything

MAX_LINES = 25
NOTEBOOKS = find_notebooks(CHECKOUT / "notebooks", solutions=True)


def marked(path):
    """A solution repeats its notebook's start-up: it runs under make test-all."""
    marks = [pytest.mark.slow] if path.parent.name == "solutions" else []
    return pytest.param(path, id=path.stem, marks=marks)


# -- what the notebooks must have found --------------------------------------------------------
#
# Each function gets what one notebook recorded. The key says which notebook; every notebook has
# an entry. Small parameters are in params/<notebook>.yaml.


def ray_cluster(records):
    assert records["nodes_alive"] == 2
    assert records["status_without_token"] == 401
    assert records["spread_over_nodes"] == 2
    assert records["job_condition"] == "Complete"
    assert records["pending_pods"] > 0


def stale_address(records):
    assert records["second_run_found_head"] is False  # the lesson: it finds the first run's
    assert records["repaired_run_found_head"] is True


def kv_prediction(records):
    assert records["kv_tokens_predicted"] == records["kv_tokens_engine"]
    assert records["kv_error_share"] == 0


def load(records):
    assert records["errors"] == 0
    # A batch makes more tokens a step than one request. How much more a second is of the machine.
    alone, together = records["tokens_per_step"]
    assert 0.8 < alone < 1.2 and together > 1.4


def engine_was_seen(records):
    """Continuous batching: what is short and comes later is answered before what is long."""
    assert "C" in records["overtook_long"]
    predicted, seen = records["blocks_peak"]
    # A block each, four at once; the engine's steps are slower when shared, so more may overlap.
    assert predicted == 4 and 2 <= seen <= 6


def deployments_compared(records):
    assert records["open_loop_errors"] == records["proxied_errors"] == 0
    assert set(records["way_ms"]) == {"vLLM alone", "Ray Serve"}
    assert all(way_ms > 0 for way_ms in records["way_ms"].values())


def checks_passed(records):
    assert records["checks_passed"] is True


def told_nothing(records):
    assert records["failed_when_told_nothing"] == ["all nodes joined", "they have the GPUs"]


def half_the_context(records):
    assert records["kv_tokens_predicted"] == records["kv_tokens_engine"]
    assert records["concurrency_gain"] == 2
    assert records["longest_max_model_len"] > 4096


def by_hand(records):
    assert records["by_hand_is_nemo_rls"] is True
    assert 0 < records["sampled_right_share"] < 1
    assert 0 <= records["silent_groups"] < 8
    assert set(records["translated"]) == {"exact", "dropped"}
    assert records["advantages_apart"] < 0.01  # TRL adds 0.0001 to the spread, NeMo RL less


def a_short_training(records):
    """Three small steps: everything is done, and nothing can be said of what was learned."""
    assert records["steps"] == 3
    assert 0 <= records["reward_first"] <= 1 and 0 <= records["reward_last"] <= 1
    assert records["served"] == "grpo/checkpoints/step_3"
    assert 0 <= records["accuracy_before"] < 0.6 and 0 <= records["accuracy_after"] <= 1
    checks = dict(records["checks"])
    checks.pop("it learned")
    assert len(checks) == 3 and all(checks.values())


def hacking_was_seen(records):
    assert records["verdicts"] == {"honest": "learning", "reward-hacking": "hacking"}
    assert records["hacked"] == {"reward": 0.996, "right": 0.242}
    # One of the three rewards, the stock verifier, pays for an echo. It pays for all that the
    # honest one pays for; among eight sampled answers there need be no echo.
    assert records["paid_for_the_question"] == 1
    assert records["paid"]["stock"] >= records["paid"]["honest"]
    committed = read_records(CHECKOUT / "notebooks/03_grpo_training.ipynb")["paid"]
    assert committed["stock"] > committed["honest"]  # among the lesson's own 64 answers there are
    assert records["laptop_verdicts"]["hacked"] == "hacking" != records["laptop_verdicts"]["cured"]


def a_killed_run_goes_on(records):
    """The recorded one makes the same steps as the one that was not interrupted."""
    assert records["resumed_apart"] == 0
    assert records["hung_verdict"] == "hung"


def settings_were_compared(records):
    """Live with the parameters of CI; what the lesson draws by default is a recording."""
    assert len(records["silent_share"]) == 2 and all(0 <= x <= 1 for x in records["silent_share"])
    cold, hot = read_records(CHECKOUT / "notebooks/03_grpo_training.ipynb")["silent_share"]
    assert cold > hot
    assert records["budget_fits"] == [True, True]


def ten_times_the_rate(records):
    assert records["factors"] == [1.1429]
    assert records["silent_share"] == {"2": 0.68, "4": 0.411, "8": 0.168, "16": 0.028}
    assert records["steps"] == 3 and records["learning_rate"] == 1e-4


def levels_were_compared(records):
    assert records["graded_steps"] == 2 == len(records["graded_silent"])
    before, after = records["graded_before"], records["graded_after"]
    assert list(before) == list(after) == ["1", "2", "3", "4", "5", "6"]
    # What the lesson is about: some levels start with nothing, and not all of them.
    assert before["4"] < 0.05 < before["3"] and all(0 <= share <= 1 for share in after.values())


def replicas_followed(records):
    assert records["predicted_replicas"] == records["replicas_seen"] == [1, 3, 1]
    assert records["replicas_peak"] >= 3
    assert records["second_predicted_replicas"] == records["second_replicas_seen"] == 2


def router_held_requests_back(records):
    limited, free = records["router_requests_per_s"]
    assert 0 < limited < 64 < free  # 64 requests of 1.1 s are 58 a second; 256 are 233


def service_survived(records):
    assert records["recovered"] is True
    assert records["fits_startup_budget"] == [True, False]
    assert records["cleaned_up"] is True


def what_was_broken_was_found(records):
    assert records["diagnosed"] == "healthy"
    assert "port" in records["lab_cause"].lower() and records["broken_object"] == "Service"
    assert records["lab_repaired"] is True


def production_answers(records):
    assert records["wanted_without_a_maximum"] == 6
    assert records["replicas_peak"] == 4
    assert records["fits"] == [False, True]
    assert records["diagnosed"] == "problems"
    assert records["lab_repaired"] is True
    assert records["left"] == []


EXPECTATIONS = {
    "01_ray_cluster": [ray_cluster, stale_address, checks_passed],
    "01_ray_cluster_solutions": [told_nothing, checks_passed],
    "02_vllm_serving": [
        kv_prediction,
        engine_was_seen,
        load,
        deployments_compared,
        checks_passed,
    ],
    "02_vllm_serving_solutions": [half_the_context],
    "03_grpo_training": [
        by_hand,
        a_short_training,
        hacking_was_seen,
        a_killed_run_goes_on,
        settings_were_compared,
    ],
    "03_grpo_training_solutions": [ten_times_the_rate, levels_were_compared],
    "04_production": [
        replicas_followed,
        router_held_requests_back,
        service_survived,
        what_was_broken_was_found,
    ],
    "04_production_solutions": [production_answers],
}


def test_every_notebook_has_expectations():
    assert sorted(path.stem for path in NOTEBOOKS) == sorted(EXPECTATIONS)


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_fit(source):
    """It holds one whole run from a clean kernel, without errors, and nothing of the machine."""
    notebook = read_notebook(source)
    assert not {"papermill", "widgets"} & set(notebook.metadata), "run make notebooks"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    names = papermill.inspect_notebook(str(source))
    assert names and all(name.isupper() for name in names), parameters.source
    for cell in code:
        tags = cell.metadata.get("tags", [])
        assert len(cell.source.strip().splitlines()) <= MAX_LINES, cell.source
        assert cell.outputs or "nbval-check-output" not in tags, cell.source
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags, output.evalue
            text = json.dumps({k: v for k, v in output.items() if k != "metadata"})
            for path in (str(CHECKOUT), str(Path.home()), "/tmp/ws-"):
                assert not re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", text), path


@pytest.mark.parametrize("path", find_notebooks(CHECKOUT / "notebooks"), ids=lambda path: path.stem)
def test_a_lesson_shares_its_last_checks(path):
    cells = ["".join(cell["source"]) for cell in read_notebook(path)["cells"]]
    shares = [cell for cell in cells if "share_checks(" in cell]
    assert len(shares) == 1
    assert f'share_checks(cluster, "{path.stem[:2]}"' in shares[0]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("source", [marked(path) for path in NOTEBOOKS])
def test_executes(source):
    state = f"test-{source.stem.replace('_', '-')}"[:32].rstrip("-")
    params = HERE / "params" / f"{source.stem}.yaml"
    try:
        checked = check_notebook(
            source,
            CHECKOUT / "build" / "tests" / source.stem,
            state=state,
            params=params if params.exists() else None,
        )
    finally:
        left = stop_everything(state)
    assert checked.passed, f"{checked.output}\nsee {checked.notebook}"
    for expectation in EXPECTATIONS[source.stem]:
        expectation(checked.records)
    assert left == ""


# -- the check itself --------------------------------------------------------------------------


def test_check_fails_on_a_wrong_notebook_only(tmp_path):
    """The same check as above: refuses one wrong number, lets its corrected twin pass."""
    params = HERE / "params" / "wrong.yaml"
    wrong = check_notebook(HERE / "wrong.ipynb", tmp_path / "wrong", state="none", params=params)
    assert not wrong.passed
    assert "Cell outputs differ" in wrong.output
    assert "1 failed, 4 passed" in wrong.output, "only the last cell is wrong, after one injected"

    twin = tmp_path / "right.ipynb"
    twin.write_text(
        (HERE / "wrong.ipynb").read_text().replace("23280", "23296").replace("23,280", "23,296")
    )
    right = check_notebook(twin, tmp_path / "right", state="none", params=params)
    assert right.passed, right.output
    assert right.records == wrong.records == {"kv_tokens": 23296}  # and the parameter arrived


SANITIZED = {
    "2026-11-21T10:24:05.123Z up": "TIMESTAMP up",
    "at 10:24:05": "at CLOCK",
    "http://127.66.22.2:6379/x": "http://IPV4:PORT/x",
    "localhost:8265": "localhost:PORT",
    "llm-serve-svc:8000": "llm-serve-svc:8000",
    "vllm-7d9c8b6f5-x7k2p": "vllm-REPLICASET-POD",
    "ray-cluster-0-x7k2p ready": "ray-cluster-0-POD ready",
    "ray-cluster-scripts-6g9c5mb546": "ray-cluster-scripts-HASH",
    "raycluster-head-svc": "raycluster-head-svc",
    "tensor-parallel-size": "tensor-parallel-size",
    "node 9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a": "node RAY-ID",
    "<Axes at 0x7f3a5c0de1f0>": "<Axes at ADDRESS>",
    "(raylet, pid=1234)": "(raylet, pid=PID)",
    "after 1 min 35 s, 3.2 s and 153 ms": "after DURATION, DURATION and DURATION",
    "23,296 tokens, 22.75x, 2 of 2 pods": "23,296 tokens, 22.75x, 2 of 2 pods",
    "vllm 0.32.0 on Python 3.11": "vllm 0.32.0 on Python 3.11",
}


@pytest.mark.parametrize(("text", "expected"), SANITIZED.items())
def test_sanitizer(text, expected):
    for pattern, replacement in get_sanitize_patterns((HERE / "nbval.cfg").read_text()):
        text = re.sub(pattern, replacement, text)
    assert text == expected
