"""SRA: its distances, its teacher's view, and its head, which is trained and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from layersync_dispersive.sra import SraConfig, SraRegularizer, distance
from safetensors.torch import load_file
from torch import Tensor

from layersync import Recipe, Run, train
from layersync.core.adapter import BackboneOutput
from layersync.core.interpolant import Linear
from layersync.core.regularizer.base import StepContext

ON = "regularizer.name=sra"


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    source = torch.manual_seed(0)
    return torch.randn(3, 4, 5, generator=source), torch.randn(3, 4, 5, generator=source)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def test_distances_are_their_definitions(pair: tuple[Tensor, Tensor]) -> None:
    s, z = pair
    over_channels = sum(1 - cosine(s[b, t], z[b, t]) for b in range(3) for t in range(4)) / 12
    over_tokens = sum(1 - cosine(s[b, :, d], z[b, :, d]) for b in range(3) for d in range(5)) / 15
    error = (s - z).abs()
    huber = torch.where(error < 0.05, error**2 / (2 * 0.05), error - 0.05 / 2).mean()
    assert float(distance(s, z, "cosine")) == pytest.approx(over_channels, rel=1e-5)
    assert float(distance(s, z, "cosine-tokens")) == pytest.approx(over_tokens, rel=1e-5)
    assert float(distance(s, z, "smooth-l1")) == pytest.approx(float(huber), rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "cosine-tokens", "smooth-l1"])
def test_padding_does_not_count(kind: Any, pair: tuple[Tensor, Tensor]) -> None:
    s, z = pair
    mask = torch.tensor([[1, 1, 0, 0]] * 3).bool()
    assert float(distance(s, z, kind, mask)) == pytest.approx(float(distance(s[:, :2], z[:, :2], kind)), rel=1e-5)


@pytest.mark.parametrize(("depth", "blocks"), [(28, (8, 20)), (12, (3, 9)), (4, (1, 3)), (2, (1, 1))])
def test_auto_is_sras_fractions(depth: int, blocks: tuple[int, int]) -> None:
    assert SraConfig().pair(depth) == blocks


def test_the_teacher_sees_the_same_sample_nearer_to_the_data() -> None:
    """With noise 0 and data 1 everywhere, a latent on the linear path is its own time."""
    asked: dict[str, Any] = {}

    def ema_forward(x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor], **keywords: Any) -> BackboneOutput:
        asked.update(x_t=x_t, t=t, condition=condition, **keywords)
        return BackboneOutput(x_t, {3: torch.zeros(64, 2, 8)}, None)

    x1, x0, t, label = torch.ones(64, 1), torch.zeros(64, 1), torch.rand(64), {"label": torch.arange(64)}
    features = {1: torch.zeros(64, 2, 8)}
    context = StepContext(x1, t[:, None], t, features, None, 0, ema_forward, x0, label, None, Linear())
    SraRegularizer.from_config(SraConfig(max_shift=0.3), 4, 8)(context)
    shift = asked["t"] - t
    assert (shift >= 0).all() and shift.max() <= 0.3 and shift.max() > 0.25 and asked["t"].max() <= 1
    assert torch.allclose(asked["x_t"][:, 0], asked["t"]) and asked["condition"] is label and asked["taps"] == (3,)


def steps(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.records() if "flow_loss" in record]


def tensors(run: Run, kind: str) -> dict[str, Tensor]:
    return load_file(run.latest_checkpoint() / f"{kind}.safetensors")


def test_the_head_learns_and_is_saved(run_of: Callable[..., Run]) -> None:
    run = run_of(ON, "regularizer.distance=cosine", "train.steps=30")
    found = [record["sra"] for record in steps(run)]
    assert 0.9 < found[0] < 1.1 and found[-1] < 0.5
    assert set(tensors(run, "regularizer")) == {f"head.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert "regularizer.head.0.weight/exp_avg" in tensors(run, "optimizer")
    assert not any("head" in name for name in tensors(run, "model"))


def test_it_resumes_bit_for_bit(tiny: Callable[..., Recipe], run_of: Callable[..., Run], tmp_path: Path) -> None:
    straight = run_of(ON)
    train(tiny(ON, "train.steps=2"), tmp_path / "run")
    resumed = train(tiny(ON), tmp_path / "run", resume=True)
    for kind in ("model", "regularizer", "ema"):
        ours, theirs = tensors(resumed, kind), tensors(straight, kind)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weight_0_is_the_baseline_bit_for_bit(run_of: Callable[..., Run]) -> None:
    with pytest.warns(UserWarning, match=r"regularizer\.weight is 0"):
        run = run_of(ON, "regularizer.weight=0")
    ours, theirs = tensors(run, "model"), tensors(run_of(), "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (run.latest_checkpoint() / "regularizer.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["regularizer.student=3"], "student and teacher: 3 and 3; it takes 1 <= student < teacher <= 4"),
        (["regularizer.teacher=5"], "student and teacher: 1 and 5; it takes 1 <= student < teacher <= 4"),
        (["regularizer.distance=l2"], "regularizer.distance"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    overrides: list[str], words: str, command: Callable[..., Any], recipe_file: Path, tmp_path: Path
) -> None:
    given = [part for override in [ON, *overrides] for part in ("--set", override)]
    status, _, said = command("train", recipe_file, *given, "--out", tmp_path / "run")
    assert status == 2 and words in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
