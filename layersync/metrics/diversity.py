"""How much samples differ from each other, as text-to-motion papers measure it (Guo et al., CVPR 2022)."""

from __future__ import annotations

import numpy as np

from layersync.metrics.arrays import Features, checked


def diversity(x: Features, *, pairs: int = 300, seed: int = 0) -> float:
    """Mean Euclidean distance between ``pairs`` random samples of ``x`` (n, d) and as many others.

    Both are drawn from all samples without replacement; a sample may meet itself, as in the published evaluation.
    Neither large nor small is good: near the value of the real samples is.

    Raises ValueError where there are not more than ``pairs`` samples.
    """
    features = checked(x, "x", least=1)
    first, second = _two_draws(len(features), pairs, seed, "samples")
    return float(np.linalg.norm(features[first].astype(np.float64) - features[second], axis=1).mean())


def multimodality(x: Features, *, pairs: int = 10, seed: int = 0) -> float:
    """Mean distance between samples of one text, over all texts; ``x`` is (texts, repeats, d).

    The same ``pairs`` repeats are compared for every text; the published evaluation has 100 texts of 30 repeats.

    Raises ValueError where there are not more than ``pairs`` repeats.
    """
    features = checked(x, "x", least=1, axes=3)
    first, second = _two_draws(features.shape[1], pairs, seed, "repeats of each text")
    return float(np.linalg.norm(features[:, first].astype(np.float64) - features[:, second], axis=2).mean())


def _two_draws(count: int, pairs: int, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    if pairs < 1 or count <= pairs:
        raise ValueError(f"{pairs} pairs need more than {pairs} {what}, not {count}")
    random = np.random.default_rng(seed)
    return random.choice(count, pairs, replace=False), random.choice(count, pairs, replace=False)
