"""Real runs of NeMo RL and TRL, read from whatever they left, and what is thought of them."""

import json
import shutil
import time

import pandas as pd
import pytest

from workshop_lib.data import data_dir, data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training import math_verify_reward
from workshop_lib.training.runs import (
    COLUMNS,
    echo_share,
    judge,
    marked_line,
    read_completions,
    read_log,
    read_metrics,
    read_rollouts,
    read_run,
    run_of_log,
    run_report,
    steps_to_reward,
    with_judge,
)

NEMO, TRL = data_path("recorded/nemo-rl"), data_path("recorded/trl")
CASES = data_dir().parent / "tests" / "data" / "runs"
STEPS = {"honest": 60, "reward-hacking": 40}
NOTHING = float("nan")


@pytest.fixture(scope="module")
def runs():
    return {name: read_run(NEMO / name) for name in STEPS}


def console_lines(name):
    return (NEMO / name / "console.log").read_text().split("\n")


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


# -- reading


@pytest.mark.parametrize("name", STEPS)
def test_event_file_and_console_say_the_same(runs, name):
    events, console = runs[name], read_run(NEMO / name / "console.log")
    assert (events.source, console.source) == ("NeMo RL event files", "NeMo RL console")
    assert len(events.frame) == len(console.frame) == console.planned == STEPS[name]
    for column in ("reward", "mean_length", "loss"):
        assert console.frame[column].values == pytest.approx(events.frame[column].values, abs=1e-4)
    for column in ("step_s", "generation_s", "logprob_s", "update_s", "reward_s"):
        assert console.frame[column].values == pytest.approx(events.frame[column].values, abs=6e-3)
    # Three timers, each printed with two decimals.
    assert console.frame.prepare_s.values == pytest.approx(events.frame.prepare_s.values, abs=0.016)
    for column, abs_ in (("step", 0), ("accuracy", 1e-4)):
        theirs = events.validation[column].values
        assert console.validation[column].values == pytest.approx(theirs, abs=abs_)
    # What a console does not print is not made up.
    assert console.frame[["kl", "entropy", "grad_norm", "zero_std_share"]].isna().all().all()


@pytest.mark.parametrize("name", STEPS)
def test_the_values_are_those_of_the_rollouts(runs, name):
    """`steps.csv` was made from the rollouts, apart from the event file."""
    table, frame = pd.read_csv(NEMO / name / "steps.csv"), runs[name].frame
    for theirs, ours in {
        "reward": "reward",
        "mean_gen_tokens": "mean_length",
        "kl_penalty": "kl",
        "grad_norm": "grad_norm",
        "entropy": "entropy",
        "step_time_s": "step_s",
    }.items():
        assert frame[ours].values == pytest.approx(table[theirs].values, abs=6e-3), ours
    rollouts = read_rollouts(NEMO / name / f"train_data_step{STEPS[name]}.jsonl")
    assert rollouts.reward.mean() == pytest.approx(frame.iloc[-1].reward)
    assert list(frame.columns) == list(COLUMNS)


def test_an_event_file_that_is_still_written(runs, tmp_path):
    data = next((NEMO / "honest").glob("events.*")).read_bytes()
    live = tmp_path / "events.out.tfevents.1.here"
    lengths = []
    for end in (0, 7, 1_000, 100_001, 250_003, len(data)):
        live.write_bytes(data[:end])
        frame = read_run(tmp_path).frame
        assert frame.reward.tolist() == runs["honest"].frame.reward[: len(frame)].tolist()
        lengths.append(len(frame))
    assert lengths == sorted(lengths) and lengths[:3] == [0, 0, 0] and lengths[-1] == 60
    live.write_bytes(b"no such file" * 10)
    with pytest.raises(WorkshopError, match="is no TensorBoard event file"):
        read_run(tmp_path)


def test_a_restart_of_nemo_rl_makes_another_event_file(tmp_path):
    """exp_001, and exp_002 for the run that goes on from step 4; no penalty, so no KL."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for name, steps in (("exp_001", range(1, 7)), ("exp_002", range(4, 6))):
        writer = EventFileWriter(str(tmp_path / name / "tensorboard"))
        for step in steps:
            values = {"train/reward": steps[0] / 10, "train/kl_penalty": 0.0}
            values["timing/train/total_step_time"] = 1.0
            summary = Summary(
                value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
            )
            writer.add_event(Event(wall_time=100 * steps[0] + step, step=step, summary=summary))
        writer.close()
    run = read_run(tmp_path)
    assert run.frame.step.tolist() == [1, 2, 3, 4, 5]
    assert run.frame.reward.tolist() == pytest.approx([0.1] * 3 + [0.4] * 2)
    assert run.frame.kl.isna().all() and any("no penalty" in note for note in run.notes)
    assert read_run(tmp_path / "exp_001").frame.step.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_console_that_ends_anywhere(tmp_path):
    text = (NEMO / "honest" / "console.log").read_text()
    whole = read_run(NEMO / "honest" / "console.log").frame
    seen = []
    for share in range(1, 20):
        (tmp_path / "part.log").write_text(text[: len(text) * share // 20])
        frame = read_run(tmp_path / "part.log").frame
        seen.append(len(frame))
        # Its last step may lack the stages that are printed after its time.
        pd.testing.assert_frame_equal(frame[:-1], whole[: max(len(frame) - 1, 0)])
    assert seen == sorted(seen) and 50 < seen[-1] < 60


def test_a_console_of_two_starts_with_lost_lines_and_other_lines(tmp_path):
    """Up to step 30, and again from step 21 on; coloured, and between the lines of workers."""
    lines = console_lines("honest")
    at = {n: next(i for i, li in enumerate(lines) if f"= Step {n}/60 =" in li) for n in (1, 21, 31)}
    resumed = [*lines[: at[31]], *lines[: at[1]], *lines[at[21] : at[31]]]
    noise = "\x1b[36m(VllmGenerationWorker pid=7)\x1b[0m INFO 11-21 [x.py:1] • nothing"
    mixed = [part for li in resumed for part in (f"\x1b[32m(run pid=1)\x1b[0m {li}", noise)]
    run = read_run(write(tmp_path / "a.log", *mixed))
    whole = read_run(NEMO / "honest" / "console.log").frame
    pd.testing.assert_frame_equal(run.frame, whole[:30])
    assert "started 2 times" in run.notes[1]


def test_epochs_count_on_and_dynamic_sampling_repeats_a_header(tmp_path):
    """As nemo_rl/algorithms/grpo.py prints them; the recorded runs had none of both."""
    lines = []
    for epoch in (1, 2):
        lines.append(f"{'=' * 25} Epoch {epoch}/2 {'=' * 25}")
        for number in (1, 2, 3):
            header = f"{'=' * 25} Step {number}/3 {'=' * 25}"
            lines += [header, "Detected 96 prompts with non-zero std; 256 are required"] * 2
            lines += ["  • Avg Filtered Reward: 0.4141", "  • Avg Total Reward: 0.1484"]
            lines.append("  • Total step time: 4.42s")
    run = read_run(write(tmp_path / "a.log", *lines))
    assert run.frame.step.tolist() == [1, 2, 3, 4, 5, 6] and run.planned == 6
    row = run.frame.iloc[-1]
    assert (row.reward, row.step_s) == (0.1484, 4.42)


@pytest.mark.parametrize("name", ["trl-trainer-state", "trl-console"])
def test_trls_own_files(name):
    run = read_run(CASES / name)
    assert run.source.startswith("TRL ") and run.frame.step.tolist() == list(range(1, 13))
    row = run.frame.iloc[0]
    assert (row.reward, row.mean_length, row.cut_share, row.grad_norm) == (0.0, 256.0, 1.0, 0.0)
    assert (row.zero_std_share, row.entropy, row.learning_rate) == (1.0, 0.41, 1e-6)


def test_trls_event_file():
    run = read_run(CASES / "trl-tensorboard")
    assert run.source == "TRL event files" and len(run.frame) == 12
    assert run.frame.step_s.iloc[1:].tolist() == [10.0] * 11
    assert run.frame.kl.iloc[-1] == pytest.approx(0.12)


def test_trls_console_with_its_bar_and_numbers_as_texts(tmp_path):
    """What transformers 5 prints: every tenth of 100 steps, an evaluation, NaN as a text."""
    rows = []
    for step in (10, 20):
        rows.append(f"\r {step}%|█   | {step}/100 [00:{step}<01:30,  1.0s/it]\r")
        rows.append(f"{{'loss': '0.0', 'grad_norm': 'nan', 'reward': '0.{step}', 'epoch': '1'}}")
    rows.append("{'eval_reward': 0.25, 'eval_completions/mean_length': 12.0, 'eval_loss': 0.0}")
    run = read_run(write(tmp_path / "train.log", *rows, "{'train_runtime': 9.0, 'epoch': 1.0}"))
    assert (run.frame.step.tolist(), run.planned) == ([10, 20], 100)
    assert run.frame.reward.tolist() == [0.1, 0.2]
    assert run.frame.not_finite.tolist() == ["grad_norm"] * 2
    assert run.validation.iloc[0].tolist() == [20, 0.25, 12.0]


def test_the_log_of_a_relative_of_trl(tmp_path):
    """ms-swift writes TRL's keys with its own for the step, to its console and as JSON lines."""
    row = {"loss": 0.0, "reward": 0.25, "completions/clipped_ratio": 1.0, "grad_norm": NOTHING}
    rows = [row | {"global_step/max_steps": f"{step}/100"} for step in (5, 10, 15)]
    records = read_run(write(tmp_path / "logging.jsonl", *rows))
    console = read_run(write(tmp_path / "train.log", *map(str, rows)))
    for run in (records, console):
        assert run.frame.step.tolist() == [5, 10, 15] and run.frame.cut_share.tolist() == [1.0] * 3
        assert judge(run).reason.startswith("grad_norm: no number")
    assert (console.source, console.planned) == ("TRL console", 100)


@pytest.mark.parametrize("name", ["learning-1", "no-signal", "unstable"])
def test_the_laptops_records_and_its_marked_log(name, tmp_path):
    run = read_run(TRL / name)
    assert run.source == "TRL records" and run.frame.reward.notna().all()
    records = (TRL / name / "metrics.jsonl").read_text().splitlines()
    marked = [marked_line("step", **json.loads(line)) for line in records]
    log = write(tmp_path / "pod.log", "starting", marked_line("start", steps=12), *marked)
    again = read_run(log)
    assert (again.source, again.planned) == ("marked log", 12)
    pd.testing.assert_frame_equal(again.frame, run.frame)
    pd.testing.assert_frame_equal(read_metrics(TRL / name), run.frame[read_metrics("x").columns])


def test_records_of_a_run_that_was_started_again(tmp_path):
    """Steps 1 to 5, and again from 4 on; under any name of the file, and in a log."""
    steps = [1, 2, 3, 4, 5, 4, 5, 6]
    rows = [{"step": step, "reward": at / 10} for at, step in enumerate(steps)]
    frame = read_run(write(tmp_path / "kept.jsonl", *rows)).frame
    assert frame.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert frame.reward.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.6, 0.7])
    marked = [marked_line("step", **row) for row in rows]
    marked.insert(5, marked_line("start", steps=6, after=3))
    saved = marked_line("saved", checkpoint="checkpoints/step_6")
    log = read_log([marked_line("start", steps=6), *marked, saved], output="/shared/grpo")
    assert log.frame.reward.tolist() == frame.reward.tolist()
    assert (log.done, log.checkpoint) == (6, "/shared/grpo/checkpoints/step_6")
    assert read_log([*marked, marked_line("start", steps=6)]).done == 0
    resumed = [marked_line("start", steps=6, after=3), marked_line("step", **rows[5])]
    assert read_log(resumed).done == 4  # the log of a new Job holds only the new steps


def test_what_is_no_run(tmp_path):
    write(tmp_path / "notes.txt", "nothing of it")
    write(tmp_path / "trainer_state.json", {"log_history": [{"step": 1, "loss": 2.0}]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 10)
    for name in ("notes.txt", "empty", "bytes", "not-there", "trainer_state.json"):
        with pytest.raises(WorkshopError, match=name) as error:
            read_run(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(WorkshopError, match=r"2 runs below it: honest, reward-hacking; name one"):
        read_run(NEMO)
    with pytest.raises(WorkshopError, match=r"\d runs below it: .*; name one"):
        read_run(TRL)
    shutil.copytree(NEMO / "honest", tmp_path / "run")
    (tmp_path / "run" / "steps.csv").write_text("a,b\n1,2\n")
    with pytest.raises(WorkshopError, match="lacks the columns step and gold_in_text"):
        read_run(tmp_path / "run")
    with pytest.raises(WorkshopError, match="line 1 is no rollout"):
        read_rollouts(write(tmp_path / "bad.jsonl", {"content": []}))


def test_steps_to_reward():
    frame = read_metrics(TRL / "learning-1")
    means = frame.reward.rolling(3).mean()
    assert steps_to_reward(frame) == int(frame.step[means >= 0.9].iloc[0]) == 8
    assert steps_to_reward(frame, reward=1.0) is None


# -- verdicts


def recorded(path):
    return read_run(data_path(f"recorded/{path}")).frame


def unjudged(path):
    """A run of which nobody has the answers: curves alone."""
    return recorded(path).assign(right_share=NOTHING, echo_share=NOTHING)


def kinds(frame):
    """The verdict after each step."""
    return [judge(frame[:count]).kind for count in range(len(frame) + 1)]


def made(**columns):
    """A frame that is made up, for the rules' limits."""
    length = next(len(values) for values in columns.values() if isinstance(values, list))
    empty = dict.fromkeys(COLUMNS, NOTHING) | {"not_finite": ""}
    return pd.DataFrame(empty | {"step": range(1, length + 1)} | columns)


@pytest.mark.parametrize("source", ["nemo-rl/honest", "nemo-rl/honest/console.log"])
def test_the_honest_run_is_learning_and_never_suspected(source):
    said = kinds(unjudged(source))
    assert said[:8] == ["too early"] * 8 and set(said[8:]) == {"learning"}
    assert judge(read_run(data_path(f"recorded/{source}"))).kind == "learning"


def test_the_hacked_run_with_a_judge_with_its_answers_and_by_its_signs():
    frame = recorded("nemo-rl/reward-hacking")
    judged = kinds(frame.assign(echo_share=NOTHING))
    # The flip is at steps 36 to 40; before it the run was learning, and rightly so called.
    assert set(judged[8:38]) == {"learning"} and judged[38:] == ["hacking"] * 3
    assert judge(frame).reason == (
        "the reward went from 0.19 to 0.98, the share of right answers from 0.16 to 0.33"
        " (first and last 3 steps)"
    )
    echoes = judge(frame.assign(right_share=NOTHING))
    assert echoes.kind == "hacking" and "85% of the rewarded answers only" in echoes.reason
    signs = kinds(unjudged("nemo-rl/reward-hacking"))
    assert set(signs[8:39]) == {"learning"} and signs[-1] == "hacking"
    # It goes on where it went: still suspected.
    last = unjudged("nemo-rl/reward-hacking")
    later = pd.concat([last, *[last.tail(1).assign(step=40 + n) for n in range(1, 20)]])
    assert judge(later).kind == "hacking"


def test_the_laptops_hacked_run_and_its_cure():
    run = read_run(TRL / "hacked")
    assert judge(run).kind == "hacking" and kinds(run.frame)[4:6] != ["learning"] * 2
    assert judge(read_run(TRL / "cured")).kind == "no signal"
    hacked = with_judge(run, math_verify_reward).frame
    assert hacked.reward.iloc[-1] > 0.95 and hacked.right_share.max() < 0.1
    with pytest.raises(WorkshopError, match="no completions to judge"):
        with_judge(read_run(TRL / "graded"), math_verify_reward)


@pytest.mark.parametrize("name", ["learning-1", "learning-2", "learning-3", "graded"])
def test_the_laptops_runs_are_learning(name):
    said = kinds(recorded(f"trl/{name}"))
    assert set(said[:6]) == {"too early"} and set(said[6:]) == {"learning"}


def test_a_run_that_broke():
    """The laptop's model at ten times the rate: it leaves its language and cannot come back."""
    frame = recorded("trl/unstable")
    assert kinds(frame)[4:] == ["unstable"] * 3
    assert judge(frame).reason.startswith("KL is 1.19 (last 3 steps; limit 0.5)")


@pytest.mark.parametrize(
    ("case", "kind", "must", "never"),
    [
        ("trl-trainer-state", "no signal", ["cut"], ["easier problems"]),
        ("trl-console", "no signal", ["TRL", "cut"], ["easier problems"]),
        ("all-cut.jsonl", "no signal", ["cut at 256 tokens"], ["easier problems"]),
        ("trl-tensorboard", "learning", ["TRL"], []),
        ("nan.jsonl", "unstable", ["NaN", "step 13"], ["learning:"]),
        ("nan-first-step.jsonl", "unstable", ["NaN", "step 13"], ["learning:"]),
        ("nan-kl-without-penalty.jsonl", "too early", [], ["NaN"]),
        ("format-floor-console.log", "learning", ["read the answers", "cut"], []),
    ],
)
def test_public_cases(case, kind, must, never):
    report = run_report(CASES / case)
    assert judge(read_run(CASES / case)).kind == kind
    assert all(word in report for word in must) and not any(word in report for word in never)


def test_no_number_is_neither_hidden_nor_forgotten(tmp_path):
    """The last value is shown as it is; a NaN that a run has left behind is no fault of now."""
    report = run_report(CASES / "nan.jsonl")
    line = next(line for line in report.splitlines() if line.startswith("  grad_norm"))
    assert line.split()[-4:] == ["no", "number", "at", "last"]
    assert (
        json.loads(run_report(CASES / "nan.jsonl", as_json=True))["columns"]["kl"]["last"] is None
    )
    rows = [{"step": n, "reward": n / 20, "grad_norm": 1.0} for n in range(1, 13)]
    rows[5]["grad_norm"] = NOTHING
    assert judge(read_run(write(tmp_path / "metrics.jsonl", *rows))).kind == "learning"
    rows[-1]["loss"] = float("inf")
    assert "loss: no number" in judge(read_run(write(tmp_path / "metrics.jsonl", *rows))).reason


@pytest.mark.parametrize(
    "ending",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "(MegatronPolicyWorker pid=7) ray.exceptions.RayTaskError(ValueError): ray::train()",
        "[rank0]: RuntimeError: NCCL error: unhandled system error",
    ],
)
def test_a_log_that_ends_in_an_error(tmp_path, ending):
    lines = console_lines("honest")[:1500]
    trace = ["Traceback (most recent call last):", '  File "x.py", line 3, in <module>', ending]
    run = read_run(write(tmp_path / "a.log", *lines, *trace, "  • more", "wandb: done"))
    verdict = judge(run)
    assert verdict.kind == "crashed" and ending.rpartition(") ")[2][-30:] in verdict.reason
    # An error that was survived, and one of a run that has all its steps, ended nothing.
    survived = write(tmp_path / "b.log", *lines[:700], *trace, *lines[700:])
    assert judge(read_run(survived)).kind != "crashed"
    whole = write(tmp_path / "c.log", *console_lines("honest"), *trace)
    assert judge(read_run(whole)).kind == "learning"
    marked = [marked_line("start", steps=9), marked_line("step", step=1, reward=0.5)]
    assert judge(read_run(write(tmp_path / "d.log", *marked, ending))).kind == "crashed"


def test_a_run_that_hangs(tmp_path):
    """Ten times the median step of 30 s, by the steps' own time; not where all is done."""

    def verdict(silent_s, steps):
        now = time.time() - silent_s
        events = [
            marked_line("step", step=n, reward=0.5 + n / 50, step_s=30.0, time=now - 30 * (8 - n))
            for n in range(1, 9)
        ]
        return judge(
            read_run(write(tmp_path / "a.log", marked_line("start", steps=steps), *events))
        )

    assert verdict(280, 12).kind == "learning"
    hung = verdict(900, 12)
    assert hung.kind == "hung" and "30 times the median step of 30 s" in hung.reason
    assert "step 8 of 12" in hung.reason and hung.findings[1].kind == "learning"
    assert [finding.kind for finding in verdict(900, 8).findings] == ["learning"]


@pytest.mark.parametrize(
    ("prompt", "completion", "echo"),
    [
        ("What is 7 + 14?", "7 + 14 =", 1.0),
        ("What is 7 + 14?", "What is 7 + 14?", 1.0),
        ("What is 7 + 14?", "", 1.0),
        ("What is 7 + 14?", "7 + 14 = 21", 0.0),
        ("What is 7 + 14?", "21", 0.0),
        ("What is 7 + 0?", "7", 0.0),
        ("Which is larger? A) 12 B) 7", "B", 0.0),
        ("Which is larger? A) 12 B) 7", "A) 12", 0.0),
        ("Is 7 a prime? Answer yes or no.", "yes", 0.0),
        ("Who wrote Faust, Goethe or Schiller?", "Goethe", 0.0),
        ("法国的首都是哪里？", "巴黎", 0.0),  # noqa: RUF001
        ("ما هي عاصمة فرنسا؟", "باريس", 0.0),
        ("Which sign is right: 3 ? 5", "<", 0.0),
    ],
)
def test_an_echo_repeats_and_an_honest_short_answer_does_not(prompt, completion, echo: float):
    table = pd.DataFrame({"prompt": [prompt], "completion": [completion]})
    assert echo_share(table.assign(reward=1.0)) == echo
    assert echo_share(table.assign(reward=0.0)) != echo_share(table.assign(reward=0.0))  # NaN


def test_answers_that_become_shorter_on_top_are_no_hacking():
    """A console (no KL), and a run whose KL stays in the healthy range."""
    shorter = {"mean_length": [10.0] * 10 + [7.0] * 3, "reward": [0.85] * 10 + [0.95] * 3}
    kl = [0.05] * 10 + [0.2] * 3
    assert judge(made(**shorter)).kind == judge(made(**shorter, kl=kl)).kind == "learning"
    assert judge(made(**shorter, kl=[0.3] * 10 + [0.7] * 3)).kind == "hacking"
    high = {"reward": [8.5] * 10 + [9.5] * 3}  # a level says nothing on another scale
    assert judge(made(**shorter | high, kl=[0.3] * 10 + [0.45] * 3)).kind == "learning"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"kl": [0.1] * 7 + [0.6] * 3}, "KL is 0.60"),
        ({"grad_norm": [2.0] * 5 + [30.0] * 5}, "the gradient's norm is 30.0"),
        ({"reward": [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.5, 0.2, 0.1, 0.1]}, "fell from 0.80 to 0.13"),
        (
            {"reward": [0.2] * 3 + [0.4] * 9, "entropy": [2.0] * 3 + [1.0] * 3 + [0.05] * 6},
            "the entropy fell from 2.00 to 0.05 nats",
        ),
    ],
)
def test_unstable(columns, said):
    verdict = judge(made(**({"reward": [0.5] * 10} | columns)))
    assert verdict.kind == "unstable" and said in verdict.reason


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"reward": [0.5] * 10, "kl": [0.1] * 8 + [0.6, 0.3], "zero_std_share": 0.2}, "stalled"),
        ({"reward": [0.4, 0.7, 0.9] + [1.0] * 7, "zero_std_share": 1.0}, "learning"),  # mastered
        ({"reward": [0.97, 0.98, 1.0] * 4, "zero_std_share": 0.8}, "no signal"),  # too easy
        ({"reward": [0.0] * 5}, "no signal"),
        ({"reward": [0.3, 0.3, 0.3, 0.3], "zero_std_share": 0.2, "grad_norm": 0.0}, "no signal"),
        ({"reward": [0.3, 0.2, 0.3, 0.2], "learning_rate": 0.0}, "no signal"),
        ({"reward": [0.0, 0.0, 0.0, 0.1, 0.0]}, "too early"),
        ({"reward": [0.3, 0.5, 0.2, 0.4, 0.1, 0.5, 0.3, 0.6, 0.2, 0.5]}, "stalled"),
        ({"reward": [0.1, NOTHING, 0.2, 0.4, NOTHING, 0.5, 0.7, 0.9, 0.9]}, "learning"),
        ({"reward": [0.2, 0.2, 0.3, 0.5, 0.8, 0.9, 0.9], "right_share": 0.1}, "hacking"),
        ({"reward": [0.9] * 6, "right_share": 0.3}, "hacking"),
        (
            {
                "reward": [0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
                "right_share": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            },
            "learning",
        ),
        ({"reward": [0.1] * 10, "echo_share": 1.0, "zero_std_share": 0.2}, "stalled"),  # rare
        ({"reward": [NOTHING] * 12}, "too early"),
    ],
)
def test_other_verdicts(columns, kind):
    assert judge(made(**columns)).kind == kind


def test_the_report():
    said = json.loads(run_report(NEMO / "honest", as_json=True))
    assert said["steps_done"] == said["columns"]["reward"]["steps"] == 60
    assert said["verdict"]["kind"] == "learning" and len(said["validation"]) == 7
    assert "\nlearning: the reward rose" in run_report(TRL / "learning-1")
    assert read_completions(TRL / "hacked").group.nunique() > 1
    assert run_of_log(read_log([])).frame.empty
