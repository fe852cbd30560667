"""Checkpoints: written whole or not at all, read without unpickling anything.

``RUN/checkpoints/step-00001000/`` holds ``model.safetensors`` and ``ema.safetensors`` under the backbone's own
parameter names, ``optimizer.safetensors`` (``NAME/exp_avg`` and so on), ``regularizer.safetensors`` where a regularizer
has parameters, and ``state.json``. The directory is filled under a name that starts with a dot, fsynced, renamed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from layersync.core.adapter import Tokenizer
from layersync.core.errors import InputError, TrainingError
from layersync.core.packaged import sync_path
from layersync.core.paths import expand
from layersync.core.run import Run, leave_newest, write_tensors

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.5
"""Of a backbone's numbers, and of those of weights which fit partly, that are taken: with fewer they are of another
network."""


def save_checkpoint(
    directory: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int | None = None,
    keep_every: int | None = None,
) -> None:
    """Write ``NAME.safetensors`` for each entry of ``tensors``, and ``state.json``, as one atomic step.

    A checkpoint of the same step is replaced, others are removed as :func:`layersync.core.run.leave_newest` says.
    Nothing is left of one that fails; TrainingError where it cannot be written.
    """
    partial = directory.parent / f".{directory.name}"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _fill(partial, tensors, state)
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
        sync_path(directory.parent)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{directory}: cannot be written ({error}); checkpoints so far are kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # not there any more where all went well
    leave_newest(directory.parent, keep, keep_every)


def _fill(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Make ``folder`` anew, with all that a checkpoint holds safe on disk in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for name, content in tensors.items():
        write_tensors(folder / f"{name}.safetensors", content)
    (folder / "state.json").write_text(json.dumps(state) + "\n")
    for path in (*folder.iterdir(), folder):
        sync_path(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. InputError when it is missing, cut short or of another format."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as stream:
        head = stream.read(2)
    if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise InputError(f"{path}: is a pickle, which can run code when opened; weights are read from safetensors only")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: is cut short or no safetensors file ({error})") from None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint. InputError when it is missing or cut short."""
    path = checkpoint / "state.json"
    try:
        state = json.loads(path.read_text())
        return {key: state[key] for key in ("step", "seconds")}
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        raise InputError(f"{path}: is missing or cut short; the checkpoint cannot be used") from None


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise :class:`InputError` that lists the first names or shapes of ``weights`` that are not the module's."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not the backbone's" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)}, the backbone's {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise InputError(f"{source}: the weights do not fit the backbone: {'; '.join(problems[:10])}{more}")


def check_partial_fit(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Those of ``weights`` whose name and shape are the module's. InputError where that is not half of both."""
    own = module.state_dict()
    found = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    taken = sum(value.numel() for value in found.values())
    for whole, whose in ((own, "the backbone's weights {:.0%} are in it"), (weights, "its weights {:.0%} are taken")):
        share = taken / max(1, sum(value.numel() for value in whole.values()))
        if share < LEAST_SHARE:
            raise InputError(
                f"{source}: of {whose.format(share)} by name and shape: it is of another network, whose depth or "
                f"hidden_size differs"
            )
    return found


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path, *, partly: bool = False) -> None:
    """Load strictly, or what fits. InputError as of :func:`check_fit` and :func:`check_partial_fit`."""
    if not partly:
        check_fit(module, weights, source)
        module.load_state_dict(dict(weights))
        return
    found = check_partial_fit(module, weights, source)
    module.load_state_dict(found, strict=False)
    anew, left = (", ".join(sorted(set(names) - set(found))) or "none" for names in (module.state_dict(), weights))
    logger.info("train.init: %d tensors of %s are taken; anew: %s; left out: %s", len(found), source, anew, left)


def find_weights(source: str) -> Path:
    """The weights file of a run (its newest checkpoint), of a checkpoint directory, or a file itself."""
    path = expand(source, "train.init")
    if path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        path = Run(path).latest_checkpoint()
    candidate = path / "ema.safetensors"
    if not candidate.is_file():
        raise InputError(f"train.init: {source!r} is no run, checkpoint or safetensors file")
    return candidate


def check_source(source: Path, tokenizer: Tokenizer, *, partly: bool = False) -> None:
    """Raise :class:`InputError` where weights of a run (:func:`find_weights`) are for other latents than these.

    ``partly``: another size of the same channels will do.
    """
    folder = source.parents[2] if len(source.parents) > 2 else source.parent
    if (folder / "recipe.yaml").is_file() and source.parent.parent.name == "checkpoints":
        run = Run(folder)
        own, others = run.data.latent, tokenizer.latent
        if not (partly and own.channels == others.channels and len(own.grid) == len(others.grid)):
            run.data.check_tokenizer(tokenizer, f"train.init {str(folder)!r}")
        tokenizer.check_state(read_tensors(run.path / "tokenizer.safetensors"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: ``NAME/exp_avg``, ``NAME/exp_avg_sq``, ``NAME/step``."""
    return {
        f"{name}/{key}": value
        for parameter, name in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: Mapping[nn.Parameter, str]
) -> None:
    """The inverse of :func:`optimizer_tensors`: everything goes to its parameter's device."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        grouped.setdefault(name, {})[key] = value
    for parameter, name in names.items():
        if name in grouped:
            optimizer.state[parameter] = {
                key: value.to(parameter.device).clone() for key, value in grouped[name].items()
            }
