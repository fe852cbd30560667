"""One step of training, plain against compiled, checkpointed, accumulated; padding; what stops a training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plugins import Installer
from safetensors.torch import load_file
from scipy import special, stats
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import layersync
from layersync import load_recipe
from layersync.core import run as run_module
from layersync.core import trainer as trainer_module
from layersync.core.draws import StepDraws, generator, step_draws
from layersync.core.errors import InputError, TrainingError
from layersync.core.latents import LatentBatch, LatentCache
from layersync.core.probe import flow_loss
from layersync.core.run import leave_newest
from layersync.core.trainer import Trainer, build_parts, choose_precision
from layersync.modalities.image.tokenizer import Pixels

Make = Callable[..., Any]


def with_weights(recipe: Any) -> Trainer:
    """A trainer of a network with weights everywhere: at initialisation most outputs and gradients are 0."""
    trainer = Trainer(recipe, build_parts(recipe))
    torch.manual_seed(1)
    for parameter in trainer.names:
        nn.init.normal_(parameter, std=0.1)
    trainer.model.train()
    return trainer


def one_step(recipe: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of one step on such weights."""
    trainer = with_weights(recipe)
    gradients: dict[str, Tensor] = {}

    def note(optimizer: Any, *_: Any) -> None:
        gradients.update({name: p.grad.clone() for p, name in trainer.names.items() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(note)
    losses = trainer.train_step(3)
    return {name: float(value) for name, value in losses.items()}, gradients


@pytest.fixture(scope="module")
def plain(tiny: Make) -> tuple[dict[str, float], dict[str, Tensor]]:
    return one_step(tiny("train.precision=float32"))


def assert_equal_steps(found: tuple, plain: tuple) -> None:
    (losses, gradients), (wanted_losses, wanted) = found, plain
    assert set(losses) == set(wanted_losses) and "similarity/1-3" in losses
    for name, value in wanted_losses.items():
        assert losses[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    assert set(gradients) == set(wanted)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * max(1.0, scale), name
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize(
    "changes",
    [["train.gradient_checkpointing=true"], ["train.accumulate=2"], ["train.accumulate=4"]],
    ids=["checkpointing", "accumulation-2", "accumulation-4"],
)
def test_equal_loss_and_gradients(tiny: Make, plain: tuple, changes: list[str]) -> None:
    assert_equal_steps(one_step(tiny(*changes)), plain)


def test_checkpointing_computes_each_block_twice(tiny: Make) -> None:
    for on, times in (("false", 1), ("true", 2)):
        trainer = with_weights(tiny(f"train.gradient_checkpointing={on}"))
        calls: list[str] = []
        trainer.backbone.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append("block"))
        trainer.train_step(3)
        assert len(calls) == times


def test_accumulation_gives_the_network_a_part_at_a_time(tiny: Make, seen: list[Any]) -> None:
    for accumulate, sizes in ((1, [16]), (2, [8, 8]), (4, [4, 4, 4, 4])):
        trainer = with_weights(tiny(f"train.accumulate={accumulate}"))
        seen.clear()
        trainer.train_step(3)
        assert [len(x_t) for x_t, *_ in seen] == sizes


def test_batches_that_are_prepared_ahead_are_the_same(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors_of: Make, identical: Make
) -> None:
    """As they are where a GPU trains; begun, stopped and gone on, in several micro-batches."""
    recipe = tiny("train.steps=4", "train.accumulate=2", "backbone.dropout=0.1")
    whole = layersync.train(recipe, tmp_path / "whole")
    monkeypatch.setattr(trainer_module, "prepares_ahead", lambda device: True)
    prepared, own = [], Trainer._prepare

    def watched(self: Trainer, step: int, micro: int) -> Any:
        prepared.append((step, micro, threading.current_thread() is threading.main_thread()))
        return own(self, step, micro)

    monkeypatch.setattr(Trainer, "_prepare", watched)
    layersync.train(tiny("train.steps=2", *("train.accumulate=2", "backbone.dropout=0.1")), tmp_path / "run")
    ahead = layersync.train(recipe, tmp_path / "run", resume=True)
    assert prepared == [(step, micro, step in (0, 2) and micro == 0) for step in range(4) for micro in range(2)]
    for kind in ("model", "ema", "optimizer"):
        assert identical(tensors_of(ahead, kind), tensors_of(whole, kind))


def test_with_dropout_another_accumulation_is_another_training(tiny: Make) -> None:
    """Dropout is drawn for a micro-batch, as the documentation says."""
    whole, parts = (one_step(tiny("backbone.dropout=0.3", f"train.accumulate={n}"))[0] for n in (1, 2))
    assert whole["flow_loss"] != pytest.approx(parts["flow_loss"], rel=1e-4)


def test_equal_loss_and_gradients_when_traced(tiny: Make, plain: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile captures, forwards and backwards, run without its code generator: seconds, not minutes."""
    compiled = []

    def compile(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile)
    assert_equal_steps(one_step(tiny("train.compile=true")), plain)
    assert compiled == ["SiT"]


def test_measuring_compiles_nothing(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses are of other batches than training: the network is compiled for those of training alone."""
    counter = CompileCounter()

    def compile(self: nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=counter)

    monkeypatch.setattr(nn.Module, "compile", compile)
    torch._dynamo.reset()
    layersync.train(tiny("train.compile=true", "train.steps=2"), tmp_path / "run")
    assert counter.frame_count == 1


@pytest.mark.slow
def test_equal_loss_and_gradients_when_compiled(tiny: Make, plain: tuple) -> None:
    assert_equal_steps(one_step(tiny("train.compile=true")), plain)


def test_checkpointing_recomputes_dropout_alike(tiny: Make) -> None:
    found = [one_step(tiny("backbone.dropout=0.3", f"train.gradient_checkpointing={on}")) for on in ("true", "false")]
    assert_equal_steps(*found)


def test_bf16_trains_close_to_float32_with_a_float32_loss(tiny: Make, plain: tuple) -> None:
    losses, gradients = one_step(tiny("train.precision=bf16"))
    assert losses["flow_loss"] == pytest.approx(plain[0]["flow_loss"], rel=0.02)
    assert losses["flow_loss"] != plain[0]["flow_loss"]
    assert all(g.dtype == torch.float32 for g in gradients.values())


@pytest.mark.parametrize(
    ("hardware", "dtype", "reason"),
    [
        ((True, False), torch.bfloat16, "this processor computes in bf16"),
        ((False, True), torch.bfloat16, "this processor computes in bf16"),
        ((False, False), torch.float32, "this processor has no bf16"),
    ],
    ids=["avx512", "amx", "neither"],
)
def test_precision_of_a_processor(
    hardware: tuple[bool, bool], dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, there in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), hardware, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda there=there: there)
    cpu = torch.device("cpu")
    assert choose_precision(cpu, "auto") == (dtype, reason)
    assert choose_precision(cpu, "bf16") == (torch.bfloat16, "the recipe says so")
    assert choose_precision(cpu, "float32") == (torch.float32, "the recipe says so")
    assert choose_precision(cpu, "tf32") == (torch.float32, "TF32 is for CUDA devices alone")


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_of_a_gpu_is_what_it_computes_in_not_what_it_emulates(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Accelerator 9000")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    found, reason = choose_precision(torch.device("cuda"), "auto")
    assert found == dtype and reason.startswith("Accelerator 9000 ")


def test_the_network_computes_in_the_precision_that_was_chosen(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        trainer = with_weights(tiny("train.precision=auto"))
        found: list[torch.dtype] = []
        trainer.backbone.blocks[0].mlp.fc1.register_forward_hook(
            lambda module, given, out, found=found: found.append(out.dtype)
        )
        trainer.train_step(3)
        assert found == [dtype]


class TestPadding:
    """Motions, some of which are shorter than the window that is trained on."""

    @pytest.fixture
    def recipe(self, tiny_mapping: dict) -> Callable[..., Any]:
        motions: dict[str, Any] = {
            "modality": "motion",
            "data": {"name": "mocap-clips"},
            "tokenizer": {"name": "smpl6d", "num_frames": 96},
            "backbone": {**tiny_mapping["backbone"], "name": "transformer", "patch_size": 4},
        }
        return lambda *overrides: load_recipe({**tiny_mapping, **motions}, overrides)

    def step(self, recipe: Any, filling: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
        """One step with ``filling`` where zeros pad the clips that are too short."""
        whole = LatentCache.read

        def read(cache: LatentCache, draws: StepDraws) -> LatentBatch:
            batch = whole(cache, draws)
            assert batch.mask is not None and len(set(batch.mask.sum(1).tolist())) > 1
            padding = ~batch.mask[..., None]
            assert not batch.stored[padding.expand_as(batch.stored)].any()
            return dataclasses.replace(batch, stored=batch.stored.masked_fill(padding, filling))

        with monkeypatch.context() as patch:
            patch.setattr(LatentCache, "read", read)
            return one_step(recipe)

    def test_contents_of_padding_change_neither_loss_nor_gradients(
        self, recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for similarity in ("cosine", "centred"):
            one = recipe(f"regularizer.similarity={similarity}")
            first, second = (self.step(one, filling, monkeypatch) for filling in (0.0, 50.0))
            assert first[0] == second[0]
            assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])

    def test_unequal_lengths_do_not_disturb_accumulation(self, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Means go over a sample's own frames first, so micro-batches with fewer frames weigh no less."""
        found = [self.step(recipe(f"train.accumulate={n}"), 0.0, monkeypatch) for n in (2, 1)]
        assert_equal_steps(*found)


def test_flow_loss_is_a_mean_over_real_elements_then_samples() -> None:
    prediction, target = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    target[0, ..., :2] = 2.0  # inside
    target[0, ..., 2:] = 100.0  # padding
    target[1] = 1.0
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert flow_loss(prediction, target, mask, frame_axis=2).tolist() == [4.0, 1.0]
    moved = flow_loss(prediction.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2), mask, frame_axis=0)
    assert moved.tolist() == [4.0, 1.0]
    assert flow_loss(prediction.bfloat16(), target.bfloat16(), None, 2).dtype == torch.float32


def times_by_hand(trainer: Trainer, uniform: Tensor) -> Tensor:
    """By SciPy and Stable Diffusion 3 (arXiv 2403.03206, eq. 19 and 23, of the noise's share s = 1 - t)."""
    objective, t = trainer.recipe.objective, uniform.double().numpy()
    if objective.time == "logit-normal":
        t = special.expit(stats.norm.ppf(t, objective.time_mean, objective.time_std))
    s = objective.shift * (1 - t) / (1 + (objective.shift - 1) * (1 - t))
    last = 1 - 1e-5 if objective.prediction == "score" else 1  # where the noise is gone it has no score
    return torch.from_numpy(np.asarray(last * (1 - s))).float()


def losses_by_hand(trainer: Trainer, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flow loss and similarity of each sample, its t, and whether it lost its label, on the linear path.

    A score is -x0 / (1 - t), and counts as the noise that it amounts to.
    """
    cache, dropout = trainer.parts.cache, trainer.recipe.train.condition_dropout
    draws = step_draws(0, step, 16, slice(0, 16), len(cache), trainer.parts.data.latent)
    x1, x0 = torch.stack([cache.stored(int(index)) for index in draws.indices]), draws.noise
    t = times_by_hand(trainer, draws.uniform_time)
    time = t[:, None, None, None]
    dropped = draws.drop < dropout
    label = torch.from_numpy(cache.labels[draws.indices])
    label[dropped] = 10
    with torch.no_grad():
        out = trainer.backbone((1 - time) * x0 + time * x1, t, {"label": label}, taps=(1, 3))
    student, teacher = out.features[1], out.features[3]
    cosine = (student * teacher).sum(2) / student.norm(dim=2) / teacher.norm(dim=2)
    scored = trainer.recipe.objective.prediction == "score"
    error = (1 - time) * out.prediction + x0 if scored else out.prediction - (x1 - x0)
    return (error**2).mean((1, 2, 3)), cosine.mean(1), t, dropped


@pytest.mark.parametrize(("dropout", "most"), [(0.0, 0), (0.1, 8), (1.0, 16)])
def test_a_step_is_what_the_definitions_give(dropout: float, most: int, tiny: Make) -> None:
    trainer = with_weights(tiny(f"train.condition_dropout={dropout}"))
    flow, similarity, _, dropped = losses_by_hand(trainer, 3)
    assert min(1, most) <= int(dropped.sum()) <= most
    losses = trainer.train_step(3)
    assert float(losses["flow_loss"]) == pytest.approx(float(flow.mean()), abs=1e-6)
    assert float(losses["similarity/1-3"]) == pytest.approx(float(similarity.mean()), abs=1e-6)
    assert float(losses["regularizer_loss"]) == pytest.approx(-0.3 * float(similarity.mean()), abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        ("objective.prediction=score",),
        ("objective.time=logit-normal", "objective.time_mean=0.4", "objective.time_std=0.7", "objective.shift=2.5"),
    ],
    ids=["score", "logit-normal"],
)
def test_a_step_of_another_objective_is_what_its_definition_gives(
    changes: tuple[str, ...], tiny: Make, seen: list[Any]
) -> None:
    trainer = with_weights(tiny(*changes))
    flow, similarity, t, _ = losses_by_hand(trainer, 3)
    losses = trainer.train_step(3)
    torch.testing.assert_close(seen[-1][1], t)
    assert float(losses["flow_loss"]) == pytest.approx(float(flow.mean()), rel=1e-5)
    assert float(losses["similarity/1-3"]) == pytest.approx(float(similarity.mean()), abs=1e-6)


class Drawn(Pixels):
    """Pixels as means of latents that are drawn, each with a deviation of its own."""

    stochastic = True

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return stored if noise is None else stored + self.deviation(stored) * noise

    @staticmethod
    def deviation(stored: Tensor) -> Tensor:
        return 0.1 + 0.2 * stored.abs()


def test_latents_that_have_a_deviation_are_drawn_anew_at_every_step(tiny: Make, tmp_path: Path) -> None:
    """16 images, all of them in each batch; and once for good of what is measured on."""
    recipe = tiny()
    parts = build_parts(recipe, limit=16, directory=tmp_path)
    parts = dataclasses.replace(parts, tokenizer=Drawn(recipe.tokenizer))
    trainer, given = Trainer(recipe, parts), []
    trainer.model.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    by_image = []
    for step in (0, 1):
        draws = step_draws(0, step, 16, slice(0, 16), 16, parts.data.latent, posterior=True)
        means = torch.stack([parts.cache.stored(int(index)) for index in draws.indices])
        trainer.train_step(step)
        torch.testing.assert_close(given[step], means + Drawn.deviation(means) * draws.posterior)
        by_image.append(given[step][np.argsort(draws.indices)])
    assert float((by_image[0] - by_image[1]).abs().mean()) > 0.1
    source = generator(0, "probe")
    means = torch.stack([parts.held_out.stored(int(index)) for index in source.permutation(16)])
    _, drawn = (torch.from_numpy(source.standard_normal(means.shape, dtype=np.float32)) for _ in range(2))
    torch.testing.assert_close(trainer.probe.x1, means + Drawn.deviation(means) * drawn)


def test_t_range_is_about_the_times_of_the_samples(tiny: Make) -> None:
    trainer = with_weights(tiny("regularizer.t_range=[0.2, 0.6]"))
    flow, similarity, t, _ = losses_by_hand(trainer, 3)
    inside = (t >= 0.2) & (t <= 0.6)
    assert 0 < inside.sum() < 16 and not torch.equal(inside, (1 - t >= 0.2) & (1 - t <= 0.6))
    losses = trainer.train_step(3)
    assert float(losses["flow_loss"]) == pytest.approx(float(flow.mean()), abs=1e-6)
    assert float(losses["similarity/1-3"]) == pytest.approx(float(similarity.mean()), abs=1e-6)
    assert float(losses["regularizer_loss"]) == pytest.approx(-0.3 * float((similarity * inside).mean()), abs=1e-6)


def test_the_first_loss_is_what_the_definitions_give(tiny: Make) -> None:
    """A network that starts by predicting 0: the flow loss is the mean square of the velocity, similarity is 1."""
    recipe = tiny()
    parts = build_parts(recipe)
    losses = Trainer(recipe, parts).train_step(0)
    draws = step_draws(0, 0, 16, slice(0, 16), len(parts.cache), parts.data.latent)
    x1 = torch.stack([parts.cache.stored(int(index)) for index in draws.indices])
    assert float(losses["flow_loss"]) == pytest.approx(float(((x1 - draws.noise) ** 2).mean()), rel=1e-5)
    assert float(losses["similarity/1-3"]) == pytest.approx(1.0, abs=1e-6)
    assert float(losses["regularizer_loss"]) == pytest.approx(-0.3, abs=1e-6)


def test_weights_to_begin_with_are_the_seeds(tiny: Make, identical: Make) -> None:
    parts = build_parts(tiny())
    zero, one, again = (Trainer(tiny(f"seed={seed}"), parts).backbone.state_dict() for seed in (0, 1, 1))
    assert identical(one, again)
    assert not torch.equal(zero["blocks.1.mlp.fc1.weight"], one["blocks.1.mlp.fc1.weight"])


def test_ema_by_hand(tiny: Make, tmp_path: Path, tensors_of: Make) -> None:
    run = layersync.train(
        tiny("train.steps=2", "train.checkpoint_every=1", "train.ema_ramp=false", "train.ema_decay=0.75"),
        tmp_path / "a",
    )
    start = Trainer(run.recipe, build_parts(run.recipe)).backbone.state_dict()
    name = "blocks.1.mlp.fc1.weight"
    first, second = (tensors_of(run, "model", step)[name] for step in (1, 2))
    averaged = 0.75 * (0.75 * start[name] + 0.25 * first) + 0.25 * second
    assert torch.allclose(tensors_of(run, "ema")[name], averaged, atol=1e-7)


def test_ema_ramp_rises_to_the_decay(tiny: Make, tmp_path: Path, tensors_of: Make) -> None:
    run = layersync.train(tiny("train.steps=3", "train.checkpoint_every=1", "train.ema_decay=0.2"), tmp_path / "a")
    first, second, third = (tensors_of(run, "model", step)["blocks.1.mlp.fc1.weight"] for step in (1, 2, 3))
    averages = [tensors_of(run, "ema", step)["blocks.1.mlp.fc1.weight"] for step in (1, 2, 3)]
    assert torch.allclose(averages[0], first, atol=1e-7)
    assert torch.allclose(averages[1], 2 / 11 * first + 9 / 11 * second, atol=1e-7)  # (1 + n) / (10 + n) at n = 1
    assert torch.allclose(averages[2], 0.2 * averages[1] + 0.8 * third, atol=1e-7)  # 3 / 12 is above the decay


def test_nan_loss_stops_and_names_the_step(tiny: Make, tmp_path: Path, tensors_of: Make) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is no longer finite"):
        layersync.train(tiny("optimizer.lr=1.0e+30", "train.checkpoint_every=1"), tmp_path / "run")
    kept = tensors_of(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_clipping_bounds_the_gradient(tiny: Make, plain: tuple) -> None:
    losses, gradients = one_step(tiny("optimizer.clip=0.01"))
    norm = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert losses["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)  # logged as it was


def test_learning_rate_over_time(tiny: Make) -> None:
    optimizer = tiny("optimizer.lr=1.0", "optimizer.warmup=4", "optimizer.schedule=cosine").optimizer
    rates = [optimizer.rate(step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.5) and 0 < rates[11] < 0.05
    assert tiny("optimizer.lr=1.0").optimizer.rate(7, 12) == 1.0


def test_step_times_and_the_learning_rate_are_logged_as_they_were(
    tiny: Make, tmp_path: Path, clock: list[float]
) -> None:
    """Step n takes n seconds and a measurement 100, which are no step's; time counts on over an interruption."""
    settings = ("optimizer.lr=1.0e-3", "optimizer.warmup=4", "train.log_every=2", "evaluate.every=3")
    layersync.train(tiny(*settings, "train.steps=4"), tmp_path / "run")
    clock[0] += 5000
    run = layersync.train(tiny(*settings, "train.steps=7"), tmp_path / "run", resume=True)
    logged = {record["step"]: record for record in run.records() if "lr" in record}
    rates = {step: record["samples_per_second"] for step, record in logged.items()}
    assert rates == pytest.approx({2: 2 * 16 / (1 + 2), 4: 16 / 4, 6: 2 * 16 / (5 + 6), 7: 16 / 7})
    seconds = [record["seconds"] for record in run.records()]
    assert seconds == [100, 100 + 3, 200 + 6, 200 + 10, 300 + 10, 300 + 21, 400 + 21, 400 + 28, 500 + 28]
    assert {step: record["lr"] for step, record in logged.items()} == pytest.approx(
        {2: 0.5e-3, 4: 1e-3, 6: 1e-3, 7: 1e-3}
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_of_a_step_is_that_of_its_place_in_the_training(schedule: str, tiny: Make) -> None:
    recipe = tiny("optimizer.lr=1.0e-3", "optimizer.warmup=2", f"optimizer.schedule={schedule}", "train.steps=6")
    trainer, used = Trainer(recipe, build_parts(recipe)), []
    trainer.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    for step in range(6):
        trainer.train_step(step)
    falling = [0.5 * (1 + np.cos(np.pi * part)) for part in (0, 0.25, 0.5, 0.75)]
    assert used == pytest.approx([0.5e-3, 1e-3, *(1e-3 * x for x in (falling if schedule == "cosine" else [1] * 4))])


def test_dry_run_writes_nothing(
    command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("LAYERSYNC_CACHE", str(cache))
    status, out, err = command("train", tiny_file, "--out", tmp_path / "run", "--dry-run")
    assert status == 0 and not (tmp_path / "run").exists()
    needs = json.loads(out)
    assert needs["parameters"] > 1000 and needs["seconds_per_step"] > 0 and needs["checkpoint_bytes"] > 1000
    assert "memory" in err and "disk" in err
    assert err.count("warning: --out, --resume and --auto-resume have no effect with --dry-run") == 1
    assert not cache.exists()


def test_disk_is_that_of_checkpoints_and_of_latents_of_both_splits(command: Make, tiny_file: Path) -> None:
    """1,442 and 355 digits of 64 bytes; a third checkpoint is written before the first of two is removed."""
    sizes = ("--set", "train.steps=20", "--set", "train.checkpoint_every=2", "--dry-run")
    found = [json.loads(command("train", tiny_file, *sizes, "--set", f"train.keep={keep}")[1]) for keep in (2, 50)]
    latents = [
        needs["disk_bytes"] - count * needs["checkpoint_bytes"] for needs, count in zip(found, (3, 10), strict=True)
    ]
    assert latents[0] == latents[1] == pytest.approx(4 * 64 * 1797, rel=0.1)


def test_memory_that_is_out_is_one_line(command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")

    monkeypatch.setattr(Trainer, "train_step", out_of_memory)
    status, _, err = command("train", tiny_file, "--out", tmp_path / "run")
    last = "error: CUDA out of memory. Tried to allocate 2.00 GiB. Smaller parts take less: train.accumulate, "
    assert status == 1 and err.splitlines()[-1].startswith(last) and "Traceback" not in err


def test_checkpoint_size_is_what_the_dry_run_says(command: Make, tiny_file: Path, trained: Any) -> None:
    needs = json.loads(command("train", tiny_file, "--dry-run")[1])
    size = sum(path.stat().st_size for path in trained.latest_checkpoint().iterdir())
    assert needs["checkpoint_bytes"] == pytest.approx(size, rel=0.2)


def test_init_starts_from_the_averaged_weights_of_a_run(
    tiny: Make, trained: Any, tmp_path: Path, tensors_of: Make
) -> None:
    averaged = tensors_of(trained, "ema")
    sources = [trained.path, trained.latest_checkpoint(), trained.latest_checkpoint() / "ema.safetensors"]
    for source in sources:
        recipe = tiny(f"train.init={source}")
        state = Trainer(recipe, build_parts(recipe)).backbone.state_dict()
        assert all(torch.equal(state[name], averaged[name]) for name in averaged)


def test_of_weights_that_fit_partly_the_others_start_anew(
    tiny: Make, trained: Any, tensors_of: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another size the table of places, without labels that of classes; what another network has is refused."""
    averaged = tensors_of(trained, "ema")
    settings = (f"train.init={trained.path}", "train.init_partly=true", "tokenizer.image_size=12", "seed=5")
    with pytest.raises(InputError, match=r"makes latents of 1x12x12, .* needs 1x8x8"):
        build_parts(tiny(settings[0], settings[2]))
    caplog.set_level("INFO", logger="layersync")
    recipe = tiny(*settings, "condition.labels=ignored")
    state = Trainer(recipe, build_parts(recipe)).backbone.state_dict()
    other = [name for name in state if name not in averaged or averaged[name].shape != state[name].shape]
    left = [name for name in averaged if name not in state]
    assert other and left and len(other) + len(left) < 5
    assert all(torch.equal(state[name], averaged[name]) for name in state if name not in other)
    assert all(name in caplog.text.partition("anew: ")[2] for name in other + left)
    fresh = tiny("tokenizer.image_size=12", "seed=5", "condition.labels=ignored")
    anew = Trainer(fresh, build_parts(fresh)).backbone.state_dict()
    assert all(torch.equal(state[name], anew[name]) for name in other)
    with pytest.raises(InputError, match=r"of the backbone's weights \d+% are in it by name and shape"):
        build_parts(tiny(*settings[:2], "backbone.hidden_size=48"))
    with pytest.warns(UserWarning, match=r"train\.init_partly has no effect without train\.init"):
        tiny("train.init_partly=true")


def test_whoever_may_read_a_run_may_read_its_weights(tiny: Make, tmp_path: Path) -> None:
    """As the umask says; safetensors' own files are their owner's alone."""
    before = os.umask(0o027)
    try:
        run = layersync.train(tiny("train.steps=1"), tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in run.path.rglob("*.*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 5
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == dict.fromkeys((p.name for p in files), 0o640)


def test_keep_leaves_the_newest_checkpoints(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("train.steps=5", "train.checkpoint_every=2", "train.keep=2"), tmp_path / "run")
    assert run.checkpoint_steps() == [4, 5]
    everything = layersync.train(tiny("train.steps=5", "train.checkpoint_every=2"), tmp_path / "all")
    assert everything.checkpoint_steps() == [2, 4, 5]


def test_checkpoints_of_round_steps_stay_beside_the_newest(tiny: Make, tmp_path: Path) -> None:
    """As many as a recipe's cost counts."""
    recipe = tiny("train.steps=11", "train.checkpoint_every=2", "train.keep=2", "train.keep_every=4")
    run = layersync.train(recipe, tmp_path / "run")
    assert run.checkpoint_steps() == [4, 8, 10, 11] and recipe.train.num_kept() == 4
    for overrides, count in (
        (["train.keep=1"], 1), (["train.keep=3", "train.keep_every=2"], 6), (["train.keep=1", "train.keep_every=6"], 2),
        ([], 6),
    ):  # fmt: skip
        assert tiny("train.steps=11", "train.checkpoint_every=2", *overrides).train.num_kept() == count
    with pytest.warns(UserWarning, match=r"train\.keep_every has no effect without train\.keep"):
        tiny("train.keep_every=4")
    with pytest.warns(UserWarning, match=r"train\.keep_every: 3 is no multiple of checkpoint_every, 2"):
        tiny("train.keep=1", "train.checkpoint_every=2", "train.keep_every=3")


def test_what_is_not_a_checkpoint_of_the_run_is_kept(tiny: Make, tmp_path: Path) -> None:
    """A copy put aside takes no place of ``train.keep``; what cannot be removed is said, and ends nothing."""
    run = layersync.train(tiny("train.steps=2", "train.checkpoint_every=1"), tmp_path / "run")
    aside = run.checkpoint(1).with_name("step-00000001-best")
    shutil.copytree(run.checkpoint(1), aside)
    layersync.train(tiny("train.steps=4", "train.checkpoint_every=1"), run.path, resume=True)
    (run.path / "checkpoints" / ".step-00000001" / "in-the-way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="step-00000001: cannot be removed"):
        leave_newest(run.path / "checkpoints", 2)
    assert run.checkpoint_steps() == [1, 3, 4] and (aside / "ema.safetensors").is_file()


def test_the_commit_is_of_our_own_repository_or_none(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed inside of another repository, or where there is no git at all, a run has none."""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "theirs")):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for root, commit in ((tmp_path / "site-packages", None), (tmp_path, head)):
        place = root / "layersync" / "core" / "run.py"
        place.parent.mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "__file__", str(place))
            assert run_module.environment(torch.device("cpu"), "float32", "", 1)["git_commit"] == commit
    monkeypatch.setenv("PATH", "")
    assert layersync.train(tiny("train.steps=1"), tmp_path / "run").environment["git_commit"] is None


def test_tied_weights_are_averaged_under_each_of_their_names(installer: Installer, tmp_path: Path) -> None:
    lines = ("built = config.build(latent, condition)", "built.blocks[1].mlp = built.blocks[0].mlp", "return built")
    name = installer.strokes(("return config.build(latent, condition)", "\n        ".join(lines)))
    run = layersync.train(layersync.load_recipe(f"{name}/quick", ["train.ema_decay=0.5"]), tmp_path / "run")
    for kind in ("model", "ema"):
        tensors = load_file(run.latest_checkpoint() / f"{kind}.safetensors")
        pairs = [(key, key.replace("blocks.0.", "blocks.1.")) for key in tensors if key.startswith("blocks.0.mlp.")]
        assert pairs and all(torch.equal(tensors[first], tensors[second]) for first, second in pairs)
    again = layersync.train(
        layersync.load_recipe(f"{name}/quick", ["train.ema_decay=0.5", "train.steps=6"]), run.path, resume=True
    )
    assert again.checkpoint_steps()[-1] == 6 and len(layersync.load(run.path).sample(3)) == 3


def test_what_a_run_holds(trained: Any) -> None:
    names = {path.name for path in trained.path.iterdir()}
    assert {"recipe.yaml", "environment.json", "data.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= names
    assert not list(trained.path.rglob(".*"))
    found = json.loads((trained.path / "environment.json").read_text())
    assert {"python", "packages", "device", "precision", "precision_reason", "git_commit"} <= set(found)
    record = next(r for r in trained.records() if "flow_loss" in r)
    wanted = {"step", "loss", "flow_loss", "regularizer_loss", "similarity", "grad_norm", "lr", "samples_per_second"}
    assert wanted <= set(record)
    assert {path.name for path in trained.latest_checkpoint().iterdir()} == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("WORLD_SIZE", "3", r"train\.batch_size: 16 is no multiple of accumulate x processes, 1 x 3"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP is not supported"),
    ],
)
def test_what_a_launch_cannot_do_is_found_before_anything_is_tokenized(
    variable: str, value: str, named: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match=named):
        layersync.train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_computes_no_block_twice_is_refused_where_that_is_wanted(installer: Installer) -> None:
    lines = ("built = config.build(latent, condition)", "del built.gradient_checkpointing", "return built")
    name = installer.strokes(("return config.build(latent, condition)", "\n        ".join(lines)))
    with pytest.raises(InputError, match=r"train\.gradient_checkpointing: this backbone has none"):
        build_parts(load_recipe(f"{name}/quick", ["train.gradient_checkpointing=true"]))


def test_a_launch_that_shares_no_batch_may_be_of_any_size(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizing, and the runs of a comparison, which are processes by themselves."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert len(build_parts(tiny()).cache)


def test_a_launchers_precision_compiler_and_accumulation_are_not_the_recipes(
    tiny_file: Path, tiny: Make, tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    """``accelerate launch`` tells its processes of those in its configuration."""
    command = [sys.executable, "-m", "layersync.cli", "train", str(tiny_file), "--out", str(tmp_path / "launched")]
    told = {"MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "EAGER", "GRADIENT_ACCUMULATION_STEPS": "4"}
    environment = os.environ | {f"ACCELERATE_{name}": value for name, value in told.items()}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    by_itself = layersync.train(tiny(), tmp_path / "run")
    assert identical(tensors_of(layersync.Run(tmp_path / "launched")), tensors_of(by_itself))


def test_weights_to_start_from_are_checked_before_anything_is_tokenized(
    tiny: Make, trained: layersync.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    with pytest.raises(InputError, match="do not fit the backbone"):
        layersync.train(tiny(f"train.init={trained.path}", "backbone.hidden_size=48"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
