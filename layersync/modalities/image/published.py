"""Checkpoints as the code of SiT, LayerSync and REPA saves them: what a file holds, and which network it is of.

Layouts: SiT (github.com/willisma/SiT, ``train.py``; LayerSync's public code, github.com/vita-epfl/LayerSync, saves the
same) and REPA (github.com/sihyun-yu/REPA, ``train.py``). A file is a dict of ``model``, ``ema``, ``opt`` and ``args``,
REPA's also of ``steps``; or, where it was made for download, one bare state dict.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from layersync.core.adapter import LatentSpec
from layersync.core.checkpoint import read_tensors
from layersync.core.errors import InputError
from layersync.core.pretrained import UNREADABLE

Layout = Literal["sit", "repa"]
HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Attention heads by hidden size of the published sizes XL, L, B and S (SiT ``models.py``)."""
DIMENSIONS = {
    "pos_embed": 3,
    "x_embedder.proj.weight": 4,
    "t_embedder.mlp.0.weight": 2,
    "y_embedder.embedding_table.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
    "final_layer.linear.weight": 2,
}
"""Tensors whose shapes tell the architecture, and how many axes each has."""
PROJECTORS = "projectors."


@dataclass(frozen=True)
class Published:
    """A published checkpoint: float32 weights under the backbone's names, ``args`` and steps where it holds them."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    settings: dict[str, Any]
    step: int
    dropped: tuple[str, ...]
    """Names that no sampling needs: REPA's projector heads."""


@dataclass(frozen=True)
class Architecture:
    """What the shapes of the weights tell: everything but the number of heads."""

    latent: LatentSpec
    num_classes: int
    depth: int
    hidden_size: int
    patch_size: int
    mlp_ratio: float
    learn_sigma: bool

    def section(self) -> dict[str, Any]:
        """Its part of a recipe's ``backbone`` section."""
        keys = ("depth", "hidden_size", "patch_size", "mlp_ratio", "learn_sigma")
        return {"name": "sit", **{key: getattr(self, key) for key in keys}}


def read_published(path: Path, layout: Layout) -> Published:
    """Read a checkpoint of either layout; REPA's is converted to SiT's time and sign.

    ``ema`` and ``model`` are the same where the file holds only one of them.

    Raises:
        InputError: for a file that is missing, cut short, holds more than tensors, or is of another layout.
    """
    content = _stored(path)
    settings = vars(content["args"]) if isinstance(content.get("args"), argparse.Namespace) else {}
    kinds = [kind for kind in ("ema", "model") if isinstance(content.get(kind), Mapping)]
    found = {kind: _tensors(content[kind], f"{path}: {kind}") for kind in kinds} or {
        "ema": _tensors(content, str(path))
    }
    if layout == "sit":
        _refuse_repa(path, next(iter(found.values())), settings)
    dropped = tuple(sorted({name for state in found.values() for name in state if name.startswith(PROJECTORS)}))
    states = {}
    for kind, state in found.items():
        kept = {name: tensor.float() for name, tensor in state.items() if name not in dropped}
        states[kind] = with_time_reversed(renumbered(kept)) if layout == "repa" else kept
    ema = states.get("ema") or states["model"]
    return Published(states.get("model") or ema, ema, settings, _step(content), dropped)


def _stored(path: Path) -> dict[str, Any]:
    """The content of a ``torch.save`` or safetensors file; of a ``torch.save`` one nothing is read before it is used.

    ``argparse.Namespace`` is allowed beside tensors: training checkpoints hold their ``args``, and one is filled
    attribute by attribute without any code of the file's being run.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder, no file of weights' if path.is_dir() else 'no such file'}")
    if path.suffix == ".safetensors":
        return dict(read_tensors(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {_why_not(str(error))}") from None
    except (*UNREADABLE, AssertionError, TypeError, zipfile.BadZipFile):
        raise InputError(f"{path}: is cut short, damaged, or no file of torch.save") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return content


def _why_not(problem: str) -> str:
    """What is wrong with a file that PyTorch refuses to unpickle, from what it says."""
    foreign = re.search(r"GLOBAL (\S+)", problem)
    if foreign is None:
        return "is cut short, damaged, or no file of torch.save"
    return (
        f"holds more than tensors ({foreign[1]}), and opening that can run code; where you trust it, write its tensors "
        f"alone: c = torch.load(FILE, weights_only=False); torch.save({{k: c[k] for k in ('ema', 'model')}}, NEW)"
    )


def _tensors(content: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state or len(state) < len(content):
        others = [str(name) for name in content if name not in state]
        raise InputError(f"{where}: is no state dict; it holds {', '.join(others[:10]) or 'nothing'}")
    odd = [name for name, value in state.items() if not value.is_floating_point() or not bool(value.isfinite().all())]
    if odd:
        raise InputError(f"{where}: {len(odd)} tensors hold no finite floating-point numbers, such as {odd[0]}")
    return state


def _refuse_repa(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    signs = [name for name in state if name.startswith((PROJECTORS, "decoder_blocks."))]
    signs += ["args.proj_coeff"] if "proj_coeff" in settings else []
    if signs:
        raise InputError(f"{path}: is a checkpoint of REPA, it holds {signs[0]}: layersync import repa")


def _step(content: Mapping[str, Any]) -> int:
    """Steps taken: REPA's ``steps``, else the count that AdamW keeps for its first parameter, else 0."""
    if isinstance(content.get("steps"), int):
        return int(content["steps"])
    optimizer = content.get("opt")
    states = optimizer.get("state") if isinstance(optimizer, dict) else None
    first = next(iter(states.values()), None) if isinstance(states, dict) else None
    return int(first["step"]) if isinstance(first, dict) and "step" in first else 0


def renumbered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REPA's first checkpoints count ``decoder_blocks`` anew after the blocks before its projectors: one count."""
    before = len({name.split(".")[1] for name in state if name.startswith("blocks.")})

    def renamed(name: str) -> str:
        first, _, rest = name.partition(".")
        if first != "decoder_blocks":
            return name
        number, _, rest = rest.partition(".")
        return f"blocks.{before + int(number)}.{rest}" if number.isdecimal() else name

    return {renamed(name): tensor for name, tensor in state.items()}


def with_time_reversed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose network at (x, t) gives minus what the network of ``state`` gives at (x, 1 - t).

    Exact: with frequencies f the time embedding is (cos tf, sin tf), and cos((1 - t)f) = cos f cos tf + sin f sin tf,
    sin((1 - t)f) = sin f cos tf - cos f sin tf, so the flip is a reflection of each pair of the first linear layer's
    columns (in float64). The sign goes into the last linear layer. It is its own inverse.
    """
    changed = dict(state)
    name = "t_embedder.mlp.0.weight"
    if name in state and state[name].ndim == 2 and state[name].shape[1] % 2 == 0:
        half = state[name].shape[1] // 2
        steps = torch.arange(half, dtype=torch.float32)
        frequency = torch.exp(-math.log(10000.0) * steps / half).double()  # in float32, as both codes compute it
        of_cos, of_sin = state[name].double().split(half, dim=1)
        cos, sin = frequency.cos(), frequency.sin()
        changed[name] = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1).float()
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in state:
            changed[name] = -state[name]
    return changed


def architecture(state: Mapping[str, Tensor], where: str) -> Architecture:
    """Infer the architecture from shapes. Raises :class:`InputError`, beginning with ``where``, for foreign weights."""
    missing = [name for name in DIMENSIONS if name not in state]
    if missing:
        raise InputError(
            f"{where}: is no SiT: {', '.join(missing)} missing; it holds {', '.join(sorted(state)[:10]) or 'nothing'}"
        )
    odd = [name for name, axes in DIMENSIONS.items() if state[name].ndim != axes]
    if odd:
        raise InputError(f"{where}: is no SiT: {odd[0]} is {list(state[odd[0]].shape)}")
    if any(".attn.q_norm." in name for name in state):
        raise InputError(f"{where}: was trained with --qk-norm, a layer norm on queries and keys that our SiT has not")
    hidden_size, channels, patch, across = state["x_embedder.proj.weight"].shape
    tokens, mlp = state["pos_embed"].shape[1], state["blocks.0.mlp.fc1.weight"].shape[0]
    rows = state["final_layer.linear.weight"].shape[0]
    side = math.isqrt(tokens)
    if patch != across or side * side != tokens:
        raise InputError(f"{where}: is no SiT on square latents: patches of {patch}x{across}, {tokens} tokens")
    if rows not in (patch * patch * channels, 2 * patch * patch * channels):
        raise InputError(f"{where}: final_layer.linear.weight has {rows} rows, no one or two x {patch}^2 x {channels}")
    ratio = mlp / hidden_size
    return Architecture(
        latent=LatentSpec(channels, (side * patch, side * patch)),
        num_classes=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        hidden_size=hidden_size,
        patch_size=patch,
        mlp_ratio=ratio if int(hidden_size * ratio) == mlp else (mlp + 0.5) / hidden_size,
        learn_sigma=rows > patch * patch * channels,
    )


def without_sigma(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Drop the half of the last layer that ``learn_sigma`` adds and no sample needs; (patches, 2 channels) rows."""
    return {
        name: _first_half(tensor, channels) if name.startswith("final_layer.linear.") else tensor
        for name, tensor in state.items()
    }


def with_sigma(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Add that half, zero: the inverse of :func:`without_sigma`."""
    changed = dict(state)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        parts = state[name].reshape(-1, channels, *state[name].shape[1:])
        changed[name] = torch.cat([parts, torch.zeros_like(parts)], dim=1).flatten(0, 1)
    return changed


def _first_half(tensor: Tensor, channels: int) -> Tensor:
    return tensor.reshape(-1, 2 * channels, *tensor.shape[1:])[:, :channels].flatten(0, 1)
