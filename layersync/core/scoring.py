"""From features of two sets to a score: one function a kind of metric, see :data:`layersync.core.metric.KINDS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import softmax

from layersync.core.errors import InputError
from layersync.core.featureset import FeatureSet, StreamFeatures
from layersync.core.metric import MetricName, Needs
from layersync.core.results import BY_CLASSIFIER, Reference, Score
from layersync.metrics import (
    batched_r_precision,
    cosine_similarity_score,
    density_coverage,
    diversity,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    inception_score,
    kernel_audio_distance,
    kernel_distance,
    matching_score,
    mean_frechet_interval,
    multimodality,
    precision_recall,
    replicate,
)

KID_SUBSETS = (100, 1000)
"""Subsets and their size, as KID is published; all samples at once where a set has fewer."""
IS_SPLITS = 10
R_PRECISION_BATCH = 32
DIVERSITY_PAIRS, MULTIMODALITY_PAIRS = 300, 10
"""As published; half of the samples, where that is less."""
INFINITY_SMALLEST = 500
"""Fewest rows of FAD-infinity's draws, as published; a quarter of the rows, where that is less."""

NEIGHBOUR_KINDS = ("precision", "recall", "density", "coverage")

Found = tuple[float, tuple[float, float] | None, dict[str, Any]]
"""Value, 95 % interval, what a reader needs beside them."""


def score(
    metric: MetricName,
    generated: FeatureSet,
    real: FeatureSet | None,
    reference: Reference | None,
    *,
    streams: Sequence[str] = (),
) -> Score:
    """The score of one metric; a Fréchet distance is the mean of those of ``streams``, where some are given.

    ``real`` and ``reference`` may be left out for metrics that need generated samples alone. Where a metric is defined
    by random subsets, pairs or batches they are the same ones each time. Raises :class:`InputError` for what a metric
    cannot be computed from.
    """
    try:
        if metric.needs in (Needs.BOTH, Needs.BOTH_ROWS):
            if real is None:
                raise InputError(f"metric {metric.name} needs real samples")
            if metric.kind == "fd":
                sets = [(generated.stream(name), real.stream(name)) for name in streams or (metric.stream,)]
                value, interval, details = _frechet(sets)
            elif metric.kind in NEIGHBOUR_KINDS:
                value, interval, details = _neighbours(metric, generated, real)
            else:
                value, interval, details = _against(metric, generated.stream(metric.stream), real.stream(metric.stream))
        else:
            value, interval, details = _alone(metric, generated)
            reference = None
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"metric {metric.name}: {error}") from None
    return Score(
        value,
        interval,
        generated.extractor,
        reference,
        details,
        checksum=generated.checksum,
        preprocessing=generated.preprocessing,
        num_samples=generated.num_samples,
    )


def _against(metric: MetricName, mine: StreamFeatures, theirs: StreamFeatures) -> Found:
    if metric.kind == "fd-inf":
        rows = _rows(mine)
        smallest = min(INFINITY_SMALLEST, len(rows) // 4)
        found = frechet_infinity(rows, theirs.statistics, smallest=smallest)
        return found.value, None, {"r_squared": found.r_squared, "rows": len(rows), "sizes": list(found.sizes)}
    if metric.kind == "fd-each":
        return _frechet_each(mine, theirs)
    x, y = _rows(mine), _rows(theirs)
    if metric.kind == "kd":
        enough = min(len(x), len(y)) >= KID_SUBSETS[1]
        distance = kernel_distance(x, y, KID_SUBSETS if enough else None)
        if distance.std is None:
            return distance.value, None, {"subsets": "all samples at once"}
        return distance.value, None, {"subsets": list(KID_SUBSETS), "std_over_subsets": distance.std}
    audio = kernel_audio_distance(x, y)
    return audio.value, None, {"bandwidth": audio.bandwidth, "bandwidth_of": "reference", "scale": 100}


def _neighbours(metric: MetricName, generated: FeatureSet, real: FeatureSet) -> Found:
    """On one row a sample: the nearest rows to one of several of a sound are those that overlap it in that sound."""
    x, y = generated.per_sample(metric.stream), real.per_sample(metric.stream)
    pair = precision_recall(x, y) if metric.kind in ("precision", "recall") else density_coverage(x, y)
    return float(getattr(pair, metric.kind)), None, {"k": 3 if metric.kind in ("precision", "recall") else 5}


def _frechet(sets: Sequence[tuple[StreamFeatures, StreamFeatures]]) -> Found:
    """The mean over pairs of generated and real features, which are of the same samples."""
    mine, theirs = sets[0]
    for which, statistics in (("generated", mine.statistics), ("real", theirs.statistics)):
        if statistics.count is not None and statistics.count <= len(statistics.mean):
            warnings.warn(
                f"{statistics.count} {which} rows of {len(statistics.mean)} features: the covariance is singular and "
                f"the Fréchet distance biased upwards; more than {len(statistics.mean)} are needed",
                stacklevel=2,
            )
    with warnings.catch_warnings():  # said above, in the words of a user
        warnings.filterwarnings("ignore", message=".*covariance is singular.*")
        values = [frechet_distance(generated.statistics, real.statistics) for generated, real in sets]
        details: dict[str, Any] = {"features": len(mine.statistics.mean)}
        rows = [generated.rows for generated, _ in sets if generated.rows is not None]
        if len(sets) > 1:
            details[BY_CLASSIFIER] = values
            interval, method = mean_frechet_interval(rows, [real.statistics for _, real in sets], groups=mine.owner)
        elif rows:
            interval, method = frechet_interval(rows[0], theirs.statistics, groups=mine.owner)
        else:
            return values[0], None, details
    return float(np.mean(values)), interval, {**details, "interval": method, "rows": len(rows[0])}


def _frechet_each(mine: StreamFeatures, theirs: StreamFeatures) -> Found:
    """Per-file FAD: the median over generated samples of each one's own distance (fadtk's individual scores)."""
    rows, owner = _rows(mine), mine.owner
    assert owner is not None
    numbers, counts = np.unique(owner, return_counts=True)
    if counts.min() < 2:
        raise InputError(
            f"sample {numbers[counts.argmin()]} has {counts.min()} row of features; fd-each needs 2 of each sample, "
            f"so longer sounds or an extractor with more rows a second"
        )
    with warnings.catch_warnings():  # one sample has fewer rows than features: that is what this metric is
        warnings.filterwarnings("ignore", message=".*covariance is singular.*")
        values = [frechet_distance(rows[owner == number], theirs.statistics) for number in numbers]
    return float(np.median(values)), None, {"value_is": "median over samples", "each": values}


def _alone(metric: MetricName, generated: FeatureSet) -> Found:
    if metric.kind == "is":
        logits = _rows(generated.stream(metric.stream)).astype(np.float64)
        if len(logits) < IS_SPLITS * logits.shape[1]:
            warnings.warn(
                f"metric {metric.name}: {len(logits)} samples in {IS_SPLITS} splits for {logits.shape[1]} classes: a "
                f"split holds fewer samples than there are classes, and the score comes out low",
                stacklevel=2,
            )
        found = inception_score(softmax(logits, axis=1), IS_SPLITS)
        return found.value, None, {"std_over_splits": found.std, "splits": IS_SPLITS}
    features = generated.per_sample(metric.stream)
    if metric.kind == "diversity":
        pairs = min(DIVERSITY_PAIRS, len(features) // 2)
        value, interval, details = _replicated(
            lambda number: diversity(features, pairs=pairs, seed=number), "draws of pairs"
        )
        return value, interval, {**details, "pairs": pairs}
    if generated.texts is None:
        raise InputError(f"metric {metric.name}: needs the samples' texts")
    if metric.kind == "multimodality":
        repeats = _repeats(features, generated.texts)
        found_value, interval, details = _replicated(
            lambda n: multimodality(repeats, pairs=min(MULTIMODALITY_PAIRS, repeats.shape[1] // 2), seed=n),
            "draws of pairs",
        )
        return found_value, interval, {**details, "texts": len(repeats), "samples_a_text": repeats.shape[1]}
    if "text" not in generated.streams:
        raise InputError(f"metric {metric.name}: extractor {generated.extractor} made nothing of the samples' texts")
    text = generated.per_sample("text")
    if len(text) < len(features):
        raise InputError(
            f"metric {metric.name}: extractor {generated.extractor} could read the texts of {len(text)} of "
            f"{len(features)} samples"
        )
    if metric.kind == "similarity":
        return cosine_similarity_score(features, text), None, {}
    if metric.kind == "matching":
        return matching_score(text, features), None, {}
    rank = int(metric.kind.rpartition("-")[2])
    found_value, interval, details = _replicated(
        lambda n: float(batched_r_precision(text, features, top_k=rank, batch_size=R_PRECISION_BATCH, seed=n)[-1]),
        "shuffles into batches",
    )
    return found_value, interval, {**details, "batch": R_PRECISION_BATCH}


def _replicated(one: Callable[[int], float], over: str, count: int = 20) -> Found:
    """Mean and interval over ``count`` seeds of a metric that is defined by random choices."""
    found = replicate([one(number) for number in range(count)])
    return found.value, found.interval, {"interval": f"1.96 sd / sqrt(n) over {count} {over}"}


def _repeats(features: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(texts, repeats, d): samples of the same text, as many of each as of the rarest."""
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    fewest = min(len(found) for found in rows.values())
    if fewest < 2:
        once = next(text for text, found in rows.items() if len(found) < 2)
        raise InputError(f"needs several samples of every text; {once!r} has one")
    return np.stack([features[found[:fewest]] for found in rows.values()])


def _rows(stream: StreamFeatures) -> np.ndarray:
    if stream.rows is None:
        raise InputError("needs samples; the file given holds statistics alone")
    return stream.rows


def combine(scores: Sequence[Score]) -> Score:
    """One score of several replications: their mean, and 1.96 sd / sqrt(n) around it."""
    found = replicate([score.value for score in scores])
    first = scores[0]
    details = {
        **first.details,
        "interval": f"1.96 sd / sqrt(n) over {len(scores)} replications",
        "replications": [score.value for score in scores],
    }
    if BY_CLASSIFIER in first.details:
        details[BY_CLASSIFIER] = np.mean([score.details[BY_CLASSIFIER] for score in scores], axis=0).tolist()
    return replace(first, value=found.value, interval=found.interval, details=details)
