"""Clips to latents and back: pixels in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync_video.clip import Clip, conformed


class PixelsConfig(Section):
    """The ``tokenizer`` section. Any clip goes in; latents of one shape come out."""

    name: Literal["pixels"] = "pixels"
    num_frames: int = Field(8, ge=2, description="Frames of the window that the backbone sees.")
    image_size: int = Field(16, ge=1, description="Frames are cropped and scaled to this many pixels a side.")
    channels: Literal[1, 3] = 1
    fps: float = Field(8.0, gt=0, description="Frames a second that clips are brought to.")

    def latent_spec(self) -> LatentSpec:
        """(channels, height, width, frames): the core's windows and masks run over the last axis."""
        return LatentSpec(self.channels, (self.image_size, self.image_size, self.num_frames), variable=True)


class Pixels(Tokenizer):
    """Whole clips are stored; a window is cut at a place of its own each time one is read."""

    def __init__(self, config: PixelsConfig) -> None:
        self.config, self.latent = config, config.latent_spec()
        self.fingerprint = f"pixels-{config.image_size}-{config.channels}-{config.fps:g}"

    def _conformed(self, clip: Clip) -> Clip:
        return conformed(clip, self.config.image_size, self.config.channels, self.config.fps)

    def encode(self, samples: Sequence[Clip]) -> list[Tensor]:
        """(channels, height, width, frames) each, as long as the clip is."""
        frames = [torch.from_numpy(self._conformed(clip).frames.copy()) for clip in samples]
        return [clip.permute(3, 1, 2, 0).float() / 127.5 - 1 for clip in frames]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Clip]:
        """Clips as long as ``mask`` says, pixels rounded to the nearest byte."""
        pixels = (127.5 * latents.float() + 128).clamp(0, 255).to(torch.uint8).permute(0, 4, 2, 3, 1).cpu().numpy()
        lengths = [pixels.shape[1]] * len(pixels) if mask is None else mask.sum(1).tolist()
        return [Clip(clip[:length], self.config.fps) for clip, length in zip(pixels, lengths, strict=True)]

    def window(self, sample: Clip, position: float) -> Clip:
        """The frames that one latent covers."""
        clip = self._conformed(sample)
        room = max(len(clip) - self.config.num_frames, 0) + 1
        first = min(int(np.floor(position * room)), room - 1)
        return Clip(clip.frames[first : first + self.config.num_frames], clip.fps)
