"""The kro ResourceGraphDefinition: one small object of a team's own becomes our RayService.

Facts from kro (kubernetes-sigs/kro at 0302e65, August 2026): `${…}` holds CEL (pkg/graph/parser);
an expression that is all of a value keeps its type, one within a text has to be a string
(website, cel-expressions); CEL has cel-go's string functions (pkg/cel/environment.go); a field of
the schema is `type | marker=value …` (pkg/simpleschema).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.manifests import Parameter, parameters_of, render, render_template
from workshop_lib.production.platform.sizes import COMPONENT

__all__ = ["FIELDS", "KIND", "expression", "graph"]

KIND = "ModelServer"

FIELDS = {
    "model": "model",
    "max_model_len": "maxModelLen",
    "tensor_parallel_size": "tensorParallelSize",
    "workers": "workers",
    "instance_type": "instanceType",
    "image": "image",
}
"""The overlay's parameters that a team sets, and what they are called in the graph's schema. The
others, where monitoring is, are the same for a whole cluster and stay as in the overlay."""

_DEFAULTS = {
    "max_model_len": 4096,
    "tensor_parallel_size": 2,
    "workers": 1,
    "instance_type": "p4d.24xlarge",
}


def expression(parameter: Parameter, what: str) -> str | None:
    """The CEL for a place that a parameter sets.

    Args:
        parameter: One of the overlay's.
        what: `value`, `folder`, or a field of its catalogue.

    Example:
        >>> expression(Parameter("model", "str", ()), "folder")
        '/models/${schema.spec.model.replace("/", "--")}'
    """
    if parameter.name not in FIELDS:
        return None
    field = f"schema.spec.{FIELDS[parameter.name]}"
    if what == "folder":
        return f'/models/${{{field}.replace("/", "--")}}'
    if what != "value":
        table = {each: str(parameter.entries[each][what]) for each in parameter.allowed}
        return f"${{{json.dumps(table)}[{field}]}}"
    return f"${{{field}}}"


def graph() -> dict[str, Any]:
    """The ResourceGraphDefinition, written from the overlay and its parameters.

    Example:
        >>> graph()["spec"]["schema"]["kind"]
        'ModelServer'
    """
    known = parameters_of("eks", COMPONENT)
    resources = []
    for item in render_template("eks", COMPONENT, expression):
        body = _texts(item.body)
        body["metadata"]["name"] = "${schema.metadata.name}"
        name = f"{item.kind[0].lower()}{item.kind[1:]}"
        resource: dict[str, Any] = {"id": name, "template": body}
        if item.kind == "RayService":
            resource["readyWhen"] = [f'${{{name}.status.serviceStatus == "Running"}}']
        resources.append(resource)
    return {
        "apiVersion": "kro.run/v1alpha1",
        "kind": "ResourceGraphDefinition",
        "metadata": {"name": "model-server"},
        "spec": {
            "schema": {
                "apiVersion": "v1alpha1",
                "kind": KIND,
                "spec": {FIELDS[name]: _field(known[name]) for name in FIELDS},
                "status": {"serviceStatus": "${rayService.status.serviceStatus}"},
            },
            "resources": resources,
        },
    }


def _field(parameter: Parameter) -> str:
    """A parameter as a field of kro's simple schema."""
    kind = {"int": "integer", "str": "string", "float": "float", "bool": "boolean"}[parameter.type]
    default = _DEFAULTS.get(parameter.name)
    if parameter.name == "image":
        default = _image()
    marks = ["required=true" if default is None else f"default={json.dumps(default)}"]
    if parameter.allowed:
        marks.append(f'enum="{",".join(map(str, parameter.allowed))}"')
    if parameter.pattern:
        marks.append(f'pattern="^{parameter.pattern}$"')
    if parameter.minimum is not None:
        marks.append(f"minimum={parameter.minimum:g}")
    if parameter.maximum is not None:
        marks.append(f"maximum={parameter.maximum:g}")
    marks.append(f"description={json.dumps(parameter.help)}")
    return f"{kind} | {' '.join(marks)}"


def _image() -> str:
    (service,) = [item for item in render("eks", COMPONENT) if item.kind == "RayService"]
    head = service.body["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    return str(head["containers"][0]["image"])


def _texts(body: Mapping[str, Any]) -> dict[str, Any]:
    """The object, with numbers inside its embedded text made strings, as kro wants them there."""
    found = dict(body)
    served = found.get("spec", {}).get("serveConfigV2")
    if served is not None:
        for name in ("maxModelLen", "tensorParallelSize"):
            plain = f"${{schema.spec.{name}}}"
            served = served.replace(plain, f"${{string(schema.spec.{name})}}")
        found["spec"] = {**found["spec"], "serveConfigV2": served}
    return found
