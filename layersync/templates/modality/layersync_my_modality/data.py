"""Data: which samples there are, and what each is labelled with.

The samples here are single heart beats as an electrocardiogram shows them, drawn by a formula: five Gaussian waves, P,
Q, R, S and T (McSharry et al., IEEE Trans. Biomed. Eng. 50(3), 2003), each moved, scaled and stretched at random. A
sample is what layersync hands around without looking into it; here a float32 array (samples,) in millivolts, 120 a
second.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from layersync.core.adapter import DataConfig, Split
from layersync.core.archive import read_arrays, read_samples
from layersync.core.errors import InputError
from layersync.core.listed import ListedExamples

Signal = NDArray[np.float32]

RATE = 120
"""Samples a second."""
BEFORE, LENGTH = 40, 96
"""Samples before the R wave, and in all."""
WAVES = {
    "normal": [
        (-0.17, 0.15, 0.022),
        (-0.035, -0.12, 0.010),
        (0.0, 1.0, 0.012),
        (0.035, -0.25, 0.012),
        (0.25, 0.3, 0.05),
    ],
    "ventricular": [(-0.05, -0.2, 0.03), (0.0, 1.3, 0.045), (0.12, -0.3, 0.04), (0.28, -0.45, 0.05)],
    "st-elevation": [(-0.17, 0.15, 0.022), (0.0, 0.9, 0.012), (0.09, 0.35, 0.045), (0.21, 0.55, 0.06)],
    "inverted-t": [(-0.17, 0.15, 0.022), (-0.035, -0.2, 0.010), (0.0, 0.8, 0.012), (0.24, -0.3, 0.045)],
}
"""By class, each wave's centre in seconds from the R wave, height in millivolts and width (deviation) in seconds."""


class BeatsConfig(DataConfig):
    """The ``data`` section of a recipe, ``{name: beats}``: its keys are this class's fields.

    REPLACE: by a section of your own, with ``path: str`` for instance, and ``build`` by what reads it. Where samples do
    not fit into memory, give :class:`ListedExamples` a function that reads one, and a fingerprint that tells that a
    file changed: ``layersync.core.paths`` finds labelled files and fingerprints them.
    """

    packaged: ClassVar[str] = "heart beats of four shapes, drawn by a formula"
    name: Literal["beats"] = "beats"
    num_examples: int = Field(1200, ge=8, description="Beats to train on; a quarter as many are held out.")

    def build(self, split: Split) -> ListedExamples:
        """The samples to train on, or those that are held out for scores."""
        count = self.num_examples if split == "train" else self.num_examples // 4
        draws = np.random.default_rng([split == "train", self.num_examples])
        classes = list(WAVES)
        labels = [number % len(classes) for number in range(count)]
        signals = [beat(classes[label], draws) for label in labels]
        return ListedExamples(signals, [f"{split} beat {number}" for number in range(count)], labels, classes)


def beat(kind: str, draws: np.random.Generator) -> Signal:
    """One beat (96,) in millivolts of a class in :data:`WAVES`."""
    seconds = (np.arange(LENGTH) - BEFORE) / RATE
    stretch, scale = draws.normal(1, 0.08), draws.normal(1, 0.12)
    signal = 0.02 * np.sin(2 * np.pi * (draws.random() + 1.2 * seconds))  # breathing moves the baseline
    for centre, height, width in WAVES[kind]:
        middle = centre * stretch + draws.normal(0, 0.004)
        signal += height * scale * draws.normal(1, 0.1) * np.exp(-0.5 * ((seconds - middle) / (width * stretch)) ** 2)
    return signal.astype(np.float32)


def open_samples(path: Path) -> ListedExamples:
    """Anybody's signals, for ``layersync score``: a folder of ``.npy``, or an archive that ``render.py`` wrote.

    REPLACE: by reading of the formats that your field uses.
    """
    if not path.is_dir():
        found = read_samples(path, "signals", ("samples",), np.floating, ("labels",))
        return ListedExamples(list(found.samples.astype(np.float32)), found.sources, found.labels())
    files = sorted(path.glob("*.npy"))
    if not files:
        raise InputError(f"{path}: there is no .npy in it")
    return ListedExamples([read_signal(file) for file in files], [str(file) for file in files])


def read_signal(file: Path) -> Signal:
    """The signal in a ``.npy``. Raises :class:`InputError` for anything else."""
    signal = read_arrays(file, ("signal",))["signal"]
    if signal.ndim != 1 or not signal.size or signal.dtype.kind not in "iuf":
        raise InputError(f"{file}: is {signal.dtype} {list(signal.shape)}; numbers [samples] are wanted")
    return signal.astype(np.float32)
