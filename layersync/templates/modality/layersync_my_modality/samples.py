"""Samples in files: what ``layersync sample`` writes, and what ``layersync score`` reads."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersync.core.errors import InputError
from layersync.core.run import atomic_write
from layersync_my_modality.data import Signal, SignalDataset

SHOWN = 16


def render(samples: Sequence[Signal], directory: Path) -> list[Path]:
    """Each signal as ``000.npy`` and on, the first 16 drawn in ``signals.png``. REPLACE: by what people look at."""
    from matplotlib.figure import Figure

    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{number:03d}.npy" for number in range(len(samples))]
    for file, sample in zip(files, samples, strict=True):
        np.save(file, sample)
    figure = Figure(figsize=(8, 6), layout="constrained")
    for axes, sample in zip(figure.subplots(4, 4, sharex=True, sharey=True).flat, samples[:SHOWN], strict=False):
        axes.plot(sample)
    figure.savefig(directory / "signals.png")
    return [directory / "signals.png", *files]


def write_archive(path: Path, samples: Sequence[Signal], labels: Sequence[int] | None) -> None:
    """One ``.npz``: ``signals`` (n, samples) float32, ``labels`` (n,)."""
    arrays = {"signals": np.stack(samples)} | ({} if labels is None else {"labels": np.asarray(labels)})
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def open_samples(path: Path) -> SignalDataset:
    """Anybody's signals: a folder of ``.npy``, or an archive. REPLACE: by reading of your formats."""
    try:
        if path.is_dir():
            files = sorted(path.glob("*.npy"))
            signals, sources = [np.load(file).astype(np.float32) for file in files], [str(file) for file in files]
        else:
            signals = list(np.load(path)["signals"].astype(np.float32))
            sources = [f"{path}[{number}]" for number in range(len(signals))]
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: holds no signals ({error}); a folder of .npy does, or an .npz") from None
    if not signals:
        raise InputError(f"{path}: there is no .npy in it")
    return SignalDataset(signals, [-1] * len(signals), sources, ())
