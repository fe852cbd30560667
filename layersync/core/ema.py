"""Exponential moving average of a network's weights, in place, by PyTorch's own update over all tensors at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Averages of ``parameters``, in their order, from their values at the start.

    With ``ramp`` the decay of step n (from 1) is min(decay, n / (9 + n)), but 0 for the first: the average forgets the
    initial weights. Without it, it is ``decay`` from the first step on.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float, *, ramp: bool):
        self.tensors = [parameter.detach().clone() for parameter in parameters]
        self.decay, self.ramp = decay, ramp
        self.steps = 0

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor]) -> None:
        """Take the parameters after one more optimizer step into the average."""
        done = self.steps
        self.steps += 1
        decay = min(self.decay, (1 + done) / (10 + done) if done else 0.0) if self.ramp else self.decay
        get_ema_multi_avg_fn(decay)(self.tensors, [parameter.detach() for parameter in parameters], self.steps)
