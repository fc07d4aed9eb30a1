"""What logs say of trainings and their configuration: NeMo RL, Hydra, OmegaConf, PEFT, trackers.

Wordings: NeMo RL 0.4 to 0.6 (`algorithms/grpo.py`, `utils/config.py`), omegaconf (`errors.py`),
hydra (`_internal/config_loader_impl.py`), PyYAML, Weights & Biases, the API server's RBAC.
"""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Lesson
from workshop_lib.production.diagnosis.logs import Sign

__all__ = ["TRAINING_SIGNS"]

TRAINING_SIGNS: tuple[Sign, ...] = (
    Sign(
        "batch-not-divisible",
        ("divisible by",),
        r"(?P<what>[\w.() *=]{0,80}(?:must be|is not|not|be evenly) divisible by [\w.() *=]{0,60})",
        "Two sizes in the configuration of {who} do not go together: {what}.",
        "choose them so that one divides the other (GRPO: num_prompts_per_step x "
        "num_generations_per_prompt is a multiple of train_global_batch_size, and that one of "
        "train_micro_batch_size x data-parallel ranks)",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "config-key",
        (
            "is not in struct",
            "could not override",
            "missing mandatory value",
            "configkeyerror",
            "configattributeerror",
            "interpolationkeyerror",
            "validationerror: ",
            "extra inputs are not permitted",
            "unexpected keyword argument",
        ),
        r"Could not override '?(?P<over>[\w.]+)|Key '(?P<key>[\w.]+)' is not in struct|Missing "
        r"mandatory value:? ?(?P<value>[\w.]*)|Config(?:Key|Attribute)Error|"
        r"Interpolation\w*Error|Extra inputs are not permitted|"
        r"unexpected keyword argument '(?P<arg>\w+)'",
        "The configuration of {who} names a setting that its program does not have, or lacks one "
        "that it needs.",
        "compare the key in the line with the recipe's defaults (a typing mistake, or a key of "
        "another version); python -m workshop_lib.training.recipe checks a recipe before it is run",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "config-syntax",
        ("scannererror", "parsererror", "jsondecodeerror", "tomldecodeerror"),
        r"yaml\.(?:scanner\.)?ScannerError|yaml\.(?:parser\.)?ParserError|JSONDecodeError|"
        r"TOMLDecodeError",
        "A configuration file of {who} cannot be read: its syntax is wrong.",
        "look at the line and column that follow in the log; kubectl get configmap -o yaml shows "
        "what the pod was given",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "tracker-login",
        ("api_key not configured", "wandb", "mlflow"),
        r"api_key not configured|wandb.*(?:login|permission denied|401)|MlflowException.*"
        r"(?:401|403)",
        "{who} is to report to an experiment tracker, and has no (valid) key for it.",
        "put the key into a Secret and pass it (WANDB_API_KEY), or turn the tracker off "
        "(logger.wandb_enabled: false, WANDB_MODE=offline)",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "loss-not-finite",
        ("nan", "not finite", "infinite", "inf or nan"),
        r"\b(?:loss|grad\w*|logits?|reward|probability tensor)\b.{0,40}(?:is|are|contains?|became|"
        r"has|either)\b.{0,20}(?:\bnan\b|`inf`|not finite|infinite)",
        "The training of {who} has left the range of numbers: a loss, gradient or probability is "
        "not finite.",
        "lower the learning rate, clip gradients, train in bfloat16 instead of float16; resume "
        "from a checkpoint before it began",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "rbac-forbidden",
        ("is forbidden: user",),
        r"(?P<what>\w[\w.]* (?:\\?\"[\w.-]+\\?\" )?is forbidden: User [^,}]+?cannot \w+ resource "
        r"\\?\"[\w./-]+)",
        "{who} asks the API server for something that its service account may not do: {what}.",
        "give the service account a Role with that verb and resource and a RoleBinding; check: "
        "kubectl auth can-i <verb> <resource> --as=system:serviceaccount:<namespace>:<name>",
        Lesson.WHEN,
    ),
)
