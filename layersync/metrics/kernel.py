"""Maximum mean discrepancy between two sets of features: KID and KAD. Unbiased, so that it may lie below 0.

Kernels are summed block by block in float64: memory does not grow with the square of the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from layersync.metrics.arrays import Features, Floats, blocks, checked_pair, doubled
from layersync.metrics.estimate import Estimate

Kernel = Callable[[Tensor, Tensor], Tensor]
MEDIAN_SAMPLES = 10_000
"""Samples up to which the median distance is taken over all pairs (400 MB of them); of more, so many are drawn."""


@dataclass(frozen=True)
class KernelAudioDistance:
    """A KAD and the bandwidth that it was taken with."""

    value: float
    bandwidth: float

    def __float__(self) -> float:
        return self.value


def kernel_distance(x: Features, y: Features, subsets: tuple[int, int] | None = None, *, seed: int = 0) -> Estimate:
    """Kernel distance (KID, Binkowski et al., arXiv 1801.01401) between features (n, d) and (m, d).

    The kernel is (x.y / d + 1)^3. ``subsets`` is a number and a size: the mean and deviation over that many random
    subsets, (100, 1000) in publications; with ``seed=2020`` they are torch-fidelity's. ``None`` compares all samples at
    once, and has no deviation.

    Raises ValueError where a subset is larger than a set.
    """
    first, second = checked_pair(x, y, ("x", "y"))
    if subsets is None:
        return Estimate(_discrepancy(first, second, _cubic), None)
    number, size = subsets
    if number < 1 or not 2 <= size <= min(len(first), len(second)):
        raise ValueError(f"{number} subsets of {size} cannot be drawn from {len(first)} and {len(second)} samples")
    random = np.random.RandomState(seed)
    scores = []
    for _ in range(number):
        a, b = (rows[random.choice(len(rows), size, replace=False)] for rows in (first, second))
        scores.append(_discrepancy(a, b, _cubic))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def kernel_audio_distance(
    generated: Features,
    reference: Features,
    *,
    bandwidth: Literal["reference", "generated"] | float = "reference",
    scale: float = 100,
    seed: int = 0,
) -> KernelAudioDistance:
    """KAD (Chung et al., arXiv 2502.15602) of generated features (n, d) against a reference (m, d).

    The kernel is exp(-|x - y|^2 / (2 bandwidth^2)), the discrepancy is multiplied by ``scale``. The bandwidth is the
    median distance between samples of the reference set, as kadtk's documentation has it; its code takes the generated
    set, ``bandwidth="generated"`` here, which makes scores of several systems incomparable. Of more than 10,000
    samples the median is that of 10,000 drawn by ``seed``.

    Raises ValueError for a bandwidth that is not above 0, as that of samples which are all the same.
    """
    x, y = checked_pair(generated, reference, ("generated", "reference"))
    if isinstance(bandwidth, str):
        if bandwidth not in ("reference", "generated"):
            raise ValueError(f"bandwidth is {bandwidth!r}; it must be 'reference', 'generated' or a number")
        width = median_distance(y if bandwidth == "reference" else x, seed)
    else:
        width = float(bandwidth)
    if not width > 0:
        raise ValueError(f"the bandwidth is {width}, given as {bandwidth!r}; it must be above 0")
    centre = torch.from_numpy(y.mean(axis=0, dtype=np.float64))
    return KernelAudioDistance(scale * _discrepancy(x, y, _gaussian_kernel(width), centre), width)


def median_distance(x: Floats, seed: int = 0) -> float:
    """Median Euclidean distance over pairs of ``x`` (n, d); of two in the middle the lower one, as in kadtk."""
    if len(x) > MEDIAN_SAMPLES:
        x = x[np.random.default_rng(seed).choice(len(x), MEDIAN_SAMPLES, replace=False)]
    distances = torch.pdist(doubled(x)).numpy()
    middle = (len(distances) - 1) // 2
    distances.partition(middle)
    return float(distances[middle])


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _gaussian_kernel(bandwidth: float) -> Kernel:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = torch.addmm((y * y).sum(1)[None], x, y.T, alpha=-2).add_((x * x).sum(1)[:, None]).clamp_(min=0)
        return squares.div_(-2 * bandwidth**2).exp_()

    return kernel


def _discrepancy(x: Floats, y: Floats, kernel: Kernel, centre: Tensor | float = 0.0) -> float:
    """Unbiased squared MMD, each block of samples widened to float64 and moved by ``centre`` when it is needed."""

    def widened(block: Floats) -> Tensor:
        return doubled(block).sub_(centre)

    def within(rows: Floats) -> float:
        """Mean of the kernel over pairs of different samples."""
        total, parts = 0.0, list(blocks(rows))
        for number, part in enumerate(parts):
            first = widened(part)
            own = kernel(first, first)
            total += float(own.sum() - own.diagonal().sum())
            total += 2 * sum(float(kernel(first, widened(other)).sum()) for other in parts[number + 1 :])
        return total / (len(rows) * (len(rows) - 1))

    between = 0.0
    for part in blocks(x):
        first = widened(part)
        between += sum(float(kernel(first, widened(other)).sum()) for other in blocks(y))
    return within(x) + within(y) - 2 * between / (len(x) * len(y))
