"""Everything random, counted rather than carried.

A draw depends on (seed, stream, step, position in the global batch) and on nothing else: no generator state has to be
saved or restored, and any process can make the draws of any slice of a batch. The numbers come from NumPy's Philox, a
counter-based generator (Salmon et al., SC 2011): the key is (seed, stream), the counter (position, step).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import LatentSpec

STREAMS = {name: number for number, name in enumerate(("train", "order", "sample", "solver", "labels", "probe", "fit"))}


def generator(seed: int, stream: str, step: int = 0, position: int = 0) -> np.random.Generator:
    """A generator of its own for one place in the program. ``seed``, ``step`` and ``position`` are at least 0."""
    key = np.array([seed, STREAMS[stream]], dtype=np.uint64)
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(size)


def epoch_indices(seed: int, first: int, count: int, size: int) -> np.ndarray:
    """Indices into ``size`` examples for samples number ``first`` to ``first + count - 1`` of the whole training.

    Each epoch is a permutation of its own; a batch may span two epochs.
    """
    numbers = np.arange(first, first + count)
    return np.array([_epoch_order(seed, int(n // size), size)[n % size] for n in numbers], dtype=np.int64)


@dataclass(frozen=True)
class StepDraws:
    """The draws of one slice of a global batch. Shapes start with (slice,)."""

    indices: np.ndarray
    """Which examples, int64."""
    uniform_time: Tensor
    """In (0, 1), float32; the recipe's time sampler turns it into t."""
    drop: Tensor
    """In [0, 1): the condition is dropped where it is below the recipe's probability."""
    variant: Tensor
    """In [0, 1): which stored variant of the example."""
    position: Tensor
    """In [0, 1): where in the clip the window starts."""
    noise: Tensor
    """(slice, *latent) standard normal."""
    posterior: Tensor | None
    """Likewise, for tokenizers that draw their latents; ``None`` for those that do not."""
    caption: Tensor
    """In [0, 1): which of the example's captions."""


def step_draws(
    seed: int, step: int, batch_size: int, part: slice, size: int, latent: LatentSpec, *, posterior: bool = False
) -> StepDraws:
    """Draws number ``part`` out of ``batch_size`` for ``step`` (from 0) over a data set of ``size`` examples."""
    positions = range(*part.indices(batch_size))
    scalars = np.empty((len(positions), 4), dtype=np.float64)
    noise = np.empty((len(positions), *latent.shape), dtype=np.float32)
    extra = np.empty_like(noise) if posterior else None
    caption = np.empty(len(positions))
    for row, position in enumerate(positions):
        source = generator(seed, "train", step, position)
        scalars[row] = source.random(4)
        source.standard_normal(out=noise[row], dtype=np.float32)
        if extra is not None:
            source.standard_normal(out=extra[row], dtype=np.float32)
        caption[row] = source.random()
    uniform = torch.from_numpy(scalars).float().clamp(1e-6, 1 - 1e-6)
    indices = epoch_indices(seed, step * batch_size + positions.start, len(positions), size)
    return StepDraws(
        indices=indices,
        uniform_time=uniform[:, 0],
        drop=uniform[:, 1],
        variant=uniform[:, 2],
        position=uniform[:, 3],
        noise=torch.from_numpy(noise),
        posterior=torch.from_numpy(extra) if extra is not None else None,
        caption=torch.from_numpy(caption),
    )


def sample_noise(seed: int, first: int, count: int, latent: LatentSpec) -> Tensor:
    """Initial noise (count, *latent) of samples number ``first`` onwards, each seeded by its own number."""
    noise = np.empty((count, *latent.shape), dtype=np.float32)
    for row in range(count):
        generator(seed, "sample", position=first + row).standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(noise)


def solver_noise(seed: int, step: int, first: int, shape: torch.Size) -> Tensor:
    """Noise of solver step ``step`` (an SDE's) for samples number ``first`` onwards, shaped (count, ...)."""
    noise = np.empty(shape, dtype=np.float32)
    for row in range(shape[0]):
        generator(seed, "solver", step + 1, first + row).standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(noise)


def module_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Seed for what modules draw by themselves (dropout) in one micro-batch."""
    return int(generator(seed, "train", step, 2**40 + rank * 2**20 + micro_batch).integers(2**62))
