"""A manifest, explained: each setting's value for a GPU cluster and here, and its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.cluster import manifests
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["explain_settings"]

_MISSING = object()


def _at(node: Any, path: str) -> Any:
    """The value at a dotted path; `[name=x]` finds a list entry by its name."""
    for part in re.findall(r"\[[^\]]+\]|[^.\[]+", path):
        key, _, wanted = part.strip("[]").partition("=")
        try:
            if wanted:
                node = next(entry for entry in node if entry.get(key) == wanted)
            else:
                node = node[int(key) if part.startswith("[") else key]
        except (LookupError, TypeError, StopIteration):
            return _MISSING
    return node


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "not set"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain_settings(
    component: str, profile: str, reasons: Mapping[str, str] | None = None, *, kind: str = ""
) -> pd.DataFrame:
    """Settings of a component's object: on a GPU cluster, in this profile, and why.

    Args:
        component: The component's name.
        profile: The profile whose overlay is compared with the base.
        reasons: Dotted path (`spec.backoffLimit`, `…containers[0].env[name=X].value`) to
            the reason for the setting; default: those of data/settings.yaml.
        kind: Kind of the object, such as `Job`; default: that of data/settings.yaml.

    Raises:
        ManifestError: A path is in neither manifest, or nothing is written about the component.

    Example:
        >>> explain_settings("ray-cluster", "local").iloc[0]["GPU cluster"]
        'Indexed'
    """
    import pandas as pd

    known = yaml.safe_load(data_path("settings.yaml").read_text(encoding="utf-8"))
    written = known.get(component, {})
    kind, reasons = kind or written.get("kind", ""), reasons or written.get("reasons")
    if not reasons:
        raise ManifestError(f"nothing is written about {component}; known are {', '.join(known)}")
    base = manifests.render_folder(manifests.manifests_dir() / "base" / component)
    here = manifests.render(profile, component)
    bodies = [next(o.body for o in objects if o.kind == kind) for objects in (base, here)]
    rows = []
    for path, reason in reasons.items():
        values = [_at(body, path) for body in bodies]
        if all(value is _MISSING for value in values):
            raise ManifestError(f"{component}: {kind} has no {path}; correct the path")
        shown = [_shown(value) for value in values]
        # The last step says enough; the way there is in the manifest.
        name = re.sub(r"^.*\.env\[name=([^\]]+)\].*$", r"\1", path)
        rows.append([name.rsplit(".", 1)[-1], shown[0], shown[1], reason])
    return pd.DataFrame(rows, columns=["setting", "GPU cluster", "here", "why"])
