"""``layersync sample --npz`` writes what ``layersync score`` reads, in every modality."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layersync
from layersync.core.adapter import load_adapter

FEWER = {"audio": ["data.num_pitches=3"]}
SMALL = ["train.steps=2", "train.batch_size=8", "evaluate.every=2", "backbone.depth=3", "sample.steps=2"]


@pytest.mark.parametrize("modality", ["image", "audio", "motion"])
def test_an_archive_holds_the_samples_and_is_read_again(
    modality: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = layersync.load_recipe(f"{modality}/quick", [*SMALL, *FEWER.get(modality, ())])
    run = layersync.train(recipe, tmp_path / "run")
    status, out, _ = command(
        "sample", run.path, "--num", "4", "--labels", "1,2", "--npz", "--out", tmp_path / "samples"
    )
    assert status == 0
    opened = load_adapter(modality).open_samples(Path(out.strip()) / "samples.npz")
    drawn = layersync.load(run.path).sample(4, labels=[1, 2])
    assert len(opened) == 4
    for index, sample in enumerate(drawn):
        again = opened[index].sample
        if modality == "image":
            assert again.shape == (8, 8, 3) and (again == sample).all()  # grey, as ADM wants it
            assert [opened[row].condition["label"] for row in range(4)] == [1, 2, 1, 2]
        elif modality == "audio":
            assert again.sample_rate == sample.sample_rate
            peak = max(1.0, float(np.abs(sample.waveform).max()))
            assert np.allclose(again.waveform, sample.waveform / peak, atol=1e-6)
        else:
            assert again.fps == sample.fps and np.allclose(again.joints(), sample.joints(), atol=1e-5)


def test_motions_of_a_folder_and_of_its_archive_score_alike(command: Callable[..., Any], tmp_path: Path) -> None:
    run = layersync.train(layersync.load_recipe("motion/quick", SMALL), tmp_path / "run")
    folder = tmp_path / "samples"
    assert command("sample", run.path, "--num", "6", "--npz", "--out", folder)[0] == 0
    values = []
    for generated in (folder, folder / "samples.npz"):
        status, out, _ = command(
            "score", "--modality", "motion", "--generated", generated, "--metrics", "jitter", "--json"
        )
        assert status == 0
        values.append(json.loads(out)["metrics"]["jitter"]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_an_archive_of_latents_is_refused(command: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    status, _, err = command("sample", trained.path, "--npz", "--latents-only", "--out", tmp_path / "samples")
    assert status == 2 and "--latents-only" in err and not (tmp_path / "samples").exists()
