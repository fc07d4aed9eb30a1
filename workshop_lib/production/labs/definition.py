"""What a break-and-fix lab is: what breaks, what is reported, hints, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from workshop_lib.cluster.manifests import manifests_dir, parameters_of
from workshop_lib.errors import ManifestError

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """One lab. Nothing here is shown before the learner asks, but `number` and `report`.

    Attributes:
        number: How the table names it: a name would give the cause away.
        name: Its name.
        component: The component that it breaks.
        report: What TechPulse's people report: symptoms, never the cause.
        hints: From "where to look" to "what it is".
        solution: Cause, repair and lesson.
        taught_in: The notebook that has the background.
        seconds: About how long it takes to break on a laptop.
        parameters: The one wrong value, when it is the same in every world; where it is not,
            it stands in `manifests/overlays/<profile>/labs.yaml`.
        needs: Components that must have run before, such as `model`.
    """

    number: int
    name: str
    component: str
    report: str
    hints: tuple[str, ...]
    solution: str
    taught_in: str
    seconds: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def broken(self, profile: str) -> dict[str, Any]:
        """The parameters with which the component is applied to break it.

        Args:
            profile: `local`, `eks` or `kind`.

        Raises:
            ManifestError: The profile's `labs.yaml` names a parameter that there is not.

        Example:
            >>> from workshop_lib.production.labs import plan
            >>> plan("wrong-port").broken("eks")
            {'target_port': 8081}
        """
        file = manifests_dir() / "overlays" / profile / "labs.yaml"
        entries = yaml.safe_load(file.read_text()) if file.is_file() else {}
        found = {**self.parameters, **(entries.get(self.name) or {})}
        if unknown := sorted(set(found) - set(parameters_of(profile, self.component))):
            raise ManifestError(f"lab {self.name}: {self.component} has no parameter {unknown[0]}")
        return found
