"""Scores: closed forms, which argument is which, what is kept, what is said beside a value."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import another_classifier, with_metadata_turned
from PIL import Image
from plugins import Installer
from safetensors import safe_open
from scipy import linalg
from torch import Tensor

import layersync
from layersync import InputError, Run
from layersync.core import classifier as classifier_module
from layersync.core import evaluation, run_scoring
from layersync.core.adapter import Split
from layersync.core.metric import parse_metric
from layersync.core.parallel import Processes
from layersync.core.reference import RunData, examples_of
from layersync.core.run_scoring import RunScorer

Make = Callable[..., Any]
GENERIC = ["fd-classifier", "label-agreement", "nearest-training"]


def score_of(run: Run, examples: Any, processes: Processes) -> Any:
    """``nearest-training`` of ``examples`` by number, scored beside the data of ``run``."""
    model = layersync.load(run.path)
    dataset = run.recipe.adapter.dataset(run.recipe.data, "train")
    real = RunData(dataset, model.tokenizer, "digits", "train", processes)
    return RunScorer(model, examples, real, {}, processes).score(parse_metric("image", "nearest-training"))


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


def test_an_adaptive_solver_says_what_its_samples_depend_on(tiny: Make, tmp_path: Path) -> None:
    adaptive = layersync.train(tiny("sample.solver=dopri5", "sample.rtol=0.01", "train.steps=1"), tmp_path / "run")
    found = layersync.evaluate(adaptive.path, ["nearest-training"], num_samples=4).sampling
    assert found.adaptive == {"atol": 1e-6, "rtol": 0.01, "batch_size": 8}


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
    def scorer(self, trained: Run, result: Any) -> Callable[..., Callable[[str], Any]]:
        model = layersync.load(trained.path)

        def make(samples: Any, labels: Any, split: Split = "train") -> Callable[[str], Any]:
            dataset = trained.recipe.adapter.dataset(trained.recipe.data, split)
            real = RunData(dataset, model.tokenizer, "digits", split, Processes())
            scorer = RunScorer(
                model, examples_of(list(samples), list(labels), [""] * len(samples)), real, {}, Processes()
            )
            return lambda name: scorer.score(parse_metric("image", name))

        return make

    def digits(self, trained: Run, split: Split, count: int) -> tuple[list[Any], list[int]]:
        dataset = trained.recipe.adapter.dataset(trained.recipe.data, split)
        examples = [dataset[index] for index in range(count)]
        return [e.sample for e in examples], [int(e.condition["label"]) for e in examples]

    def test_held_out_digits_score_well_and_noise_badly(self, trained: Run, scorer: Make) -> None:
        real, labels = self.digits(trained, "test", 300)
        noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
        good, bad = scorer(real, labels), scorer(noise, labels)
        assert good("label-agreement").value > 0.9 > 0.4 > bad("label-agreement").value
        assert bad("fd-classifier").value > 5 * good("fd-classifier").value
        wrong = scorer(real, [(label + 1) % 10 for label in labels])
        assert wrong("label-agreement").value < 0.1

    def test_samples_that_were_asked_for_no_class_agree_with_none(self, trained: Run, scorer: Make) -> None:
        real, _ = self.digits(trained, "test", 8)
        with pytest.raises(InputError, match="label-agreement: no sample was asked to be of a class"):
            scorer(real, [-1] * 8)("label-agreement")

    def test_copies_show_as_copies(self, trained: Run, scorer: Make) -> None:
        copies, labels = self.digits(trained, "train", 100)
        fresh, fresh_labels = self.digits(trained, "test", 300)
        assert scorer(copies, labels)("nearest-training").value == pytest.approx(0, abs=1e-6)
        assert scorer(fresh, fresh_labels)("nearest-training").value == pytest.approx(1, abs=0.05)

    def test_all_of_a_large_training_set_is_looked_at(
        self, trained: Run, scorer: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So many at a time; a copy of the last one is as near as one of the first."""
        dataset = trained.recipe.adapter.dataset(trained.recipe.data, "train")
        last = [dataset[index] for index in range(len(dataset) - 50, len(dataset))]
        copies = scorer([example.sample for example in last], [0] * len(last))
        fresh = scorer(*self.digits(trained, "test", 100))
        whole = fresh("nearest-training")
        monkeypatch.setattr(run_scoring, "WINDOWS_AT_ONCE", 10_000)
        assert copies("nearest-training").value == pytest.approx(0, abs=1e-6)
        in_parts = fresh("nearest-training")
        assert in_parts.value == pytest.approx(whole.value) and in_parts.reference == whole.reference
        assert whole.reference.count == len(dataset)

    def test_copies_of_flipped_images_show_as_copies(self, tiny: Make, tmp_path: Path) -> None:
        run = layersync.train(tiny("train.steps=1", "data.flip=true"), tmp_path / "run")
        dataset = run.recipe.adapter.dataset(run.recipe.data, "train")
        flipped = [dataset.variant(dataset[index].sample, "flip") for index in range(100)]
        found = score_of(run, examples_of(flipped, [0] * 100, [""] * 100), Processes())
        assert found.value == pytest.approx(0, abs=1e-6) and found.details["windows"] == 2 * len(dataset)

    def test_a_process_without_a_sample_of_its_own_waits_for_the_others(self, trained: Run) -> None:
        class First(Processes):
            def gather(self, local: list[Any]) -> list[Any]:
                return [*local, np.array([0.5, 0.5])]

        assert score_of(trained, {}, First(0, 2)).details["generated"] == 0.5

    def test_reference_split_matters(self, trained: Run, scorer: Make) -> None:
        real, labels = self.digits(trained, "test", 100)
        scores = [scorer(real, labels, split)("fd-classifier") for split in ("train", "test")]
        assert [s.reference.split for s in scores] == ["train", "test"]
        assert scores[0].reference.count > scores[1].reference.count and scores[0].value != scores[1].value


def test_few_samples_are_warned_of_once(trained: Run, command: Make) -> None:
    """Not once for each classifier."""
    words = ["evaluate", trained.path, "--metrics", "fd-classifier", "--num-samples", "16"]
    status, out, err = command(*words)
    assert status == 0 and err.count("16 generated rows of 64 features: the covariance is singular") == 1
    assert re.search(r"by_classifier \[\d+(\.\d+)?, \d+(\.\d+)?, \d+(\.\d+)?\];", out), out


def test_replications_draw_other_samples_and_give_the_published_interval(trained: Run) -> None:
    once = layersync.evaluate(trained.path, ["fd-classifier"], num_samples=64).metrics["fd-classifier"]
    often = layersync.evaluate(trained.path, ["fd-classifier"], num_samples=64, replications=3).metrics["fd-classifier"]
    values = often.details["replications"]
    assert np.mean(often.details["by_classifier"]) == pytest.approx(often.value)
    assert len(set(values)) == 3 and values[0] == pytest.approx(once.value)
    half = 1.96 * np.std(values) / np.sqrt(3)
    assert often.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))


@pytest.fixture
def settled(trained: Run, tiny: Make, tmp_path: Path) -> Callable[..., Run]:
    """``settled("evaluate.seed=5")``: a copy of the run with other settings of what may change when it is done."""

    def make(*overrides: str) -> Run:
        path = shutil.copytree(trained.path, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")
        return layersync.train(tiny("train.steps=40", *overrides), path, resume=True)

    return make


def starts(seen: list[Any]) -> tuple[Tensor, Tensor]:
    """Noise and labels of the samples that were drawn: what networks were given at t = 0."""
    first = [(x_t, condition["label"]) for x_t, t, condition in seen if not t.any()]
    return torch.cat([noise for noise, _ in first]), torch.cat([label for _, label in first])


def test_the_recipe_says_how_many_samples_and_with_which_seed(
    settled: Callable[..., Run], tiny: Make, tmp_path: Path, seen: list[Any]
) -> None:
    """Another ``evaluate.seed`` draws other samples; runs with other seeds are scored on the same noise and labels."""
    runs = {
        "one": settled("evaluate.num_samples=12"),
        "other": settled("evaluate.num_samples=12", "evaluate.seed=5"),
        "trained": layersync.train(tiny("seed=1", "train.steps=1", "evaluate.num_samples=12"), tmp_path / "seed-1"),
    }
    drawn, said, values = {}, {}, {}
    for name, run in runs.items():
        seen.clear()
        found = layersync.evaluate(run.path, ["nearest-training"])
        drawn[name] = starts(seen)
        said[name] = (found.sampling.num_samples, found.sampling.seed)
        values[name] = found.metrics["nearest-training"].value
    assert said == {"one": (12, 0), "other": (12, 5), "trained": (12, 0)}
    assert all(len(noise) == len(labels) == 12 for noise, labels in drawn.values())
    assert all(torch.equal(*pair) for pair in zip(drawn["one"], drawn["trained"], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(drawn["one"], drawn["other"], strict=True))
    assert values["one"] != values["other"]


def test_samples_are_drawn_for_each_example_of_the_split_that_the_recipe_names(
    settled: Callable[..., Run], seen: list[Any]
) -> None:
    run = settled("evaluate.conditions=test", "sample.batch_size=64", "sample.steps=1")
    dataset = run.recipe.adapter.dataset(run.recipe.data, "test")
    layersync.evaluate(run.path, ["nearest-training"], num_samples=len(dataset))
    wanted = [dataset[index].label for index in range(len(dataset))]
    assert sorted(starts(seen)[1].tolist()) == sorted(wanted)


def test_a_split_that_is_empty_has_nothing_to_draw_samples_for(installer: Installer, tmp_path: Path) -> None:
    """Two strokes, of which a third are held out."""
    recipe = layersync.load_recipe(f"{installer.strokes()}/quick", ["data.size=2", "evaluate.conditions=test"])
    run = layersync.train(recipe, tmp_path / "run")
    with pytest.raises(InputError, match=r"evaluate\.conditions: test, and data strokes has no such split"):
        layersync.evaluate(run.path, ["reach"], num_samples=2)


def test_the_recipe_says_what_samples_are_compared_with(settled: Callable[..., Run], result: Any) -> None:
    run = settled("evaluate.reference=test")
    score = layersync.evaluate(run.path, ["fd-classifier"], num_samples=64).metrics["fd-classifier"]
    assert score.reference.split == "test" and score.value != result.metrics["fd-classifier"].value


def test_a_run_learns(tiny: Make, tmp_path: Path) -> None:
    """Held-out loss falls at every time, and samples are of the digit that was asked for more often than by chance."""
    network = ("backbone.depth=3", "backbone.hidden_size=64", "backbone.patch_size=4")
    training = ("train.steps=200", "train.batch_size=32", "optimizer.lr=0.003", "train.ema_decay=0.97")
    sampling = ("sample.solver=heun", "sample.steps=6", "sample.batch_size=64", "sample.guidance=2")
    run = layersync.train(tiny(*network, *training, *sampling, "train.log_every=100"), tmp_path / "run")
    first, last = (record["held_out_loss_by_t"] for record in run.records() if "held_out_loss_by_t" in record)
    assert len(first) == 8 and all(after < 0.9 * before for before, after in zip(first, last, strict=True))
    agreement = layersync.evaluate(run.path, ["label-agreement"], num_samples=128).metrics["label-agreement"]
    assert agreement.value > 0.5 and agreement.details["chance"] == pytest.approx(0.1)


def test_a_run_is_scored_against_anybodys_samples(trained: Run, tmp_path: Path, command: Make) -> None:
    arguments = ["evaluate", trained.path, "--num-samples", "8", "--metrics", "fd-classifier", "--reference"]
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "coloured.npy", np.zeros((4, 8, 8, 3), np.uint8))
    status, out, _ = command(*arguments, tmp_path / "grey.npy", "--json")
    found = json.loads(out)["metrics"]["fd-classifier"]
    assert status == 0 and found["reference"] == {"data": str(tmp_path / "grey.npy"), "split": "all", "count": 40}
    own = layersync.evaluate(trained.path, ["fd-classifier"], num_samples=8).metrics["fd-classifier"]
    assert found["value"] != pytest.approx(own.value, rel=0.01)
    status, _, err = command(*arguments, tmp_path / "no.npz")
    assert status == 2 and "--reference" in err and "does not exist" in err
    status, _, err = command(*arguments, tmp_path / "coloured.npy")
    assert status == 2 and "has 3 channels, the classifier of this data reads 1" in err
    np.save(tmp_path / "large.npy", np.zeros((4, 16, 16), np.uint8))
    status, _, err = command(*arguments, tmp_path / "large.npy")
    assert status == 2 and "large.npy[0]: is read as [16, 16] and generated sample 0 as [8, 8]" in err


def test_a_reference_that_no_metric_needs_is_said(trained: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.zeros((40, 8, 8), np.uint8))
    with pytest.warns(UserWarning, match="--reference has no effect: no metric compares samples with others"):
        found = layersync.evaluate(trained.path, ["label-agreement"], num_samples=8, reference=tmp_path / "grey.npy")
    assert found.beside_recipe == {}, "the recipe's own score"


def test_other_settings_score_as_a_run_whose_recipe_says_so(trained: Run, command: Make, tmp_path: Path) -> None:
    """They leave the run as it is; ``beside_recipe`` tells a comparison that the score is not the run's own."""
    changes = ["evaluate.num_samples=8", "sample.steps=1", "sample.solver=euler"]
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    arguments = ("evaluate", run.path, "--metrics", "fd-classifier", "--json")
    before = (run.path / "recipe.yaml").read_bytes()
    found = json.loads(command(*arguments, *(word for change in changes for word in ("--set", change)))[1])
    assert (run.path / "recipe.yaml").read_bytes() == before and found["beside_recipe"] == {"set": changes}
    changed = layersync.load_recipe(run.path / "recipe.yaml", changes)
    (run.path / "recipe.yaml").write_text(changed.to_yaml())
    own = json.loads(command(*arguments, "--set", "sample.steps=1")[1])
    assert own["beside_recipe"] == {} and own["sampling"] == found["sampling"] and own["sampling"]["steps"] == 1
    assert own["metrics"] == found["metrics"]
    status, _, err = command(*arguments, "--set", "train.steps=3")
    assert status == 2 and "of a run that is trained sample.* and evaluate.* can be set here" in err
    status, _, err = command(*arguments, "--set", "sample.steps=0")
    assert status == 2 and "sample.steps" in err
    status, _, err = command("sample", run.path, "--set", "evaluate.seed=1", "--out", tmp_path / "samples")
    assert status == 2 and "sample.* can be set here" in err and not (tmp_path / "samples").exists()
    status, _, err = command("sample", run.path, "--set", "sample.solver=heun", "--num", 2, "--solver", "dopri5")
    assert status == 0 and "sample.steps has no effect with solver dopri5" in err, "an option comes after --set"


def test_a_recipe_may_name_a_file_to_compare_with(
    trained: Run, command: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the score that ``--reference`` has; a comparison finds it before any work."""
    monkeypatch.setenv("REFERENCES", str(tmp_path))
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    arguments = ("evaluate", trained.path, "--metrics", "fd-classifier", "--json", "--num-samples", 8)
    named = json.loads(command(*arguments, "--set", "evaluate.reference=$REFERENCES/grey.npy")[1])
    given = json.loads(command(*arguments, "--reference", tmp_path / "grey.npy")[1])
    found, same = (one["metrics"]["fd-classifier"] for one in (named, given))
    assert found["value"] == pytest.approx(same["value"], rel=1e-9) and found["reference"]["count"] == 40
    content = hashlib.sha256((tmp_path / "grey.npy").read_bytes()).hexdigest()[:12]
    assert found["reference"]["data"] == f"$REFERENCES/grey.npy ({content})", "the same file anywhere, and no path"
    assert "reference" not in named["beside_recipe"] and given["beside_recipe"]["reference"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(trained.recipe.to_yaml())
    for override, words in (
        ("evaluate.reference=tets", "'tets' is none of train, test, nor a path"),
        ("evaluate.reference=./tets.npz", "evaluate.reference: './tets.npz' does not exist"),
    ):
        status, _, err = command("compare", recipe, "--set", override, "--out", tmp_path / "out")
        assert status == 2 and words in err and not (tmp_path / "out").exists()


def test_statistics_of_another_network_are_none_for_the_classifier(
    trained: Run, tmp_path: Path, command: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file as ADM publishes them the samples are taken; without any it is refused before a sample is drawn."""
    grey = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.save(tmp_path / "grey.npy", grey)
    np.savez(tmp_path / "adm.npz", arr_0=grey, **statistics)
    np.savez(tmp_path / "bare.npz", **statistics)
    values = [
        layersync.evaluate(trained.path, ["fd-classifier"], num_samples=8, reference=tmp_path / name).metrics
        for name in ("grey.npy", "adm.npz")
    ]
    assert values[0]["fd-classifier"].value == pytest.approx(values[1]["fd-classifier"].value)
    monkeypatch.setattr(evaluation, "draw", lambda *_, **__: pytest.fail("samples were drawn"))
    arguments = ["evaluate", trained.path, "--num-samples", "8", "--metrics", "fd-classifier"]
    status, _, err = command(*arguments, "--reference", tmp_path / "bare.npz")
    assert status == 2 and "bare.npz holds statistics" in err


def test_a_folders_classifier_scores_whatever_the_cache_has(trained: Run, tmp_path: Path, command: Make) -> None:
    """A folder without one gets the cache's. What another network reads is another distance, and its name says so."""
    arguments = ["evaluate", trained.path, "--metrics", "fd-classifier", "--num-samples", "16", "--json"]
    alike = [*arguments, "--classifiers", tmp_path / "shared"]
    own, copied = (json.loads(command(*words)[1])["metrics"]["fd-classifier"] for words in (arguments, alike))
    assert copied == own
    (kept,) = (tmp_path / "shared").glob("*.safetensors")
    kept.write_bytes(with_metadata_turned(kept.read_bytes()))
    assert json.loads(command(*alike)[1])["metrics"]["fd-classifier"] == own, (
        "the order in its file is no other network"
    )
    another_classifier(kept, kept)
    there, again = (json.loads(command(*words)[1])["metrics"]["fd-classifier"] for words in (alike, arguments))
    assert there["value"] != pytest.approx(own["value"], rel=0.1) and again == own
    assert there["extractor"] != own["extractor"] and there["extractor"].endswith(there["checksum"][:8])


def test_a_folder_that_holds_no_classifier_is_named(trained: Run, tmp_path: Path, command: Make) -> None:
    """Before samples are drawn: of several metrics, none is counted."""
    layersync.evaluate(trained.path, ["label-agreement"], num_samples=8, classifiers=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    scored = len(trained.records("evaluation.jsonl"))
    arguments = ["evaluate", trained.path, "--num-samples", "8", "--metrics"]
    for damaged in (b"", kept.read_bytes()[:-1], b"x" * 100):
        kept.write_bytes(damaged)
        status, _, err = command(*arguments, "label-agreement,nearest-training", "--classifiers", tmp_path)
        assert status == 2 and err.splitlines()[-1].startswith(f"error: {kept}: is damaged, or no classifier"), err
    file = trained.path / "recipe.yaml"
    status, _, err = command(*arguments, "label-agreement,nearest-training", "--classifiers", file)
    assert status == 2 and f"{file} is a file" in err and "error: --classifiers: " in err
    assert len(trained.records("evaluation.jsonl")) == scored
    status, _, err = command(*arguments, "nearest-training", "--classifiers", tmp_path)
    assert status == 0 and "warning: --classifiers has no effect" in err


def test_unlabelled_data_is_refused_naming_the_others(tiny: Make, tmp_path: Path, command: Make) -> None:
    """And said before the training that could not be scored."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(20):
        Image.fromarray(np.full((8, 8), 12 * n, np.uint8)).save(folder / f"{n}.png")
    recipe = tiny("data.name=folder", f"data.path={folder}", "train.steps=1", "evaluate.metrics=[fd-classifier]")
    with pytest.warns(
        UserWarning, match=r"evaluate\.metrics: this run cannot be scored by them: .* data folder has none"
    ):
        run = layersync.train(recipe, tmp_path / "run")
    with pytest.raises(InputError, match=r"need labels, data folder has none; there are: nearest-training"):
        layersync.evaluate(run.path, ["fd-classifier"], num_samples=8)
    status, _, err = command("evaluate", run.path, "--metrics", "label-agreement", "--num-samples", "8")
    assert status == 2 and "nearest-training" in err
    assert layersync.evaluate(run.path, ["nearest-training"], num_samples=8).metrics["nearest-training"].value > 0


def test_samples_that_were_asked_for_nothing_cannot_agree(tiny: Make, tmp_path: Path) -> None:
    """Without labels in the condition there is no label to agree with; features of the classifier still are."""
    run = layersync.train(tiny("condition.labels=ignored", "train.steps=1"), tmp_path / "run")
    with pytest.raises(InputError, match=r"label-agreement: .*drawn for no label .*fd-classifier can stay"):
        layersync.evaluate(run.path, ["fd-classifier", "label-agreement"], num_samples=8)
    assert layersync.evaluate(run.path, ["fd-classifier"], num_samples=8).metrics["fd-classifier"].value > 0


def test_the_distance_is_the_mean_of_those_on_the_features_of_several_classifiers(
    trained: Run, tmp_path: Path, command: Make
) -> None:
    """Each read out of the file by hand; the Fréchet distance by SciPy's matrix root (Heusel et al. 2017, eq. 6)."""
    words = ["evaluate", trained.path, "--metrics", "fd-classifier,label-agreement", "--num-samples", "80", "--json"]
    found = json.loads(command(*words, "--classifiers", tmp_path)[1])["metrics"]
    (file,) = tmp_path.glob("*.safetensors")
    drawn = evaluation.draw(layersync.load(trained.path), 80, trained.recipe.evaluate.seed, Processes())
    generated = [example.sample for example in drawn.values()]
    data = trained.recipe.adapter.dataset(trained.recipe.data, "train")
    real = [data[index].sample for index in range(len(data))]
    with safe_open(file, framework="pt") as stored:
        settings = json.loads(stored.metadata()["settings"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    values, probabilities = [], 0
    for number in range(3):
        network = classifier_module.ClassifierNetwork(**settings).eval()
        own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
        network.load_state_dict(own)
        moments = []
        for samples in (generated, real):
            with torch.inference_mode():
                features, logits = network(trained.recipe.adapter.classifier_input(samples)[0])
            moments.append((features.double().mean(0).numpy(), np.cov(features.double().numpy().T)))
            probabilities = probabilities + (logits.softmax(1) if samples is generated else 0)
        (m, c), (n, d) = moments
        values.append(((m - n) ** 2).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real))
    score = found["fd-classifier"]
    assert score["details"]["by_classifier"] == pytest.approx(values, rel=1e-3)
    assert score["value"] == pytest.approx(np.mean(values), rel=1e-3) and np.ptp(values) > 0.01 * np.mean(values)
    assert score["interval"][0] < score["value"] < score["interval"][1]
    agreed = (probabilities.argmax(1).numpy() == np.array([example.label for example in drawn.values()])).mean()
    assert found["label-agreement"]["value"] == pytest.approx(agreed)


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


def pictures(folder: Path, classes: str, count: int = 20) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(count):
            Image.fromarray(np.full((8, 8), (12 * n + ord(name)) % 256, np.uint8)).save(folder / name / f"{n}.png")
    return folder


def test_one_class_is_nothing_to_tell_apart(tiny: Make, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", "a")
    run = layersync.train(tiny("data.name=folder", f"data.path={folder}", "train.steps=1"), tmp_path / "run")
    with pytest.raises(InputError, match="tell classes apart, and data folder has one, 'a'"):
        layersync.evaluate(run.path, ["fd-classifier"], num_samples=8)


def test_data_that_has_changed_is_not_taken_for_the_runs(tiny: Make, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", "bc")
    run = layersync.train(tiny("data.name=folder", f"data.path={folder}", "train.steps=1"), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layersync.evaluate(run.path, ["nearest-training"], num_samples=8)
    known = (run.path / "data.json").read_text()
    (run.path / "data.json").write_text(json.dumps({**json.loads(known), "classes": ["c", "b"]}))  # in another order
    with pytest.raises(InputError, match="2 classes then, 2 now, or others; bring it back"):
        layersync.evaluate(run.path, ["nearest-training"], num_samples=8)
    (run.path / "data.json").write_text(known)
    (folder / "b" / "0.png").unlink()
    with pytest.warns(UserWarning, match="data folder, or the tokenizer, has changed since .* was trained"):
        layersync.evaluate(run.path, ["nearest-training"], num_samples=8)
    pictures(folder, "a")  # which is the first label now
    with pytest.raises(InputError, match="2 classes then, 3 now, or others; bring it back"):
        layersync.evaluate(run.path, ["nearest-training"], num_samples=8)


def test_runs_do_not_become_data(tiny: Make, tmp_path: Path, command: Make) -> None:
    folder = pictures(tmp_path / "pictures", "bc")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny("data.name=folder", f"data.path={folder}").to_yaml())
    for words in (["train", recipe], ["compare", recipe]):
        status, _, err = command(*words, "--out", folder / "runs" / "one")
        assert status == 2 and "lies in data.path" in err and not (folder / "runs").exists()


def test_a_run_that_lies_in_its_data_goes_on(tiny: Make, tmp_path: Path) -> None:
    """One that was made there before that was refused; what it reads, two folders beside it, has not changed."""
    for split in ("train", "test"):
        pictures(tmp_path / "data" / split, "bc")
    given = ["data.name=folder", f"data.path={tmp_path / 'data'}"]
    layersync.train(tiny(*given, "train.steps=1"), tmp_path / "run")
    run = shutil.move(tmp_path / "run", tmp_path / "data" / "run")
    assert layersync.train(tiny(*given, "train.steps=2"), run, resume=True).checkpoint_steps() == [1, 2]


def test_scores_that_cannot_be_kept_are_given(trained: Run, tmp_path: Path) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.jsonl"))
    (run / "evaluation.jsonl").mkdir()  # nor may a colleague's run be written
    with pytest.warns(UserWarning, match="the scores are not kept there"):
        assert layersync.evaluate(run, ["nearest-training"], num_samples=8).metrics
