"""What layersync asks of any modality, and that the recipe learns."""

from __future__ import annotations

from pathlib import Path

from layersync import load_recipe, train
from layersync.core.adapter import ModalityAdapter
from layersync.testing import AdapterConformance
from layersync_my_modality.adapter import MyModalityAdapter

ADAPTER: ModalityAdapter = MyModalityAdapter()  # mypy says here what an adapter lacks


class TestMyModality(AdapterConformance):
    """What ``layersync check my-modality`` runs."""

    recipe = "my-modality/quick"


def test_training_learns_the_data(tmp_path: Path) -> None:
    """60 steps are too few for good samples, and enough to see the loss fall on data that was held out."""
    run = train(load_recipe("my-modality/quick", ["train.steps=60"]), tmp_path / "run")
    losses = [record["held_out_loss"] for record in run.records() if "held_out_loss" in record]
    assert losses[-1] < 0.5 * losses[0]
