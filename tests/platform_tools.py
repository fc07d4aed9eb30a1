"""Small stand-ins for what fills the platform's templates, and what their schemas ask for.

`instantiated` knows the part of CEL that `production.platform.kro` writes, and `nunjucks` that of
nunjucks that the Backstage template has; anything else is an error, so that a template which needs
more than these cannot pass unseen. Neither is kro or Backstage.
"""

import json
import re

import yaml

# kubernetes-sigs/kro at 0302e65, helm/crds/kro.run_resourcegraphdefinitions.yaml, and the markers
# of pkg/simpleschema/markers.go. Only what the graph uses; nothing else is admitted.
FIELD = re.compile(
    r"(string|integer|float|boolean)"
    r'( \|( (required=true|(default|enum|pattern|description)="(\\.|[^"\\])*"'
    r"|(default|minimum|maximum)=[0-9.]+))+)?"
)
GRAPH = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "kro.run/v1alpha1"},
        "kind": {"const": "ResourceGraphDefinition"},
        "spec": {
            "type": "object",
            "required": ["schema"],
            "additionalProperties": False,
            "properties": {
                "schema": {
                    "type": "object",
                    "required": ["apiVersion", "kind"],
                    "additionalProperties": False,
                    "properties": {
                        "apiVersion": {"pattern": "^v[0-9]+(alpha[0-9]+|beta[0-9]+)?$"},
                        "kind": {"pattern": "^[A-Z][a-zA-Z0-9]{0,62}$"},
                        "spec": {"additionalProperties": {"type": "string"}},
                        "status": {"additionalProperties": {"type": "string"}},
                    },
                },
                "resources": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["id", "template"],  # or externalRef, which we have none of
                        "additionalProperties": False,
                        "properties": {
                            "id": {"pattern": "^[a-z][a-zA-Z0-9]*$"},
                            "template": {"type": "object"},
                            "readyWhen": {"type": "array", "items": {"pattern": r"^\$\{.*\}$"}},
                        },
                    },
                },
            },
        },
    },
}

# backstage/backstage at f6aad49, plugins/scaffolder-common/src/Template.v1beta3.schema.json, and
# the catalog's rule for names (docs/features/software-catalog/descriptor-format.md).
TEMPLATE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "scaffolder.backstage.io/v1beta3"},
        "kind": {"const": "Template"},
        "metadata": {
            "required": ["name"],
            "properties": {"name": {"pattern": "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"}},
        },
        "spec": {
            "required": ["type", "steps"],
            "properties": {
                "type": {"type": "string", "minLength": 1},
                "owner": {"type": "string", "minLength": 1},
                "parameters": {"type": "array", "items": {"type": "object"}},
                "steps": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["action"],
                        "properties": {
                            "id": {"type": "string"},
                            "name": {"type": "string"},
                            "action": {
                                "enum": ["fetch:template", "publish:github:pull-request"]
                            },
                            "input": {"type": "object"},
                        },
                    },
                },
                "output": {
                    "properties": {
                        "links": {
                            "type": "array",
                            "items": {
                                "properties": {
                                    "url": {"type": "string", "minLength": 1},
                                    "title": {"type": "string", "minLength": 1},
                                }
                            },
                        }
                    }
                },
            },
        },
    },
}  # fmt: skip


def spans(text):
    """The expressions of a text as kro finds them: braces are counted outside of quotes."""
    found, start = [], 0
    while (begin := text.find("${", start)) >= 0:
        depth, quoted, end = 1, False, begin + 2
        while depth:
            letter = text[end]  # an IndexError: it is never closed
            quoted ^= letter == '"'
            depth += (letter == "{") - (letter == "}") if not quoted else 0
            end += 1
        found.append((begin, end, text[begin + 2 : end - 1]))
        start = end
    return found


def cel(expression, instance):
    """The value of an expression in the part of CEL that the graph uses."""
    path = r"schema(?:\.[a-zA-Z]+)+"
    if match := re.fullmatch(rf"string\(({path})\)", expression):
        return str(cel(match[1], instance))
    if match := re.fullmatch(rf'({path})\.replace\("([^"]*)", "([^"]*)"\)', expression):
        return cel(match[1], instance).replace(match[2], match[3])
    if match := re.fullmatch(rf"(\{{.*\}})\[({path})\]", expression):
        return json.loads(match[1])[cel(match[2], instance)]
    assert re.fullmatch(path, expression), f"not in the known part of CEL: {expression}"
    node = instance
    for part in expression.split(".")[1:]:
        node = node[part]
    return node


def filled(node, instance):
    """A template's data with every expression's value; one within a text has to be a string."""
    if isinstance(node, dict):
        return {key: filled(value, instance) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, instance) for value in node]
    if not isinstance(node, str) or not (found := spans(node)):
        return node
    if len(found) == 1 and found[0][:2] == (0, len(node)):
        return cel(found[0][2], instance)
    out, last = "", 0
    for begin, end, expression in found:
        value = cel(expression, instance)
        assert isinstance(value, str), f"{expression} is no string, and stands within a text"
        out, last = out + node[last:begin] + value, end
    return out + node[last:]


def instantiated(graph, instance):
    """The objects that a kro instance becomes, with the schema's defaults."""
    fields = graph["spec"]["schema"]["spec"]
    assert set(instance["spec"]) <= set(fields)
    spec = {}
    for name, text in fields.items():
        if match := re.search(r' default=("(?:[^"]*)"|[0-9.]+)', text):
            spec[name] = json.loads(match[1])
        else:
            assert name in instance["spec"], f"{name} is required"
    whole = {**instance, "spec": {**spec, **instance["spec"]}}
    return [filled(each["template"], whole) for each in graph["spec"]["resources"]]


def nunjucks(text, values):
    """A text with the template's expressions filled in: names, and `.split(':')[n]` of one."""

    def value(match):
        known = re.fullmatch(r"([a-z]+\.[a-zA-Z]+)(?:\.split\('(.)'\)\[(\d)\])?", match[1].strip())
        assert known, f"not in the known part of nunjucks: {match[0]}"
        node = values
        for part in known[1].split("."):
            node = node[part]
        return str(node) if known[2] is None else node.split(known[2])[int(known[3])]

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def copied(skeleton, step, parameters):
    """What `fetch:template` makes of the skeleton: the step's values first, then the file's."""
    values = {
        name: nunjucks(text, {"parameters": parameters})
        for name, text in step["input"]["values"].items()
    }
    return yaml.safe_load(nunjucks(skeleton, {"values": values}))
