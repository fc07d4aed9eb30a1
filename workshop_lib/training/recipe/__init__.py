"""The recipe of a training, in NeMo RL's own YAML: one file for the cluster and the laptop.

`files` reads the YAML as NeMo RL does, `schema` knows every key with its type, `rules` what must
fit together, and `reading` makes one `Recipe` of them. `workshop recipe check FILE` says all.
"""

from __future__ import annotations

from workshop_lib.training.recipe.check import CheckedRecipe, check_recipe
from workshop_lib.training.recipe.files import RecipeError, leaves, override
from workshop_lib.training.recipe.reading import read_recipe
from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.schema import own_values

__all__ = [
    "CheckedRecipe",
    "Recipe",
    "RecipeError",
    "check_recipe",
    "leaves",
    "override",
    "own_values",
    "read_recipe",
]
