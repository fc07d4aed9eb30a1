"""The list of learners: read, and refused as a whole before anything is made of it."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.errors import WorkshopError

__all__ = ["Learner", "read_roster"]

FIELDS = ("name", "gpus", "group")
RESERVED = ("default", "kube-", "kuberay", "karpenter", "monitoring", "gpu-operator", "openshift")
"""Names, or their beginnings, of namespaces that clusters have for themselves."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST = 63


@dataclass(frozen=True)
class Learner:
    """One learner.

    Attributes:
        name: Also the namespace: a DNS label.
        gpus: GPUs that the namespace may have at once; None for as many as the component
            `namespace` allows.
        group: The Kubernetes group that may work there, as an EKS access entry names it;
            empty for one named after the learner.
    """

    name: str
    gpus: int | None = None
    group: str = ""

    @property
    def namespace(self) -> str:
        """The learner's namespace."""
        return self.name


def read_roster(file: str | Path) -> list[Learner]:
    """Read a list of learners.

    Args:
        file: `.csv` with the columns `name` and, if wanted, `gpus` and `group`; or `.yaml`, a
            list of names or of mappings with these keys; or `.txt`, a name a line.

    Returns:
        The learners, in the list's order.

    Raises:
        WorkshopError: The file cannot be read, is empty, or a name cannot be a namespace's: the
            line names every wrong one, and a name that would do.

    Example:
        >>> from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "learners.txt"
        >>> file.write_text("ada") and read_roster(file)
        [Learner(name='ada', gpus=None, group='')]
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a CSV with a mark
    except OSError as error:
        raise WorkshopError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise WorkshopError(f"{path}: no text in UTF-8; save it as CSV in UTF-8") from None
    rows = _rows(path, text)
    problems: list[str] = []
    learners = [each for row in rows if (each := _learner(row, problems))]
    problems += _twice(learner.name for learner in learners)
    if problems:
        raise WorkshopError(f"{path}: {'; '.join(problems)}; nothing was changed")
    if not learners:
        raise WorkshopError(f"{path}: no learners; write one name a line, or a column `name`")
    return learners


def _rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml"):
        return _yaml_rows(path, text)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if kind != ".csv":
        return [{"name": line.strip()} for line in lines]
    # Where a comma is for decimals, spreadsheets part columns with a semicolon.
    mark = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.DictReader(lines, skipinitialspace=True, delimiter=mark)
    fields = [field.strip() for field in reader.fieldnames or []]
    if "name" not in fields:
        raise WorkshopError(f"{path}: the first line must name the columns, one of them `name`")
    # What a row has beyond the named columns must not be dropped in silence.
    return [
        {
            (key or "more").strip(): str(value or "").strip()
            for key, value in row.items()
            if key is not None or any(value)
        }
        for row in reader
        if any(str(value or "").strip() for value in row.values())  # else an empty row
    ]


def _yaml_rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        found = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise WorkshopError(f"{path}: no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, list):
        raise WorkshopError(f"{path}: not a list; write `- ada`, or `- {{name: ada, gpus: 2}}`")
    # A bare 007, no or 1.5 is not the text that was meant: YAML has read it as something else.
    return [each if isinstance(each, dict) else {"name": each} for each in found]


def _learner(row: Mapping[str, Any], problems: list[str]) -> Learner | None:
    name = row.get("name")
    if unknown := sorted(set(row) - set(FIELDS)):
        problems.append(f"{name!r} has {', '.join(map(repr, unknown))}; known: {', '.join(FIELDS)}")
        return None
    if not isinstance(name, str):
        problems.append(f"{name!r} is not a text; put it in quotes")
        return None
    if problem := _name_problem(name):
        problems.append(problem)
        return None
    gpus = row.get("gpus")
    whole = str(gpus).strip() if gpus is not None else ""
    if whole and not re.fullmatch(r"\d{1,4}", whole):
        problems.append(f"{name}: gpus {gpus!r} is not a whole number")
        return None
    return Learner(name, int(whole) if whole else None, str(row.get("group") or ""))


def _name_problem(name: str) -> str:
    """Why a name cannot be a namespace's, and one that can; empty when it can."""
    if not _LABEL.fullmatch(name) or len(name) > LONGEST:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        better = re.sub(r"[^a-z0-9]+", "-", plain.lower())[:LONGEST].strip("-")
        hint = f", such as {better!r}" if better else ""
        return f"{name!r}: write lower-case letters, digits and '-', at most {LONGEST}{hint}"
    if any(name == each or (name.startswith(each) and each != "default") for each in RESERVED):
        return f"{name!r} is a name that clusters use themselves"
    return ""


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [f"{name!r} is there twice" for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
