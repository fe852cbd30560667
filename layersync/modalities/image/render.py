"""Images to files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GRID_LIMIT = 64
CELL = 64


def render_images(samples: Sequence[np.ndarray], directory: Path) -> list[Path]:
    """Each image as ``000.png`` and on; the first 64 in one ``grid.png``, small ones enlarged without smoothing."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for number, sample in enumerate(samples):
        path = directory / f"{number:03d}.png"
        Image.fromarray(_displayable(sample)).save(path)
        files.append(path)
    shown = list(samples[:GRID_LIMIT])
    factor = max(1, CELL // shown[0].shape[0])
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    height, width = (side * factor for side in shown[0].shape[:2])
    gap = 2
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, sample in enumerate(shown):
        cell = Image.fromarray(_displayable(sample)).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(cell, (gap + number % columns * (width + gap), gap + number // columns * (height + gap)))
    sheet.save(directory / "grid.png")
    return [directory / "grid.png", *files]


def _displayable(sample: np.ndarray) -> np.ndarray:
    return sample[..., 0] if sample.shape[2] == 1 else sample
