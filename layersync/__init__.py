"""Flow-matching transformers that can align their own layers (LayerSync): the public API, loaded lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layersync.core.errors import InputError
    from layersync.core.evaluation import evaluate, score_samples
    from layersync.core.experiment import compare
    from layersync.core.generation import load
    from layersync.core.recipe import Recipe
    from layersync.core.recipe_reading import load_recipe
    from layersync.core.regularizer.attach import attach
    from layersync.core.regularizer.layersync import LayerSync
    from layersync.core.run import Run
    from layersync.core.session import train

_HOMES = {
    "LayerSync": "layersync.core.regularizer.layersync",
    "InputError": "layersync.core.errors",
    "Recipe": "layersync.core.recipe",
    "Run": "layersync.core.run",
    "compare": "layersync.core.experiment",
    "attach": "layersync.core.regularizer.attach",
    "evaluate": "layersync.core.evaluation",
    "load": "layersync.core.generation",
    "load_recipe": "layersync.core.recipe_reading",
    "score_samples": "layersync.core.evaluation",
    "train": "layersync.core.session",
}
__all__ = [
    "InputError",
    "LayerSync",
    "Recipe",
    "Run",
    "attach",
    "compare",
    "evaluate",
    "load",
    "load_recipe",
    "score_samples",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'layersync' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
