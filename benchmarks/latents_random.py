"""``latents-random``: cached 32x32x4 latents come in random batches, at least 20,000 samples a second on one core.

As an epoch reads them: :meth:`LatentCache.read` on batches of 256 examples drawn without order from a cache of
16,384 latents (256 MiB of float32) in eight shards, in one thread, with labels and captions looked up too; what was
drawn is made beforehand. Each batch is summed up afterwards, untimed, and compared with what was written. The file
pages are in memory, as they are from the second epoch on where memory is larger than the latents; without that, the
disk decides.

``moments`` is the same with the eight channels that the VAE's tokenizer stores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Bar, Result, main, median_interval, say, seconds, side
from layersync.core.adapter import Example, ExampleDataset, LatentSpec, Tokenizer
from layersync.core.draws import StepDraws
from layersync.core.latents import LatentCache

NAME = "latents-random"
BAR = Bar("at least", 20_000)
NUM_EXAMPLES = 16_384
BATCH_SIZE = 256


class Constants(ExampleDataset):
    """Arrays of 32x32 latents whose first value is their index; the others are of one random array."""

    classes = tuple(str(label) for label in range(1000))

    def __init__(self, channels: int):
        self.fingerprint = f"constants-{channels}"
        self.array = np.random.default_rng(0).standard_normal((channels, 32, 32), dtype=np.float32)

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> Example:
        sample = self.array.copy()
        sample[0, 0, 0] = index
        return Example(sample, {"label": index % len(self.classes)})


class Unchanged(Tokenizer):
    """Samples are latents already."""

    fingerprint = "unchanged"

    def __init__(self, channels: int):
        self.latent = LatentSpec(channels, (32, 32))

    def encode(self, samples: Sequence[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(sample) for sample in samples]

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[np.ndarray]:
        return list(latents.numpy())


def epoch(size: int) -> list[StepDraws]:
    """Draws that read every example once, in random order."""
    order = np.random.default_rng(1).permutation(size).reshape(-1, BATCH_SIZE)
    zeros = torch.zeros(BATCH_SIZE)
    return [StepDraws(indices, zeros, zeros, zeros, zeros, zeros, None, zeros) for indices in order]


def rates(channels: int, epochs: int) -> list[float]:
    """Samples a second of each epoch, after one that is not counted."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        cache = LatentCache.open(Constants(channels), Unchanged(channels), directory=Path(scratch))
        for number in range(1 + epochs):
            taken = 0.0
            for draws in epoch(len(cache)):
                batches: list[Tensor] = []
                taken += seconds(lambda draws=draws, batches=batches: batches.append(cache.read(draws).stored))
                assert np.array_equal(batches[0][:, 0, 0, 0].numpy(), draws.indices), "other latents than asked for"
            if number:
                found.append(len(cache) / taken)
            say(f"{NAME}: {channels} channels, {len(cache) / taken:,.0f} samples/s")
    return found


def measure(quick: bool) -> Result:
    torch.set_num_threads(1)
    epochs = 2 if quick else 15
    found = rates(4, epochs)
    value, low, high = median_interval(found)
    return {
        "value": value,
        "bar": BAR.limit,
        "sense": BAR.sense,
        "holds": BAR.holds(value),
        "unit": "samples / second",
        "interval": [low, high],
        "pairs": len(found),
        "latents": side(found, "samples_per_second"),
        "moments": side(rates(8, epochs), "samples_per_second"),
    }


if __name__ == "__main__":
    main(NAME, BAR, measure)
