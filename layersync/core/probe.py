"""What is measured beside the training loss: held-out flow loss by time, and how similar blocks are.

Both use one fixed batch and fixed times and noise, so that curves of one run, and of two runs, can be compared. The
similarities are taken for the baseline too, on the paper's pair where the recipe names none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import BackboneOutput, ConditionSpec, Tokenizer, to_device
from layersync.core.condition import batch_condition, drop_condition
from layersync.core.device import float32_products
from layersync.core.draws import StepDraws, generator
from layersync.core.interpolant import Interpolant
from layersync.core.latents import LatentCache
from layersync.core.plugin import calling
from layersync.core.regularizer.layersync import Pair, alignment
from layersync.core.text import TextTable

NUM_BINS = 8
MICRO_BATCH = 64
SIMILARITY_TIMES = (0.25, 0.5, 0.75)

Forward = Callable[..., BackboneOutput]


def flow_loss(prediction: Tensor, target: Tensor, mask: Tensor | None, frame_axis: int) -> Tensor:
    """Squared error (batch,): mean over a sample's real elements, float32.

    ``mask`` (batch, frames) runs over ``frame_axis`` of one latent (the batch axis not counted).
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.flatten(1).mean(1)
    per_frame = error.movedim(frame_axis + 1, 1).flatten(2).mean(2)
    real = mask.to(per_frame.dtype)
    return (per_frame * real).sum(1) / real.sum(1)


@dataclass
class Probe:
    """A fixed held-out batch: ``x1`` latents, ``x0`` noise, ``t`` stratified over [0, 1] bin by bin."""

    x1: Tensor
    x0: Tensor
    t: Tensor
    mask: Tensor | None
    condition: dict[str, Tensor]
    frame_axis: int

    @classmethod
    def make(
        cls,
        cache: LatentCache,
        tokenizer: Tokenizer,
        spec: ConditionSpec,
        texts: TextTable | None,
        size: int,
        device: torch.device,
    ) -> Probe:
        """The first ``size`` examples of ``cache``, each seen in every bin of t; fewer where there are fewer."""
        count = min(size, len(cache))
        source = generator(0, "probe")
        chosen = source.permutation(len(cache))[:count]
        zeros = torch.zeros(count)
        noise = torch.from_numpy(source.standard_normal((count, *cache.latent.shape), dtype=np.float32))
        posterior = torch.from_numpy(source.standard_normal((count, *cache.latent.shape), dtype=np.float32))
        position = torch.from_numpy(source.random(count, dtype=np.float32))
        draws = StepDraws(chosen, zeros, zeros, zeros, position, noise, posterior, zeros)
        batch = cache.read(draws)
        with calling(tokenizer, "latents"):
            x1 = tokenizer.latents(batch.stored, posterior if tokenizer.stochastic else None)
        mask = None if batch.mask is None else batch.mask.to(device)
        t = torch.from_numpy((np.arange(NUM_BINS)[:, None] + source.random((NUM_BINS, count))) / NUM_BINS)
        condition = batch_condition(batch, spec, texts)
        kept = drop_condition(condition, torch.zeros(count, dtype=torch.bool), spec)
        condition = to_device(kept, device)
        x1, noise = x1.to(device), noise.to(device)
        return cls(x1, noise, t.float().to(device), mask, condition, cache.latent.frame_axis)

    @float32_products()
    @torch.no_grad()
    def held_out_loss(self, forward: Forward, interpolant: Interpolant) -> list[float]:
        """Mean flow loss in each of ``NUM_BINS`` equal bins of t, noise first."""
        low, high = interpolant.training_range()
        losses = []
        for t in self.t:
            t = t.clamp(low, high)
            x_t, target = interpolant.sample(self.x1, self.x0, t)
            prediction = torch.cat([out.prediction for out in self._forward(forward, x_t, t, ())])
            loss = flow_loss(prediction, target, self.mask, self.frame_axis) * interpolant.loss_weight(t)
            losses.append(float(loss.mean()))
        return losses

    @float32_products()
    @torch.no_grad()
    def similarity(self, forward: Forward, interpolant: Interpolant, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Raw and centred similarity of each pair, mean over ``SIMILARITY_TIMES`` and the batch."""
        taps = sorted({block for pair in pairs for block in pair})
        found: dict[str, dict[str, list[Tensor]]] = {
            f"{student}-{teacher}": {"cosine": [], "centred": []} for student, teacher in pairs
        }
        for time in SIMILARITY_TIMES:
            t = torch.full((len(self.x1),), time, device=self.x1.device)
            x_t, _ = interpolant.sample(self.x1, self.x0, t)
            for out in self._forward(forward, x_t, t, taps):
                for student, teacher in pairs:
                    kinds = found[f"{student}-{teacher}"]
                    features = out.features[student], out.features[teacher]
                    kinds["cosine"].append(alignment(*features, out.token_mask))
                    kinds["centred"].append(alignment(*features, out.token_mask, centred=True))
        return {pair: {kind: float(torch.cat(v).mean()) for kind, v in kinds.items()} for pair, kinds in found.items()}

    def _forward(self, forward: Forward, x_t: Tensor, t: Tensor, taps: Sequence[int]) -> Iterator[BackboneOutput]:
        """One micro-batch at a time: all blocks of the whole batch would not fit a GPU."""
        for first in range(0, len(x_t), MICRO_BATCH):
            part = slice(first, first + MICRO_BATCH)
            condition: Mapping[str, Tensor] = {key: value[part] for key, value in self.condition.items()}
            mask = None if self.mask is None else self.mask[part]
            yield forward(x_t[part], t[part], condition, taps=taps, mask=mask)
