"""Every option of the core's sections changes what it is there to change."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layersync
from layersync import Recipe, Run
from layersync.core.generation import GenerativeModel, load
from layersync.core.interpolant import INTERPOLANTS
from layersync.core.solver import FIXED_STEP
from layersync.core.trainer import Trainer, build_parts

Make = Callable[..., Any]
STEPS = ("train.steps=3",)


def weights_after(make: Make, *overrides: str) -> dict[str, Tensor]:
    """Weights after the recipe's steps; without a run's logs and measurements, which cost more than 3 steps do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = make(*STEPS, *overrides)
    trainer = Trainer(recipe, build_parts(recipe))
    trainer.model.train()
    for step in range(recipe.train.steps):
        trainer.train_step(step)
    return {name: value.clone() for name, value in trainer.backbone.state_dict().items()}


TRAINING = {
    "seed": ("seed=1", ""),
    "objective.interpolant": ("objective.interpolant=trigonometric", ""),
    "objective.interpolant again": ("objective.interpolant=variance-preserving", "objective.interpolant=trigonometric"),
    "objective.prediction": ("objective.prediction=noise", ""),
    "objective.prediction score": ("objective.prediction=score", "objective.prediction=noise"),
    "objective.prediction data": ("objective.prediction=data", ""),
    "objective.time": ("objective.time=logit-normal", ""),
    "objective.time_mean": ("objective.time_mean=1", "objective.time=logit-normal"),
    "objective.time_std": ("objective.time_std=0.3", "objective.time=logit-normal"),
    "objective.shift": ("objective.shift=2", ""),
    "regularizer.pairs": ("regularizer.pairs=[[2, 4]]", ""),
    "regularizer.weight": ("regularizer.weight=0.6", ""),
    "regularizer.schedule.delay": ("regularizer.schedule.delay=2", ""),
    "regularizer.schedule.warmup": ("regularizer.schedule.warmup=3", ""),
    "regularizer.schedule.stop": ("regularizer.schedule.stop=2", ""),
    "regularizer.schedule.decay": ("regularizer.schedule.decay=2", "regularizer.schedule.stop=3"),
    "regularizer.t_range": ("regularizer.t_range=[0.3, 0.6]", ""),
    "regularizer.similarity": ("regularizer.similarity=centred", ""),
    "regularizer.stop_gradient": ("regularizer.stop_gradient=false", ""),
    "optimizer.lr": ("optimizer.lr=0.002", ""),
    "optimizer.betas first": ("optimizer.betas=[0.5, 0.999]", ""),
    "optimizer.betas second": ("optimizer.betas=[0.9, 0.5]", ""),
    "optimizer.weight_decay": ("optimizer.weight_decay=0.1", ""),
    "optimizer.warmup": ("optimizer.warmup=2", ""),
    "optimizer.schedule": ("optimizer.schedule=cosine", ""),
    "optimizer.clip": ("optimizer.clip=0.0001", ""),
    "train.steps": ("train.steps=4", ""),
    "train.batch_size": ("train.batch_size=8", ""),
    "train.condition_dropout": ("train.condition_dropout=0.9", ""),
    "train.precision": ("train.precision=bf16", ""),
    "backbone.mlp_ratio": ("backbone.mlp_ratio=2", ""),
    "backbone.depth": ("backbone.depth=3", ""),
    "backbone.hidden_size": ("backbone.hidden_size=64", ""),
    "backbone.patch_size": ("backbone.patch_size=4", ""),
    "backbone.num_heads": ("backbone.num_heads=2", ""),
    "backbone.qk_norm": ("backbone.qk_norm=true", ""),
    "backbone.learn_sigma": ("backbone.learn_sigma=true", ""),
    "backbone.dropout": ("backbone.dropout=0.5", ""),
    "data.flip": ("data.flip=true", ""),
    "data.split": ("data.split=test", ""),
}
# the rest of the train section: what it changes is shown where it is named
ELSEWHERE = {
    "objective.num_timesteps": "test_ddpm.py: the schedules of 50 and of 1000 steps",
    "train.accumulate": "test_trainer.py: equal gradients, and one sees micro-batches there",
    "train.compile": "test_trainer.py: equal gradients",
    "train.gradient_checkpointing": "test_trainer.py: equal gradients",
    "train.ema_decay": "below",
    "train.ema_ramp": "below",
    "train.checkpoint_every": "test_trainer.py: test_keep",
    "train.keep": "test_trainer.py: test_keep",
    "train.log_every": "below",
    "train.init": "test_trainer.py: test_init",
    "optimizer.name": "one value",
    "regularizer.name": "test_layersync.py: none against weight 0 against 0.3",
    "regularizer.schedule": "its fields, above",
    "backbone.name": "one value",
}


def test_the_table_is_complete(tiny: Make) -> None:
    recipe: Recipe = tiny()
    named = {name.split(" ")[0] for name in (*TRAINING, *ELSEWHERE)}
    for section in ("objective", "regularizer", "optimizer", "train", "backbone"):
        for key in type(getattr(recipe, section)).model_fields:
            assert f"{section}.{key}" in named, f"{section}.{key} is in no test"


@pytest.fixture(scope="module")
def bases(tiny: Make) -> Callable[[str], dict[str, Tensor]]:
    """Weights by the overrides that an option is tested on top of; each trained once."""
    known: dict[str, dict[str, Tensor]] = {}

    def get(overrides: str) -> dict[str, Tensor]:
        if overrides not in known:
            known[overrides] = weights_after(tiny, *([overrides] if overrides else []))
        return known[overrides]

    return get


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        return True
    return any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", list(TRAINING))
def test_every_training_option_changes_the_weights(name: str, bases: Make, tiny: Make) -> None:
    override, base = TRAINING[name]
    found = weights_after(tiny, *([base] if base else []), override)
    assert changed(found, bases(base)), f"{override} on top of {base or 'the tiny recipe'} changes nothing"


def test_the_same_recipe_gives_the_same_weights_as_a_run(
    bases: Make, tiny: Make, tensors_of: Make, tmp_path: Path
) -> None:
    assert not changed(tensors_of(layersync.train(tiny(*STEPS), tmp_path / "run")), bases(""))


@pytest.mark.parametrize("override", ["train.ema_decay=0.1", "train.ema_ramp=false"])
def test_averaging_options_change_the_averages_alone(
    override: str, bases: Make, tiny: Make, tensors_of: Make, tmp_path: Path
) -> None:
    run = layersync.train(tiny(*STEPS, override), tmp_path / "run")
    other = layersync.train(tiny(*STEPS), tmp_path / "other")
    assert not changed(tensors_of(run), bases(""))
    assert changed(tensors_of(run, "ema"), tensors_of(other, "ema"))


def test_log_every_and_evaluate_every_change_the_log(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("train.steps=6", "train.log_every=4", "evaluate.every=2"), tmp_path / "run")
    assert [r["step"] for r in run.records() if "flow_loss" in r] == [4, 6]
    assert [r["step"] for r in run.records() if "held_out_loss" in r] == [0, 2, 4, 6]


SAMPLING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ddpm is for paths of separate steps alone: test_ddpm.py
    **{f"solver {name}": ({"solver": name}, {"solver": "dopri5"}) for name in (*FIXED_STEP, "euler-maruyama")},
    "steps": ({"steps": 6}, {}),
    "guidance": ({"guidance": 2.0}, {}),
    "guidance_interval": ({"guidance_interval": (0.3, 0.6)}, {"guidance": 2.0}),
    "diffusion_scale": ({"diffusion_scale": 0.3}, {"solver": "euler-maruyama"}),
    **{
        f"diffusion {form}": ({"diffusion": form}, {"solver": "euler-maruyama"})
        for form in ("constant", "sbdm", "decreasing", "increasing-decreasing")
    },
    **{f"last_step {how}": ({"last_step": how}, {"solver": "euler-maruyama"}) for how in ("none", "tweedie", "euler")},
    "last_step_size": ({"last_step_size": 0.2}, {"solver": "euler-maruyama"}),
    "rtol": ({"rtol": 0.5, "atol": 0.5}, {"solver": "dopri5"}),
    "atol": ({"atol": 0.5}, {"solver": "dopri5", "rtol": 1e-6}),
    "precision": ({"precision": "bf16"}, {}),
}


@pytest.fixture(scope="module")
def model(trained: Run) -> GenerativeModel:
    return load(trained.path, weights="model")


@pytest.mark.parametrize("name", list(SAMPLING))
def test_every_sampling_option_changes_the_samples(name: str, model: GenerativeModel) -> None:
    change, base = SAMPLING[name]
    conditions = model.conditions(2, labels=[1, 2])
    found = [model.sample_latents(conditions, settings=model.settings(**s))[0] for s in (base, {**base, **change})]
    assert torch.isfinite(torch.cat(found)).all()
    assert not torch.equal(*found)


def test_guided_channels_change_the_samples(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("tokenizer.channels=3", "train.steps=3"), tmp_path / "run")
    model = load(run.path, weights="model")
    conditions = model.conditions(2, labels=[1, 2])
    found = [
        model.sample_latents(conditions, settings=model.settings(guidance=3.0, guidance_channels=n))[0]
        for n in (None, 2)
    ]
    assert not torch.equal(*found)


def test_the_sampling_table_is_complete(tiny: Make) -> None:
    named = {key for change, _ in SAMPLING.values() for key in change} | {"guidance_channels", "batch_size"}
    assert named == set(type(tiny().sample).model_fields)
    assert len(INTERPOLANTS) == 3


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_rounding_of_pixels_by_hand(rounding: str, tiny: Make) -> None:
    recipe = tiny(f"tokenizer.rounding={rounding}")
    tokenizer = recipe.adapter.tokenizer(recipe.tokenizer)
    values = torch.tensor([-1.0, -0.001, 0.0, 0.003, 1.0]).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    found = tokenizer.decode(values)[0][0, :, 0].tolist()
    by_hand = {"nearest": [0, 127, 128, 128, 255], "truncate": [0, 127, 127, 127, 255]}
    assert found == by_hand[rounding]
    stored = np.arange(0, 256, dtype=np.uint8).reshape(16, 16, 1)
    if rounding == "nearest":
        whole = recipe.adapter.tokenizer(tiny("tokenizer.image_size=16").tokenizer)
        assert np.array_equal(whole.decode(torch.stack(whole.encode([stored])))[0], stored)
