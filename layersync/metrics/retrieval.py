"""Scores of pairs: does a sample's embedding lie where the embedding of its text does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from layersync.metrics.arrays import Features, Floats, matched

ROWS = 512
"""Texts compared with all motions at a time."""


def r_precision(text: Features, motion: Features, top_k: int = 3) -> NDArray[np.float64]:
    """(top_k,): share of texts i whose motion i is among the 1, ..., ``top_k`` nearest of all motions.

    ``text`` and ``motion`` are embeddings (n, d) in one space, row i of both a pair; distances are Euclidean. A motion
    as near as the text's own counts as nearer, so that embeddings which are all the same score 0. The share depends on
    n: text-to-motion papers take it in batches of 32, see :func:`batched_r_precision`.

    Raises ValueError for different numbers of rows, or ``top_k`` outside 1, ..., n.
    """
    x, y = matched(text, motion, ("text", "motion"))
    if not 1 <= top_k <= len(x):
        raise ValueError(f"top_k is {top_k}, with {len(x)} pairs")
    return _shares(_ranks(x, y), top_k)


def batched_r_precision(
    text: Features, motion: Features, *, top_k: int = 3, batch_size: int = 32, seed: int | None = None
) -> NDArray[np.float64]:
    """(top_k,): mean of :func:`r_precision` over batches of exactly ``batch_size`` pairs, without a smaller last one.

    Batches of 32 are those of Guo et al. (CVPR 2022), in the order given, or shuffled by ``seed``.

    Raises ValueError where there are fewer than ``batch_size`` pairs.
    """
    x, y = matched(text, motion, ("text", "motion"))
    if not 1 <= top_k <= batch_size:
        raise ValueError(f"top_k is {top_k}, with batches of {batch_size} pairs")
    if len(x) < batch_size:
        raise ValueError(f"R-precision in batches of {batch_size} needs at least {batch_size} pairs, not {len(x)}")
    order = np.arange(len(x)) if seed is None else np.random.default_rng(seed).permutation(len(x))
    batches = order[: len(x) // batch_size * batch_size].reshape(-1, batch_size)
    return _shares(np.concatenate([_ranks(x[rows], y[rows]) for rows in batches]), top_k)


def _ranks(x: Floats, y: Floats) -> NDArray[np.int64]:
    """(n,): how many other rows of ``y`` are as near to row i of ``x`` as row i of ``y``, or nearer."""
    found = []
    for start in range(0, len(x), ROWS):
        distances = cdist(x[start : start + ROWS], y)
        own = distances[np.arange(len(distances)), np.arange(start, start + len(distances))]
        found.append((distances <= own[:, None]).sum(axis=1) - 1)
    return np.concatenate(found)


def _shares(ranks: NDArray[np.int64], top_k: int) -> NDArray[np.float64]:
    return (ranks[:, None] < np.arange(1, top_k + 1)).mean(axis=0)


def matching_score(text: Features, motion: Features) -> float:
    """Mean Euclidean distance between the two embeddings of a pair, (n, d) each; "MM distance" in papers."""
    x, y = matched(text, motion, ("text", "motion"))
    return float(np.linalg.norm(x - y, axis=1).mean())


def cosine_similarity_score(a: Features, b: Features) -> float:
    """Mean cosine between the two embeddings of a pair, (n, d) each, in [-1, 1]: CLAP score, CLIP score.

    Raises ValueError for rows that are zero.
    """
    x, y = matched(a, b, ("a", "b"))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    if not norms.all():
        raise ValueError(f"{int((norms == 0).sum())} of {len(x)} pairs have an embedding of zeros")
    return float(((x * y).sum(axis=1) / norms).mean())
