"""How far a score can be trusted: over repeated evaluations, or over the draw of the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
NORMAL = 1.96
"""Standard errors on either side of a mean that hold 95 %; rounded as the field does."""


@dataclass(frozen=True)
class Replicated:
    """Mean of a score over replications, as text-to-motion papers quote it."""

    value: Any
    """Mean: a float, or an array (k,) for a score of k numbers."""
    interval: tuple[Any, Any]
    """``value`` -+ 1.96 sd / sqrt(n), of the same kind; sd is divided by n, as the published evaluation does."""
    replications: int

    def __float__(self) -> float:
        return float(self.value)


def replicate(score: Callable[[int], ArrayLike] | ArrayLike, replications: int = 20) -> Replicated:
    """Mean and 95 % interval of a score over replications.

    ``score`` is called with 0, 1, ... as its seed, ``replications`` times; or it holds the scores taken already,
    (n,) or (n, k). 20 replications, and the interval, are those of text-to-motion (Guo et al., CVPR 2022).

    Raises ValueError for fewer than 2 replications.
    """
    given = [score(number) for number in range(replications)] if callable(score) else score
    values = np.asarray(given, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < 2:
        raise ValueError(f"scores must be (replications,) or (replications, k), at least 2, not {list(values.shape)}")
    mean, half = values.mean(0), NORMAL * values.std(0) / np.sqrt(len(values))
    low, high = mean - half, mean + half
    if values.ndim == 1:
        return Replicated(float(mean), (float(low), float(high)), len(values))
    return Replicated(mean, (low, high), len(values))


@dataclass(frozen=True)
class Bootstrapped:
    """A score and the interval of it over resamples."""

    value: float
    """Of the samples themselves."""
    interval: tuple[float, float]
    draws: Array
    """(resamples,): the score of each."""

    def __float__(self) -> float:
        return self.value


def bootstrap(
    score: Callable[..., float], *samples: NDArray[Any], resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Bootstrapped:
    """Percentile bootstrap of ``score(*samples)`` over the rows of ``samples``, arrays of one length.

    The same rows are drawn from each of them, with replacement, so that pairs stay pairs. For a score that is biased by
    repeated samples, as distances between sets are, the interval lies off ``value``.

    Raises ValueError for arrays of several lengths, or fewer than 2 rows.
    """
    lengths = {len(x) for x in samples}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"samples must be arrays of one length of at least 2, not of {sorted(lengths)}")
    count, random = lengths.pop(), np.random.default_rng(seed)
    draws = np.empty(resamples)
    for number in range(resamples):
        rows = random.integers(count, size=count)
        draws[number] = score(*(x[rows] for x in samples))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrapped(float(score(*samples)), (float(low), float(high)), draws)
