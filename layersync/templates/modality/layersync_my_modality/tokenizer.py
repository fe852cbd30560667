"""Tokenizer: from a sample to the array that the network sees, and back.

``encode`` runs once for each sample, and its results are kept on disk; ``latents`` runs at every step. What ``fit`` of
:class:`ChannelStatistics` finds in the training data is kept in the run, so that ``decode`` needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section
from layersync.core.errors import InputError
from layersync.core.statistics import ChannelStatistics
from layersync_my_modality.data import Signal


class SignalConfig(Section):
    """The ``tokenizer`` section of a recipe."""

    name: Literal["signal"] = "signal"
    num_samples: int = Field(96, ge=2, description="Length of every signal.")

    def latent_spec(self) -> LatentSpec:
        """One channel on a grid of one axis.

        REPLACE: by your shape. Pictures are ``LatentSpec(3, (height, width))``, clips ``LatentSpec(3, (height, width,
        frames))``, sequences of varying length ``LatentSpec(channels, (frames,), sequence=True, variable=True)``.
        """
        return LatentSpec(channels=1, grid=(self.num_samples,))


class SignalTokenizer(ChannelStatistics):
    """Signals as they are, brought to mean 0 and deviation 1.

    REPLACE: ``encode`` and ``decode``, by whatever turns your samples into float32 tensors and back.
    """

    def __init__(self, config: SignalConfig):
        super().__init__(config.latent_spec())
        self.name, self.fingerprint = (
            config.name,
            f"signal-{config.num_samples}",
        )  # of all that changes what encode gives

    def encode(self, samples: Sequence[Signal]) -> list[Tensor]:
        """(1, num_samples) of each signal. Raises :class:`InputError` for one of another length."""
        for sample in samples:
            if sample.shape != self.latent.grid:
                raise InputError(f"tokenizer.num_samples: a signal has {list(sample.shape)}, not {self.latent.grid[0]}")
        return [torch.from_numpy(sample)[None] for sample in samples]

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored values (batch, 1, num_samples) to order 1, as the noise is."""
        return self.normalised(stored)

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Signal]:
        """The inverse of ``latents`` and ``encode``."""
        return list(self.denormalised(latents)[:, 0].numpy())
