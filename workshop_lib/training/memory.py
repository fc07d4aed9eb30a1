"""What the models of an RL training hold in GPU memory: PPO's four against GRPO's one or two.

Bytes a parameter, mixed precision with Adam (Rajbhandari et al. 2020, "ZeRO", section 3.1):
a trained model has 2 for its 16-bit weights, 2 for their gradients and 12 for the optimizer
(32-bit weights, momentum, variance); a frozen one has its 2 for weights alone.
Activations and the generation engine's KV cache come on top, in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.serving.memory import GIB

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.memory import ModelShape

__all__ = ["training_models"]

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 2, 12
_TRAINED = {"weights": WEIGHT_BYTES, "gradients": GRADIENT_BYTES, "optimizer": OPTIMIZER_BYTES}
_FROZEN = {"weights": WEIGHT_BYTES, "gradients": 0, "optimizer": 0}


def training_models(shape: ModelShape) -> pd.DataFrame:
    """The models that each algorithm keeps, all of one size, and what they hold.

    PPO (Schulman et al. 2017, as used for RLHF by Ouyang et al. 2022) has a policy, a
    critic, a reference policy and a reward model. GRPO (Shao et al. 2024) takes the
    group's mean in place of the critic; a reward that is computed needs no model, and
    without a KL penalty the reference goes too.

    Args:
        shape: The policy's shape; the others are taken to be as large.

    Returns:
        One row a model: `algorithm`, `model`, `trained`, and `weights`, `gradients`,
        `optimizer`, `gib` in GiB.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape
        >>> table = training_models(ModelShape.named("mistral-7b"))
        >>> table.groupby("algorithm")["gib"].sum().round().to_dict()
        {'GRPO': 122.0, 'GRPO, no KL penalty': 108.0, 'PPO': 243.0}
    """
    import pandas as pd

    policy, critic = ("policy", _TRAINED), ("critic", _TRAINED)
    reference, judge = ("reference", _FROZEN), ("reward model", _FROZEN)
    kept = {
        "PPO": [policy, critic, reference, judge],
        "GRPO": [policy, reference],
        "GRPO, no KL penalty": [policy],
    }
    rows = []
    for algorithm, models in kept.items():
        for name, bytes_each in models:
            parts = {what: shape.parameters * size / GIB for what, size in bytes_each.items()}
            trained = bytes_each is _TRAINED
            rows.append([algorithm, name, trained, *parts.values(), sum(parts.values())])
    columns = ["algorithm", "model", "trained", *_TRAINED, "gib"]
    return pd.DataFrame(rows, columns=columns)
