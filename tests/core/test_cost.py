"""What a recipe costs: published counts, the sizes of real files, and no data or weights touched."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from layersync import InputError, Recipe, Run, load_recipe
from layersync.core.adapter import ConditionSpec, DataConfig, load_adapter
from layersync.core.cost import Cost, cost
from layersync.core.latents import LatentCache
from layersync.core.recipe_reading import shipped_recipes

LIKE_OTHERS = ("small", "satellite", "jamendo-mel-sit", "humanml3d-flow")
"""Ends of recipes whose networks differ from another's in size alone."""
PLAIN = [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith(LIKE_OTHERS) else name
    for name in sorted(shipped_recipes())
    if "baseline" not in name and ("imagenet" not in name or name.endswith("s2"))
]


def quietly(name: Any, *overrides: str) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_recipe(name, overrides)


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    """Of the paper's image recipes."""
    return {size: cost(quietly(f"image/imagenet256-sit-{size}")) for size in ("s2", "b2", "l2", "xl2")}


@pytest.mark.parametrize(
    ("size", "millions", "gigaflops"), [("s2", 33, 6.06), ("b2", 130, 23.01), ("l2", 458, 80.71), ("xl2", 675, 118.64)]
)
def test_parameters_and_flops_are_the_published_ones(
    costs: dict[str, Cost], size: str, millions: int, gigaflops: float
) -> None:
    """DiT's table 4 (arXiv 2212.09748), which SiT shares; it counts a multiply-add as one."""
    found = costs[size]
    assert math.floor(found.parameters / 1e6 + 0.5) in (millions, millions + 1)
    assert found.forward_flops_per_sample / 2e9 == pytest.approx(gigaflops, rel=0.01)
    assert 2.9 < found.step_flops / found.batch_size / found.forward_flops_per_sample < 3.01


def test_latents_and_epochs_of_imagenet(costs: dict[str, Cost]) -> None:
    found = costs["xl2"]
    assert found.latent_shape == (4, 32, 32) and found.num_classes == 1000
    assert found.latents_bytes == 1_281_167 * 2 * 8 * 32 * 32 * 4
    assert found.epochs == pytest.approx(800, rel=0.002)
    large = quietly("image/imagenet512-sit-xl2").tokenizer
    assert large.latent_spec().shape == (4, 64, 64) and large.stored_channels() == 8  # type: ignore[union-attr]


def test_gpu_hours_are_flops_over_peak_times_utilisation(costs: dict[str, Cost]) -> None:
    recipe = quietly("image/imagenet256-sit-s2", "train.precision=bf16")
    (a100, h100) = cost(recipe, gpus=4, utilisation=0.5).gpus
    assert a100.gpu_hours == pytest.approx(costs["s2"].training_flops / (0.5 * 312e12) / 3600)
    assert a100.days == pytest.approx(a100.gpu_hours / 4 / 24) and h100.peak_flops == 989.4e12
    assert costs["s2"].gpus[0].peak_flops == 156e12 and costs["s2"].gpus[0].precision == "tf32"


def test_sizes_are_those_of_a_real_run(trained: Run) -> None:
    found = cost(trained.recipe)
    files = list(trained.latest_checkpoint().glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) == pytest.approx(found.checkpoint_bytes, rel=0.2)
    backbone = trained.recipe.adapter.backbone(trained.recipe.backbone, trained.data.latent, trained.data.condition)
    assert found.parameters == sum(p.numel() for p in backbone.parameters()) and found.num_classes == 10


def test_latents_are_as_large_as_the_cache(tiny: Any) -> None:
    recipe = tiny("data.flip=true")
    dataset = recipe.data.build("train")
    cache = LatentCache.open(dataset, recipe.adapter.tokenizer(recipe.tokenizer))
    assert cost(recipe, num_examples=len(dataset)).latents_bytes == cache.meta["bytes"]
    assert cost(recipe).latents_bytes is None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activations_are_what_autograd_keeps_of_a_real_pass(tiny: Any, precision: str) -> None:
    """Those of each sample, and of all of them together what weights are in bf16."""
    recipe, samples, half = tiny(f"train.precision={precision}"), 3, precision == "bf16"
    found = cost(recipe)
    latent = recipe.tokenizer.latent_spec()
    model = recipe.adapter.backbone(recipe.backbone, latent, ConditionSpec(10))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    x, t, label = torch.zeros(samples, *latent.shape), torch.zeros(samples), torch.zeros(samples, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False),
    ):
        model(x, t, {"label": label}, taps=(1, 3))
    real = sum(v.untyped_storage().nbytes() for k, v in kept.items() if k not in own)
    assert samples * found.activation_bytes + found.cast_bytes == pytest.approx(real, rel=0.02)
    weights = sum(p.numel() for p in model.parameters())
    assert found.cast_bytes == pytest.approx(2 * weights if half else 0, rel=0.2, abs=1000)


def test_checkpointing_trades_activations_for_flops(tiny: Any) -> None:
    plain, traded = cost(tiny()), cost(tiny("train.gradient_checkpointing=true"))
    assert traded.activation_bytes < 0.5 * plain.activation_bytes and traded.step_flops > 1.2 * plain.step_flops


@pytest.mark.parametrize("name", PLAIN)
def test_every_recipe_says_what_it_costs_without_data_or_weights(
    name: str, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modality = name.split("/")[0]
    adapter = type(load_adapter(modality))
    for kind in load_adapter(modality).sections["data"].values():
        assert issubclass(kind, DataConfig)
        for method in ("build", "prepare"):
            monkeypatch.setattr(kind, method, lambda *_: pytest.fail("the data was opened"))
    monkeypatch.setattr(adapter, "tokenizer", lambda *_: pytest.fail("the tokenizer was made"))
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))
    status, out, said = command("recipes", "show", name, "--cost", "--num-examples", 1000, "--json")
    assert status == 0, said
    found = json.loads(out)
    assert found["parameters"] > 0 and found["num_examples"] == 1000 and found["step_flops"] > 0
    assert not (tmp_path / "cache").exists()


def test_the_table_says_what_is_assumed(command: Any) -> None:
    status, out, said = command("recipes", "show", "image/quick", "--gpus", 4)
    assert status == 0 and "have no effect without --cost" in said
    status, out, _ = command("recipes", "show", "image/quick", "--cost", "--gpus", 4, "--utilisation", 0.3)
    assert status == 0 and len(out.splitlines()) == 10
    assert "an estimate, at 30% of 312 TFLOPS bf16" in out and "4 H100" in out and "say --num-examples" in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--utilisation", "0"], "--utilisation: 0.0 is not in"),
        (["--utilisation", "40"], "--utilisation: 40.0 is not in"),
        (["--set", "tokenizer.path=/nowhere"], "tokenizer vae: the shape of its latents is not known"),
        (["--set", "tokenizer.image_size=250"], "tokenizer.image_size: 250 is no multiple of the VAE's 8"),
    ],
)
def test_bad_input_is_one_line(command: Any, overrides: list[str], message: str) -> None:
    status, out, said = command("recipes", "show", "image/imagenet256-sit-s2", "--cost", *overrides)
    assert status == 2 and out == "" and said.startswith(f"error: {message}") and said.count("\n") == 1


def test_an_unknown_text_encoder_has_to_be_here(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"condition\.text_encoder"):
        cost(tiny("condition.text_encoder=/nowhere"))
    assert cost(tiny("condition.text_encoder=minilm")).parameters > cost(tiny()).parameters
