"""``window``: a cut of a series as it is, each channel normalised by its mean and deviation in the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section
from layersync.core.errors import InputError
from layersync.core.statistics import ChannelStatistics
from layersync.core.transformer import PositiveInt
from layersync_timeseries.data import Series


class WindowConfig(Section):
    """``num_frames`` steps of ``channels`` channels; shorter series are padded and masked, longer ones cut anew at
    every training step.
    """

    name: Literal["window"] = "window"
    channels: PositiveInt
    num_frames: PositiveInt = 64

    def latent_spec(self) -> LatentSpec:
        """(frames, channels)."""
        return LatentSpec(channels=self.channels, grid=(self.num_frames,), sequence=True, variable=True)


class WindowTokenizer(ChannelStatistics):
    """Stored are whole series as they were measured, (steps, channels)."""

    def __init__(self, config: WindowConfig) -> None:
        super().__init__(config.latent_spec())
        self.name, self.num_frames = config.name, config.num_frames
        self.fingerprint = f"window-1-channels{config.channels}"

    def encode(self, samples: Sequence[Series]) -> list[Tensor]:
        """The series as tensors. Raises :class:`InputError` for another number of channels than the recipe says."""
        for sample in samples:
            if sample.shape[1] != self.latent.channels:
                raise InputError(
                    f"tokenizer.channels: {self.latent.channels}, but the series of this data have {sample.shape[1]}"
                )
        return [torch.from_numpy(sample) for sample in samples]

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, frames, channels) stored windows, normalised. What padding becomes is of no account: it is masked."""
        return self.normalised(stored)

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Series]:
        """Series in the units of the data, of the steps that ``mask`` (batch, frames) marks."""
        values = self.denormalised(latents)
        kept = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return [value[real].numpy() for value, real in zip(values, kept, strict=True)]

    def window(self, sample: Series, position: float) -> Series:
        """The cut of ``num_frames`` steps at ``position`` in [0, 1] of the room there is; all of a shorter series."""
        room = max(len(sample) - self.num_frames, 0)
        start = min(int(position * (room + 1)), room)
        return sample[start : start + self.num_frames]
