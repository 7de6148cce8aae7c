"""The published runs by name: `triptych train --list` shows them."""

from __future__ import annotations

from collections.abc import Callable

from extractors import ConfigError
from storage.errors import did_you_mean
from workflows.recipes import grid, meter, vilt, vl_bert
from workflows.recipes.base import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (*vl_bert.RECIPES, *grid.RECIPES, *vilt.RECIPES, *meter.RECIPES)
}

__all__ = ["RECIPES", "Recipe", "recipe_of"]


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES)
        raise ConfigError(f"there is no recipe {name!r}{near} `triptych train --list` shows them all.")
    return RECIPES[name]()
