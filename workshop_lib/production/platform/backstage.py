"""The Backstage template: a form with a model and a size, and a pull request with what it says.

Facts from Backstage (backstage/backstage at f6aad49, Template.v1beta3.schema.json, and its pages on
writing templates): parameters are JSON Schema, `dependencies` with `oneOf` show what follows from a
choice, `enumNames` what a value is called; `${{ … }}` is nunjucks in the template and in the
skeleton that `fetch:template` copies.
"""

from __future__ import annotations

from typing import Any

from workshop_lib.production.platform.kro import KIND
from workshop_lib.production.platform.sizes import Size, choices, sizes

__all__ = ["instance", "template"]


def instance() -> dict[str, Any]:
    """The skeleton's object: an instance of the kro graph, with the form's values in it.

    Example:
        >>> instance()["spec"]["workers"]
        '${{ values.workers }}'
    """
    fields = ("model", "maxModelLen", "tensorParallelSize", "workers", "instanceType")
    return {
        "apiVersion": "kro.run/v1alpha1",
        "kind": KIND,
        "metadata": {"name": "${{ values.name }}", "namespace": "${{ values.namespace }}"},
        "spec": {name: f"${{{{ values.{name} }}}}" for name in fields},
    }


def _size_of(offered: list[Size]) -> dict[str, Any]:
    return {
        "title": "Size",
        "type": "string",
        "description": "Only what fits, by the workshop's memory model.",
        "enum": [size.key for size in offered],
        "enumNames": [size.title for size in offered],
    }


def template() -> dict[str, Any]:
    """The template, with the sizes that fit each model.

    Example:
        >>> template()["apiVersion"]
        'scaffolder.backstage.io/v1beta3'
    """
    offered = sizes()
    models = choices()["models"]
    gated = {name: " (gated)" if facts.get("gated") else "" for name, facts in models.items()}
    branches = [
        {
            "properties": {
                "model": {"const": name},
                "size": _size_of([size for size in offered if size.model == name]),
            },
            "required": ["size"],
        }
        for name in models
    ]
    dns = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
    part = "${{ parameters.size.split(':')[%d] }}"
    return {
        "apiVersion": "scaffolder.backstage.io/v1beta3",
        "kind": "Template",
        "metadata": {
            "name": "model-server",
            "title": "Serve a language model",
            "description": "Ray Serve and vLLM on GPU nodes, with the model from S3.",
            "tags": ["ray", "vllm", "recommended"],
        },
        "spec": {
            "owner": "platform",
            "type": "service",
            "parameters": [
                {
                    "title": "What to serve",
                    "required": ["name", "namespace", "model"],
                    "properties": {
                        "name": {"title": "Name", "default": "llm", **dns},
                        "namespace": {"title": "Namespace", "default": "workshop", **dns},
                        "model": {
                            "title": "Model",
                            "type": "string",
                            "description": "It has to be in the bucket: the component prestage.",
                            "enum": list(models),
                            "enumNames": [f"{name}{note}" for name, note in gated.items()],
                        },
                        "workers": {
                            "title": "Worker nodes", "type": "integer",
                            "default": 1, "minimum": 1, "maximum": 4,
                        },
                    },
                    "dependencies": {"model": {"oneOf": branches}},
                },
                {
                    "title": "Where it goes",
                    "required": ["repoUrl"],
                    "properties": {
                        "repoUrl": {
                            "title": "The repository that the cluster follows",
                            "type": "string",
                            "ui:field": "RepoUrlPicker",
                        }
                    },
                },
            ],
            "steps": [
                {
                    "id": "fetch",
                    "name": "Write the object",
                    "action": "fetch:template",
                    "input": {
                        "url": "./skeleton",
                        "targetPath": "${{ parameters.namespace }}/${{ parameters.name }}",
                        "values": {
                            "name": "${{ parameters.name }}",
                            "namespace": "${{ parameters.namespace }}",
                            "model": "${{ parameters.model }}",
                            "workers": "${{ parameters.workers }}",
                            "instanceType": part % 0,
                            "tensorParallelSize": part % 1,
                            "maxModelLen": part % 2,
                        },
                    },
                },
                {
                    "id": "publish",
                    "name": "Propose it",
                    "action": "publish:github:pull-request",
                    "input": {
                        "repoUrl": "${{ parameters.repoUrl }}",
                        "branchName": "serve-${{ parameters.namespace }}-${{ parameters.name }}",
                        "title": "Serve ${{ parameters.model }}",
                        "description": "${{ parameters.size }}, in ${{ parameters.namespace }}",
                    },
                },
            ],
            "output": {
                "links": [
                    {"title": "The pull request", "url": "${{ steps.publish.output.remoteUrl }}"}
                ]
            },
        },
    }  # fmt: skip
