"""Clips as animated GIFs, and the frames of the first ones on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from layersync_video.clip import Clip

SHEET = "frames.png"
NUM_SHOWN = 16
CELL, GAP = 64, 2


def render_clips(clips: Sequence[Clip], directory: Path) -> list[Path]:
    """Each clip as ``000.gif`` and on, in an endless loop; a row of ``frames.png`` for each of the first 16.

    Small frames are enlarged without smoothing, to 64 pixels or more.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [[_picture(frame) for frame in clip.frames] for clip in clips]
    files = []
    for number, (clip, pictures) in enumerate(zip(clips, drawn, strict=True)):
        files.append(directory / f"{number:03d}.gif")
        pictures[0].save(files[-1], save_all=True, append_images=pictures[1:], duration=round(1000 / clip.fps), loop=0)
    shown = drawn[:NUM_SHOWN]
    width, height = (max(pictures[0].size[axis] for pictures in shown) + GAP for axis in (0, 1))
    sheet = Image.new("RGB", (max(map(len, shown)) * width + GAP, len(shown) * height + GAP), "white")
    for row, pictures in enumerate(shown):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + column * width, GAP + row * height))
    sheet.save(directory / SHEET)
    return [directory / SHEET, *files]


def _picture(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    factor = max(1, CELL // picture.height)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
