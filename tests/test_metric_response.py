"""Scores answer to damage: strictly, level by level, for every seed, on real data of the three modalities.

The data is large and no part of the package: ``$LAYERSYNC_DATA`` names its folder (see docs/results/metrics.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from benchmarks.metric_response.measure import DATA_VARIABLE, EXPECTED, SEEDS, Direction, data_folder, measure, steps_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        DATA_VARIABLE not in os.environ,
        reason=f"{DATA_VARIABLE} is not set: it names the folder of the real data that is damaged here",
    ),
]

CASES = [(*where, metric, direction) for where, answers in EXPECTED.items() for metric, direction in answers.items()]


@pytest.fixture(scope="module")
def measured() -> Callable[[str], dict[str, Any]]:
    """Scores of a domain, measured once."""
    return cache(lambda name: measure(name, data_folder()))


@pytest.mark.parametrize(("domain", "damage", "metric", "direction"), CASES)
def test_score_answers_to_damage(
    measured: Callable[[str], dict[str, Any]], domain: str, damage: str, metric: str, direction: Direction
) -> None:
    answer = measured(domain)["damages"][damage]
    assert len(answer["levels"]) == 4
    assert len(answer["values"][metric]) == len(SEEDS) == 5
    for seed, values in zip(SEEDS, answer["values"][metric], strict=True):
        assert steps_in(direction, values), f"seed {seed}: {metric} over {damage} {answer['levels']} is {values}"
