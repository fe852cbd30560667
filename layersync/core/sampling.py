"""Draw samples from a run into files: what ``layersync sample`` does."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from layersync.core.device import take_own_device
from layersync.core.errors import InputError, complaint
from layersync.core.generation import Conditions, GenerativeModel, load, one_checkpoint
from layersync.core.packaged import sync_path
from layersync.core.parallel import Processes
from layersync.core.recipe import UNGUIDED, Sample, ineffective
from layersync.core.run import writable_parent


def read_noise(path: Path) -> Tensor:
    """Initial noise from a ``.npy`` file. InputError when it is missing, a pickle or no array of finite numbers."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--noise: {path} cannot be read as .npy ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise InputError(f"--noise: {path} holds no floating-point array")
    with np.errstate(over="ignore"):
        noise = array.astype(np.float32)
    if not np.isfinite(noise).all():
        raise InputError(f"--noise: {path} holds values that are not finite in float32")
    return torch.from_numpy(noise)


def write_samples(
    run: str | os.PathLike[str],
    *,
    num: int | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    frames: int | None = None,
    seed: int = 0,
    noise: Path | None = None,
    latents_only: bool = False,
    archive: bool = False,
    step: int | None = None,
    weights: str = "ema",
    out: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Sample, render, and return the folder; with ``archive``, all samples in its ``samples.npz`` too.

    ``overrides`` (``sample.KEY=VALUE``) and then ``settings`` change how the run's recipe draws.

    Of a run conditioned on texts, ``captions.txt`` has a line for each sample, and each sample's file ``NAME.txt`` with
    its text beside it, as :meth:`ModalityAdapter.open_samples` reads it; a sample drawn for no text has none.
    ``samples.txt`` beside the archive is written where all have one.

    The folder appears when it is whole; one that exists is refused unless it is the run's own default, which is
    replaced. Processes of a launch each draw a share, and the main one decodes and writes them all. Raises
    :class:`InputError` before any work.
    """
    given = None if noise is None else read_noise(noise)
    if given is not None and num is not None and num != len(given):
        raise InputError(f"--num: {num}, but --noise holds {len(given)} samples")
    if archive and latents_only:
        raise InputError("--npz: holds samples, and --latents-only decodes none")
    count = num if num is not None else len(given) if given is not None else len(prompts) if prompts else 64
    if count < 1:
        raise InputError(f"--num: {count}; at least 1")
    for option, values in (("--labels", labels), ("--prompt", prompts)):
        if values is not None and len(values) > count:
            warnings.warn(
                f"{option}: of {len(values)} the first {count} are used, a sample each; --num says how many samples",
                stacklevel=2,
            )
    take_own_device()
    processes = Processes.here()
    model = load(run, step=step, weights=weights)
    one_checkpoint(model, processes)
    model.override(overrides, ["sample"])
    try:
        chosen = model.settings(**(settings or {}))
    except ValidationError as failure:
        error = failure.errors()[0]
        option, _, problem = ": ".join([*map(str, error["loc"][:1]), complaint(error)]).partition(": ")
        raise InputError(f"--{option.replace('_', '-')}: {problem}") from None
    target = out or Path(run) / "samples" / f"step-{model.step:08d}"
    if out is not None and os.path.lexists(out):
        raise InputError(f"--out: {out} exists")
    writable_parent(target, "--out")
    if not latents_only:
        model.tokenizer.prepare_decoding()
    for warning in ineffective(model.recipe.model_copy(update={"sample": chosen})):
        if warning != UNGUIDED:  # said when latents are drawn, of every run
            warnings.warn(warning, stacklevel=2)
    if labels is None and prompts is None:
        conditions = model.conditions_as_scored(count, seed=seed, frames=frames)
    else:
        conditions = model.conditions(count, labels=labels, prompts=prompts, frames=frames, seed=seed)
    latents, mask = _drawn(model, conditions, given, seed, chosen, processes)
    if not processes.main:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".samples-") as scratch:
        partial = Path(scratch) / "samples"
        partial.mkdir()
        if latents_only:
            np.save(partial / "latents.npy", latents.numpy())
        else:
            _write_decoded(model, latents, mask, conditions, partial, archive=archive)
        sync_path(partial)
        if out is None and target.exists():
            shutil.rmtree(target)
        elif out is not None and os.path.lexists(target):
            target = _free_name(target)
            warnings.warn(f"--out: {out} has been made meanwhile; the samples are in {target}", stacklevel=2)
        partial.rename(target)
    return target


def _free_name(path: Path) -> Path:
    """``path`` with the first number behind it that makes it a name of nothing."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in names if not os.path.lexists(name))


def _drawn(
    model: GenerativeModel,
    conditions: Conditions,
    noise: Tensor | None,
    seed: int,
    settings: Sample,
    processes: Processes,
) -> tuple[Tensor, Tensor | None]:
    """Latents of all samples and their mask: the shares of all processes, on each.

    A sample is the same whoever draws it (dopri5 apart, whose steps are of a whole batch).
    """
    share = processes.share(len(conditions))
    part = slice(share.start, share.stop)
    drawn = (
        [
            model.sample_latents(
                conditions[part],
                noise=None if noise is None else noise[part],
                seed=seed,
                start=share.start,
                settings=settings,
                shown=processes.main,
            )
        ]
        if len(share)
        else []
    )
    latents, masks = zip(*processes.gather(drawn), strict=True)
    return torch.cat(latents), None if masks[0] is None else torch.cat(masks)


def _write_decoded(
    model: GenerativeModel, latents: Tensor, mask: Tensor | None, given: Conditions, folder: Path, *, archive: bool
) -> None:
    """Rendered samples, their labels and texts, and with ``archive`` all of them in one file."""
    samples = model.decode(latents, mask)
    files = model.recipe.adapter.render(samples, folder)
    if archive:
        labels = given.label.tolist() if bool((given.label >= 0).all()) else None
        model.recipe.adapter.archive(samples, labels, folder / "samples.npz")
    np.savetxt(folder / "labels.txt", given.label.numpy(), fmt="%d")
    if model.condition.text_channels:
        texts = [" ".join(text.split()) for text in given.captions]
        _write_lines(folder / "captions.txt", texts)
        if archive and all(texts):
            _write_lines(folder / "samples.txt", texts)
        _write_beside(files, texts)


def _write_beside(files: Sequence[Path], texts: Sequence[str]) -> None:
    """The text of each sample beside its file, whose name ends in the sample's number; overviews have none."""
    for file in files:
        number, beside = re.search("[0-9]+$", file.stem), file.with_suffix(".txt")
        row = int(number[0]) if number else len(texts)
        if row < len(texts) and texts[row] and not beside.exists():
            _write_lines(beside, [texts[row]])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
