"""A YAML file as OmegaConf reads one: its numbers, no dates, no key given twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["RecipeError", "parse_file", "parse_value"]

# YAML 1.1 takes 1e-5 for text, YAML 1.2 and OmegaConf for a number.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# A tag that says what a value is (`!!int x`), or a number of thousands of digits: PyYAML's
# constructors let Python's own errors through.
_NOT_AS_SAID = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_MOST_CHARACTERS = 1_000_000  # NeMo RL's largest has 20,000


class RecipeError(WorkshopError):
    """A recipe cannot be read, or says something that cannot be meant.

    Attributes:
        problems: All that is wrong, a line each; the message names the first.

    Example:
        >>> RecipeError("grpo.yaml: two things are wrong", ["one", "two"]).problems
        ('one', 'two')
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


def parse_file(path: Path, named_in: str = "") -> dict[str, Any]:
    """Read a file's sections, references and inheritance as they are written.

    Args:
        path: The file.
        named_in: The name of the file whose `defaults:` name this one, if any does.

    Raises:
        RecipeError: It cannot be read, is not YAML, holds no sections, or a key twice.

    Example:
        >>> from workshop_lib.data import data_path
        >>> parse_file(data_path("recipes/graded.yaml"))["defaults"]
        'arithmetic.yaml'
    """
    import yaml

    inherited = f" (named in the defaults of {named_in})" if named_in else ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RecipeError(f"the recipe {path}{inherited} cannot be read: {reason}") from error
    if len(text) > _MOST_CHARACTERS:
        raise RecipeError(f"{path} is no recipe: it has more than {_MOST_CHARACTERS:,} characters")
    try:
        settings = yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{place}: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise RecipeError(f"{path} is no recipe: it is nested too deeply") from None
    except _NOT_AS_SAID as error:
        said = " ".join(str(error).split())[:100]
        raise RecipeError(f"{path}: a value is not what it is said to be: {said}") from error
    if settings is None:
        raise RecipeError(f"{path} is no recipe: it is empty")
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} is no recipe: it holds {type(settings).__name__}, not sections")
    return settings


def parse_value(text: str) -> Any:
    """One value, as it would be read in a file.

    Args:
        text: Of a command line, or an argument of a resolver.

    Raises:
        ValueError: It is not YAML.

    Example:
        >>> parse_value("1e-5"), parse_value("[1, x]")
        (1e-05, [1, 'x'])
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, *_NOT_AS_SAID) as error:
        raise ValueError(f"{text[:60]!r} is no value") from error


def _loader() -> type[Any]:
    """PyYAML's safe loader with OmegaConf's idea of a number, no dates, no key given twice."""
    import yaml

    class RecipeLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue  # `<<: *anchor`, whose keys are meant to be replaced
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "a key must be a word", key_node.start_mark
                    )
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    # The safe loader's tables are shared by all its subclasses: copy before changing.
    RecipeLoader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in ("float", "timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return RecipeLoader
