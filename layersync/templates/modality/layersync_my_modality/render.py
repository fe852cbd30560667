"""Render: what ``layersync sample`` writes, pictures to look at and the samples themselves to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersync.core.archive import write_arrays
from layersync_my_modality.data import Signal

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
    write_arrays(path, signals=np.stack(samples), labels=labels)
