"""From published files of weights to networks, without unpickling, each failure one clear line."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersync.core.device import default_device
from layersync.core.errors import InputError
from layersync.core.features import WEIGHT_FILES, WEIGHT_INDEX

UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, AttributeError)
"""What ``torch.load`` raises for files that are cut short, damaged, or hold more than tensors."""


def read_tensors(path: Path, owner: str) -> dict[str, Any]:
    """What ``torch.save`` wrote, tensors and plain containers only. Raises :class:`InputError` for anything else."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise InputError(
            f"{owner}: {path} cannot be read as a file of tensors (cut short, damaged, or it holds code)"
        ) from None
    if not isinstance(stored, dict):
        raise InputError(f"{owner}: {path} holds a {type(stored).__name__}, not tensors by name")
    return stored


def fill(network: nn.Module, state: dict[str, Any], path: Path, owner: str) -> None:
    """Give ``network``, made on the meta device, the tensors of ``state``, which must be exactly its own.

    Raises :class:`InputError` saying how many are missing, foreign or misshapen, and names one.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    wrong = [name for name, shape in wanted.items() if found.get(name) != shape] + [n for n in state if n not in wanted]
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{owner}: {path} holds other weights: {len(wrong)} of {len(wanted)} tensors do not fit, "
            f"such as {first} ({list(found[first]) if first in found else 'missing'}, "
            f"wanted {list(wanted[first]) if first in wanted else 'none'})"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)


def load_pretrained(kind: type[Any], model_type: str, folder: Path, owner: str, *, unused: tuple[str, ...] = ()) -> Any:
    """The transformers model of ``folder``, for inference on this process's device, every weight of it from the file.

    transformers starts what a file lacks at random and merely logs it; here that is an error. Weights are read as they
    are stored, whatever precision ``config.json`` names.

    Args:
        kind: the transformers class.
        model_type: what ``config.json`` must call it.
        folder: holds ``config.json`` and one of :data:`layersync.core.features.WEIGHT_FILES`.
        owner: what needs the weights, for messages: ``extractor clap``, or a key of the recipe.
        unused: how names of weights begin that the caller computes nothing with; the file may lack these.

    Raises:
        InputError: for another model, missing or misshapen weights, or files that cannot be read.
    """
    from safetensors import SafetensorError

    stated = read_config(folder, owner).get("model_type")
    if stated != model_type:
        raise InputError(f"{owner}: {folder} holds a model of type {stated!r}, not {model_type!r}")
    try:
        safe = (folder / WEIGHT_FILES[0]).is_file() or (folder / WEIGHT_INDEX).is_file()
        with _quiet():
            model, info = kind.from_pretrained(
                folder, torch_dtype=torch.float32, use_safetensors=safe, weights_only=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except (SafetensorError, TypeError, *UNREADABLE) as error:
        raise InputError(f"{owner}: {folder} cannot be loaded ({first_line(error)})") from None
    missing = (name for name in info["missing_keys"] if not name.startswith(unused))
    if wrong := sorted({*missing, *(entry[0] for entry in info["mismatched_keys"])}):
        raise InputError(
            f"{owner}: the weights in {folder} are of another network: {len(wrong)} tensors are "
            f"missing or misshapen, such as {wrong[0]}"
        )
    return model.float().eval().requires_grad_(False).to(default_device())


def network_digest(network: Any) -> str:
    """What a diffusers autoencoder computes, in 16 hexadecimal digits: settings and weights, wherever they lie.

    Settings at their default are left out: a newer diffusers has more of them, and a saved copy states all.
    """
    parameters = inspect.signature(type(network).__init__).parameters
    settings = {
        key: value
        for key, value in network.config.items()
        if not key.startswith("_") and not (key in parameters and _alike(value, parameters[key].default))
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().data)
    return digest.hexdigest()[:16]


def _alike(value: Any, default: Any) -> bool:
    return json.dumps(value, default=str) == json.dumps(default, default=str)


def first_line(error: Exception) -> str:
    """What an error says, cut to one line that a message can hold."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read_config(folder: Path, owner: str, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of ``folder``. Raises :class:`InputError` where it is missing or none."""
    file = folder / name
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        raise InputError(f"{owner}: {file} is missing or no JSON") from None
    if not isinstance(config, dict):
        raise InputError(f"{owner}: {file} holds no JSON object")
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and table of weights: a head that is not used is nothing to report."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
