"""The recipe of a training, in NeMo RL's own YAML: one file for the cluster and the laptop."""

from __future__ import annotations

from workshop_lib.training.recipe.check import CheckedRecipe, check_recipe, read_recipe
from workshop_lib.training.recipe.files import RecipeError, leaves, override
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
