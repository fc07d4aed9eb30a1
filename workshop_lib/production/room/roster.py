"""The list of learners: read, and refused as a whole before anything is made of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workshop_lib.errors import WorkshopError


class Learner(BaseModel):
    """A namespace's name, its GPUs at once (None: the component's own), its Kubernetes group."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    gpus: Annotated[int, Field(ge=0)] | None = None
    group: str = ""


def read_roster(file: str | Path) -> list[Learner]:
    """Read a CSV with the column `name` and, if wanted, `gpus` and `group`."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise WorkshopError(f"{file}: no CSV in UTF-8 ({error})") from None
    # Where a comma is for decimals, spreadsheets part columns with a semicolon.
    mark = ";" if ";" in text.partition("\n")[0] else ","
    reader = csv.DictReader(
        text.splitlines(), delimiter=mark, skipinitialspace=True, restkey="more than the columns"
    )
    learners: dict[str, Learner] = {}
    problems = []
    for row in reader:
        filled = {key.strip(): value for key, value in row.items() if value}
        try:
            learner = Learner.model_validate(filled) if filled else None
        except ValidationError as error:
            problems += [
                f"line {reader.line_num}: {each['loc'][0]} {each.get('input')!r}: {each['msg']}"
                for each in error.errors()
            ]
            continue
        if learner and learner.name in learners:
            problems.append(f"line {reader.line_num}: {learner.name!r} is there twice")
        if learner:
            learners[learner.name] = learner
    if problems or not learners:
        said = "; ".join(problems) or "no learners; write a column `name`, a name a line"
        raise WorkshopError(f"{file}: {said}; nothing was changed")
    return list(learners.values())
