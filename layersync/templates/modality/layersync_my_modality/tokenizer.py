"""Tokenizer: from a sample to the array that the network sees, and back.

``encode`` runs once for each sample, and its results are kept on disk; ``latents`` runs at every step. What ``fit``
finds in the training data is kept in the run, so that ``decode`` needs no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync.core.errors import InputError
from layersync_my_modality.data import Signal


class SignalConfig(Section):
    """The ``tokenizer`` section of a recipe."""

    name: Literal["signal"] = "signal"
    num_samples: int = Field(96, ge=2, description="Length of every signal.")

    def latent_spec(self) -> LatentSpec:
        """One channel on a grid of one axis.

        REPLACE: by your shape. Pictures are ``LatentSpec(3, (height, width))``, clips ``LatentSpec(3, (frames, height,
        width))``, sequences of varying length ``LatentSpec(channels, (frames,), sequence=True, variable=True)``.
        """
        return LatentSpec(channels=1, grid=(self.num_samples,))


class SignalTokenizer(Tokenizer):
    """Signals as they are, brought to mean 0 and deviation 1.

    REPLACE: ``encode`` and ``decode``, by whatever turns your samples into float32 tensors and back.
    """

    def __init__(self, config: SignalConfig):
        self.latent = config.latent_spec()
        self.fingerprint = f"signal-{config.num_samples}"  # of everything that changes what encode gives
        self.mean, self.deviation = torch.tensor(0.0), torch.tensor(1.0)

    def encode(self, samples: Sequence[Signal]) -> list[Tensor]:
        """(1, num_samples) of each signal. Raises :class:`InputError` for one of another length."""
        for sample in samples:
            if sample.shape != self.latent.grid:
                raise InputError(f"tokenizer.num_samples: a signal has {list(sample.shape)}, not {self.latent.grid[0]}")
        return [torch.from_numpy(sample)[None] for sample in samples]

    def fit(self, stored: Iterable[Tensor]) -> None:
        """Mean and deviation over all values of the training data."""
        values = torch.cat([signal.flatten() for signal in stored])
        self.mean, self.deviation = values.mean(), values.std().clamp(min=1e-6)

    def state(self) -> dict[str, Tensor]:
        """What the run keeps."""
        return {"mean": self.mean, "deviation": self.deviation}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it from a run."""
        self.mean, self.deviation = state["mean"], state["deviation"]

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored values (batch, 1, num_samples) to order 1, as the noise is."""
        return (stored - self.mean.to(stored)) / self.deviation.to(stored)

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Signal]:
        """The inverse of ``latents`` and ``encode``."""
        return list((latents.float().cpu() * self.deviation + self.mean)[:, 0].numpy())
