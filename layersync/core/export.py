"""Weights of a run in one file, for any modality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersync.core.checkpoint import check_fit, read_tensors
from layersync.core.errors import InputError
from layersync.core.run import Run, atomic_write, write_tensors

PATTERNS = ("labels", "test_files")
"""Keys of regular expressions, which may begin as a path does."""


def checkpoint_of(run: Run, step: int | None) -> Path:
    """The checkpoint of ``step``, the newest by default. InputError where there is none."""
    found = run.latest_checkpoint() if step is None else run.checkpoint(step)
    if not found.is_dir():
        raise InputError(f"run {str(run.path)!r} has no checkpoint of step {step}; there are: {run.checkpoint_steps()}")
    return found


def checked_weights(run: Run, checkpoint: Path, kind: str) -> dict[str, Tensor]:
    """Weights of a checkpoint, ``ema`` or ``model``. InputError unless they are whole and fit the run's backbone."""
    if kind not in ("ema", "model"):
        raise InputError(f"--weights: {kind!r} is unknown; there are: ema, model")
    source = checkpoint / f"{kind}.safetensors"
    weights = read_tensors(source)
    with torch.device("meta"):
        backbone = run.recipe.adapter.backbone(run.recipe.backbone, run.data.latent, run.data.condition)
    check_fit(backbone, weights, source)
    return weights


def public(content: Any) -> Any:
    """A recipe, or a value, for others' eyes: of absolute paths the last part alone, patterns as they are."""
    if isinstance(content, dict):
        return {key: value if key in PATTERNS else public(value) for key, value in content.items()}
    return Path(content).name if isinstance(content, str) and Path(content).is_absolute() else content


def write_safetensors(run: Run, checkpoint: Path, kind: str, out: Path) -> None:
    """One safetensors file whose metadata holds recipe, classes, latent shape, step and which weights they are."""
    metadata = {
        "format": "pt",
        "layersync": version("layersync"),
        "recipe": json.dumps(public(run.recipe.to_mapping())),
        "data": json.dumps(run.data.to_mapping()),
        "weights": kind,
        "step": str(int(checkpoint.name.rpartition("-")[2])),
    }
    weights: Mapping[str, Tensor] = checked_weights(run, checkpoint, kind)
    with atomic_write(out) as partial:
        write_tensors(partial, weights, metadata)
