"""DDPM's path in separate steps against the published code, and what recipes may ask of it.

Golden numbers: ``tests/golden/core_ddpm.npz``, made by running ``diffusion/gaussian_diffusion.py`` (``p_sample_loop``
with ``clip_denoised`` off and given noise), ``diffusion/respace.py`` and ``utils/loss_util.py`` of
github.com/GuyTevet/motion-diffusion-model, commit d4fd88c, on the inputs and the predictor below.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from layersync import load, load_recipe, train
from layersync.core.errors import InputError
from layersync.core.interpolant import DdpmCosine, discrete_step, step_time
from layersync.core.probe import flow_loss
from layersync.core.solver import solve_ddpm, spaced_steps
from layersync.core.trainer import Trainer, build_parts

GOLDEN = Path(__file__).parents[1] / "golden" / "core_ddpm.npz"
SHAPE = (3, 6, 1, 5)
DDPM = ("objective.interpolant=ddpm-cosine", "objective.prediction=data", "sample.solver=ddpm")
SHORT = (*DDPM, "objective.num_timesteps=40", "sample.steps=5", "train.steps=2", "sample.batch_size=3")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def predictor(x: Tensor, step: Tensor) -> Tensor:
    index = torch.arange(x[0].numel()).reshape(x.shape[1:])
    return 0.6 * torch.tanh(x) + 0.4 * torch.cos(0.01 * step.reshape(-1, 1, 1, 1) + index)


@pytest.mark.parametrize("count", [50, 1000])
def test_weights_are_those_of_the_published_schedule(golden, count):
    path = DdpmCosine("data", count)
    t = step_time(torch.arange(count), count).double()
    np.testing.assert_allclose(path.alpha(t)[0], golden[f"alpha_{count}"], rtol=1e-9)
    np.testing.assert_allclose(path.sigma(t)[0], golden[f"sigma_{count}"], rtol=1e-9)
    x1, x0 = torch.randn(count, 2), torch.randn(count, 2)
    x_t, target = path.sample(x1, x0, t.float())
    expected = golden[f"alpha_{count}"][:, None] * x1.numpy() + golden[f"sigma_{count}"][:, None] * x0.numpy()
    np.testing.assert_allclose(x_t, expected, atol=1e-5)
    assert torch.equal(target, x1)


@pytest.mark.parametrize("name", ["all", "respaced", "noise"])
def test_ancestral_samples_are_those_of_the_published_code(golden, name):
    count, steps = (1000, 20) if name == "respaced" else (50, 50)
    assert spaced_steps(count, steps) == golden[f"{name}_steps"].tolist()
    source = np.random.Generator(np.random.Philox(7))
    x = torch.from_numpy(source.standard_normal(SHAPE).astype(np.float32))
    drawn = [torch.from_numpy(source.standard_normal(SHAPE).astype(np.float32)) for _ in range(steps)]
    path = DdpmCosine("noise" if name == "noise" else "data", count)
    seen = []

    def predict(state: Tensor, t: Tensor) -> Tensor:
        seen.append(int(discrete_step(t, count)[0]))
        return predictor(state, discrete_step(t, count))

    found = solve_ddpm(predict, x, path, lambda step, _: drawn[step], steps=steps)
    assert seen == golden[f"{name}_steps"][::-1].tolist()
    scale = np.abs(golden[name]).max()
    np.testing.assert_allclose(found / scale, golden[name] / scale, atol=1e-5)


def test_the_loss_is_that_of_the_published_code(golden):
    source = np.random.Generator(np.random.Philox(8))
    target, prediction = (torch.from_numpy(source.standard_normal(SHAPE).astype(np.float32)) for _ in range(2))
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 4])[:, None]
    np.testing.assert_allclose(flow_loss(prediction, target, mask, frame_axis=2), golden["masked_l2"], rtol=1e-6)


def test_training_times_are_the_steps_each_for_an_equal_part():
    path = DdpmCosine("data", 50)
    t = path.training_time((torch.arange(5000) + 0.5) / 5000)
    counts = torch.bincount(discrete_step(t, 50), minlength=50)
    assert torch.equal(counts, torch.full((50,), 100))
    assert torch.equal(t, step_time(discrete_step(t, 50), 50))
    assert float(t.min()) == 0.0 and float(t.max()) == 1.0
    assert discrete_step(t, 50)[0] == 49  # times near 0 are noise


def test_a_path_of_separate_steps_has_no_velocity():
    with pytest.raises(ValueError, match="data and noise"):
        DdpmCosine("velocity")
    path = DdpmCosine("data")
    with pytest.raises(ValueError, match="no velocity"):
        path.velocity(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="2 to 50"):
        spaced_steps(50, 51)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (DDPM[:1], "objective: prediction: velocity is none of ddpm-cosine, which has data and noise"),
        (DDPM[:2], "sample.solver: euler, but the path ddpm-cosine is one of separate steps; take ddpm"),
        (DDPM[2:], "sample.solver: ddpm, but the path linear is continuous; take heun"),
        ((*DDPM, "sample.steps=1001"), "sample.steps: 1001; ddpm takes 2 to objective.num_timesteps, 1000"),
        ((*DDPM, "objective.num_timesteps=1"), "objective.num_timesteps"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_recipe_is_read(tiny_mapping, overrides, said):
    with pytest.raises(InputError) as raised:
        load_recipe(tiny_mapping, overrides)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_num_timesteps_of_a_continuous_path_is_said_to_do_nothing(tiny_mapping):
    with pytest.warns(UserWarning, match="num_timesteps has no effect with interpolant linear"):
        load_recipe(tiny_mapping, ("objective.num_timesteps=10",))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train(tiny(*SHORT), out=tmp_path_factory.mktemp("ddpm") / "run")


def test_training_times_are_those_of_the_steps_that_the_recipe_says(tiny, seen):
    recipe = tiny(*SHORT)
    trainer = Trainer(recipe, build_parts(recipe))
    for step in range(3):
        trainer.train_step(step)
    t = torch.cat([time for _, time, *_ in seen])
    steps = discrete_step(t, 40)
    assert torch.equal(t, step_time(steps, 40)) and len(t) == 48
    assert 20 < len(steps.unique()) <= 40


def test_sampling_visits_the_steps_that_the_recipe_says(run, seen):
    load(run.path).sample(2)
    visited = torch.stack([time for _, time, *_ in seen])
    wanted = step_time(torch.tensor(spaced_steps(40, 5)[::-1]), 40)
    assert torch.equal(visited, wanted[:, None].expand(5, 2))


def test_a_run_samples_ancestrally_and_not_by_the_batch(run):
    model = load(run.path)
    conditions = model.conditions(4, seed=1)
    together, _ = model.sample_latents(conditions, seed=1, settings=model.settings(batch_size=4))
    apart, _ = model.sample_latents(conditions, seed=1, settings=model.settings(batch_size=1))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    again, _ = model.sample_latents(conditions, seed=2, settings=model.settings(batch_size=4))
    assert float((together - again).abs().max()) > 1e-3  # a network of two steps predicts nearly nothing
    with pytest.raises(InputError, match="take ddpm"):
        model.settings(solver="heun")
