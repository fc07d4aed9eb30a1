"""The list of learners: read, and refused as a whole before anything is made of it."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.errors import WorkshopError

__all__ = ["Learner", "read_roster"]

FIELDS = ("name", "gpus", "group")
RESERVED = ("kube-", "kuberay", "karpenter", "monitoring", "gpu-operator", "openshift")
"""Beginnings of names that clusters have for themselves, besides `default`."""

LONGEST = 63


@dataclass(frozen=True)
class Learner:
    """One learner.

    Attributes:
        name: Also the namespace: a DNS label.
        gpus: GPUs that the namespace may have at once; None for as many as the component
            `namespace` allows.
        group: The Kubernetes group that may work there, as an EKS access entry names it; empty
            for one named after the learner.
    """

    name: str
    gpus: int | None = None
    group: str = ""


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
    read = _yaml_rows if path.suffix.lower() in (".yaml", ".yml") else _text_rows
    rows = read(path, text)
    names = [str(row.get("name")) for row in rows]
    problems = [problem for row in rows if (problem := _problem(row))]
    problems += [
        f"{name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if problems:
        raise WorkshopError(f"{path}: {'; '.join(problems)}; nothing was changed")
    if not rows:
        raise WorkshopError(f"{path}: no learners; write one name a line, or a column `name`")
    return [
        Learner(
            row["name"], int(gpus) if (gpus := _gpus(row)) else None, str(row.get("group") or "")
        )
        for row in rows
    ]


def _text_rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if path.suffix.lower() != ".csv":
        return [{"name": line.strip()} for line in lines]
    # Where a comma is for decimals, spreadsheets part columns with a semicolon.
    mark = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.DictReader(lines, skipinitialspace=True, delimiter=mark)
    if "name" not in [field.strip() for field in reader.fieldnames or []]:
        raise WorkshopError(f"{path}: the first line must name the columns, one of them `name`")
    rows = [{(k or "more").strip(): str(v or "").strip() for k, v in row.items()} for row in reader]
    return [row for row in rows if any(row.values())]


def _yaml_rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        found = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise WorkshopError(f"{path}: no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, list):
        raise WorkshopError(f"{path}: not a list; write `- ada`, or `- {{name: ada, gpus: 2}}`")
    return [each if isinstance(each, dict) else {"name": each} for each in found]


def _gpus(row: Mapping[str, Any]) -> str:
    gpus = row.get("gpus")
    return "" if gpus is None else str(gpus).strip()


def _problem(row: Mapping[str, Any]) -> str:
    """What is wrong with a row, and a name that would do; empty when it is right."""
    name = row.get("name")
    if unknown := sorted(set(row) - set(FIELDS)):
        # What a row has beyond the named columns must not be dropped in silence.
        return f"{name!r} has {', '.join(map(repr, unknown))}; known: {', '.join(FIELDS)}"
    if not isinstance(name, str):  # YAML has read a bare 007 or no as something else
        return f"{name!r} is not a text; put it in quotes"
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) or len(name) > LONGEST:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        better = re.sub(r"[^a-z0-9]+", "-", plain.lower())[:LONGEST].strip("-")
        hint = f", such as {better!r}" if better else ""
        return f"{name!r}: write lower-case letters, digits and '-', at most {LONGEST}{hint}"
    if name == "default" or name.startswith(RESERVED):
        return f"{name!r} is a name that clusters use themselves"
    if not re.fullmatch(r"\d{0,4}", _gpus(row)):
        return f"{name}: gpus {row['gpus']!r} is not a whole number"
    return ""
