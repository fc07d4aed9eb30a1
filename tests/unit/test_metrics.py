"""Real runs of NeMo RL and TRL, read from whatever they left."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training import math_verify_reward
from workshop_lib.training.runs import RUN_COLUMNS, Run, read_rollouts, read_run, right_share
from workshop_lib.training.runs.command import main
from workshop_lib.training.runs.console import read_console
from workshop_lib.training.runs.event_file import read_scalars

NEMO = data_path("recorded/nemo-rl")
TRL = data_path("recorded/trl")
RUNS = {"honest": 60, "reward-hacking": 40}


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name: read_run(NEMO / name) for name in RUNS}


def event_file(name: str) -> Path:
    return next((NEMO / name).glob("events.*"))


def console_lines(name: str) -> list[str]:
    return (NEMO / name / "console.log").read_text().split("\n")


@pytest.mark.parametrize("name", RUNS)
def test_event_file_and_console_say_the_same(runs: dict[str, Run], name: str) -> None:
    events, console = runs[name], read_run(NEMO / name / "console.log")
    assert (events.source, console.source) == ("NeMo RL event files", "NeMo RL console")
    assert len(events.frame) == len(console.frame) == console.planned == RUNS[name]
    for column in ("reward", "mean_length", "loss"):
        assert console.frame[column].values == pytest.approx(events.frame[column].values, abs=1e-4)
    for column in ("step_s", "generation_s", "logprob_s", "update_s", "reward_s"):
        assert console.frame[column].values == pytest.approx(events.frame[column].values, abs=6e-3)
    # Three timers, each printed with two decimals.
    assert console.frame.prepare_s.values == pytest.approx(events.frame.prepare_s.values, abs=0.016)
    assert console.validation.step.tolist() == events.validation.step.tolist()
    assert console.validation.accuracy.values == pytest.approx(
        events.validation.accuracy.values, abs=1e-4
    )
    # What a console does not print is not made up.
    assert console.frame[["kl", "entropy", "grad_norm", "zero_std_share"]].isna().all().all()


@pytest.mark.parametrize("name", RUNS)
def test_the_values_are_those_of_the_rollouts(runs: dict[str, Run], name: str) -> None:
    """`steps.csv` was made from the rollouts, apart from the event file."""
    table, frame = pd.read_csv(NEMO / name / "steps.csv"), runs[name].frame
    for theirs, ours in {
        "reward": "reward", "mean_gen_tokens": "mean_length", "kl_penalty": "kl",
        "grad_norm": "grad_norm", "entropy": "entropy", "step_time_s": "step_s",
    }.items():  # fmt: skip
        assert frame[ours].values == pytest.approx(table[theirs].values, abs=6e-3), ours
    last = int(frame.step.max())
    rollouts = read_rollouts(NEMO / name / f"train_data_step{last}.jsonl")
    row = frame.iloc[-1]
    assert rollouts.reward.mean() == pytest.approx(row.reward)
    assert len(row.group_means) == 16 and rollouts.reward.std() == pytest.approx(row.reward_std)
    assert list(frame.columns) == list(RUN_COLUMNS)


def test_silent_groups_of_the_baselines_are_at_most_a_sixteenth_too_many(
    runs: dict[str, Run],
) -> None:
    for name, run in runs.items():
        alone = read_run(event_file(name)).frame.set_index("step").zero_std_share
        exact = run.frame.dropna(subset=["group_means"]).set_index("step").zero_std_share
        assert len(exact) == 2
        assert ((alone[exact.index] - exact).between(0, 1 / 16)).all()


@pytest.mark.parametrize(
    ("name", "step", "right"), [("honest", 60, 0.9), ("reward-hacking", 40, 0.25)]
)
def test_another_judge_of_the_same_answers(
    runs: dict[str, Run], name: str, step: int, right: float
) -> None:
    """The workshop's own verifier on the last validation: what NeMo RL called accuracy."""
    text = (NEMO / "val.jsonl").read_text().splitlines()
    answers = {
        f"What is {row['problem']}? Reply with only the number.": row["answer"]
        for row in map(json.loads, text)
    }
    share = right_share(
        read_rollouts(NEMO / name / f"val_data_step{step}.jsonl"), answers, math_verify_reward
    )
    accuracy = runs[name].validation.accuracy.iloc[-1]
    assert share == pytest.approx(right, abs=0.12)
    assert accuracy > 0.9


def test_an_event_file_that_is_still_written(runs: dict[str, Run], tmp_path: Path) -> None:
    data = event_file("honest").read_bytes()
    live = tmp_path / "events.out.tfevents.1.here"
    lengths = []
    whole = runs["honest"].frame
    # What the folder knows besides comes from its rollouts and its judge.
    besides = ["echo_share", "reward_std", "group_means", "zero_std_share", "right_share"]
    for end in (0, 7, 1_000, 100_001, 250_003, len(data)):
        live.write_bytes(data[:end])
        if end < 12:
            # Nothing to know it by but its name.
            assert read_run(tmp_path).frame.empty
            continue
        frame = read_run(live).frame
        lengths.append(len(frame))
        same = whole[: len(frame)].drop(columns=besides)
        pd.testing.assert_frame_equal(frame.drop(columns=besides), same)
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 60
    assert 0 < lengths[1] < lengths[2] < 60


def test_a_damaged_event_file(tmp_path: Path) -> None:
    data = event_file("honest").read_bytes()[:60_000]
    path = tmp_path / "events.out.tfevents.1.here"
    for at in (50_000, 50_001, 50_013):
        bad = bytearray(data)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(WorkshopError, match="is damaged at byte"):
            read_scalars(path)
    path.write_bytes(b"no such file" * 10)
    with pytest.raises(WorkshopError, match="is no TensorBoard event file"):
        read_scalars(path)


def test_every_scalar_of_the_event_file_is_found() -> None:
    """The recording's notes: 97 tags; ten are written twice a step."""
    scalars = read_scalars(event_file("honest"))
    assert len({s.tag for s in scalars}) == 97
    twice = [t for t in {s.tag for s in scalars} if sum(s.tag == t for s in scalars) == 120]
    assert len(twice) == 10
    assert {s.value for s in scalars if s.tag == "train/num_valid_samples"} == {256.0}


def record_bytes(tag: str, step: int, value: float, time: float) -> bytes:
    """An event as a writer in TensorBoard's newer style makes it: a tensor, not a scalar."""
    from workshop_lib.training.runs import event_file as module

    event = module._event_class()(wall_time=time, step=step)
    event.summary.value.add(tag=tag).tensor.float_val.append(value)
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    return header + crc(header) + data + crc(data)


def crc(data: bytes) -> bytes:
    from workshop_lib.training.runs.event_file import _crc_table

    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _crc_table()[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def written(path: Path, steps: range, reward: float, time: float) -> None:
    path.write_bytes(
        b"".join(
            record_bytes(tag, step, value, time + step)
            for step in steps
            for tag, value in (
                ("train/reward", reward),
                ("train/kl_penalty", 0.0),
                ("train/dynamic_sampling_num_gen_batches", 2.0),
                ("timing/train/total_step_time", 1.0),
            )
        )
    )


def test_a_restart_replaces_what_came_after_it(tmp_path: Path) -> None:
    """Synthetic: 8 steps; then started again from the checkpoint of step 5, for one step so far."""
    written(tmp_path / "events.out.tfevents.2.b", range(1, 9), 0.25, time=100)
    written(tmp_path / "events.out.tfevents.1.a", range(6, 7), 0.75, time=200)
    run = read_run(tmp_path)
    assert run.frame.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert run.frame.reward.tolist() == [0.25] * 5 + [0.75]
    assert run.frame.batches.tolist() == [2.0] * 6
    assert run.frame.kl.isna().all() and "no penalty" in run.notes[0]
    assert run.notes[-1].startswith("2 starts, a file each")


def test_a_restart_of_nemo_rl_makes_another_folder(tmp_path: Path) -> None:
    """As NeMo RL's logger does: exp_001, and exp_002 for the run that goes on."""
    for name, steps in (("exp_001", range(1, 5)), ("exp_002", range(4, 8))):
        place = tmp_path / name / "tensorboard"
        place.mkdir(parents=True)
        written(place / "events.out.tfevents.1.a", steps, steps[0] / 10, time=100 * steps[0])
    run = read_run(tmp_path)
    assert run.frame.reward.tolist() == pytest.approx([0.1] * 3 + [0.4] * 4)
    assert read_run(tmp_path / "exp_001").frame.step.tolist() == [1, 2, 3, 4]


def test_a_folder_of_several_runs_is_none(tmp_path: Path) -> None:
    """They were mixed by their times once."""
    with pytest.raises(WorkshopError, match=r"2 runs below it: honest, reward-hacking; name one"):
        read_run(NEMO)
    with pytest.raises(WorkshopError, match=r"\d runs below it: .* and \d more; name one"):
        read_run(data_path("recorded/trl"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.log").write_text("\n".join(console_lines("honest")[:400]))
    (tmp_path / "vllm.log").write_text("INFO no run\n")
    with pytest.raises(WorkshopError, match=r"2 runs below it: a.log, b.log"):
        read_run(tmp_path)
    (tmp_path / "a.log").unlink()
    assert read_run(tmp_path).source == "NeMo RL console"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WorkshopError, match="neither a file nor a folder"):
        read_run(tmp_path / "pipe")


@pytest.mark.parametrize("form", ["simple", "float", "double", "bytes", "half", "whole"])
def test_every_form_in_which_a_scalar_is_written(form: str, tmp_path: Path) -> None:
    """TensorBoard's old style, TensorFlow 2's tensors, and tensors as bytes."""
    from workshop_lib.training.runs import event_file as module

    event = module._event_class()(wall_time=1.0, step=3)
    value = event.summary.value.add(tag="train/reward")
    if form == "simple":
        value.simple_value = 2.0
    elif form == "float":
        value.tensor.float_val.append(2.0)
    elif form == "double":
        value.tensor.double_val.append(2.0)
    elif form == "whole":
        value.tensor.int64_val.append(2)
    else:
        value.tensor.dtype = 1 if form == "bytes" else 19
        value.tensor.tensor_content = struct.pack("<f" if form == "bytes" else "<e", 2.0)
    # What is no scalar, a text or a picture, is passed over.
    event.summary.value.add(tag="text").tensor.tensor_content = b"\x01" * 40
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    path = tmp_path / "events.out.tfevents.1.a"
    path.write_bytes(header + crc(header) + data + crc(data))
    assert [(s.tag, s.step, s.value) for s in read_scalars(path)] == [("train/reward", 3, 2.0)]


def test_a_console_that_ends_anywhere(runs: dict[str, Run]) -> None:
    text = (NEMO / "honest" / "console.log").read_text()
    whole = read_console(text.split("\n")).frame
    seen = []
    for share in range(1, 20):
        part = text[: len(text) * share // 20]
        frame = read_console(part[: part.rfind("\n") + 1].split("\n")).frame
        seen.append(len(frame))
        # Its last step may lack the stages that are printed after its time.
        if len(frame):
            stages = ["prepare_s", "generation_s", "reward_s", "logprob_s", "update_s"]
            known = frame.drop(columns=stages)
            pd.testing.assert_frame_equal(known, whole[: len(frame)].drop(columns=stages))
            pd.testing.assert_frame_equal(frame[:-1], whole[: len(frame) - 1])
    assert seen == sorted(seen) and 50 < seen[-1] < 60


def test_half_a_number_is_not_read(tmp_path: Path) -> None:
    lines = console_lines("honest")
    at = next(i for i, line in enumerate(lines) if "Total step time" in line)
    cut = tmp_path / "console.log"
    cut.write_text("\n".join(lines[:at]) + "\n" + lines[at][:-3])
    assert read_run(cut).frame.empty
    cut.write_text("\n".join(lines[: at + 1]) + "\n")
    assert read_run(cut).frame.step_s.tolist() == [5.79]


def test_a_console_of_two_starts() -> None:
    """The recorded console, up to step 30, and again from step 21 on: a resumed run."""
    lines = console_lines("honest")

    def at(step: int) -> int:
        return next(i for i, line in enumerate(lines) if f"= Step {step}/60 =" in line)

    begin = at(1)
    resumed = [*lines[: at(31)], *lines[:begin], *lines[at(21) : at(25)]]
    log = read_console(resumed)
    assert log.starts == 2 and log.frame.step.tolist() == list(range(1, 25))
    whole = read_console(lines).frame
    pd.testing.assert_frame_equal(log.frame, whole[:24])
    assert log.validation.step.tolist() == [0, 10, 20]


def test_lines_of_workers_and_colours_do_not_matter() -> None:
    """The driver's own lines, prefixed as Ray prefixes a driver that is a job, and coloured."""
    lines = console_lines("reward-hacking")
    noise = "\x1b[36m(VllmGenerationWorker pid=7)\x1b[0m INFO 11-21 [x.py:1] • nothing"
    mixed = []
    for line in lines:
        mixed += [f"\x1b[32m(run_grpo pid=1, ip=192.0.2.2)\x1b[0m {line}", noise]
    pd.testing.assert_frame_equal(read_console(mixed).frame, read_console(lines).frame)


# As nemo_rl/algorithms/grpo.py prints them (7ea279a, August 2026); the recorded runs had none.
DYNAMIC = """\
========================= Step 1/12 =========================
Detected 96 prompts with non-zero std; 256 are required and used for training.
Generation sample buffer size: 96 is smaller than train_prompts_size: 256. \
Processed 1 batches so far out of 10.
========================= Step 1/12 =========================
Detected 288 prompts with non-zero std; 256 are required and used for training.
Logged data to logs/exp_001/train_data_step1.jsonl

📊 Training Results:
  • Loss: -0.0255
  • Generation KL Error: 0.0022
  • Avg Filtered Reward: 0.4141
  • Avg Total Reward: 0.1484
  • Mean Generation Length: 19.5742

⏱️  Timing:
  • Total step time: 4.42s
  • generation: 0.60s (13.7%)
"""


def test_dynamic_sampling() -> None:
    log = read_console(DYNAMIC.split("\n"))
    row = log.frame.iloc[0]
    assert (log.planned, len(log.frame), row.step, row.batches) == (12, 1, 1, 2)
    assert (row.reward, row.filtered_reward, row.loss) == (0.1484, 0.4141, -0.0255)


def test_epochs_count_on() -> None:
    """NeMo RL's header counts within an epoch, its rollouts through the run."""
    step = "  • Avg Reward: 0.5\n  • Total step time: 1.00s\n"
    text = ""
    for epoch in (1, 2):
        text += f"{'=' * 25} Epoch {epoch}/2 {'=' * 25}\n"
        for number in (1, 2, 3):
            text += f"{'=' * 25} Step {number}/3 {'=' * 25}\n{step}"
    assert read_console(text.split("\n")).frame.step.tolist() == [1, 2, 3, 4, 5, 6]
    # A run that goes on in its second epoch: only the rollouts' file tells.
    later = f"{'=' * 25} Step 2/3 {'=' * 25}\nLogged data to x/train_data_step5.jsonl\n{step}"
    assert read_console(later.split("\n")).frame.step.tolist() == [5]


@pytest.mark.parametrize("name", ["learning-1", "learning-2", "learning-3", "no-signal"])
def test_trl_records_in_the_same_columns(name: str, tmp_path: Path) -> None:
    run = read_run(TRL / name)
    assert run.source == "TRL records" and list(run.frame.columns) == list(RUN_COLUMNS)
    assert run.frame.reward.notna().all() and run.frame.right_share.isna().all()
    pd.testing.assert_frame_equal(run.frame, read_run(TRL / name / "metrics.jsonl").frame)
    log = tmp_path / "pod.log"
    records = (TRL / name / "metrics.jsonl").read_text().splitlines()
    marked = [f"@grpo {json.dumps({'event': 'step'} | json.loads(line))}" for line in records]
    log.write_text("\n".join(["starting", '@grpo {"event": "start", "steps": 12}', *marked, ""]))
    again = read_run(log)
    assert (again.source, again.planned) == ("marked log", 12)
    pd.testing.assert_frame_equal(again.frame, run.frame)


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("nothing of it\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 10)
    for name in ("notes.txt", "empty", "bytes", "not-there"):
        assert main([str(tmp_path / name)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and name in said.err
    shutil.copytree(NEMO / "honest", tmp_path / "run")
    (tmp_path / "run" / "steps.csv").write_text("a,b\n1,2\n")
    with pytest.raises(WorkshopError, match="lacks the columns step and gold_in_text"):
        read_run(tmp_path / "run")
    (tmp_path / "bad.jsonl").write_text('{"content": []}\n')
    with pytest.raises(WorkshopError, match="line 1 is no rollout"):
        read_rollouts(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("path", "kind", "steps"),
    [
        ("nemo-rl/honest", "learning", 60),
        ("nemo-rl/reward-hacking", "hacking", 40),
        ("nemo-rl/reward-hacking/console.log", "hacking", 40),
        ("trl/learning-1", "learning", 12),
    ],
)
def test_the_command(path: str, kind: str, steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(data_path(f"recorded/{path}"))
    assert main([where, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["steps_done"] == steps and said["verdict"]["kind"] == kind
    assert said["columns"]["reward"]["steps"] == steps
    assert main([where]) == 0
    assert f"\n{kind}: " in capsys.readouterr().out


def test_each_log_of_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is found among other logs by what it holds, console or marked lines."""
    from workshop_lib.training.runs import run as module

    read: list[Path] = []
    lines = module._lines
    monkeypatch.setattr(module, "_lines", lambda path: read.append(path) or lines(path))
    (tmp_path / "a-server.log").write_text("INFO vLLM is ready\n")
    (tmp_path / "console.log").write_text("\n".join(console_lines("honest")))
    assert read_run(tmp_path).planned == 60 and len(read) == 2
    (tmp_path / "console.log").write_text(
        '@grpo {"event": "start", "steps": 3}\n@grpo {"event": "step", "step": 1, "reward": 1}\n'
    )
    run = read_run(tmp_path)
    assert (run.source, run.planned, run.path) == ("marked log", 3, tmp_path / "console.log")
    (tmp_path / "console.log").unlink()
    with pytest.raises(WorkshopError, match=r"a-server\.log is no run"):
        read_run(tmp_path)
    # It has only begun: no header of a step yet.
    (tmp_path / "b.log").write_text("Loaded configuration from: x.yaml\n")
    assert read_run(tmp_path).frame.empty


def test_a_console_whose_header_of_a_step_is_lost() -> None:
    lines = console_lines("honest")
    whole = read_console(lines).frame
    kept = [line for line in lines if "= Step 7/60 =" not in line]
    pd.testing.assert_frame_equal(read_console(kept).frame, whole)
    # Also where the name of the answers' file, which says the step, is lost with it.
    kept = [line for line in kept if "train_data_step7.jsonl" not in line]
    assert read_console(kept).frame.step.tolist() == list(range(1, 61))
    assert read_console(kept).frame.reward.tolist() == whole.reward.tolist()


def test_a_loss_that_is_no_number_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": n, "reward": 0.5, "loss": float("inf") if n > 3 else 0.1} for n in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no number at last" in said and "\nunstable: the loss is no number any more" in said
    assert main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["columns"]["loss"]["last"] is None


@pytest.mark.parametrize("wrong", [{"reward": "high"}, {"step": None}, {"step": "x"}, {"kl": [1]}])
def test_records_of_another_type(
    tmp_path: Path, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.dumps({"step": 1, "reward": 0.5} | wrong)
    (tmp_path / "metrics.jsonl").write_text(row + "\n")
    (tmp_path / "pod.log").write_text(
        '@grpo {"event": "start", "steps": 3}\n@grpo {"event": "step", ' + row[1:] + "\n"
    )
    for name in ("metrics.jsonl", "pod.log"):
        assert main([str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "is no record of a run" in said and said.count("\n") == 1


def test_records_of_a_run_that_was_started_again(tmp_path: Path) -> None:
    """Steps 1 to 5, and again from 4 on; under any name of the file."""
    steps = [1, 2, 3, 4, 5, 4, 5, 6]
    rows = [{"step": step, "reward": at / 10} for at, step in enumerate(steps)]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame = read_run(path).frame
    assert frame.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert frame.reward.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.5, 0.6, 0.7])
    # From the beginning, and not yet as far as before.
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 1, "reward": 1}]))
    assert read_run(path).frame.reward.tolist() == [1.0]

    start = '@grpo {"event": "start", "steps": 6'
    marked = [f"@grpo {json.dumps({'event': 'step'} | row)}" for row in rows]
    log = tmp_path / "pod.log"
    log.write_text("\n".join([start + "}", *marked[:5], start + ', "after": 3}', *marked[5:], ""]))
    assert read_run(log).frame.reward.tolist() == frame.reward.tolist()
    log.write_text("\n".join([start + "}", *marked[:5], start + "}", marked[0], ""]))
    assert read_run(log).frame.step.tolist() == [1]


def test_a_judge_that_says_a_step_twice(tmp_path: Path) -> None:
    shutil.copytree(NEMO / "honest", tmp_path / "run")
    table = pd.read_csv(NEMO / "honest" / "steps.csv")
    again = pd.concat([table, table[:1].assign(gold_in_text=0.75)])
    again.to_csv(tmp_path / "run" / "steps.csv")
    assert read_run(tmp_path / "run").frame.right_share.iloc[0] == 0.75
    table.assign(gold_in_text="many").to_csv(tmp_path / "run" / "steps.csv")
    with pytest.raises(WorkshopError, match=r"steps\.csv lacks the columns"):
        read_run(tmp_path / "run")
