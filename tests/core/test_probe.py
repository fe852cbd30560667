"""Held-out losses and similarities in a run's log, counted anew from the test images and the weights on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layersync
from layersync import Run
from layersync.core.probe import Probe
from layersync.core.trainer import Trainer, build_parts

WHOLE_PROBE = True
Make = Callable[..., Any]
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def trained(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return layersync.train(tiny("train.steps=40"), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def probe(trained: Run) -> Probe:
    return Trainer(trained.recipe, build_parts(trained.recipe)).probe


@pytest.fixture(scope="module")
def logged(trained: Run) -> dict[str, Any]:
    """The last measurement of the run."""
    return [record for record in trained.records() if "held_out_loss" in record][-1]


def images(run: Run, split: Any) -> Batch:
    """Every image of a split, pixels from -1 to 1, and its label."""
    dataset = run.recipe.adapter.dataset(run.recipe.data, split)
    examples = [dataset[index] for index in range(len(dataset))]
    pixels = torch.from_numpy(np.stack([example.sample for example in examples])).float() / 127.5 - 1
    return pixels.permute(0, 3, 1, 2), torch.tensor([example.label for example in examples])


def nearest(probe: Probe, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each of the probe's images to the nearest of others, and which that is."""
    found = torch.cdist(probe.x1.flatten(1), pixels.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return found.values, found.indices


@pytest.fixture(scope="module")
def held_out(trained: Run, probe: Probe) -> Batch:
    """Images and labels of the probe's batch, as the test split has them."""
    pixels, labels = images(trained, "test")
    chosen = nearest(probe, pixels)[1]
    return pixels[chosen], labels[chosen]


def test_the_batch_is_of_images_that_nothing_is_trained_on(trained: Run, probe: Probe) -> None:
    pixels, labels = images(trained, "test")
    distance, chosen = nearest(probe, pixels)
    assert float(distance.max()) < 1e-5 and len(set(chosen.tolist())) == len(probe.x1) == 256
    assert torch.equal(probe.condition["label"], labels[chosen])
    assert float(nearest(probe, images(trained, "train")[0])[0].min()) > 0.1


def test_each_image_is_seen_once_in_every_eighth_of_the_time(probe: Probe) -> None:
    assert torch.equal((8 * probe.t).floor(), torch.arange(8.0)[:, None].expand(8, 256))
    assert len(probe.t.unique()) == probe.t.numel()
    assert float(probe.x0.mean()) == pytest.approx(0, abs=0.03) and float(probe.x0.std()) == pytest.approx(1, abs=0.03)


def test_runs_with_other_seeds_are_measured_on_the_same_batch(probe: Probe, tiny: Make) -> None:
    recipe = tiny("seed=1")
    other = Trainer(recipe, build_parts(recipe)).probe
    assert all(torch.equal(getattr(probe, name), getattr(other, name)) for name in ("x1", "x0", "t"))


def test_losses_are_those_of_the_averaged_network(
    trained: Run, probe: Probe, held_out: Batch, logged: dict[str, Any]
) -> None:
    x1, label = held_out
    by_hand: dict[str, list[float]] = {}
    for weights in ("ema", "model"):
        network = layersync.load(trained.path, weights=weights).backbone
        by_hand[weights] = []
        for t in probe.t:
            time = t[:, None, None, None]
            with torch.no_grad():
                found = network((1 - time) * probe.x0 + time * x1, t, {"label": label}).prediction
            by_hand[weights].append(float(((found - (x1 - probe.x0)) ** 2).mean()))
    assert logged["held_out_loss_by_t"] == pytest.approx(by_hand["ema"], rel=1e-5)
    assert logged["held_out_loss"] == pytest.approx(np.mean(by_hand["ema"]), rel=1e-5)
    assert logged["held_out_split"] == "test" and logged["step"] == 40
    assert all(abs(a / b - 1) > 1e-4 for a, b in zip(by_hand["ema"], by_hand["model"], strict=True))


def test_a_score_counts_as_the_noise_that_it_amounts_to(tiny: Make) -> None:
    """A network that starts by predicting 0 misses all of the noise, at every time alike."""
    recipe = tiny("objective.prediction=score")
    trainer = Trainer(recipe, build_parts(recipe))
    wanted = float((trainer.probe.x0**2).mean())
    assert trainer.measure()["held_out_loss_by_t"] == pytest.approx([wanted] * 8, rel=1e-5)


def cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean over tokens of (samples, tokens, channels)."""
    lengths = np.linalg.norm(student, axis=2) * np.linalg.norm(teacher, axis=2)
    return float(((student * teacher).sum(2) / lengths).mean())


def test_similarities_are_means_over_three_times(
    trained: Run, probe: Probe, held_out: Batch, logged: dict[str, Any]
) -> None:
    x1, label = held_out
    network = layersync.load(trained.path).backbone
    raw, centred = [], []
    for time in (0.25, 0.5, 0.75):
        with torch.no_grad():
            x_t = (1 - time) * probe.x0 + time * x1
            found = network(x_t, torch.full((256,), time), {"label": label}, taps=(1, 3)).features
        student, teacher = (found[block].double().numpy() for block in (1, 3))
        raw.append(cosine(student, teacher))
        centred.append(cosine(student - student.mean(1, keepdims=True), teacher - teacher.mean(1, keepdims=True)))
    wanted = {"cosine": pytest.approx(np.mean(raw), abs=1e-6), "centred": pytest.approx(np.mean(centred), abs=1e-6)}
    assert logged["held_out_similarity"] == {"1-3": wanted}
    assert abs(np.mean(raw) - np.mean(centred)) > 1e-3
