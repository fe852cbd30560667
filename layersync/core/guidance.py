"""Classifier-free guidance (arXiv 2207.12598), in an interval of t (arXiv 2404.07724) and on chosen channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layersync.core.adapter import ConditionSpec, LatentSpec
from layersync.core.condition import no_condition
from layersync.core.plugin import calling


class GuidedPrediction:
    """A network's prediction with guidance: p = p_none + guidance (p_condition - p_none).

    The unconditional half is computed only where it counts: not at guidance 1, not outside of ``interval``. Only the
    first ``channels`` channels are guided when it is given (published SiT samples guide 3 of 4); the others keep the
    conditional prediction.
    """

    def __init__(
        self,
        backbone: Any,
        condition: Mapping[str, Tensor],
        mask: Tensor | None,
        *,
        spec: ConditionSpec,
        latent: LatentSpec,
        guidance: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ):
        self.backbone, self.condition, self.mask = backbone, dict(condition), mask
        self.none = no_condition(condition, spec)
        self.latent = latent
        self.guidance, self.interval, self.channels = guidance, interval, channels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction at ``x`` (batch, ...) and ``t`` (batch,), all of the same time."""
        low, high = self.interval
        inside = bool((t[0] >= low) & (t[0] <= high))  # in the precision of t, so that the ends belong to it
        guided = self.guidance != 1.0 and bool(self.condition) and inside
        if not guided:
            return self._predict(x, t, self.condition, self.mask)
        both = {key: torch.cat([self.condition[key], self.none[key]]) for key in self.condition}
        mask = None if self.mask is None else torch.cat([self.mask, self.mask])
        prediction = self._predict(torch.cat([x, x]), torch.cat([t, t]), both, mask)
        conditional, unconditional = prediction.chunk(2)
        mixed = unconditional + self.guidance * (conditional - unconditional)
        if self.channels is None:
            return mixed
        axis = x.ndim - 1 if self.latent.sequence else 1
        first = mixed.narrow(axis, 0, self.channels)
        rest = conditional.narrow(axis, self.channels, x.shape[axis] - self.channels)
        return torch.cat([first, rest], dim=axis)

    def _predict(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        with calling(self.backbone, "forward"):
            prediction: Tensor = self.backbone(x, t, condition, mask=mask).prediction
        return prediction
