"""The recipe of a training, in NeMo RL's own YAML: one file for the cluster and the laptop.

`files` reads the YAML as NeMo RL does, `schema` has every key with its type,
`rules` what must fit together, and `reading` makes one `Recipe` of them.
"""

from __future__ import annotations

from workshop_lib.training.recipe.files import RecipeError
from workshop_lib.training.recipe.reading import Recipe, read_recipe

__all__ = ["Recipe", "RecipeError", "read_recipe"]
