"""The dispersive loss against its definition, and in training as the recipe asks for it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layersync_dispersive.dispersive import DispersiveConfig, DispersiveRegularizer, dispersive_loss
from safetensors.torch import load_file

from layersync import Run, load_recipe
from layersync.core.regularizer.base import load_regularizer

ON = "regularizer.name=dispersive"


def by_definition(z: np.ndarray, mask: np.ndarray | None, temperature: float) -> float:
    """The formula, sample by sample in float64: no matrix products, no shift."""
    size = len(z)
    total = 0.0
    for i in range(size):
        for j in range(size):
            both = np.ones(z.shape[1], bool) if mask is None else mask[i] & mask[j]
            difference = (z[i][both] - z[j][both]).astype(np.float64).ravel()
            total += math.exp(-float(difference @ difference) / (len(difference) * temperature))
    return math.log(total / size**2)


def features(seed: int, size: int = 6, tokens: int = 5, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations with a large part in common, as those of a network are, and masks of differing lengths."""
    random = np.random.default_rng(seed)
    z = 20 + random.standard_normal((size, tokens, channels))
    mask = np.arange(tokens)[None] < random.integers(1, tokens + 1, size)[:, None]
    return torch.from_numpy(z).float(), torch.from_numpy(mask)


def test_a_recipe_of_another_loss_gives_it_no_weight(tiny: Callable[..., Any]) -> None:
    """As an override, and as a variant of a comparison: its defaults, whatever LayerSync had."""
    recipe = tiny("regularizer.name=layersync", "regularizer.weight=0.3").to_mapping()
    with pytest.warns(UserWarning, match="is now 'dispersive': .*weight.* of 'layersync' dropped"):
        found = load_recipe(recipe, [ON])
    assert found.regularizer == tiny(ON).regularizer and found.regularizer.model_dump()["weight"] == 0.5
    assert load_recipe(recipe, [ON, "regularizer.weight=0.7"]).regularizer.model_dump()["weight"] == 0.7


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_its_definition(masked: bool, temperature: float) -> None:
    z, mask = features(0)
    found = dispersive_loss(z, mask if masked else None, temperature)
    expected = by_definition(z.numpy(), mask.numpy() if masked else None, temperature)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_that_of_the_definition(masked: bool) -> None:
    z, mask = features(1)
    z.requires_grad_()
    dispersive_loss(z, mask if masked else None, 0.5).backward()
    kept = mask.numpy() if masked else None
    for row, token, channel in ((0, 0, 1), (3, 0, 2), (5, 4, 0)):
        step = np.zeros(z.shape)
        step[row, token, channel] = 1e-4
        at = z.detach().double().numpy()
        slope = (by_definition(at + step, kept, 0.5) - by_definition(at - step, kept, 0.5)) / 2e-4
        assert float(z.grad[row, token, channel]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_extremes() -> None:
    same = torch.randn(1, 4, 8, generator=torch.manual_seed(0)).expand(5, -1, -1)
    assert float(dispersive_loss(same)) == 0
    far = 100 * torch.eye(5)[:, None, :]
    assert float(dispersive_loss(far)) == pytest.approx(-math.log(5))


def test_padding_is_no_distance() -> None:
    z, mask = features(2)
    z.requires_grad_()
    before = dispersive_loss(z, mask)
    gradient = torch.autograd.grad(before, z)[0]
    z, before = z.detach(), before.detach()
    assert not gradient[~mask].any() and gradient[mask].any()
    padded = torch.where(mask[..., None], z, z.new_tensor(7.0))
    assert float(dispersive_loss(padded, mask)) == pytest.approx(float(before), rel=1e-5)
    lengths_alone = torch.ones(6, 5, 3)
    assert float(dispersive_loss(lengths_alone, mask)) == 0


def test_autocast_changes_nothing() -> None:
    z, _ = features(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = dispersive_loss(z)
    assert torch.equal(inside, dispersive_loss(z))


@pytest.mark.parametrize(("depth", "block"), [(28, 7), (12, 3), (6, 1), (3, 1)])
def test_auto_is_a_quarter_of_the_depth(depth: int, block: int) -> None:
    assert DispersiveRegularizer.from_config(DispersiveConfig(), depth, 32).taps(0) == (block,)
    assert DispersiveRegularizer.from_config(DispersiveConfig(block=2), depth, 32).taps(0) == (2,)
    assert DispersiveRegularizer.from_config(DispersiveConfig(weight=0), depth, 32).taps(0) == ()


def test_layersync_finds_it_by_name() -> None:
    assert load_regularizer("dispersive") is DispersiveRegularizer


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.latest_checkpoint() / "model.safetensors")


def steps(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.records() if "flow_loss" in record]


@pytest.fixture(scope="module")
def baseline(run_of: Callable[..., Run]) -> Run:
    return run_of()


def test_weight_0_is_the_baseline_bit_for_bit(run_of: Callable[..., Run], baseline: Run) -> None:
    with pytest.warns(UserWarning, match=r"regularizer\.weight is 0"):
        run = run_of(ON, "regularizer.weight=0")
    ours, theirs = weights(run), weights(baseline)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [record["loss"] for record in steps(run)] == [record["loss"] for record in steps(baseline)]


def test_a_step_moves_blocks_up_to_the_tapped_one(run_of: Callable[..., Run]) -> None:
    without, run = run_of("train.steps=1"), run_of(ON, "regularizer.block=2", "train.steps=1")
    ours, theirs = weights(run), weights(without)
    moved = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert moved and {name.split(".")[1] for name in moved if name.startswith("blocks.")} == {"0", "1"}
    record = steps(run)[0]
    assert -math.log(16) < record["dispersion"] < 0
    assert record["regularizer_loss"] == pytest.approx(0.5 * record["dispersion"], rel=1e-6)
    assert record["loss"] == pytest.approx(record["flow_loss"] + record["regularizer_loss"], rel=1e-6)


def test_training_disperses(run_of: Callable[..., Run]) -> None:
    more = ["train.steps=20", "train.log_every=20", ON]
    weak, strong = run_of(*more, "regularizer.weight=1.0e-6"), run_of(*more, "regularizer.weight=2")
    assert steps(strong)[-1]["dispersion"] < steps(weak)[-1]["dispersion"] - 0.05


def test_the_schedule_delays_it(run_of: Callable[..., Run], baseline: Run) -> None:
    run = run_of(ON, "regularizer.schedule.delay=2")
    records = steps(run)
    assert [record["regularizer_loss"] == 0 for record in records] == [True, True, False, False]
    assert all(record["dispersion"] < 0 for record in records)
    assert [record["flow_loss"] for record in records[:3]] == [record["flow_loss"] for record in steps(baseline)[:3]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=1"], "dispersive takes 2 samples or more, batch_size / accumulate is 1"),
        (["train.accumulate=16"], "dispersive takes 2 samples or more, batch_size / accumulate is 1"),
        (["regularizer.block=5"], "regularizer.block: 5, the backbone has only 4 blocks"),
        (["regularizer.block=0"], "regularizer.block"),
        (["regularizer.temperature=0"], "regularizer.temperature"),
        (["regularizer.gather=all"], "regularizer.gather"),
        (["regularizer.wieght=1"], "did you mean 'weight'?"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    overrides: list[str], words: str, command: Callable[..., Any], recipe_file: Path, tmp_path: Path
) -> None:
    given = [part for override in [ON, *overrides] for part in ("--set", override)]
    status, _, said = command("train", recipe_file, *given, "--out", tmp_path / "run")
    assert status == 2 and words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


IN_A_PROCESS = """
import sys, torch, torch.distributed as dist
from torch import nn
from layersync.core.interpolant import Linear
from layersync.core.regularizer.base import StepContext
from layersync_dispersive.dispersive import DispersiveConfig, DispersiveRegularizer

file, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=2)
x_BTD, mask_BT = torch.load(file).values()
mine = slice(4 * rank, 4 * rank + 4)
found = {}
for gather in ("global", "local"):
    for masked in (False, True):
        torch.manual_seed(0)
        block = nn.Linear(3, 3)
        regularizer = DispersiveRegularizer.from_config(DispersiveConfig(gather=gather, weight=1.0), 4, 3)
        mask = mask_BT[mine] if masked else None
        x, t = x_BTD[mine], torch.rand(4)
        context = StepContext(x, x, t, {1: block(x)}, mask, 0, None, x, {}, mask, Linear())
        loss, logs = regularizer(context)
        loss.backward()
        gradient = block.weight.grad / 2
        dist.all_reduce(gradient)  # the mean, as DDP takes it
        found[gather, masked] = {"loss": loss.detach(), "gradient": gradient}
torch.save(found, f"{file}.{rank}")
dist.barrier()
dist.destroy_process_group()
"""


def test_processes_push_each_others_samples_or_their_own(tmp_path: Path) -> None:
    """The mean of the processes' gradients, which is what DDP takes: of the whole batch, or of its two halves."""
    x, mask = features(4, size=8)
    x = x - 20
    file = tmp_path / "batch.pt"
    torch.save({"x": x, "mask": mask}, file)
    script = tmp_path / "script.py"
    script.write_text(IN_A_PROCESS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, script, file, str(rank)], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    found = [torch.load(f"{file}.{rank}") for rank in (0, 1)]
    for gather, parts in (("global", [slice(0, 8)]), ("local", [slice(0, 4), slice(4, 8)])):
        for masked in (False, True):
            torch.manual_seed(0)
            block = torch.nn.Linear(3, 3)
            losses = [dispersive_loss(block(x[part]), mask[part] if masked else None) for part in parts]
            torch.stack(losses).mean().backward()
            for rank in (0, 1):
                ours = found[rank][gather, masked]
                assert float(ours["loss"]) == pytest.approx(float(losses[rank % len(parts)].detach()), rel=1e-5)
                assert torch.allclose(ours["gradient"], block.weight.grad, rtol=1e-4, atol=1e-7)
