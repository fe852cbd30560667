"""Counted randomness: any slice of any step, drawn anywhere, is the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from layersync.core.adapter import LatentSpec
from layersync.core.draws import StepDraws, epoch_indices, module_seed, sample_noise, solver_noise, step_draws

SPEC = LatentSpec(2, (3, 4))
FIELDS = ("indices", "uniform_time", "drop", "variant", "position", "noise", "posterior", "caption")


def draw(seed: int = 0, step: int = 0, part: slice = slice(0, 12), batch: int = 12, size: int = 50) -> StepDraws:
    return step_draws(seed, step, batch, part, size, SPEC, posterior=True)


def as_arrays(draws: StepDraws) -> list[np.ndarray]:
    return [np.asarray(getattr(draws, name)) for name in FIELDS]


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 3, 6, 9, 12), (0, 1, 12)])
def test_slices_agree_with_the_whole(cuts: tuple[int, ...]) -> None:
    parts = [as_arrays(draw(step=5, part=slice(a, b))) for a, b in itertools.pairwise(cuts)]
    for whole, *pieces in zip(as_arrays(draw(step=5)), *parts, strict=True):
        assert np.array_equal(whole, np.concatenate(pieces))


def test_seeds_steps_and_positions_differ() -> None:
    base = as_arrays(draw())
    for other in (draw(seed=1), draw(step=1)):
        for name, a, b in zip(FIELDS, base, as_arrays(other), strict=True):
            assert not np.array_equal(a, b), name
    for name, values in zip(FIELDS, base, strict=True):
        assert len({row.tobytes() for row in values}) == len(values), name
    assert all(np.array_equal(a, b) for a, b in zip(base, as_arrays(draw()), strict=True))


def test_the_kinds_of_draws_are_independent() -> None:
    draws = draw(batch=4000, part=slice(0, 4000))
    uniform = (draws.uniform_time, draws.drop, draws.variant, draws.position, draws.caption)
    columns = np.stack([*uniform, draws.noise[:, 0, 0, 0], draws.posterior[:, 0, 0, 0]])
    correlation = np.corrcoef(columns) - np.eye(7)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(4000)


def test_epochs_are_permutations_of_their_own() -> None:
    size = 23
    drawn = epoch_indices(0, 0, 3 * size, size)
    epochs = drawn.reshape(3, size)
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    in_batches = np.concatenate([draw(step=s, size=size, batch=10, part=slice(0, 10)).indices for s in range(6)])
    assert np.array_equal(in_batches, drawn[:60])


def test_distributions() -> None:
    draws = draw(batch=4000, part=slice(0, 4000), size=4000)
    for values in (draws.uniform_time, draws.drop, draws.variant, draws.position, draws.caption):
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3
    for values in (draws.noise, draws.posterior, sample_noise(0, 0, 2000, SPEC)):
        assert stats.kstest(values.numpy().ravel()[:20_000], "norm").pvalue > 1e-3
    assert float(draws.uniform_time.min()) > 0 and float(draws.uniform_time.max()) < 1


def test_sample_noise_belongs_to_the_sample() -> None:
    whole = sample_noise(3, 0, 10, SPEC)
    assert torch.equal(torch.cat([sample_noise(3, 0, 4, SPEC), sample_noise(3, 4, 6, SPEC)]), whole)
    assert not torch.equal(sample_noise(4, 0, 10, SPEC), whole)
    steps = [solver_noise(3, step, 0, whole.shape) for step in (0, 1)]
    assert not torch.equal(*steps) and not torch.equal(steps[0], whole)
    assert torch.equal(solver_noise(3, 1, 4, torch.Size((6, *SPEC.shape))), steps[1][4:])


def test_module_seeds_differ_by_place() -> None:
    seeds = {module_seed(*place) for place in np.ndindex(2, 3, 2, 2)}
    assert len(seeds) == 24 and all(0 <= seed < 2**62 for seed in seeds)


def test_large_steps_and_seeds() -> None:
    assert torch.isfinite(draw(seed=2**62, step=10**7).noise).all()
