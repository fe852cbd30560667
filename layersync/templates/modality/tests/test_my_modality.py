"""What layersync asks of any modality, and that the recipe learns."""

from __future__ import annotations

from pathlib import Path

from layersync import evaluate, load_recipe, train
from layersync.core.adapter import ModalityAdapter
from layersync.testing import AdapterConformance
from layersync_my_modality.adapter import MyModalityAdapter

ADAPTER: ModalityAdapter = MyModalityAdapter()  # mypy says here what an adapter lacks


class TestMyModality(AdapterConformance):
    """What ``layersync check my-modality`` runs."""

    recipe = "my-modality/quick"


def test_training_brings_samples_nearer_to_the_data(tmp_path: Path) -> None:
    """60 steps are too few for good samples, and enough to see that the network learns the data."""
    distances = []
    for steps in (1, 60):
        recipe = load_recipe("my-modality/quick", [f"train.steps={steps}"])
        run = train(recipe, tmp_path / str(steps))
        distances.append(evaluate(run.path, ["fd-shape"], num_samples=64).metrics["fd-shape"].value)
    assert distances[1] < 0.5 * distances[0]
