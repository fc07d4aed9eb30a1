"""The table that a translation to TRL fills: one row a key, and TRL's arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from workshop_lib.training.recipe.files import leaves
from workshop_lib.training.translate_notes import DROPPED, SWITCHES

if TYPE_CHECKING:
    from workshop_lib.training.recipe import Recipe

__all__ = ["Mapped", "Status", "Table"]

Status: TypeAlias = Literal["exact", "approximated", "dropped", "refused"]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of one key.

    Attributes:
        key: The recipe's key.
        value: Its value.
        status: `exact`, `approximated`, `dropped` (it changes nothing that is learned),
            or `refused` (it would, and TRL's trainer cannot do it).
        trl: The argument of TRL that it became, if any.
        reason: Why.
    """

    key: str
    value: Any
    status: Status
    trl: str = ""
    reason: str = ""


class Table:
    """Collects the arguments and the rows.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.given = leaves(recipe.settings)
        self.arguments: dict[str, Any] = {}
        self.rows: dict[str, Mapped] = {}

    @property
    def dynamic(self) -> bool:
        """Whether groups without spread are replaced by others."""
        return self.recipe.grpo.use_dynamic_sampling

    def value(self, key: str) -> Any:
        """A key's value, NeMo RL's own where the recipe is silent."""
        here: Any = self.recipe.config
        for part in key.split("."):
            here = here.get(part) if isinstance(here, dict) else getattr(here, part.lstrip("_"))
        return here

    def add(self, key: str, status: Status, reason: str = "", **arguments: Any) -> None:
        """Give a key its row, and TRL the arguments that it became."""
        self.arguments |= arguments
        trl = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        self.rows[key] = Mapped(key, self.value(key), status, trl, reason)

    def named(self, key: str, trl: str) -> None:
        """Say what a key became where that is no argument of `GRPOConfig`."""
        self.rows[key] = replace(self.rows[key], trl=trl)

    def exact(self, key: str, reason: str = "", **arguments: Any) -> None:
        """Give a row to a key that means exactly the same under TRL."""
        self.add(key, "exact", reason, **arguments)

    def in_order(self) -> tuple[Mapped, ...]:
        """The rows as the recipe has them, then what it leaves out and TRL must be told."""
        given = [self.rows[key] for key in self.given if key in self.rows]
        silent = [row for key, row in self.rows.items() if key not in self.given]
        return (*given, *(row for row in silent if row.trl or row.status != "exact"))

    def switched_off(self) -> None:
        """Switches that TRL has no counterpart for: fine when off, refused when on."""
        for key, (off, reason) in SWITCHES.items():
            if self.value(key) == off or not (self.value(key) or off):
                self.exact(key, "off in both")
            else:
                self.add(key, "refused", reason)

    def drop_the_rest(self) -> None:
        """Every key of the recipe that has no row yet."""
        for key, value in self.given.items():
            if key not in self.rows and not any(key.startswith(f"{done}.") for done in self.rows):
                reason = next(
                    (text for start, text in DROPPED.items() if f"{key}.".startswith(start)),
                    "nothing on one machine answers to it",
                )
                self.rows[key] = Mapped(key, value, "dropped", "", reason)
