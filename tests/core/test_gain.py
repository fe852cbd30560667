"""What several seeds say together: closed forms, SciPy's own interval, coverage, and curves with a known speed-up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from layersync.core.gain import curve, last_change, overhead, paired_gain, speed_up

SCORES = np.random.default_rng(0).uniform(5, 20, size=10)


@pytest.fixture
def rng() -> np.random.Generator:
    """A test's own, so that its numbers do not hang on which ran before."""
    return np.random.default_rng(1)


def test_gain_is_the_fraction_by_which_each_seed_is_better() -> None:
    gain = paired_gain(SCORES, 0.9 * SCORES, "lower")
    assert gain.mean == pytest.approx(0.1) and gain.interval == pytest.approx((0.1, 0.1))
    assert gain.resolution == pytest.approx(0, abs=1e-12) and gain.seeds == 10 and gain.note == ""


def test_a_score_that_improves_upwards_gains_by_rising() -> None:
    assert paired_gain(SCORES, 1.2 * SCORES, "higher").mean == pytest.approx(0.2)
    assert paired_gain(SCORES, 1.2 * SCORES, "lower").mean == pytest.approx(-0.2)


def test_interval_is_scipys_on_logarithms_of_ratios(rng: np.random.Generator) -> None:
    after = SCORES * rng.lognormal(-0.1, 0.05, size=10)
    found = paired_gain(SCORES, after, "lower")
    low, high = stats.ttest_1samp(np.log(after / SCORES), 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((1 - np.exp(high), 1 - np.exp(low)))
    assert found.resolution == pytest.approx(1 - np.exp(-(high - low) / 2))
    assert found.interval is not None and found.interval[0] < found.mean < found.interval[1]


def test_pairing_takes_out_what_seeds_share(rng: np.random.Generator) -> None:
    """Seeds that differ by a factor of four hide nothing of a gain of 2 % that each of them has."""
    after = SCORES * rng.lognormal(np.log(0.98), 0.002, size=10)
    paired = paired_gain(SCORES, after, "lower")
    shuffled = paired_gain(SCORES, np.roll(after, 1), "lower")
    assert paired.interval is not None and paired.interval[0] > 0.01
    assert shuffled.resolution > 20 * paired.resolution


@pytest.mark.parametrize(("seeds", "resolution"), [(3, 0.095), (10, 0.028)])
def test_resolution_of_a_spread_of_four_percent(seeds: int, resolution: float) -> None:
    """t(0.975, n - 1) * 4 % / sqrt(n), from a table of Student's t: 4.303 and 2.262."""
    z = np.linspace(-1, 1, seeds)
    ratios = 0.04 * z / z.std(ddof=1)
    assert paired_gain(np.ones(seeds), np.exp(ratios), "lower").resolution == pytest.approx(resolution, abs=0.0006)


def test_intervals_cover_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    """1,000 comparisons of 5 seeds: 95 % of intervals hold the true gain, give or take 4 standard errors (2.8 %)."""
    hits = 0
    for _ in range(1000):
        before = rng.lognormal(2, 0.3, size=5)
        interval = paired_gain(before, before * rng.lognormal(np.log(0.93), 0.05, size=5), "lower").interval
        assert interval is not None
        hits += interval[0] <= 0.07 <= interval[1]
    assert abs(hits / 1000 - 0.95) < 0.028


def test_what_cannot_be_said_is_said_so() -> None:
    one = paired_gain(SCORES[:1], 0.5 * SCORES[:1], "lower")
    assert (one.mean, one.interval, one.resolution) == (0.5, None, None) and "no error bar" in one.note
    assert "indicative" in paired_gain(SCORES[:4], SCORES[:4], "lower").note
    assert paired_gain(SCORES[:5], SCORES[:5], "lower").note == ""
    for before, after, better, why in (
        (SCORES, -SCORES, "lower", "not above 0"),
        (np.zeros(3), SCORES[:3], "higher", "not above 0"),
        (SCORES, SCORES, None, "neither"),
        (SCORES[:0], SCORES[:0], "lower", "no seed"),
    ):
        found = paired_gain(before, after, better)
        assert found.mean is None and found.interval is None and why in found.note


STEPS = [500, 1000, 1500, 2000]


def falling(rate: float, seeds: int = 1) -> np.ndarray:
    """Scores 50 exp(-rate * step): a straight line where the speed-up is read off."""
    return np.tile(50 * np.exp(-rate * np.asarray(STEPS)), (seeds, 1))


@pytest.mark.parametrize("factor", [1.0, 1.25, 1.9, 3.1])
def test_speed_up_of_a_curve_that_falls_so_many_times_as_fast(factor: float) -> None:
    found = speed_up(STEPS, falling(1e-3, 5), falling(factor * 1e-3, 5), "lower", times=([1.0] * 5, [1.04] * 5))
    assert (found.reference_step, found.variant_step) == pytest.approx((2000, 2000 / factor))
    assert found.steps == pytest.approx(factor) and found.steps_interval == pytest.approx((factor, factor))
    assert found.seconds == pytest.approx(factor / 1.04) and found.seconds_interval[0] == pytest.approx(factor / 1.04)
    assert found.note == ""


def test_speed_up_of_a_score_that_rises() -> None:
    assert speed_up(STEPS, 1 / falling(1e-3), 1 / falling(2e-3), "higher").steps == pytest.approx(2)


def test_speed_up_of_what_never_comes_there() -> None:
    found = speed_up(STEPS, falling(1e-3, 5), falling(0.5e-3, 5), "lower", times=([1.0] * 5, [1.0] * 5))
    assert found.steps is None and found.seconds is None and found.note.startswith("not reached")
    assert found.steps_interval == (0.0, 0.0)


def test_speed_up_before_the_first_evaluation_is_a_lower_bound() -> None:
    found = speed_up(STEPS, falling(1e-3), falling(9e-3), "lower")
    assert found.steps == 4 and "at least" in found.note and "one seed" in found.note
    assert found.steps_interval is None and found.seconds is None


def test_speed_up_over_a_reference_that_is_there_at_the_first_evaluation_is_an_upper_bound() -> None:
    early = [[5.0, 6.0, 6.0, 6.0]]
    found = speed_up(STEPS, early, [[9.0, 8.0, 7.0, 5.9]], "lower")
    assert found.steps is not None and found.steps < 0.3 and "at most this much" in found.note
    both = speed_up(STEPS, early, [[5.5, 5.8, 6.1, 5.9]], "lower")
    assert both.steps is None and both.note.startswith("both are there at the first evaluation")


def test_a_curve_against_itself_is_no_faster_even_where_it_was_better_before() -> None:
    curve = [[10.0, 5.0, 6.0, 6.0]]
    found = speed_up(STEPS, curve, curve, "lower")
    assert found.steps == 1 and found.reference_step < 1000


def test_speed_up_in_seconds_knows_how_step_times_vary() -> None:
    steps = speed_up(STEPS, falling(1e-3, 4), falling(2e-3, 4), "lower", ([1.0] * 4, [0.9, 1.0, 1.1, 1.2]))
    assert steps.steps_interval == pytest.approx((2, 2))
    assert steps.seconds_interval is not None and steps.seconds_interval[0] < steps.seconds < steps.seconds_interval[1]


def test_one_evaluation_is_no_curve() -> None:
    found = speed_up([500], [[3.0], [4.0]], [[2.0], [3.0]], "lower")
    assert found.steps is None and "one evaluation" in found.note


def test_resolution_is_half_the_interval_whichever_way_a_score_improves(rng: np.random.Generator) -> None:
    after = SCORES * rng.lognormal(0.2, 0.3, size=10)
    for better, centre in (("higher", np.log(after / SCORES)), ("lower", np.log(SCORES / after))):
        found = paired_gain(SCORES, after, better)
        half = stats.t.ppf(0.975, 9) * centre.std(ddof=1) / np.sqrt(10)
        wanted = np.expm1(half) if better == "higher" else -np.expm1(-half)
        assert found.resolution == pytest.approx(wanted)


def test_speed_up_that_some_seeds_contradict_has_an_interval_that_says_so() -> None:
    rates = np.asarray([0.55e-3, 1.4e-3, 1.6e-3, 2.0e-3])
    after = 50 * np.exp(-rates[:, None] * np.asarray(STEPS))
    found = speed_up(STEPS, falling(1e-3, 4), after, "lower")
    assert found.steps_interval is not None and found.steps_interval[0] == 0
    assert "if one seed is left out, in 2 of 4 cases" in found.note and "indicative: 4 seeds" in found.note


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_speed_ups_interval_covers_what_it_says(count: int) -> None:
    """Curves of one true speed-up, scores of each run 4 % off: a bootstrap's percentiles cover 51, 72, 84 and 87 %."""
    rng = np.random.default_rng(count)
    hits = 0
    for _ in range(300):
        level = rng.normal(0, 0.04, size=(count, 1))
        before, after = (
            falling(rate, count) * np.exp(level + rng.normal(0, 0.04, size=(count, 4))) for rate in (1e-3, 1.2e-3)
        )
        interval = speed_up(STEPS, before, after, "lower").steps_interval
        assert interval is not None
        hits += interval[0] <= 1.2 <= interval[1]
    assert 0.9 <= hits / 300 <= 0.99


def test_speed_up_leaves_out_pairs() -> None:
    """Seeds that are each twice as fast, at very different levels, leave no doubt about the factor."""
    levels = np.asarray([1, 3, 10, 30.0])[:, None]
    found = speed_up(STEPS, levels * falling(1e-3, 4), levels * falling(2e-3, 4), "lower")
    assert found.steps_interval == pytest.approx((2, 2))


def test_overhead_is_a_ratio_within_seeds() -> None:
    found = overhead([1.0, 2.0, 4.0], [1.1, 2.2, 4.4])
    assert found is not None and found.ratio == pytest.approx(1.1) and found.interval == pytest.approx((1.1, 1.1))
    alone = overhead([2.0], [3.0])
    assert alone is not None and alone.ratio == 1.5 and alone.interval is None
    assert overhead([], []) is None


def test_curves_have_a_t_interval_at_each_evaluation(rng: np.random.Generator) -> None:
    values = rng.normal(10, 2, size=(6, 3))
    found = curve(values)
    assert found.mean == pytest.approx(tuple(values.mean(0)))
    for column, interval in zip(values.T, found.interval, strict=True):
        assert interval == pytest.approx(stats.ttest_1samp(column, 0).confidence_interval(0.95))
    assert curve(values[:1]).interval is None


def test_a_curve_says_whether_it_is_flat() -> None:
    assert last_change([[8.0, 4.0, 3.0], [8.0, 4.0, 3.0]]) == pytest.approx(-0.25)
    assert last_change([[8.0]]) == 0
