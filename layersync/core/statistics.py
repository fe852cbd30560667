"""Mean and deviation of each channel: what most tokenizers know of their training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from layersync.core.adapter import LatentSpec, Tokenizer
from layersync.core.errors import InputError


class ChannelStatistics(Tokenizer):
    """A tokenizer with a mean and a deviation of each channel, which :meth:`fit` finds and the run keeps.

    Channels are the last axis of a sequence, and the first one of any other latent. ``name`` is for messages.
    """

    name: str
    smallest_deviation: ClassVar[float] = 1e-6
    """A channel that varies less is divided by this: one that never changes has no deviation at all."""

    def __init__(self, latent: LatentSpec) -> None:
        self.latent = latent
        self.mean, self.deviation = torch.zeros(latent.channels), torch.ones(latent.channels)

    def fit(self, stored: Iterable[Tensor]) -> None:
        """Take them over all values of ``stored``, in one pass (Chan, Golub and LeVeque, 1979).

        Raises :class:`InputError` where there is nothing to take them from.
        """
        count = 0
        mean, squares = torch.zeros(2, self.latent.channels, dtype=torch.float64)
        for sample in stored:
            values = (sample if self.latent.sequence else sample.movedim(0, -1)).flatten(0, -2).double()
            if not len(values):
                continue
            difference, before, count = values.mean(0) - mean, count, count + len(values)
            squares += values.var(0, correction=0) * len(values)
            squares += difference.square() * before * len(values) / count
            mean += difference * len(values) / count
        if not count:
            raise InputError(f"tokenizer {self.name}: there is nothing to take statistics from")
        self.mean = mean.float()
        self.deviation = (squares / count).sqrt().clamp(min=self.smallest_deviation).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` and ``deviation`` (channels,)."""
        return {"mean": self.mean, "deviation": self.deviation}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics. Raises :class:`InputError` when they are for another latent."""
        for key in ("mean", "deviation"):
            if key not in state or state[key].shape != (self.latent.channels,):
                found = tuple(state[key].shape) if key in state else "nothing"
                raise InputError(f"tokenizer {self.name}: {key} must have {self.latent.channels} values, found {found}")
        self.mean, self.deviation = state["mean"].float(), state["deviation"].float()

    def normalised(self, values: Tensor) -> Tensor:
        """(batch, *latent shape) with mean 0 and deviation 1 in each channel."""
        return (values - self._along(self.mean, values)) / self._along(self.deviation, values)

    def denormalised(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalised`, in float32 on the CPU, without gradient."""
        values = latents.detach().float().cpu()
        return values * self._along(self.deviation, values) + self._along(self.mean, values)

    def _along(self, statistic: Tensor, values: Tensor) -> Tensor:
        """``statistic`` in a shape that meets the channels of ``values``."""
        behind = 0 if self.latent.sequence else len(self.latent.grid)
        return statistic.reshape(-1, *[1] * behind).to(values)
