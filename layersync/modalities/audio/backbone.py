"""The network that audio recipes train: the core's transformer on patches of the spectrogram."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from layersync.core.transformer import TransformerConfig


class SpectrogramSiTConfig(TransformerConfig):
    """The core's transformer, with patches of ``[mels, frames]``, or of so many frames for latents without bands.

    The default [16, 4] cuts 80 mels by 64 frames into 5 x 16 = 80 tokens: harmonics lie close together in frequency
    and notes change fast in time, so a patch spans a wide band and 64 ms.
    """

    name: Literal["sit"] = "sit"
    patch_size: int | list[int] = Field(default=[16, 4])
