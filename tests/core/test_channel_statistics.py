"""Mean and deviation of each channel, wherever the channels of a latent are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync.core.adapter import LatentSpec
from layersync.core.errors import InputError
from layersync.core.statistics import ChannelStatistics

SPECS = [LatentSpec(3, (5,), sequence=True, variable=True), LatentSpec(3, (5,)), LatentSpec(3, (2, 4, 6))]


class Plain(ChannelStatistics):
    """Tensors as they are."""

    name, fingerprint = "plain", "plain"

    def encode(self, samples: Sequence[Any]) -> list[Tensor]:
        return list(samples)

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.normalised(stored)

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Any]:
        return list(self.denormalised(latents))


def values(spec: LatentSpec, count: int = 7) -> Tensor:
    """Channels of mean 0, 1e6 and -40 and deviation 1, 2 and 0.1."""
    shape = (1, 1, 3) if spec.sequence else (1, 3, *[1] * len(spec.grid))
    drawn = torch.randn(count, *spec.shape, generator=torch.Generator().manual_seed(5))
    return drawn * torch.tensor([1.0, 2.0, 0.1]).reshape(shape) + torch.tensor([0.0, 1e6, -40.0]).reshape(shape)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_channel_has_mean_0_and_deviation_1_and_comes_back(spec: LatentSpec) -> None:
    stored, tokenizer = values(spec), Plain(spec)
    tokenizer.fit(iter(stored))
    axes = [axis for axis in range(stored.ndim) if axis != (stored.ndim - 1 if spec.sequence else 1)]
    exact = stored.double()
    torch.testing.assert_close(tokenizer.mean, exact.mean(axes).float())
    torch.testing.assert_close(tokenizer.deviation, exact.std(axes, correction=0).float())  # 1e6 cancels nothing
    latents = tokenizer.latents(stored)
    assert latents.mean(axes).abs().max() < 0.05 and (latents.std(axes, correction=0) - 1).abs().max() < 0.05
    torch.testing.assert_close(torch.stack(tokenizer.decode(latents)), stored)


def test_samples_count_by_their_length_and_empty_ones_not_at_all() -> None:
    tokenizer = Plain(SPECS[0])
    tokenizer.fit([torch.zeros(1, 3), torch.zeros(0, 3), torch.full((3, 3), 4.0)])
    assert tokenizer.mean.tolist() == [3.0] * 3 and tokenizer.deviation.tolist() == pytest.approx([3**0.5] * 3)
    for nothing in ([], [torch.zeros(0, 3)]):
        with pytest.raises(InputError, match="tokenizer plain: there is nothing"):
            tokenizer.fit(nothing)


def test_a_constant_channel_stays_finite() -> None:
    tokenizer = Plain(SPECS[1])
    tokenizer.fit([torch.full((3, 5), 2.0)])
    assert not tokenizer.latents(torch.full((1, 3, 5), 2.0)).any()
    assert tokenizer.deviation.tolist() == pytest.approx([1e-6] * 3)


def test_a_run_keeps_them_and_those_of_another_latent_are_refused() -> None:
    fitted, other = Plain(SPECS[1]), Plain(SPECS[1])
    fitted.fit(values(SPECS[1]))
    other.load_state(fitted.state())
    assert torch.equal(other.mean, fitted.mean) and torch.equal(other.deviation, fitted.deviation)
    for state, words in [
        ({"mean": fitted.mean}, r"plain: deviation must have 3 values, found nothing"),
        ({"mean": fitted.mean[:2], "deviation": fitted.deviation}, r"mean must have 3 values, found \(2,\)"),
        ({"mean": fitted.mean[:, None], "deviation": fitted.deviation}, r"found \(3, 1\)"),
    ]:
        with pytest.raises(InputError, match=words):
            other.load_state(state)
