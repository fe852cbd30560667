"""What several runs, paired by seed, say together: gain, speed-up, overhead, curves, and how far they can see.

Arrays of scores are (seeds, evaluations). Intervals are 95 % t intervals: of values where these are averaged, of the
jackknife's pseudo-values for the speed-up, which is read off a curve of means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from layersync.core.metric import Better
from layersync.core.results import ONE_SEED, Curve, Gain, Overhead, SpeedUp, few_seeds

CONFIDENCE = 0.95
MARGIN = 1e-9
"""Of logarithms that rounding may have moved."""
FLAT = 0.02
"""A curve that still changes by more than this part over its last interval between evaluations is not flat."""

Array = NDArray[np.float64]


def t_interval(values: ArrayLike) -> tuple[float, tuple[float, float] | None]:
    """Mean of values (n,), and its 95 % t interval; ``None`` for one value."""
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, None
    half = _half_width(found)
    return mean, (mean - half, mean + half)


def _half_width(values: Array) -> float:
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))


def paired_gain(reference: ArrayLike, variant: ArrayLike, better: Better | None) -> Gain:
    """Gain of ``variant`` over ``reference``, both (seeds,) in the same order of seeds.

    A t interval on log(variant / reference), turned into a fraction: 1 - ratio for a score that improves downwards,
    ratio - 1 for one that improves upwards.
    """
    before, after = (np.asarray(side, dtype=np.float64) for side in (reference, variant))
    count = len(before)
    if better is None:
        return Gain(None, None, count, note="neither higher nor lower is better")
    if not count:
        return Gain(None, None, 0, note="no seed has finished in both variants")
    if not (np.isfinite(before).all() and np.isfinite(after).all() and (before > 0).all() and (after > 0).all()):
        return Gain(None, None, count, note="a score is not above 0: no ratio can be taken")
    ratios = np.log(after / before)
    mean, interval = t_interval(ratios)
    if interval is None:
        return Gain(_gain(mean, better), None, count, note=ONE_SEED)
    ends = sorted(_gain(end, better) for end in interval)
    half = _half_width(ratios)
    resolution = _gain(-half if better == "lower" else half, better)
    return Gain(_gain(mean, better), (ends[0], ends[1]), count, resolution, few_seeds(count))


def _gain(log_ratio: float, better: Better) -> float:
    return -math.expm1(log_ratio) if better == "lower" else math.expm1(log_ratio)


def speed_up(
    steps: Sequence[int],
    reference: ArrayLike,
    variant: ArrayLike,
    better: Better | None,
    times: tuple[ArrayLike, ArrayLike] | None = None,
) -> SpeedUp:
    """How many times fewer steps ``variant`` takes than ``reference`` to come to the last score of ``reference``.

    Both are (seeds, len(steps)), of the same seeds in the same order. Read off the means over seeds: the first step at
    which each is as good as the reference at the end; between two evaluations the logarithm of the score is taken to be
    linear in the step. A curve against itself gives 1, flat or not.

    The interval is a t interval on the logarithm, of the pseudo-values of leaving out one seed of both sides (Tukey's
    jackknife: Miller, Biometrika 61, 1974). An end at which ``variant`` would not come there by the last step is 0. On
    simulated curves of two to ten seeds it covered 86 to 96 %, percentiles of a bootstrap over seeds 51 to 88 %.

    Args:
        steps: evaluated steps, ascending.
        reference: scores of the reference variant.
        variant: scores of the other.
        better: which way the metric improves.
        times: seconds of a step of both sides, (seeds,) each; without them nothing is said of seconds.
    """
    before, after = (np.asarray(side, dtype=np.float64) for side in (reference, variant))
    why = _unreadable(steps, before, after, better)
    if better is None or why:
        return SpeedUp(None, None, None, None, note=why)
    costs = np.zeros(len(before)) if times is None else np.log(np.asarray(times[1]) / np.asarray(times[0]))
    start, end = _reached(steps, before.mean(0), after.mean(0), better)
    if start == steps[0] and end == steps[0]:
        note = f"both are there at the first evaluation, step {steps[0]}: no speed-up can be read off"
        return SpeedUp(None, None, None, None, note=note)
    in_steps = start / end if end else None
    steps_interval = seconds_interval = None
    notes = [*_bounds(steps, start, end), few_seeds(len(before))]
    if len(before) > 1:
        every = np.arange(len(before))
        without = [_read(steps, before[every != row], after[every != row], better) for row in every]
        missed = sum(not reached for _, reached in without)
        if missed and end:
            notes.append(f"not reached if one seed is left out, in {missed} of {len(before)} cases")
        whole, left_out = _read(steps, before, after, better)[0], np.asarray([value for value, _ in without])
        reachable = math.log(start / steps[-1]) - MARGIN
        steps_interval = _jackknife(whole, left_out, np.zeros(len(before)), reachable)
        seconds_interval = None if times is None else _jackknife(whole, left_out, costs, reachable)
    return SpeedUp(
        in_steps,
        steps_interval,
        None if in_steps is None or times is None else in_steps / math.exp(costs.mean()),
        seconds_interval,
        reference_step=start,
        variant_step=end or None,
        note="; ".join(note for note in notes if note),
    )


def _jackknife(whole: float, left_out: Array, costs: Array, reachable: float) -> tuple[float, float]:
    """The interval of a speed-up from its logarithm, of all seeds and without each, and the seeds' log ratios of time.

    An end below ``reachable``, before time is taken into account, is 0.
    """
    count = len(left_out)
    costs_left_out = (costs.sum() - costs) / (count - 1)
    pseudo = count * (whole - costs.mean()) - (count - 1) * (left_out - costs_left_out)
    half = _half_width(pseudo)
    low, high = (math.exp(end - costs.mean()) if end > reachable else 0.0 for end in (whole - half, whole + half))
    return low, high


def _read(steps: Sequence[int], reference: Array, variant: Array, better: Better) -> tuple[float, bool]:
    """Logarithm of the speed-up in steps, and whether it is reached; where not, just below what would be."""
    start, end = _reached(steps, reference.mean(0), variant.mean(0), better)
    return math.log(start / (end or steps[-1])) - (0 if end else 2 * MARGIN), bool(end)


def _bounds(steps: Sequence[int], start: float, end: float) -> Iterator[str]:
    """What a speed-up read off from ``start`` and ``end`` cannot be told exactly for."""
    if not end:
        yield f"not reached: the mean at no evaluation is as good as the reference's at step {steps[-1]}"
    elif end == steps[0]:
        yield f"reached before the first evaluation, step {steps[0]}: at least this much"
    if start == steps[0]:
        yield f"the reference is there at the first evaluation, step {steps[0]}: at most this much"


def _unreadable(steps: Sequence[int], reference: Array, variant: Array, better: Better | None) -> str:
    """Why no speed-up can be read off; empty where one can."""
    if better is None:
        return "neither higher nor lower is better"
    if not len(reference):
        return "no seed has finished in both variants"
    if len(steps) < 2:
        return "one evaluation: no curve to read it off (evaluate.every)"
    if not ((reference > 0).all() and (variant > 0).all()):
        return "a score is not above 0: its logarithm cannot be interpolated"
    return ""


def _reached(steps: Sequence[int], reference: Array, variant: Array, better: Better) -> tuple[float, float]:
    """The steps at which either first is as good as ``reference`` at the end; 0 where ``variant`` never is."""
    sign = 1.0 if better == "lower" else -1.0
    before, after = sign * np.log(reference), sign * np.log(variant)
    return _crossing(steps, before, before[-1]), _crossing(steps, after, before[-1])


def _crossing(steps: Sequence[int], values: Array, goal: float) -> float:
    """Where falling ``values`` first come to ``goal``, linear between steps; 0 where they do not."""
    reached = np.flatnonzero(values <= goal)
    if not len(reached):
        return 0.0
    first = int(reached[0])
    if first == 0:
        return float(steps[0])
    share = (values[first - 1] - goal) / (values[first - 1] - values[first])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def overhead(reference: ArrayLike, variant: ArrayLike) -> Overhead | None:
    """Time of a step, both (seeds,): geometric mean of the ratios and its t interval. ``None`` without any."""
    before, after = (np.asarray(side, dtype=np.float64) for side in (reference, variant))
    if not len(before):
        return None
    mean, interval = t_interval(np.log(after / before))
    ends = None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    return Overhead(math.exp(mean), ends)


def curve(values: ArrayLike) -> Curve:
    """Mean over seeds of (seeds, evaluations), and its t interval at each evaluation."""
    columns = [t_interval(column) for column in np.asarray(values, dtype=np.float64).T]
    intervals = tuple(interval for _, interval in columns if interval is not None)
    return Curve(tuple(mean for mean, _ in columns), intervals if len(intervals) == len(columns) else None)


def last_change(values: ArrayLike) -> float:
    """By what part the mean over seeds of (seeds, evaluations) changed over the last interval; 0 for one evaluation."""
    mean = np.asarray(values, dtype=np.float64).mean(0)
    return float(mean[-1] / mean[-2] - 1) if len(mean) > 1 and mean[-2] else 0.0
