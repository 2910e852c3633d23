"""Recipes: which objective, which role for the transformations, and the hyperparameters of each encoder preset."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

FALLBACK_PRESET = "light"
"""Whose hyperparameters an encoder of the user's own starts from."""


def recipe_names(home: str = __name__) -> list[str]:
    """Return the names of all recipes in a package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files(home).iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str, home: str = __name__) -> dict[str, Any]:
    """Read a recipe from a package, with the hyperparameters of all its presets.

    Raises:
        ValueError: if there is no such recipe.
    """
    if name not in recipe_names(home):
        raise ValueError(f"unknown recipe {name!r}; the recipes are {', '.join(recipe_names(home))}.")
    return yaml.safe_load((files(home) / f"{name}.yaml").read_text())


def load_recipe(name: str, encoder: str) -> dict[str, Any]:
    """Read a recipe, with the hyperparameters for an encoder.

    Args:
        name: one of `recipe_names()`.
        encoder: name of the encoder; `paper-circular` takes what is there for `paper`.

    Returns:
        Its settings, the hyperparameters beside the rest.

    Raises:
        ValueError: if there is no such recipe.
    """
    recipe = read_recipe(name)
    recipe.pop("encoder", None)
    presets = {key: recipe.pop(key) for key in ("paper", "light")}
    return recipe | presets.get(encoder.removesuffix("-circular"), presets[FALLBACK_PRESET])


def default_encoder(name: str) -> str:
    """Return the encoder of a recipe where none is asked for; raises `ValueError` if there is no such recipe."""
    return read_recipe(name).get("encoder", FALLBACK_PRESET)


def overridden(recipe: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return the recipe with those of the values that are not None in place of its own.

    Raises:
        ValueError: if the recipe has no such setting.
    """
    given = {key: value for key, value in values.items() if value is not None}
    if unknown := sorted(set(given) - set(recipe)):
        raise ValueError(f"this recipe has no {', '.join(unknown)}; its settings are {', '.join(recipe)}.")
    return {**recipe, **given}
