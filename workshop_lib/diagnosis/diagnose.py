"""All rules, in the order of the decision tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.diagnosis.finding import Diagnosis
from workshop_lib.diagnosis.pods import PodRules
from workshop_lib.diagnosis.ranking import findings_of
from workshop_lib.diagnosis.view import View
from workshop_lib.errors import WorkshopError

__all__ = ["diagnose", "load_snapshot", "save_snapshot"]


def diagnose(snapshot: Mapping[str, Any]) -> Diagnosis:
    """What is wrong in a snapshot, the root cause first.

    Args:
        snapshot: What `cluster.snapshot()` gives, or `load_snapshot` reads.

    Returns:
        The findings; none when all is well. It shows itself as a table.

    Raises:
        WorkshopError: It is no snapshot.

    Example:
        >>> diagnose({"pods": []}).verdict
        'healthy'
    """
    view = View(snapshot)
    rules = PodRules(view)
    causes = [cause for pod in view.pods for cause in rules.causes(pod)]
    said = snapshot.get("notes") or []
    notes = [str(each) for each in said] if isinstance(said, list) else []
    return Diagnosis(findings_of(causes), [*rules.notes, *notes])


def load_snapshot(path: str | Path) -> dict[str, Any]:
    """A snapshot from a file.

    Args:
        path: The file, JSON.

    Raises:
        WorkshopError: It cannot be read, or is no snapshot.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise WorkshopError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise WorkshopError(f"{path} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise WorkshopError(f"{path} is no snapshot: it holds no JSON object")
    View(data)
    return data


def save_snapshot(snapshot: Mapping[str, Any], path: str | Path) -> Path:
    """Write a snapshot to a file, to look at later or to send to somebody who helps.

    Args:
        snapshot: The snapshot.
        path: The file; its folder must be there.

    Raises:
        WorkshopError: It cannot be written.
    """
    file = Path(path)
    try:
        file.write_text(json.dumps(snapshot, indent=1) + "\n")
    except OSError as error:
        raise WorkshopError(f"{file}: {error.strerror or error}") from None
    return file
