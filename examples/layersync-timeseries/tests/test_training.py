"""A short run through the ordinary commands: trained, sampled, scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from layersync_timeseries.data import SeriesDataset

from layersync import evaluate, load_recipe, train
from layersync.cli import main
from layersync.core.errors import InputError

SHORT = ["train.steps=60", "train.checkpoint_every=60", "backbone.depth=3", "backbone.hidden_size=64", "sample.steps=6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty steps of a small network."""
    directory = tmp_path_factory.mktemp("runs") / "short"
    train(load_recipe("timeseries/quick", SHORT), out=directory)
    return directory


def test_it_learns(run: Path) -> None:
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["flow_loss"] for entry in logged if "flow_loss" in entry]
    assert losses[-1] < 0.6 * losses[0]


def test_samples_are_as_long_as_real_series_of_their_label(
    run: Path, tmp_path: Path, vowels: SeriesDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--num", "6", "--labels", "0,8", "--npz", "--out", str(tmp_path / "drawn")]
    monkeypatch.setattr(sys, "argv", ["layersync", "sample", str(run), *asked])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    drawn = np.load(tmp_path / "drawn" / "samples.npz")
    known = {label: {len(vowels[i].sample) for i in range(270) if vowels[i].label == label} for label in (0, 8)}
    assert drawn["labels"].tolist() == [0, 8, 0, 8, 0, 8]
    assert all(length in known[label] for length, label in zip(drawn["lengths"], drawn["labels"], strict=True))
    assert (tmp_path / "drawn" / "series.png").is_file()


def test_its_own_scores_are_reported(run: Path) -> None:
    names = ["fd-rocket", "fd-autocorrelation", "von-neumann-ratio"]
    scores = evaluate(run, metrics=names, num_samples=40).metrics
    assert list(scores) == names
    assert all(np.isfinite(score.value) and score.value > 0 for score in scores.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.channels=0", "tokenizer.channels"),
        ("tokenizer.frames=8", "frames"),
        ("data.name=basic-motion", "did you mean 'basic-motions'"),
    ],
)
def test_a_wrong_key_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("timeseries/quick", [override])


@pytest.mark.parametrize("name", ["quick", "small"])
def test_recipes_take_a_step(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(f"timeseries/{name}", ["train.steps=1", "train.batch_size=4", "backbone.hidden_size=32"])
    train(recipe, out=tmp_path / name)
    assert (tmp_path / name / "checkpoints" / "step-00000001").is_dir()
