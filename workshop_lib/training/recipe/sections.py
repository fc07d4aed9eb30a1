"""What the sections of a recipe have in common, and those about data, saving and logging.

See `schema` for the sections that say how to train.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "Checkpointing",
    "Cluster",
    "Count",
    "Data",
    "Dataset",
    "Free",
    "Logger",
    "MathEnvironment",
    "Section",
    "Share",
]

Free: TypeAlias = dict[Any, Any] | None
Count: TypeAlias = Annotated[int, Field(ge=1)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A section of a recipe: no other keys, no other types, never changed."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class Dataset(Section):
    """An entry of `data.train`, `data.validation`, or `data.default`."""

    dataset_name: str | None = None
    data_path: str | None = None
    input_key: str | None = None
    output_key: str | None = None
    subset: str | None = None
    split: str | None = None
    prompt_file: str | None = None
    system_prompt_file: str | None = None
    env_name: str | None = None
    processor: str | None = None
    download_dir: str | None = None
    split_validation_size: float | None = None
    seed: int | None = None
    repeat: int | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Datasets: TypeAlias = Annotated[list[Dataset], BeforeValidator(_as_list)]


class Data(Section):
    """`data`: the problems."""

    train: Datasets = Field(min_length=1)
    validation: Datasets | None = None
    default: Dataset | None = None
    max_input_seq_length: int | None = None
    shuffle: bool = True
    num_workers: int = 1
    use_multiple_dataloader: bool = False
    num_prompts_per_dataloader: int | None = None
    custom_dataloader: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_generation_prompt: bool | None = None
    add_system_prompt: bool | None = None


class MathEnvironment(Section):
    """An entry of `env` that scores answers to problems."""

    num_workers: Count = 8
    stop_strings: list[str] | None = None
    verifier_type: Literal["math", "english_multichoice", "multilingual_multichoice"] | None = None
    math_verify_impl: Literal["hf_math_verify", "dapo_math_verify"] | None = None


class Checkpointing(Section):
    """`checkpointing`."""

    enabled: bool = True
    checkpoint_dir: str = "results/grpo"
    metric_name: Annotated[str, Field(pattern=r"^(val|train):.+")] | None = "val:accuracy"
    higher_is_better: bool = True
    keep_top_k: Count | None = 3
    save_period: Count = 10
    checkpoint_must_save_by: str | None = None
    model_save_format: str | None = "safetensors"
    save_consolidated: bool = False
    save_optimizer: bool = True
    pretrained_checkpoint: Free = None
    model_cache_dir: str | None = None
    model_repo_id: str | None = None
    is_peft: bool | None = None
    peft_config: Free = None
    is_async: bool | None = None


class Logger(Section):
    """`logger`."""

    log_dir: str = "logs"
    num_val_samples_to_print: int = 0
    wandb_enabled: bool = False
    tensorboard_enabled: bool = False
    mlflow_enabled: bool = False
    swanlab_enabled: bool = False
    monitor_gpus: bool = True
    wandb: Free = None
    tensorboard: Free = None
    mlflow: Free = None
    swanlab: Free = None
    gpu_monitoring: Free = None


class Cluster(Section):
    """`cluster`."""

    gpus_per_node: Count = 1
    num_nodes: Count = 1
    master_port_range_low: int | None = None
    master_port_range_high: int | None = None
    segment_size: int | None = None
