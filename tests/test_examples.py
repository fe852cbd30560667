"""The examples run as they are, with the arguments that a user gives."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent.parent / "examples"
LINE = re.compile(r"step (\d+)  flow loss (\d+\.\d+)  LayerSync (-?\d+\.\d+)(?:  similarity 2-3 (-?\d+\.\d+))?")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """``example("own_loop", "--steps", 2)``: the lines that it prints."""

    def run(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def losses(lines: list[str]) -> list[tuple[float, ...]]:
    """Step, flow loss, LayerSync's loss and similarity of each line that has them."""
    return [
        tuple(float(value) for value in found.groups(default="nan")) for line in lines if (found := LINE.match(line))
    ]


def test_own_loop_learns(example: Callable[..., list[str]]) -> None:
    rows = losses(example("own_loop", "--steps", 25))
    assert [row[0] for row in rows] == [1, 25]
    assert rows[-1][1] < 0.8 * rows[0][1]
    for row in rows:
        assert abs(row[2] + 0.3 * row[3]) < 1e-3
    without = losses(example("own_loop", "--steps", 1, "--weight", 0))
    assert without[0][1] == rows[0][1] and without[0][2] == 0


def test_lora_layers_are_trained_and_saved(example: Callable[..., list[str]], tmp_path: Path) -> None:
    torch.manual_seed(3)
    published = SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=4,
    )
    published.save_pretrained(tmp_path / "published" / "transformer")
    for source in ([], ["--pretrained", tmp_path / "published"]):
        out = tmp_path / f"lora-{len(source)}"
        lines = example("finetune_lora", "--steps", 2, "--batch-size", 4, "--out", out, *source)
        assert [row[0] for row in losses(lines)] == [1, 2]
        saved = load_file(out / "pytorch_lora_weights.safetensors")
        assert len(saved) == 2 * 6 * 4
        trained = {name.split(".")[1] for name, weight in saved.items() if "lora_B" in name and bool(weight.any())}
        assert len(trained) == 6, sorted(saved)
        assert lines[-1].startswith(f"{sum(weight.numel() for weight in saved.values())} parameters trained")
