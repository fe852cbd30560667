"""From a published checkpoint to a run directory: what ``layersync import`` does."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from layersync.core.checkpoint import check_fit, save_checkpoint
from layersync.core.errors import InputError, nearest
from layersync.core.generation import default_device
from layersync.core.packaged import sync_path
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe
from layersync.core.run import DataSummary, Run, environment, writable_parent
from layersync.modalities.image.backbone import SiTConfig
from layersync.modalities.image.published import (
    HEADS,
    Architecture,
    Layout,
    Published,
    architecture,
    read_published,
    without_sigma,
)
from layersync.modalities.image.tokenizer import VaeConfig, scale_state

logger = logging.getLogger(__name__)

SCALE = 0.18215
"""What the published code multiplies Stable Diffusion's latents by (SiT ``train.py``, REPA ``generate.py``)."""
REDUCTION = 8
"""Pixels a cell of Stable Diffusion's latents, along each side."""
PATHS = {"Linear": "linear", "GVP": "trigonometric", "VP": "variance-preserving", "linear": "linear"}
PATHS |= {"cosine": "trigonometric"}
"""``args.path_type`` of SiT and of REPA, in the recipe's words."""


def import_checkpoint(layout: str, path: Path, out: Path, overrides: Sequence[str] = ()) -> Run:
    """Make a run of a published checkpoint, at ``out``, whole or not at all. No hub is asked.

    Args:
        layout: ``sit`` (SiT's and LayerSync's code) or ``repa``.
        path: the file.
        out: the run directory to make.
        overrides: ``section.key=value`` strings for the run's recipe.

    Raises:
        InputError: for another layout, a file that is not a whole checkpoint of it, weights that do not fit the recipe,
            an unknown number of heads, or an ``out`` that exists.
    """
    if layout not in get_args(Layout):
        raise InputError(f"import: {layout!r} is no layout; {nearest(layout, get_args(Layout))}")
    if os.path.lexists(out):
        raise InputError(f"--out: {out} exists")
    writable_parent(out, "--out")
    published = read_published(path, layout)  # type: ignore[arg-type]
    inferred = architecture(published.ema, str(path))
    recipe = _recipe(layout, path, inferred, published, overrides)
    data = DataSummary("", 0, tuple(str(number) for number in range(inferred.num_classes)), inferred.latent)
    weights = _fitting(recipe, data, inferred, published, path)
    if published.dropped:
        logger.info(
            "%d tensors of REPA's projector heads are dropped: samples do not need them", len(published.dropped)
        )
    _write(out, recipe, data, weights, published, {"layout": layout, "file": path.name})
    return Run(out)


def _recipe(layout: str, path: Path, inferred: Architecture, published: Published, overrides: Sequence[str]) -> Recipe:
    settings = published.settings
    classes = settings.get("num_classes", inferred.num_classes)
    if layout == "repa" and inferred.learn_sigma:
        raise InputError(f"{path}: the last layer is twice as wide as REPA's, as SiT's is: layersync import sit")
    if classes != inferred.num_classes:
        raise InputError(
            f"{path}: args say {classes} classes, the table has {inferred.num_classes + 1} rows: "
            "one for each class and one for none are needed"
        )
    heads = HEADS.get(inferred.hidden_size)
    if heads is None and not any(override.startswith("backbone.num_heads=") for override in overrides):
        raise InputError(
            f"{path}: shapes do not tell the number of heads, and {inferred.hidden_size} channels are no published "
            f"size ({', '.join(map(str, sorted(HEADS)))}): add --set backbone.num_heads=N"
        )
    content = _sections(layout, inferred, settings, published.step)
    content["backbone"] |= {} if heads is None else {"num_heads": heads}
    recipe = load_recipe(content, overrides)
    if recipe.modality != "image" or not isinstance(recipe.backbone, SiTConfig):
        raise InputError("--set: an imported checkpoint is a SiT of modality image; the backbone cannot be another")
    return recipe


def _word(settings: Mapping[str, Any], key: str) -> str:
    """A setting of ``args`` that is a word; "" where it is none."""
    value = settings.get(key)
    return value if isinstance(value, str) else ""


def _sections(layout: str, inferred: Architecture, settings: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The setting that the checkpoint was trained and is sampled in, as far as its code and its ``args`` say."""
    objective = {"interpolant": "linear", "prediction": "velocity"}
    if _word(settings, "path_type") in PATHS:
        objective["interpolant"] = PATHS[settings["path_type"]]
    if _word(settings, "prediction") in ("velocity", "noise", "score"):
        objective["prediction"] = settings["prediction"]
    vae = settings["vae"] if _word(settings, "vae") in ("ema", "mse") else "ema"
    batch_size = settings.get("global_batch_size", settings.get("batch_size", 256))
    return {
        "modality": "image",
        "data": {"name": "folder", "path": "$IMAGENET", "flip": True},
        "tokenizer": {
            "name": "vae",
            "path": f"stabilityai/sd-vae-ft-{vae}",
            "image_size": inferred.latent.grid[0] * REDUCTION,
            "rounding": "truncate" if layout == "repa" else "nearest",
        },
        "backbone": inferred.section(),
        "objective": objective,
        "regularizer": _regularizer(settings, inferred.depth),
        "optimizer": {"lr": 1.0e-4, "clip": 1.0 if layout == "repa" else None},
        "train": {
            "steps": step or 400_000,
            "batch_size": batch_size,
            "ema_ramp": False,
            "precision": "tf32",
            "checkpoint_every": 50_000,
            "keep": 10,
        },
        "sample": {
            "solver": "euler-maruyama",
            "steps": 250,
            "guidance": 1.0,
            "diffusion": "linear" if layout == "repa" else "sigma",  # REPA's is 2t on every path
            "precision": "tf32",
        },
        "evaluate": {"metrics": ["fid", "sfid", "is", "precision", "recall"], "num_samples": 50_000},
    }


def _regularizer(settings: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """LayerSync's pair and weight where ``args`` of its ``train.py`` hold them; of several pairs its code uses one."""
    loss = settings.get("loss_type")
    if loss not in ("layer_sync", "multiple_sync"):
        return {"name": "none"}
    blocks = settings.get("multi_blocks_match") or [(0, 0)]
    pair = (
        list(blocks[-1])
        if loss == "multiple_sync"
        else [settings.get("encoder_depth", 0), settings.get("gt_encoder_depth", 0)]
    )
    if len(pair) != 2 or not 1 <= pair[0] < pair[1] <= depth:
        logger.info("args name the pair %s, which aligns nothing: the recipe's regularizer is none", pair)
        return {"name": "none"}
    return {"name": "layersync", "pairs": [pair], "weight": settings.get("reg_weight", 0.2)}


def _fitting(
    recipe: Recipe, data: DataSummary, inferred: Architecture, published: Published, path: Path
) -> dict[str, dict[str, Tensor]]:
    """Averaged and last weights, checked against the recipe's backbone."""
    states = {"ema": published.ema, "model": published.model}
    if inferred.learn_sigma and not getattr(recipe.backbone, "learn_sigma", True):
        states = {kind: without_sigma(state, inferred.latent.channels) for kind, state in states.items()}
    with torch.device("meta"):
        backbone = recipe.adapter.backbone(recipe.backbone, data.latent, data.condition)
    for state in states.values():
        check_fit(backbone, state, path)
    if not isinstance(recipe.tokenizer, VaeConfig):  # a VAE is checked when it is first needed: it may lie on a hub
        data.check_tokenizer(recipe.adapter.tokenizer(recipe.tokenizer), str(path))
    return states


def _write(
    out: Path,
    recipe: Recipe,
    data: DataSummary,
    weights: Mapping[str, Mapping[str, Tensor]],
    published: Published,
    source: dict[str, Any],
) -> None:
    plain = {key: value for key, value in published.settings.items() if isinstance(value, bool | int | float | str)}
    found = environment(default_device(), "float32", "as imported", 1)
    found["imported"] = {**source, "args": plain}
    vae = recipe.tokenizer if isinstance(recipe.tokenizer, VaeConfig) else None
    tokenizer = {} if vae is None else scale_state(vae.scaling_factor or SCALE, 0.0)
    labels = torch.arange(len(data.classes))
    tensors = {"tokenizer": tokenizer, "conditions": {"label": labels, "frames": torch.ones_like(labels)}}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        run = Run.create(Path(scratch) / "imported", recipe, found, data, tensors)
        save_checkpoint(run.checkpoint(published.step), weights, {"step": published.step, "seconds": 0.0})
        run.path.rename(out)
        sync_path(out.parent)
