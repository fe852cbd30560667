"""What theory expects of each score under each damage, and what was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import say
from benchmarks.metric_response.domains import DOMAINS, Damage, Domain

DATA_VARIABLE = "LAYERSYNC_DATA"
SEEDS = (0, 1, 2, 3, 4)

Direction = Literal["rises", "falls"]
DISTANCES: dict[str, Direction] = {"fd": "rises", "kd": "rises"}
SPEECH: dict[str, Direction] = {"fd-ge2e": "rises", "kad-ge2e": "rises", "kd-ge2e": "rises"}

EXPECTED: dict[tuple[str, str], dict[str, Direction]] = {
    ("image", "blur"): {**DISTANCES, "recall": "falls", "coverage": "falls", "is": "falls"},
    ("image", "noise"): {**DISTANCES, "recall": "falls", "coverage": "falls", "is": "falls"},
    ("image", "missing classes"): {**DISTANCES, "recall": "falls", "coverage": "falls", "is": "falls"},
    ("image", "missing, one choice"): {},
    ("audio", "clipping"): SPEECH,
    ("audio", "noise"): SPEECH,
    ("audio", "low-pass"): SPEECH,
    ("motion", "frozen feet"): {"foot-skating": "rises"},
    ("motion", "jitter"): {"jitter": "rises", "fd-kinetic": "rises", "fd-geometric": "rises"},
    ("motion", "faster"): {"jitter": "rises", "fd-kinetic": "rises", "fd-geometric": "rises"},
    ("motion", "slower"): {"jitter": "falls", "fd-kinetic": "rises", "fd-geometric": "rises"},
}
"""By domain and damage: the scores that must answer, and how, from the first level to the fourth, for every seed.

A score that is not named is measured and shown and may do what it likes."""


def data_folder() -> Path:
    """``$LAYERSYNC_DATA``. Raises KeyError where it is not set."""
    return Path(os.environ[DATA_VARIABLE])


def steps_in(direction: Direction, values: Sequence[float]) -> bool:
    """Whether each value lies strictly beyond the one before it."""
    sign = 1 if direction == "rises" else -1
    return all(sign * (after - before) > 0 for before, after in pairwise(values))


def measure(name: str, data: Path) -> dict[str, Any]:
    """Scores of a domain: of each seed's set as it is, and of every damage at every level."""
    start = time.perf_counter()
    domain = DOMAINS[name](data)
    clean = [domain.score(seed) for seed in SEEDS]
    say(f"{name}: features of {domain.num_reference} clean samples, scores of {len(SEEDS)} undamaged sets")
    return {
        "domain": name,
        "reference_samples": domain.num_reference,
        "generated_samples": domain.num_generated,
        "pool_samples": len(domain.pool),
        "seeds": list(SEEDS),
        "taken_on": domain.about(),
        "undamaged": _by_metric(domain, clean),
        "damages": {kind.name: _answer(domain, kind) for kind in domain.damages},
        "seconds": round(time.perf_counter() - start),
    }


def _answer(domain: Domain, kind: Damage) -> dict[str, Any]:
    scores = [[domain.score(seed, kind, level) for level in kind.levels] for seed in SEEDS]
    say(f"{domain.name}: {kind.name}")
    values = {metric: [[score[metric] for score in levels] for levels in scores] for metric in domain.metrics}
    expected = EXPECTED[domain.name, kind.name]
    return {
        "unit": kind.unit,
        "levels": list(kind.levels),
        "values": values,
        "expected": expected,
        "seeds_that_rise": {metric: _count("rises", rows) for metric, rows in values.items()},
        "seeds_that_fall": {metric: _count("falls", rows) for metric, rows in values.items()},
    }


def _count(direction: Direction, rows: Sequence[Sequence[float]]) -> int:
    return sum(steps_in(direction, row) for row in rows)


def _by_metric(domain: Domain, scores: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {metric: [score[metric] for score in scores] for metric in domain.metrics}
