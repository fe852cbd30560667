"""Scores of what a classifier says of samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.special import rel_entr

from layersync.metrics.arrays import Features, checked
from layersync.metrics.estimate import Estimate

ROUNDING = 1e-3
"""How far the probabilities of a sample may be from a sum of 1: what half precision leaves."""


def inception_score(probabilities: Features, splits: int = 10, *, shuffle: bool = True, seed: int = 0) -> Estimate:
    """exp of the mean KL(p(class | sample) || p(class)), mean and deviation over splits (Salimans et al., 2016).

    ``probabilities`` (n, classes) are a softmax's, not logits. Every split has a p(class) of its own, so that the score
    grows with the size of a split: quote both. Shuffled, with ``seed=2020``, this is torch-fidelity's; not shuffled,
    with n / 5000 splits, it is that of ADM's evaluator.

    Raises ValueError for negative values, rows that do not sum to 1, or fewer samples than splits.
    """
    p = checked(probabilities, "probabilities", least=1).astype(np.float64)
    if p.min() < 0:
        raise ValueError(f"probabilities are negative in {int((p < 0).any(axis=1).sum())} of {len(p)} samples")
    wrong = int((abs(p.sum(axis=1) - 1) > ROUNDING).sum())
    if wrong:
        raise ValueError(f"probabilities do not sum to 1 in {wrong} of {len(p)} samples; are they logits?")
    if not 1 <= splits <= len(p):
        raise ValueError(f"{len(p)} samples cannot be divided into {splits} splits")
    if shuffle:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    bounds = [number * len(p) // splits for number in range(splits + 1)]
    scores = [_score(p[start:end]) for start, end in pairwise(bounds)]
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _score(p: np.ndarray) -> float:
    return float(np.exp(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))
