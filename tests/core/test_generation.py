"""Sampling from a run: what a sample depends on, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import layersync
from layersync import InputError, Run, load_recipe
from layersync.core import session
from layersync.core.evaluation import draw
from layersync.core.generation import GenerativeModel, KnownConditions
from layersync.core.parallel import Processes
from layersync.core.sampling import write_samples
from layersync.modalities.image.adapter import ImageAdapter

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def model(trained: Run) -> GenerativeModel:
    return layersync.load(trained.path, weights="model")


def latents(model: GenerativeModel, count: int = 6, labels: Any = (0, 1, 2), seed: int = 0, **settings: Any) -> Tensor:
    conditions = model.conditions(count, labels=labels, seed=seed)
    return model.sample_latents(conditions, seed=seed, settings=model.settings(**settings))[0]


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4", "euler-maruyama"])
@pytest.mark.parametrize("guidance", [1.0, 1.8])
def test_samples_do_not_depend_on_the_batch(model: GenerativeModel, solver: str, guidance: float) -> None:
    settings = {"solver": solver, "steps": 3, "guidance": guidance}
    one, some, all_at_once = (latents(model, batch_size=size, **settings) for size in (1, 4, 64))
    assert torch.allclose(one, all_at_once, atol=1e-5) and torch.allclose(some, all_at_once, atol=1e-5)
    fewer = latents(model, count=3, batch_size=64, **settings)
    assert torch.allclose(fewer, all_at_once[:3], atol=1e-5)


def test_batch_size_is_how_many_samples_the_network_gets_at_once(model: GenerativeModel, seen: list[Any]) -> None:
    for settings, sizes in (({"batch_size": 2}, [2, 2, 1]), ({}, [5]), ({"batch_size": 5}, [5])):
        seen.clear()
        latents(model, count=5, steps=1, **settings)
        assert [len(x_t) for x_t, *_ in seen] == sizes
    seen.clear()
    latents(model, count=9, steps=1)
    assert [len(x_t) for x_t, *_ in seen] == [8, 1], "the recipe says 8"


def test_samples_differ_among_themselves_and_among_seeds(model: GenerativeModel) -> None:
    found = latents(model, labels=(3,))
    assert len({tuple(row.flatten().tolist()) for row in found}) == len(found)
    assert torch.equal(found, latents(model, labels=(3,)))
    assert not torch.allclose(found, latents(model, labels=(3,), seed=1), atol=1e-2)


def test_labels_are_one_a_sample_or_cycled(model: GenerativeModel) -> None:
    assert model.conditions(5, labels=[7, 2]).label.tolist() == [7, 2, 7, 2, 7]
    assert model.conditions(2, labels=[10]).label.tolist() == [10, 10]
    drawn = model.conditions(4000).label
    known = Run(model.run.path)
    assert set(drawn.tolist()) == set(range(10))
    assert float((drawn == 3).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(drawn, model.conditions(4000).label)
    assert not torch.equal(drawn, model.conditions(4000, seed=1).label)
    assert known.data.classes == tuple(str(n) for n in range(10))


def test_lengths_are_those_of_samples_of_the_same_label(model: GenerativeModel) -> None:
    """Where labels are drawn, where they are given, and of all samples where none has the label that is given."""
    label = torch.tensor([0] * 30 + [1] * 10 + [2] * 10)
    known = KnownConditions(label, 10 * label + torch.arange(50) % 3, [[]] * 50)
    for given in (None, (0, 1, 2)):
        drawn = model.conditions(600, labels=given, known=known)
        assert torch.equal(drawn.frames // 10, drawn.label)
        assert set(drawn.frames.tolist()) == {0, 1, 2, 10, 11, 12, 20, 21, 22}
    unknown = model.conditions(600, labels=[7], known=known).frames
    assert (torch.bincount(unknown // 10) / 600).tolist() == pytest.approx([0.6, 0.2, 0.2], abs=0.06)


@pytest.mark.parametrize("count", [3, 97, 1000, 5000])
def test_stratified_labels_come_as_often_as_their_share_says(model: GenerativeModel, count: int) -> None:
    """Within one; of labels drawn one by one 1,000 are off by ten and more."""
    data = load_file(model.run.path / "conditions.safetensors")["label"]
    shares = torch.bincount(data, minlength=10) / len(data)
    drawn = [model.conditions(count, seed=seed, stratified=True).label for seed in (0, 0, 1)]
    for labels in drawn:
        assert (torch.bincount(labels, minlength=10) - count * shares).abs().max() <= 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert count == 3 or not torch.equal(drawn[0], drawn[0].sort().values), "the order is by chance"
    one_by_one = model.conditions(count).label
    assert count < 1000 or (torch.bincount(one_by_one, minlength=10) - count * shares).abs().max() > 5


def test_a_recipe_asks_for_stratified_labels(command: Make, trained: Run, tmp_path: Path) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run")
    known = load_file(run / "conditions.safetensors")["label"]
    counts = {}
    for conditions in ("train", "stratified"):
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe["evaluate"]["conditions"] = conditions
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        found = layersync.evaluate(run, ["fd-classifier"], num_samples=200)
        assert found.sampling.conditions == conditions
        examples = draw(layersync.load(run), 200, seed=0, processes=Processes.here())
        counts[conditions] = torch.bincount(torch.tensor([e.label for e in examples.values()]), minlength=10)
    expected = 200 * torch.bincount(known, minlength=10) / len(known)
    assert (counts["stratified"] - expected).abs().max() <= 1 < (counts["train"] - expected).abs().max()


def test_uniform_labels_do_not_follow_the_datas_shares(tiny: Make, trained: Run, tmp_path: Path) -> None:
    """As SiT's and LayerSync's programs draw them; of a run that is not conditioned on labels they are refused."""
    run = shutil.copytree(trained.path, tmp_path / "run")
    known = load_file(run / "conditions.safetensors")
    save_file({**known, "label": (known["label"] == 1).long()}, run / "conditions.safetensors")
    counts = {}
    for conditions in ("train", "uniform"):
        recipe = load_recipe(run / "recipe.yaml", [f"evaluate.conditions={conditions}"])
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        examples = draw(layersync.load(run), 300, seed=0, processes=Processes.here())
        counts[conditions] = torch.bincount(torch.tensor([e.label for e in examples.values()]), minlength=10)
    assert counts["train"][2:].sum() == 0 and counts["train"][0] > 200
    assert counts["uniform"].min() > 10 and counts["uniform"].sum() == 300
    again = draw(layersync.load(run), 300, seed=1, processes=Processes.here())
    assert [e.label for e in again.values()] != [e.label for e in examples.values()]
    drawn = np.loadtxt(write_samples(run, num=60, out=tmp_path / "drawn", settings={"steps": 1}) / "labels.txt")
    assert len(set(drawn)) == 10, "what is drawn to be seen, or scored by others, too"
    without = tiny("train.steps=1", "condition.labels=ignored", "evaluate.conditions=uniform")
    words = r"evaluate\.conditions: uniform draws labels, and the run is not conditioned"
    with pytest.warns(UserWarning, match=words):
        unlabelled = layersync.train(without, tmp_path / "unlabelled")
    with pytest.raises(InputError, match=words):
        layersync.evaluate(unlabelled.path, ["nearest-training"], num_samples=8)


@pytest.mark.parametrize("stratified", [True, False])
def test_labels_of_more_examples_than_a_run_keeps_have_the_shares_of_all(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stratified: bool
) -> None:
    monkeypatch.setattr(session, "CONDITIONS_LIMIT", 400)
    run = layersync.train(tiny("train.steps=1"), tmp_path / "run")
    assert len(load_file(run.path / "conditions.safetensors")["label"]) == 400
    dataset = run.recipe.adapter.dataset(run.recipe.data, "train")
    shares = torch.bincount(torch.tensor([dataset[index].label for index in range(len(dataset))])) / len(dataset)
    drawn = layersync.load(run.path).conditions(20_000, stratified=stratified).label
    found = torch.bincount(drawn, minlength=10) / 20_000
    assert (found - shares).abs().max() < (2 / 400 if stratified else 0.015)


def test_labels_reach_the_network_and_num_classes_means_none(model: GenerativeModel) -> None:
    found = {label: latents(model, count=1, labels=[label]) for label in (0, 5, 10)}
    assert not torch.equal(found[0], found[5]) and not torch.equal(found[0], found[10])
    unlabelled = model.conditions(1, labels=[0])
    none = type(unlabelled)(torch.tensor([-1]), unlabelled.frames, unlabelled.captions)
    assert torch.equal(model.sample_latents(none)[0], found[10])


@pytest.mark.parametrize("labels", ["11", "-1", "0,99"])
def test_labels_out_of_range_are_refused(command: Make, trained: Run, tmp_path: Path, labels: str) -> None:
    status, _, err = command("sample", trained.path, f"--labels={labels}", "--out", tmp_path / "s")
    assert status == 2 and "none of the labels 0 to 9, nor 10 for none" in err and not (tmp_path / "s").exists()


def test_noise_file_sets_count_and_start(command: Make, trained: Run, model: GenerativeModel, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    arguments = ["sample", trained.path, "--noise", tmp_path / "noise.npy", "--labels", "4", "--latents-only"]
    status, out, _ = command(
        *arguments, "--weights", "model", "--solver", "heun", "--steps", "3", "--out", tmp_path / "s"
    )
    assert status == 0 and out.strip() == str(tmp_path / "s")
    found = np.load(tmp_path / "s" / "latents.npy")
    conditions = model.conditions(5, labels=[4])
    settings = model.settings(solver="heun", steps=3)
    wanted = model.sample_latents(conditions, noise=torch.from_numpy(noise), settings=settings)[0]
    assert found.shape == (5, 1, 8, 8) and np.allclose(found, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 1, 8, 9), np.float32), r"is \[2, 1, 8, 9\], the run needs \[2, 1, 8, 8\]"),
        (np.zeros((2, 1, 8, 8), np.int64), "no floating-point array"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), "holds values that are not finite"),
        (np.full((2, 1, 8, 8), 1e300), "holds values that are not finite"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as .npy"),
    ],
)
def test_noise_that_does_not_fit_is_refused(
    command: Make, trained: Run, tmp_path: Path, array: np.ndarray, words: str
) -> None:
    import re

    np.save(tmp_path / "noise.npy", array, allow_pickle=True)
    status, _, err = command("sample", trained.path, "--noise", tmp_path / "noise.npy", "--out", tmp_path / "s")
    assert status == 2 and re.search(words, err) and not (tmp_path / "s").exists()


def test_num_and_noise_must_agree(command: Make, trained: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.zeros((2, 1, 8, 8), np.float32))
    status, _, err = command("sample", trained.path, "--noise", tmp_path / "noise.npy", "--num", "3")
    assert status == 2 and "--num: 3, but --noise holds 2 samples" in err


def test_a_seed_chooses_the_noise(command: Make, trained: Run, tmp_path: Path) -> None:
    found = []
    for number, more in enumerate(([], ["--seed", 0], ["--seed", 1])):
        out = tmp_path / str(number)
        status, _, err = command(
            "sample", trained.path, "--num", 2, "--labels", 3, "--latents-only", "--out", out, *more
        )
        assert status == 0, err
        found.append(np.load(out / "latents.npy"))
    assert np.array_equal(found[0], found[1]) and not np.isclose(found[1], found[2]).any()


def test_latents_only_builds_no_tokenizer(
    command: Make, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a tokenizer was built")

    monkeypatch.setattr(ImageAdapter, "tokenizer", refuse)
    status, _, err = command("sample", trained.path, "--num", "3", "--latents-only", "--out", tmp_path / "s")
    assert status == 0, err
    assert np.load(tmp_path / "s" / "latents.npy").shape == (3, 1, 8, 8)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["latents.npy"]


def test_pictures_and_labels_are_written(command: Make, trained: Run) -> None:
    status, out, _ = command("sample", trained.path, "--num", "3", "--labels", "1,2")
    folder = Path(out.strip())
    assert status == 0 and folder == trained.path / "samples" / "step-00000040"
    assert {path.name for path in folder.iterdir()} == {"grid.png", "000.png", "001.png", "002.png", "labels.txt"}
    assert (folder / "labels.txt").read_text().split() == ["1", "2", "1"]


def test_steps_are_intervals(model: GenerativeModel) -> None:
    times = []
    original = model.backbone.forward

    def noted(x: Tensor, t: Tensor, *rest: Any, **keywords: Any) -> Any:
        times.append(float(t[0]))
        return original(x, t, *rest, **keywords)

    model.backbone.forward = noted  # type: ignore[method-assign]
    try:
        latents(model, count=1, solver="euler", steps=8)
    finally:
        model.backbone.forward = original  # type: ignore[method-assign]
    assert times == pytest.approx([n / 8 for n in range(8)])


def test_guidance_interval_saves_network_evaluations(model: GenerativeModel) -> None:
    sizes: list[int] = []
    original = model.backbone.forward

    def noted(x: Tensor, *rest: Any, **keywords: Any) -> Any:
        sizes.append(len(x))
        return original(x, *rest, **keywords)

    model.backbone.forward = noted  # type: ignore[method-assign]
    try:
        latents(model, count=2, guidance=2.0, guidance_interval=(0.3, 0.8), solver="euler", steps=10)
    finally:
        model.backbone.forward = original  # type: ignore[method-assign]
    assert sizes == [2] * 3 + [4] * 6 + [2]


@pytest.mark.parametrize("use", ["evaluate", "sample"])
def test_processes_that_see_different_checkpoints_are_refused(
    trained: Run, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    class Other(Processes):
        def gather(self, local: list[Any]) -> list[Any]:
            return [*local, 20]

    monkeypatch.setattr(Processes, "here", lambda: Other(0, 2))
    with pytest.raises(InputError, match="different newest checkpoints, of steps 20 and 40; name one by --step"):
        layersync.evaluate(trained.path) if use == "evaluate" else write_samples(trained.path, num=2)


def test_samples_that_are_not_finite_are_none(trained: Run) -> None:
    diverged = layersync.load(trained.path)
    with torch.no_grad():
        next(iter(diverged.backbone.parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="8 of the 8 samples from number 0 on hold values that are not finite numbers"):
        diverged.sample_latents(diverged.conditions(8))


def test_averaged_and_own_weights_differ(trained: Run, model: GenerativeModel) -> None:
    assert not torch.equal(latents(layersync.load(trained.path)), latents(model))


def test_a_sample_is_the_modalitys_own_type(model: GenerativeModel) -> None:
    images = model.sample(2, labels=[1])
    assert [image.shape for image in images] == [(8, 8, 1)] * 2 and images[0].dtype == np.uint8
    assert np.array_equal(images[0], model.sample(1, labels=[1])[0])


def test_every_prediction_and_interpolant_trains_and_samples(tiny: Make, tmp_path: Path) -> None:
    for interpolant in ("linear", "trigonometric", "variance-preserving"):
        for prediction in ("velocity", "noise", "score", "data"):
            overrides = [f"objective.interpolant={interpolant}", f"objective.prediction={prediction}"]
            run = layersync.train(tiny(*overrides, "train.steps=2"), tmp_path / f"{interpolant}-{prediction}")
            for solver in ("heun", "euler-maruyama"):
                found = latents(layersync.load(run.path), count=2, solver=solver, steps=4)
                assert torch.isfinite(found).all(), (interpolant, prediction, solver)


def test_settings_that_make_no_sense_are_refused(model: GenerativeModel) -> None:
    with pytest.raises(InputError, match="guidance_channels: 2, the latents have 1"):
        model.settings(guidance_channels=2)
    with pytest.raises(ValueError, match="steps"):
        model.settings(steps=0)
    assert math.isclose(model.settings(guidance=1.5).guidance, 1.5)
    with pytest.raises(InputError, match=r"has no checkpoint of step 7; there are: \[40\]"):
        layersync.load(model.run.path, step=7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--solver", "euler-maruyama", "--steps", "1"], "--steps: euler-maruyama with a last_step takes at least 2"),
        (["--steps", "0"], "--steps: input should be greater than or equal to 1, not 0"),
        (["--guidance-channels", "0"], "--guidance-channels: input should be greater than or equal to 1, not 0"),
        (["--solver", "leap"], "--solver: input should be 'euler', "),
    ],
)
def test_options_of_sampling_are_refused_by_name(command: Make, trained: Run, options: list[str], says: str) -> None:
    status, out, err = command("sample", trained.path, "--num", 1, *options)
    assert status == 2 and not out and err.startswith(f"error: {says}") and err.count("\n") == 1
    assert "{" not in err


@pytest.mark.parametrize("labels", ["auto", "ignored"])
def test_guidance_by_nothing_is_said_once(command: Make, tiny: Make, tmp_path: Path, labels: str) -> None:
    (tmp_path / "data").mkdir()
    for number in range(20):
        Image.effect_noise((8, 8), 60).save(tmp_path / "data" / f"{number}.png")
    data = f"data={{name: folder, path: {tmp_path / 'data'}}}"
    recipe = tiny(data, f"condition.labels={labels}", "train.steps=1", "evaluate.metrics=[nearest-training]")
    run = layersync.train(recipe, tmp_path / "run").path
    says = "sample.guidance has no effect: the network is conditioned on nothing"
    status, _, err = command("sample", run, "--num", 2)
    assert status == 0 and says not in err
    status, _, err = command("sample", run, "--num", 2, "--guidance", 3)
    assert status == 0 and err.count(says) == 1
    written = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(written.replace("guidance: 1.0", "guidance: 3.0"))
    status, _, err = command("evaluate", run, "--num-samples", 4, "--replications", 2)
    assert status == 0 and err.count(says) == 1
