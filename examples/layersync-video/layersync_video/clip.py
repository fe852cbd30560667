"""What a sample of this modality is: a clip, and how clips of any size and rate are made alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Clip:
    """``frames`` uint8 (frames, height, width, 1 or 3), ``fps`` of them a second."""

    frames: NDArray[np.uint8]
    fps: float

    def __len__(self) -> int:
        return len(self.frames)


def conformed(
    clip: Clip,
    image_size: int,
    channels: int,
    fps: float | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Clip:
    """``clip`` at ``fps`` (its own by default), its frames square and grey (1 channel, ITU-R 601-2 luma) or RGB (3).

    In time the frame that was seen at each moment is taken: none is blended. In space the largest centred square is
    scaled by Pillow's ``resample``, which smooths where it shrinks. What fits already is returned as it is.
    """
    frames = clip.frames
    if fps is not None and fps != clip.fps:
        count = max(1, round(len(frames) * fps / clip.fps))
        frames = frames[np.minimum((np.arange(count) * clip.fps / fps).astype(int), len(frames) - 1)]
    if frames.shape[1:] != (image_size, image_size, channels):
        mode = "L" if channels == 1 else "RGB"
        pictures = [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame).convert(mode) for frame in frames]
        size = (image_size, image_size)
        fitted = [np.asarray(ImageOps.fit(picture, size, resample)) for picture in pictures]
        frames = np.stack(fitted).reshape(len(frames), *size, channels)
    return Clip(frames, fps or clip.fps)
