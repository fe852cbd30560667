"""The Fréchet distance: closed forms, what must not change it, other people's implementations, few samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.linalg import lapack
from scipy.stats import special_ortho_group
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from layersync.metrics import (
    GaussianStatistics,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    jackknife_frechet,
    mean_frechet_interval,
)

Array = np.ndarray
pytestmark = pytest.mark.filterwarnings("ignore:.*covariance is singular:UserWarning")
seeds = st.integers(0, 2**32 - 1)


def rotation(random: np.random.Generator, width: int) -> Array:
    return special_ortho_group.rvs(width, random_state=random) if width > 1 else np.ones((1, 1))


def random_gaussian(seed: int, size: int = 6) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    factor = random.standard_normal((size, size))
    return random.standard_normal(size), factor @ factor.T / size


def by_singular_values(x: Array, y: Array) -> float:
    """The distance from samples alone: the trace of the root is the sum of singular values of X Y^T."""
    x_centred, y_centred = ((a - a.mean(0)) / np.sqrt(len(a) - 1) for a in (x, y))
    root = np.linalg.svd(x_centred @ y_centred.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (x_centred**2).sum() + (y_centred**2).sum() - 2 * root


def forms(x: Array) -> list[Any]:
    """One and the same set in every form that is taken."""
    streamed = GaussianStatistics()
    for row in x:
        streamed.update(row[None])
    mean, covariance = x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))
    return [
        x,
        torch.tensor(x),
        (mean, covariance, len(x)),
        (mean, covariance, None),
        GaussianStatistics.of(x),
        streamed,
    ]


def test_axis_parallel_gaussians_by_hand() -> None:
    x = ([1.0, 2.0], np.diag([4.0, 9.0]), None)
    y = ([4.0, -2.0], np.diag([1.0, 1.0]), None)
    assert frechet_distance(x, y) == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=1e-14)


@given(
    variances=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=7),
    shift=st.floats(-10, 10),
    seed=seeds,
)
@settings(deadline=None, max_examples=100)
def test_closed_form_where_covariances_commute(variances: list, shift: float, seed: int) -> None:
    """Same eigenvectors: the sum of squared differences of deviations; some of them may be zero."""
    a, b = np.array(variances).T
    turn = rotation(np.random.default_rng(seed), len(a))
    x = (np.zeros(len(a)), turn * a @ turn.T, None)
    y = (np.full(len(a), shift), turn * b @ turn.T, None)
    wanted = len(a) * shift**2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    # A variance of zero is known up to rounding of the largest only, its root to the root of that.
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6, abs=1e-5 * np.sqrt(a.max() * b.max()) + 1e-12)


def test_against_scipys_root() -> None:
    (m1, c1), (m2, c2) = random_gaussian(0), random_gaussian(1)
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance((m1, c1, None), (m2, c2, None)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("samples", "width", "tolerance"), [(400, 24, 1e-9), (30, 64, 1e-6)])
def test_against_torch_fidelity(samples: int, width: int, tolerance: float) -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((samples, width)), random.standard_normal((samples + 5, width)) * 1.3 + 0.1
    statistics = [fid_features_to_statistics(torch.tensor(a)) for a in (x, y)]
    wanted = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=tolerance)


@given(
    n=st.integers(2, 40),
    m=st.integers(2, 40),
    width=st.integers(1, 24),
    seed=seeds,
    scale=st.sampled_from([1e-3, 1, 1e3]),
)
@settings(deadline=None, max_examples=40)
def test_every_form_gives_the_same_of_many_samples_and_of_few(
    n: int, m: int, width: int, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    x, y = scale * random.standard_normal((n, width)), scale * (random.standard_normal((m, width)) * 2 + 1)
    wanted = by_singular_values(x, y)
    for first in forms(x):
        for second in forms(y):
            # A covariance holds the root of a variance near zero to half its digits only.
            assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-6)
            assert frechet_distance(second, first) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-11 if max(n, m) <= width else 1e-6)
    assert frechet_distance(GaussianStatistics.of(x), GaussianStatistics.of(y)) == frechet_distance(x, y)


@given(n=st.integers(3, 40), m=st.integers(3, 40), width=st.integers(1, 16), seed=seeds)
@settings(deadline=None, max_examples=60)
def test_invariances(n: int, m: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((n, width)), random.standard_normal((m, width)) * 0.5 - 1
    wanted = frechet_distance(x, y)
    turn, move = rotation(random, width), random.uniform(-10, 10, width)
    assert frechet_distance(x[::-1], random.permutation(y)) == pytest.approx(wanted, rel=1e-7)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(x + move, y + move) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * wanted, rel=1e-7)
    order = random.permutation(width)
    assert frechet_distance(x[:, order], y[:, order]) == pytest.approx(wanted, rel=1e-6)


@given(n=st.integers(2, 30), width=st.integers(1, 40), seed=seeds, offset=st.sampled_from([0.0, 100.0]))
@settings(deadline=None, max_examples=60)
def test_identical_sets_are_at_no_distance_and_none_is_negative(n: int, width: int, seed: int, offset: float) -> None:
    x = np.random.default_rng(seed).standard_normal((n, width)) + offset
    for first in forms(x):
        for second in forms(x):
            assert 0 <= frechet_distance(first, second) < 1e-6 * width
    assert frechet_distance(x, x) < 1e-12 * width * max(1, offset)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * width, rel=1e-9)


def test_distance_grows_without_bound_between_sets_far_apart() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 200, 5))
    found = [frechet_distance(x, y + shift) for shift in (0, 1, 10, 1e3, 1e6)]
    assert found == sorted(found) and found[-1] == pytest.approx(5e12, rel=1e-5)


def test_digits_where_variances_span_fourteen_orders() -> None:
    """Roots of eigenvalues of the product are lost here; the score is a millionth of the largest variance."""
    random = np.random.default_rng(0)
    variances, turn = np.logspace(0, -14, 64), rotation(random, 64)
    x = (np.zeros(64), turn * variances @ turn.T, None)
    y = (np.zeros(64), turn * (variances * 1.001**2) @ turn.T, None)
    assert frechet_distance(x, y) == pytest.approx(variances.sum() * 1e-6, rel=1e-3)


def test_features_that_never_vary() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((80, 6)), random.standard_normal((90, 6)) + 1
    wanted = frechet_distance(x, y)
    pad = [np.column_stack([a, np.full((len(a), 3), 0.1), a[:, 0] * 0]) for a in (x, y)]
    assert frechet_distance(*pad) == pytest.approx(wanted, rel=1e-9)
    doubled = [np.column_stack([a, a]) for a in (x, y)]
    assert frechet_distance(*doubled) == pytest.approx(2 * wanted, rel=1e-6)
    constant = np.ones((50, 6))
    assert frechet_distance(constant, x) == pytest.approx(((x.mean(0) - 1) ** 2).sum() + x.var(0, ddof=1).sum())
    assert frechet_distance(constant, constant) == 0


@pytest.mark.parametrize("rank", [6, 11])
@pytest.mark.parametrize("seed", range(10))
def test_features_that_depend_on_each_other_on_one_side_only(seed: int, rank: int) -> None:
    """What rounding leaves of a singular covariance's zero eigenvalues, 1e-16, would count with its root, 1e-8."""
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((80, rank)) @ random.standard_normal((rank, 12)), random.standard_normal((90, 12))
    for first, second in ((x, y), (y, x), (GaussianStatistics.of(x), GaussianStatistics.of(y))):
        assert frechet_distance(first, second) == pytest.approx(by_singular_values(x, y), rel=1e-12)


def test_float32_is_taken_at_its_value() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 300, 20)).astype(np.float32) + 100
    assert frechet_distance(x, y) == frechet_distance(x.astype(np.float64), torch.tensor(y))


def test_a_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference = GaussianStatistics.of(random.standard_normal((50, 8)))
    own, calls, real = reference.covariance, [], lapack.dpotrf
    monkeypatch.setattr(lapack, "dpotrf", lambda matrix, **options: calls.append(matrix) or real(matrix, **options))
    for _ in range(3):
        frechet_distance(random.standard_normal((40, 8)), reference)
    frechet_infinity(random.standard_normal((600, 8)), reference)
    assert len(calls) > 1 and sum(np.array_equal(matrix, own) for matrix in calls) == 1


class TestBeyondSmall:
    """Where eigenvalues of the product are taken first, 1,100 features of a known answer."""

    width = 1100

    @pytest.fixture(autouse=True)
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken, real = [], np.linalg.svd
        monkeypatch.setattr(np.linalg, "svd", lambda matrix, **how: self.taken.append(matrix) or real(matrix, **how))

    def turned(self, variances: Array) -> tuple[Array, Array, None]:
        """A Gaussian at 0 with these variances along the columns of a reflection."""
        axis = np.random.default_rng(0).standard_normal(self.width)
        turn = np.eye(self.width) - 2 * np.outer(axis, axis) / (axis @ axis)
        covariance = turn * variances @ turn.T
        return np.zeros(self.width), (covariance + covariance.T) / 2, None

    def test_eigenvalues_are_enough(self) -> None:
        variances = np.logspace(0, -5, self.width)
        found = frechet_distance(self.turned(variances), self.turned(variances[::-1] * 4))
        assert not self.taken
        assert found == pytest.approx(((np.sqrt(variances) - 2 * np.sqrt(variances[::-1])) ** 2).sum(), rel=1e-7)

    def test_eigenvalues_are_not_enough(self) -> None:
        variances = np.logspace(0, -13, self.width)
        found = frechet_distance(self.turned(variances), self.turned(variances * 1.001**2))
        assert self.taken
        assert found == pytest.approx(variances.sum() * 1e-6, rel=1e-5)

    @given(n=st.integers(2, 40), m=st.integers(2, 40), width=st.integers(1, 16), seed=seeds)
    @settings(deadline=None, max_examples=60)
    def test_either_way_gives_the_same(self, n: int, m: int, width: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        x, y = random.standard_normal((n, width)), random.standard_normal((m, width)) * 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("layersync.metrics.frechet.SMALL", 0)
            found = frechet_distance(x, y)
        assert found == pytest.approx(frechet_distance(x, y), rel=2e-7)


class TestBadInput:
    x = np.random.default_rng(0).standard_normal((20, 3))

    def test_values_that_are_not_finite_are_counted_and_the_side_named(self) -> None:
        broken = self.x.copy()
        broken[[1, 4, 4], [0, 1, 2]] = np.nan, np.inf, np.nan
        with pytest.raises(ValueError, match="2 of 20 samples of y have"):
            frechet_distance(self.x, broken)
        with pytest.raises(ValueError, match="2 of 20 samples of x have"):
            frechet_distance(broken, self.x)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (np.zeros((1, 3)), "y has 1 samples; at least 2"),
            (np.zeros((0, 3)), "y has 0 samples"),
            (np.zeros(5), r"y must be \(samples, features\), not \[5\]"),
            (np.zeros((5, 3, 2)), r"not \[5, 3, 2\]"),
            (np.zeros((4, 2)), "3 and 2"),
            ((np.zeros(3), np.eye(3)), "not a tuple of 2"),
            ((np.zeros(2), np.eye(2), 9), "3 and 2"),
            ((np.zeros(3), np.diag([1.0, -1.0, 0.5]), None), "no covariance: eigenvalues from -1"),
        ],
    )
    def test_what_is_refused(self, wrong: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            frechet_distance(self.x, wrong)

    def test_too_few_samples_warn_with_both_numbers(self) -> None:
        wide = np.random.default_rng(0).standard_normal((12, 12))
        with pytest.warns(UserWarning, match="x has 12 samples of 12 features.*singular.*biased.*more than 12"):
            frechet_distance(wide, np.vstack([wide, wide + 1]))
        with pytest.warns(UserWarning, match="y has 5 samples of 12 features"):
            frechet_distance(np.vstack([wide, wide + 1]), (np.zeros(12), np.eye(12), 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frechet_distance(np.vstack([wide, wide[:1] + 1]), (np.zeros(12), np.eye(12), None))


class TestInfinity:
    """A standard Gaussian moved by 0.3: 0.09 away, and biased by d / n + (d^2 + d) / 4n from n samples."""

    width = 16
    slope = width + (width**2 + width) / 4
    reference = (np.zeros(width), np.eye(width), None)

    def samples(self, seed: int) -> Array:
        move = np.zeros(self.width)
        move[0] = 0.3
        return np.random.default_rng(seed).standard_normal((3000, self.width)) + move

    def test_the_bias_of_few_samples_is_found_and_taken_away(self) -> None:
        found = [frechet_infinity(self.samples(s), self.reference, replacement=False, seed=s) for s in range(8)]
        plain = np.mean([frechet_distance(self.samples(s), self.reference) for s in range(8)])
        assert plain == pytest.approx(0.09 + self.slope / 3000, abs=0.01)
        assert np.mean([one.value for one in found]) == pytest.approx(0.09, abs=0.01)
        assert np.mean([one.slope for one in found]) == pytest.approx(self.slope, rel=0.15)

    def test_with_replacement_the_set_itself_is_what_is_extrapolated_to(self) -> None:
        found = [frechet_infinity(self.samples(s), self.reference, seed=s) for s in range(8)]
        plain = np.mean([frechet_distance(self.samples(s), self.reference) for s in range(8)])
        assert np.mean([one.value for one in found]) == pytest.approx(plain, abs=0.01)
        assert np.mean([one.slope for one in found]) == pytest.approx(self.slope, rel=0.15)

    def test_sizes_are_those_of_fadtk_and_the_line_goes_through_the_distances(self) -> None:
        found = frechet_infinity(self.samples(0), self.reference, sizes=25, smallest=500)
        assert found.sizes[0] == 500 and found.sizes[-1] == 3000 and len(found.sizes) == len(found.distances) == 25
        assert found.sizes == tuple(int(500 + i * 2500 / 24) for i in range(25))
        x, y = 1 / np.array(found.sizes), np.array(found.distances)
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        assert (found.slope, found.value) == pytest.approx((slope, y.mean() - slope * x.mean()), rel=1e-6)
        assert found.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-6)
        assert float(found) == found.value

    def test_seeds(self) -> None:
        x = self.samples(0)
        first, again, other = (frechet_infinity(x, self.reference, seed=seed) for seed in (1, 1, 2))
        assert first == again and first.value != other.value

    def test_few_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="more than 500 generated samples, not 320; give a smaller"):
            frechet_infinity(self.samples(0)[:320], self.reference)
        assert len(frechet_infinity(self.samples(0)[:320], self.reference, smallest=100).sizes) == 25
        with pytest.raises(ValueError, match="at least 2 samples and 3 sizes"):
            frechet_infinity(self.samples(0), self.reference, smallest=1)


class TestInterval:
    reference = (np.zeros(4), np.eye(4), None)

    def draw(self, seed: int, count: int = 400) -> Array:
        return np.random.default_rng(seed).standard_normal((count, 4)) * 1.2 + 0.5

    @pytest.mark.parametrize("method", ["bootstrap", "jackknife"])
    def test_as_wide_as_the_score_varies_over_fresh_samples(self, method: str) -> None:
        spread = np.std([frechet_distance(self.draw(seed), self.reference) for seed in range(200)])
        sets = [self.draw(seed) for seed in range(12)]
        if method == "bootstrap":
            found = [frechet_interval(x, self.reference).interval for x in sets]
        else:
            found = [jackknife_frechet(x, self.reference) for x in sets]
        quantile = 1.96 if method == "bootstrap" else 2.262
        half = np.mean([(high - low) / 2 for low, high in found])
        assert half == pytest.approx(quantile * spread, rel=0.25)
        for x, (low, high) in zip(sets, found, strict=True):
            assert low <= frechet_distance(x, self.reference) <= high

    def test_bootstrap_while_cheap_else_jackknife(self) -> None:
        random = np.random.default_rng(0)
        reference = GaussianStatistics(np.zeros(300), np.eye(300), None)
        for count, method in ((40, "bootstrap"), (290, "jackknife"), (700, "jackknife")):
            x = random.standard_normal((count, 300))
            found = frechet_interval(x, reference)
            assert found.method == method
            assert found.interval[0] <= frechet_distance(x, reference) <= found.interval[1]

    def test_blocks_left_out_are_the_scores_of_the_rest(self) -> None:
        """Few samples (left out by rows) and many (by merging) against the definition, each sample a block."""
        for count in (5, 12):
            x = self.draw(0, count)
            scores = np.array([frechet_distance(np.delete(x, i, 0), self.reference) for i in range(count)])
            error = np.sqrt((count - 1) / count * ((scores - scores.mean()) ** 2).sum())
            low, high = jackknife_frechet(x, self.reference, blocks=count)
            quantile = {5: 2.7764451, 12: 2.2009852}[count]
            value = frechet_distance(x, self.reference)
            assert high == pytest.approx(value + quantile * error, rel=1e-6)
            assert low == pytest.approx(max(0, value - quantile * error), rel=1e-6)

    @pytest.mark.parametrize("method", ["bootstrap", "jackknife"])
    def test_rows_of_one_sample_stay_together(self, method: str) -> None:
        """Five equal rows a sample say no more than one: the interval is that of the samples, in any order of rows."""
        x = self.draw(0, 200)
        rows, owner = np.repeat(x, 5, axis=0), np.repeat(np.arange(200), 5)

        def width(features: Array, groups: Array | None) -> float:
            if method == "jackknife":
                low, high = jackknife_frechet(features, self.reference, groups=groups)
            else:
                low, high = frechet_interval(features, self.reference, groups=groups).interval
            return high - low

        order = np.random.default_rng(0).permutation(1000)
        assert width(rows[order], owner[order]) == pytest.approx(width(x, None), rel=0.05)
        assert width(rows, None) < 0.75 * width(x, None)

    def test_rows_of_one_sample_stay_together_where_features_are_wide(self) -> None:
        """Where both sides are beyond the bootstrap's 256: two equal rows a sample."""
        x, owner = np.repeat(np.random.default_rng(0).standard_normal((150, 260)), 2, axis=0), np.arange(300) // 2
        reference = GaussianStatistics(np.full(260, 0.1), np.eye(260))
        together, apart = frechet_interval(x, reference, groups=owner), frechet_interval(x, reference)
        assert together.method == apart.method == "jackknife"
        assert together.interval == jackknife_frechet(x, reference, groups=owner) != apart.interval

    def test_no_end_is_below_zero(self) -> None:
        """At no distance, where half of the resamples' spread is below it."""
        x = self.draw(0, 30)
        for found in (frechet_interval(x, GaussianStatistics.of(x)).interval, jackknife_frechet(x, forms(x)[4])):
            assert found[0] == 0 < found[1]

    def test_samples_in_order_of_class_do_not_widen_it(self) -> None:
        classes = np.random.default_rng(0).standard_normal((10, 4)) * 5
        x = np.repeat(classes, 40, axis=0) + self.draw(0)
        shuffled = np.random.default_rng(1).permutation(x)
        widths = [np.subtract(*jackknife_frechet(a, self.reference)[::-1]) for a in (x, shuffled)]
        assert widths[0] < 2 * widths[1]

    def test_narrower_with_more_samples_and_seeded(self) -> None:
        few, many = (
            np.subtract(*frechet_interval(self.draw(0, n), self.reference).interval[::-1]) for n in (100, 6400)
        )
        assert many == pytest.approx(few / 8, rel=0.5)
        first, again, other = (frechet_interval(self.draw(0), self.reference, seed=seed) for seed in (1, 1, 2))
        assert first == again != other

    def test_of_the_mean_over_networks_of_the_same_samples(self) -> None:
        """Twice as large features are at four times the distance, and so are the ends of an interval."""
        x, owner = self.draw(0), np.arange(400) // 2
        mean, covariance = np.zeros(4), np.eye(4)
        references = [(mean, covariance, None), (mean, 4 * covariance, None)]
        low, high = frechet_interval(x, references[0], groups=owner).interval
        found = mean_frechet_interval([x, 2 * x], references, groups=owner)
        assert found.method == "bootstrap" and found.interval == pytest.approx((2.5 * low, 2.5 * high))
        assert mean_frechet_interval([x, x], [references[0]] * 2, groups=owner).interval == pytest.approx((low, high))
        with pytest.raises(ValueError, match=r"same samples, not of \[399, 400\]"):
            mean_frechet_interval([x, x[1:]], references)

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="each of 400 rows"):
            frechet_interval(self.draw(0), self.reference, groups=np.zeros(3))
        with pytest.raises(ValueError, match="at least 2"):
            jackknife_frechet(self.draw(0), self.reference, groups=np.zeros(400))
        with pytest.raises(ValueError, match="at least 2"):
            frechet_interval(self.draw(0), self.reference, groups=np.zeros(400))
