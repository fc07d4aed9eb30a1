"""Experiments: what each setting brings with it, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workshop_lib.data import data_path
from workshop_lib.plots import plot_settings
from workshop_lib.training import experiments
from workshop_lib.training.experiments import (
    ANSWERS,
    SettingsComparison,
    compare_settings,
    small_settings,
)
from workshop_lib.training.recipe import RecipeError, read_recipe
from workshop_lib.training.run_folder import TrainingError
from workshop_lib.training.runs import COLUMNS

ARITHMETIC = data_path("recipes/arithmetic.yaml")
LORA_DIM = "policy.dtensor_cfg.lora_cfg.dim"
KEYS: list[tuple[str, list[Any]]] = [
    ("grpo.num_generations_per_prompt", [2, 8]),
    ("policy.generation.temperature", [0.2, 1.0]),
    ("loss_fn.reference_policy_kl_penalty", [0.0, 1.0]),
    ("loss_fn.ratio_clip_max", [0.02, 0.2]),
    ("policy.optimizer.kwargs.lr", [1e-6, 1e-4]),
    (LORA_DIM, [None, 8]),
    ("grpo.use_dynamic_sampling", [False, True]),
]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that would be run; every training is said to have one step."""
    asked: list[Any] = []

    def follow(job: Any, *, timeout_s: float) -> Any:
        recipe = Path(job.recipe)
        asked.append((job, [read_recipe(recipe, overrides) for overrides in job.runs]))
        for number in range(len(job.runs)):
            record = dict.fromkeys(COLUMNS, 0.25) | {"step": 1, "group_means": [0.25]}
            yield number, record | {"event": "step", "run": number}
            yield number, {"event": "end", "run": number, "seconds": 2.5}

    monkeypatch.setattr(experiments, "follow", follow)
    return asked


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What is looked at before a training is asked for; here none is."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(512))
    return tmp_path


@pytest.mark.parametrize(("key", "values"), KEYS)
def test_every_setting_makes_a_recipe_that_can_be_trained(
    jobs: list[Any], model: Path, key: str, values: list[Any]
) -> None:
    from workshop_lib.training.translate import translate

    comparison = compare_settings(read_recipe(ARITHMETIC), key, values, model=model)
    ((_, recipes),) = jobs
    for recipe, value in zip(recipes, values, strict=True):
        assert recipe.completions_per_step == ANSWERS
        translation = translate(recipe, problems=70, steps=6)
        assert translation.refused == [] and translation.steps == 6
        assert translation.watch_kl or translation.arguments["beta"] > 0, "KL is always recorded"
        assert bool(translation.lora) == (key == LORA_DIM and value is not None)
        assert translation.updates_per_step == (4 if "clip" in key else 1)
    assert comparison.frame.value.tolist() == [experiments._label(value) for value in values]
    assert comparison.summary().seconds.tolist() == [2.5, 2.5]
    assert comparison._repr_png_().startswith(b"\x89PNG")


def test_a_recipe_with_overrides_keeps_them(jobs: list[Any], model: Path) -> None:
    recipe = read_recipe(ARITHMETIC, {"grpo.seed": 7})
    compare_settings(
        recipe, KEYS[1][0], KEYS[1][1], model=model, also={"grpo.num_prompts_per_step": 2,
        "policy.train_global_batch_size": 16, "policy.train_micro_batch_size": 16},
    )  # fmt: skip
    ((_, (first, _)),) = jobs
    assert first.grpo.seed == 7 and first.completions_per_step == 16


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("policy.generation.temperature", [1.0], "give two or more values"),
        ("policy.generation.temperatur", [0.5, 1.0], "did you mean policy.generation.temperature"),
        ("policy.generation.temperature", [1.0, -1.0], "temperature is -1.0"),
        ("grpo.num_generations_per_prompt", [8, 5], "5 does not divide the 32 answers"),
    ],
)
def test_what_is_refused(
    jobs: list[Any], model: Path, key: str, values: list[Any], said: str
) -> None:
    with pytest.raises((TrainingError, RecipeError), match=said):
        compare_settings(read_recipe(ARITHMETIC), key, values, model=model)
    assert jobs == []


def test_the_figure_has_a_line_a_value(jobs: list[Any], model: Path) -> None:
    comparison: SettingsComparison = compare_settings(
        read_recipe(ARITHMETIC), "policy.optimizer.kwargs.lr", [1e-6, 1e-5, 1e-4], model=model
    )
    figure = plot_settings(comparison.frame, key=comparison.key)
    assert len(figure.axes) == 6
    for axes in figure.axes:
        assert len(axes.lines) == 3 and axes.get_title(loc="left") and axes.get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1e-6", "1e-5", "1e-4"]


def test_what_is_changed_is_said() -> None:
    settings = small_settings("loss_fn.ratio_clip_max", steps=4)
    assert settings["policy.train_global_batch_size"] == ANSWERS // 4
    assert settings["grpo.max_num_steps"] == 4


@pytest.mark.parametrize(
    ("value", "label"),
    [(1e-6, "1e-6"), (2.5e-5, "2.5e-5"), (0.2, "0.2"), (0.0, "0"), (8, "8"), (None, "off"),
     (True, "true"), ("dapo", "dapo")],
)  # fmt: skip
def test_values_are_written_short(value: Any, label: str) -> None:
    assert experiments._label(value) == label
