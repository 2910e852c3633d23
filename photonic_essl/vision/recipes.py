"""Recipes for images, with the hyperparameters for each dataset: the files in `photonic_essl/recipes/vision`."""

from typing import Any

from photonic_essl.recipes import read_recipe

HOME = "photonic_essl.recipes.vision"


def load_recipe(name: str, preset: str) -> dict[str, Any]:
    """Read a recipe, with the hyperparameters for a dataset.

    Args:
        name: name of the recipe.
        preset: `"digits"`, `"cifar10"` or `"imagenet"`.

    Returns:
        Its settings, the hyperparameters beside the rest.

    Raises:
        ValueError: if there is no such recipe, or it has nothing for the dataset.
    """
    recipe = read_recipe(name, HOME)
    presets = {key: value for key, value in recipe.items() if isinstance(value, dict)}
    if preset not in presets:
        raise ValueError(f"the recipe {name!r} has hyperparameters for {', '.join(presets)}, not for {preset}.")
    return {key: value for key, value in recipe.items() if key not in presets} | presets[preset]
