"""Scores: closed forms, which argument is which, what is kept, what is said beside a value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

import layersync
from layersync import InputError, Run
from layersync.core import classifier as classifier_module
from layersync.metrics import frechet_distance, nearest_distances
from layersync.metrics.frechet import frechet_between, gaussian

Make = Callable[..., Any]
GENERIC = ["fd-classifier", "label-agreement", "nearest-training"]


def random_gaussian(seed: int, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    factor = random.standard_normal((size, size))
    return random.standard_normal(size), factor @ factor.T / size


def test_frechet_distance_against_scipys_root() -> None:
    (m1, c1), (m2, c2) = random_gaussian(0), random_gaussian(1)
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_between(m1, c1, m2, c2) == pytest.approx(wanted, rel=1e-9)
    assert frechet_between(m2, c2, m1, c1) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_axis_parallel_gaussians_by_hand() -> None:
    mean, other = np.array([1.0, 2.0]), np.array([4.0, -2.0])
    found = frechet_between(mean, np.diag([4.0, 9.0]), other, np.diag([1.0, 1.0]))
    assert found == pytest.approx(3**2 + 4**2 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_frechet_distance_of_samples() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((50_000, 3)), 2 * random.standard_normal((50_000, 3)) + 1
    assert frechet_distance(x, y) == pytest.approx(3 * (1 + 1), rel=0.03)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 5, y + 5) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_fewer_samples_than_features_stay_real_and_right() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((20, 64)), random.standard_normal((15, 64)) + 0.1
    (m1, c1), (m2, c2) = gaussian(x), gaussian(y)
    product = np.linalg.eigvals(c1 @ c2)
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * np.sqrt(np.clip(product.real, 0, None)).sum()
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)


def test_covariance_is_unbiased_float64_and_input_checked() -> None:
    x = np.random.default_rng(0).standard_normal((7, 2)).astype(np.float32)
    mean, covariance = gaussian(x)
    assert mean.dtype == covariance.dtype == np.float64
    assert np.allclose(covariance, np.cov(x.astype(np.float64).T, ddof=1))
    for wrong in (np.zeros((1, 3)), np.zeros(5), np.full((4, 2), np.nan)):
        with pytest.raises(ValueError):
            gaussian(wrong)
    with pytest.raises(ValueError, match="3 and 2"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))


def test_nearest_distances_by_hand() -> None:
    assert nearest_distances([[0.0, 0.0], [3.0, 3.0]], [[0.0, 1.0], [3.0, 7.0]]).tolist() == pytest.approx(
        [1.0, np.sqrt(13)]
    )


@pytest.fixture(scope="module")
def result(trained: Run) -> Any:
    return layersync.evaluate(trained.path, GENERIC, num_samples=64)


def test_the_generic_metrics_of_a_run(result: Any) -> None:
    frechet, agreement, nearest = (result.metrics[name] for name in GENERIC)
    assert frechet.value > 0 and frechet.interval[0] <= frechet.value <= frechet.interval[1]
    assert frechet.reference.split == "train" and frechet.reference.data == "digits"
    assert frechet.details["features"] <= 64 and frechet.details["held_out_accuracy"] > 0.9
    assert 0 <= agreement.value <= 1 and agreement.details["chance"] == pytest.approx(0.1)
    assert agreement.interval[0] <= agreement.value <= agreement.interval[1]
    assert nearest.value == pytest.approx(nearest.details["generated"] / nearest.details["held_out"])


def test_json_keys_are_the_designs(command: Make, trained: Run) -> None:
    status, out, _ = command("evaluate", trained.path, "--metrics", ",".join(GENERIC), "--num-samples", "32", "--json")
    assert status == 0
    found = json.loads(out)
    assert set(found) >= {"run", "step", "weights", "sampling", "metrics"}
    assert found["step"] == 40 and found["weights"] == "ema"
    assert set(found["sampling"]) >= {"solver", "steps", "guidance", "num_samples", "seed", "precision"}
    assert found["sampling"]["num_samples"] == 32
    assert set(found["metrics"]) == set(GENERIC)
    for score in found["metrics"].values():
        assert set(score) >= {"value", "interval", "extractor", "reference"}
    assert set(found["metrics"]["fd-classifier"]["reference"]) == {"data", "split", "count"}
    logged = trained.records("evaluation.jsonl")[-1]
    assert logged["metrics"].keys() == found["metrics"].keys()


def test_people_read_how_a_score_was_made(command: Make, trained: Run) -> None:
    status, out, _ = command("evaluate", trained.path, "--metrics", "fd-classifier", "--num-samples", "32")
    assert status == 0
    for word in (
        "euler",
        "4 steps",
        "guidance 1.0",
        "32 samples",
        "of train",
        "held_out_accuracy",
        "domain-classifier",
    ):
        assert word in out, out


def test_scores_are_the_same_again_and_the_classifier_is_kept(
    trained: Run, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_module, "_train", lambda *_: pytest.fail("the classifier was trained again"))
    again = layersync.evaluate(trained.path, GENERIC, num_samples=64)
    assert {n: s.value for n, s in again.metrics.items()} == {n: s.value for n, s in result.metrics.items()}


class TestConventions:
    """Generated sets that are known: what a score must say of them."""

    @pytest.fixture(scope="class")
    def scorer(self, trained: Run, result: Any) -> Callable[[np.ndarray | list, Any], Any]:
        from layersync.core.evaluation import _Scorer

        model = layersync.load(trained.path)
        return lambda samples, labels: _Scorer(model, list(samples), np.asarray(labels), "train")

    def digits(self, trained: Run, split: str, count: int) -> tuple[list[Any], list[int]]:
        dataset = trained.recipe.adapter.dataset(trained.recipe.data, split)
        examples = [dataset[index] for index in range(count)]
        return [e.sample for e in examples], [e.condition["label"] for e in examples]

    def test_held_out_digits_score_well_and_noise_badly(self, trained: Run, scorer: Make) -> None:
        real, labels = self.digits(trained, "test", 300)
        noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
        good, bad = scorer(real, labels), scorer(noise, labels)
        assert good.score("label-agreement").value > 0.9 > 0.4 > bad.score("label-agreement").value
        assert bad.score("fd-classifier").value > 5 * good.score("fd-classifier").value
        wrong = scorer(real, [(label + 1) % 10 for label in labels])
        assert wrong.score("label-agreement").value < 0.1

    def test_copies_show_as_copies(self, trained: Run, scorer: Make) -> None:
        copies, labels = self.digits(trained, "train", 100)
        fresh, fresh_labels = self.digits(trained, "test", 300)
        assert scorer(copies, labels).score("nearest-training").value == pytest.approx(0, abs=1e-6)
        assert scorer(fresh, fresh_labels).score("nearest-training").value == pytest.approx(1, abs=0.05)

    def test_reference_split_matters(self, trained: Run, scorer: Make) -> None:
        from layersync.core.evaluation import _Scorer

        real, labels = self.digits(trained, "test", 100)
        train = scorer(real, labels)
        test = _Scorer(train.model, real, np.asarray(labels), "test")
        scores = [s.score("fd-classifier") for s in (train, test)]
        assert [s.reference.split for s in scores] == ["train", "test"]
        assert scores[0].reference.count > scores[1].reference.count and scores[0].value != scores[1].value


def test_unlabelled_data_is_refused_naming_the_others(tiny: Make, tmp_path: Path, command: Make) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(20):
        Image.fromarray(np.full((8, 8), 12 * n, np.uint8)).save(folder / f"{n}.png")
    run = layersync.train(tiny("data.name=folder", f"data.path={folder}", "train.steps=1"), tmp_path / "run")
    with pytest.raises(InputError, match=r"need labels, data folder has none; there are: nearest-training"):
        layersync.evaluate(run.path, ["fd-classifier"], num_samples=8)
    status, _, err = command("evaluate", run.path, "--metrics", "label-agreement", "--num-samples", "8")
    assert status == 2 and "nearest-training" in err
    assert layersync.evaluate(run.path, ["nearest-training"], num_samples=8).metrics["nearest-training"].value > 0


@pytest.mark.parametrize("axes", [1, 2])
def test_the_classifier_does_not_see_padding(axes: int) -> None:
    """Features of a clip do not depend on how far it is padded, nor on what the padding holds."""
    torch.manual_seed(0)
    network = classifier_module.ClassifierNetwork(3, axes, 4, [2, 2, 2, 1]).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.running_mean = torch.randn_like(layer.running_mean)
    x = torch.randn(2, 3, *([8] * (axes - 1)), 21)
    mask = torch.ones(2, 21, dtype=torch.bool)
    padded = torch.nn.functional.pad(x, (0, 24), value=5.0)
    wider = torch.nn.functional.pad(mask, (0, 24))
    for found, wanted in zip(network(padded, wider), network(x, mask), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_an_interval_narrows_with_samples(trained: Run) -> None:
    widths = []
    for count in (32, 512):
        interval = (
            layersync.evaluate(trained.path, ["label-agreement"], num_samples=count).metrics["label-agreement"].interval
        )
        widths.append(interval[1] - interval[0])
    assert widths[1] < widths[0]
