"""`python -m workshop_lib.production.platform`: write the kro graph, the Backstage template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.manifests import manifests_dir
from workshop_lib.production.platform.backstage import instance, template
from workshop_lib.production.platform.kro import graph

NOTE = "# Written by `workshop_lib.production.platform` from eks/ray-service-s3, not by hand.\n"


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, as a person writes them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def files() -> dict[Path, str]:
    """Each file and what it should hold."""
    folder = manifests_dir() / "platform"
    bodies: dict[str, dict[str, Any]] = {
        "kro/model-server.yaml": graph(),
        "backstage/template.yaml": template(),
        "backstage/skeleton/model-server.yaml": instance(),
    }
    return {
        folder / name: NOTE + yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=100000)
        for name, body in bodies.items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(manifests_dir().parent))
