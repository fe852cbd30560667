"""Comparisons end to end: real runs in processes of their own, paired by seed, told apart from each other."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from classifiers import another_classifier
from filelock import FileLock, Timeout
from scipy import stats
from scipy.spatial.transform import Rotation

import layersync
from layersync import Run
from layersync.core import experiment, experiment_checks, experiment_run
from layersync.core.comparison import Arm, summarise
from layersync.core.errors import InputError, Interrupted, TrainingError
from layersync.core.experiment import OTHER_SEEDS, arms_of, parse_variants
from layersync.core.experiment_run import Assignment, carry_out, finish
from layersync.core.gain import paired_gain
from layersync.core.latents import LatentCache
from layersync.core.process_pool import Task
from layersync.core.results import Comparison, Domain, RunRecord, read_comparison
from layersync.core.sampling import write_samples
from layersync.modalities.motion.io.amass import write_amass
from layersync.modalities.motion.sample import Motion
from layersync.report.text import comparison_table

Make = Callable[..., Any]
SEEDS = (3, 4)
METRICS = ("fd-classifier", "label-agreement", "nearest-training")
SETS = (
    "train.steps=6",
    "train.ema_ramp=false",
    "train.ema_decay=0.2",
    "evaluate.every=3",
    "evaluate.num_samples=32",
    f"evaluate.metrics=[{','.join(METRICS)}]",
    "train.keep=1",
)
VARIANTS: dict[str, tuple[str, ...]] = {"baseline": (), "layersync": (), "broken": ("optimizer.lr=1e30",)}


@pytest.fixture(scope="module")
def recipe(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "digits.yaml"
    path.write_text(tiny(*SETS).to_yaml())
    return path


@pytest.fixture(scope="module")
def folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants and one that fails, two seeds each, two at a time."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    layersync.compare([recipe], VARIANTS, SEEDS, out=out, jobs=2)
    return out


@pytest.fixture
def domain(folder: Path) -> Domain:
    (found,) = read_comparison(folder).domains
    return found


def test_every_run_is_an_ordinary_run(
    folder: Path, domain: Domain, recipe: Path, tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    """The same as `layersync train` and `layersync evaluate` make of the variant's recipe, bit for bit."""
    (record, _) = domain.variants["layersync"].runs
    assert record.status == "finished" and record.steps == (3, 6) and record.seed == SEEDS[0]
    variant = folder / domain.variants["layersync"].recipe
    by_hand = layersync.train(layersync.load_recipe(variant, [f"seed={SEEDS[0]}"]), tmp_path / "run")
    compared = Run(folder / record.path)
    assert identical(tensors_of(by_hand, "ema"), tensors_of(compared, "ema"))
    scores = layersync.evaluate(by_hand.path, step=3).metrics
    for name in METRICS:
        assert scores[name].value == pytest.approx(record.scores[name][0], rel=1e-6)


def test_runs_of_a_seed_start_alike_and_of_others_do_not(folder: Path, domain: Domain) -> None:
    def first(variant: str, number: int) -> float:
        records = Run(folder / domain.variants[variant].runs[number].path).records()
        return float(next(record["flow_loss"] for record in records if "flow_loss" in record))

    assert first("baseline", 0) == first("layersync", 0) != first("baseline", 1) == first("layersync", 1)


def test_the_file_does_not_say_where_it_was_made(folder: Path) -> None:
    """It is passed on and kept in repositories: paths in it are relative to it."""
    assert str(folder) not in (folder / "compare.json").read_text()


def test_gain_is_that_of_the_paired_scores(domain: Domain) -> None:
    def last(variant: str, metric: str) -> list[float]:
        return [run.scores[metric][-1] for run in domain.variants[variant].runs]

    found = domain.variants["layersync"]
    assert domain.reference == "baseline" and domain.metric == METRICS[0]
    assert found.gain is not None
    own = replace(found.gain, by_classifier=())
    assert own == paired_gain(last("baseline", METRICS[0]), last("layersync", METRICS[0]), "lower")
    assert domain.better == {METRICS[0]: "lower", "label-agreement": "higher", "nearest-training": None}
    assert found.gains["nearest-training"].mean is None
    assert found.gain.seeds == 2 and "indicative" in found.gain.note
    assert found.speed_up is not None and found.speed_up.seconds is None
    assert found.overhead is None, "six steps are too few to time one"


def test_gain_by_each_classifier_is_that_of_its_own_distances(folder: Path, domain: Domain) -> None:
    def last(variant: str) -> np.ndarray:
        runs = (Run(folder / run.path) for run in domain.variants[variant].runs)
        scores = [run.records("evaluation.jsonl")[-1]["metrics"]["fd-classifier"] for run in runs]
        assert [np.mean(score["details"]["by_classifier"]) for score in scores] == [score["value"] for score in scores]
        return np.array([score["details"]["by_classifier"] for score in scores])

    gains = domain.variants["layersync"].gains
    wanted = 1 - np.exp(np.log(last("layersync") / last("baseline")).mean(0))
    assert gains["fd-classifier"].by_classifier == pytest.approx(wanted) and len(set(wanted)) == 3
    assert gains["label-agreement"].by_classifier == gains["nearest-training"].by_classifier == ()
    low, middle, high = (f"{100 * gain:+.1f} %" for gain in wanted)
    said = f"layersync: gain in fd-classifier: {low}, {middle}, {high} by each classifier alone"
    assert said in comparison_table(read_comparison(folder))


def test_gain_in_held_out_loss_is_that_of_the_runs_own_logs(folder: Path, domain: Domain) -> None:
    def last(variant: str) -> list[float]:
        runs = (Run(folder / run.path) for run in domain.variants[variant].runs)
        return [[r["held_out_loss"] for r in run.records() if "held_out_loss" in r][-1] for run in runs]

    found = domain.variants["layersync"]
    assert found.held_out_gain == paired_gain(last("baseline"), last("layersync"), "lower")
    assert found.held_out_gain.mean != 0 and found.held_out_loss is not None
    assert found.held_out_loss.mean[-1] == pytest.approx(sum(last("layersync")) / 2)
    assert domain.variants["baseline"].held_out_gain is None


def test_losses_of_unlike_objectives_are_no_gain(folder: Path, recipe: Path, domain: Domain) -> None:
    variants = {"baseline": (), "other": ("objective.prediction=data",)}
    arms = arms_of([recipe], variants, ())
    runs = dict(zip(variants, (domain.variants["baseline"].runs, domain.variants["layersync"].runs), strict=True))
    records = {("digits", name, seed): run for name, of in runs.items() for seed, run in zip(SEEDS, of, strict=True)}
    found = summarise(arms, SEEDS, records, folder).variants["other"].held_out_gain
    assert found is not None and found.mean is None
    assert found.note == "another loss than the reference's: objective.prediction"


class OneAfterTheOther:
    """Makes runs in this process: what a process of its own would do."""

    def __init__(self, jobs: int, tasks: list[Task], *, shown: bool = False):
        self.waiting = tasks

    def run(self) -> Iterator[Task]:
        for task in self.waiting:
            try:
                finish(task.assignment)
            except (InputError, OSError, TrainingError) as error:
                task.error = str(error)
            yield task


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are made here. That each is a process is shown by the tests that do without this."""
    monkeypatch.setattr(experiment, "ProcessPool", OneAfterTheOther)


SHORT = (
    "backbone.depth=3", "optimizer.lr=0.01", "train.steps=8", "train.batch_size=8", "train.ema_decay=0.2",
    "train.ema_ramp=false", "evaluate.num_samples=16", "sample.steps=2",
)  # fmt: skip


@pytest.fixture
def short(tiny: Make, tmp_path: Path) -> list[Path]:
    """Recipes of digits, and of six motions of 24 frames."""
    random, time = np.random.default_rng(0), np.arange(24) / 30
    for number in range(6):
        swings = 0.4 * np.sin(random.uniform(1, 5, (1, 24, 3)) * time[:, None, None])
        rotations = Rotation.from_rotvec(swings.reshape(-1, 3)).as_matrix().reshape(24, 24, 3, 3)
        path = np.stack([random.uniform(0, 2) * time, 0.9 + 0 * time, time], axis=1)
        motion = Motion(path.astype(np.float32), rotations.astype(np.float32), 30.0)
        write_amass(tmp_path / "motions" / f"{number}.npz", motion)
    overrides = [f"data={{name: amass, path: {tmp_path / 'motions'}}}", "tokenizer.num_frames=16"]
    overrides += ["backbone.hidden_size=32", "backbone.num_heads=2", "optimizer.warmup=1", "sample.guidance=1"]
    overrides += ["evaluate.every=null", "evaluate.metrics=[fd-kinetic]"]
    walks = layersync.load_recipe("motion/quick", [*SHORT, *overrides])
    digits = tiny(*SHORT, "evaluate.metrics=[fd-classifier]")
    found = [tmp_path / "walks.yaml", tmp_path / "numbers.yaml"]
    for file, recipe in zip(found, (walks, digits), strict=True):
        file.write_text(recipe.to_yaml())
    return found


@pytest.mark.usefixtures("in_process")
def test_recipes_are_domains_of_their_own(short: list[Path], tmp_path: Path) -> None:
    """With the numbers that runs by hand have."""
    out = tmp_path / "out"
    domains = layersync.compare(short, seeds=[5], out=out).domains
    assert read_comparison(out).domains == domains
    found = [(one.name, one.modality, one.metric, set(one.better)) for one in domains]
    assert found == [
        ("walks", "motion", "fd-kinetic", {"fd-kinetic"}),
        ("numbers", "image", "fd-classifier", {"fd-classifier"}),
    ]
    for one, picture in zip(domains, ("motions.gif", "grid.png"), strict=True):
        before, after = (one.variants[name].runs[0].scores[one.metric][-1] for name in ("baseline", "layersync"))
        recipe = layersync.load_recipe(out / one.variants["layersync"].recipe, ["seed=5"])
        by_hand = layersync.train(recipe, tmp_path / "by-hand" / one.name)
        assert after == pytest.approx(layersync.evaluate(by_hand.path).metrics[one.metric].value, rel=1e-6)
        gain = one.variants["layersync"].gain
        assert gain is not None and gain.mean == pytest.approx(1 - after / before) and abs(gain.mean) > 1e-6
        assert all((out / one.variants[name].samples / picture).is_file() for name in ("baseline", "layersync"))


@pytest.fixture(scope="module")
def numbers(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of one seed on the digits of ``short``."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "numbers.yaml").write_text(tiny(*SHORT, "evaluate.metrics=[fd-classifier]").to_yaml())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "ProcessPool", OneAfterTheOther)
        layersync.compare([folder / "numbers.yaml"], seeds=[5], out=folder / "out")
    return folder / "out"


@pytest.fixture
def elsewhere(numbers: Path, in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That comparison, taken to a machine whose own classifier of the data is another one."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    shutil.copytree(numbers, out)
    (kept,) = (out / "classifiers").glob("*.safetensors")
    (cache / "classifiers").mkdir(parents=True)
    another_classifier(kept, cache / "classifiers" / kept.name)
    monkeypatch.setenv("LAYERSYNC_CACHE", str(cache))
    return out


def test_the_command_of_one_seed_names_it(numbers: Path) -> None:
    """As one to take, not as how many."""
    _, _, given = read_comparison(numbers).command.partition(" --seeds ")
    assert given.split()[0] == "5,"


def test_a_run_that_another_version_finished_is_said(numbers: Path) -> None:
    """Old records do not say who finished them."""
    arms = arms_of([numbers.parent / "numbers.yaml"], {"baseline": (), "layersync": ()}, ())
    (domain,) = read_comparison(numbers).domains

    def notes(finished_by: dict[str, Any] | None) -> str:
        records = {("numbers", name, 5): variant.runs[0] for name, variant in domain.variants.items()}
        run = records["numbers", "layersync", 5]
        changed = {key: value for key, value in run.environment.items() if key != "finished_by"}
        if finished_by is not None:
            changed["finished_by"] = run.environment["finished_by"] | finished_by
        records["numbers", "layersync", 5] = replace(run, environment=changed)
        return " ".join(note for note in summarise(arms, [5], records, numbers).notes if "different" in note)

    assert notes({}) == notes(None) == ""
    packages = domain.variants["layersync"].runs[0].environment["packages"]
    said = notes({"packages": packages | {"layersync": "8.8"}, "git_commit": "abc", "device_name": "another"})
    assert "versions of layersync: " in said and "8.8" in said
    assert "commits of layersync: " in said and "processors: " in said and "torch" not in said


def test_all_runs_are_scored_by_the_classifier_in_the_folder(elsewhere: Path, short: list[Path]) -> None:
    (domain,) = layersync.compare([short[1]], seeds=[5, 6], out=elsewhere, resume=True).domains
    scored = [run.environment["evaluation"]["metrics"] for variant in domain.variants.values() for run in variant.runs]
    assert len(scored) == 4 and len({score["fd-classifier"]["checksum"] for score in scored}) == 1
    assert not any("not taken alike" in note for note in domain.notes)


def test_runs_that_another_classifier_would_score_are_not_begun(
    elsewhere: Path, short: list[Path], command: Make
) -> None:
    """With that of the finished runs gone, a machine that has one of its own is told so before any work."""
    shutil.rmtree(elsewhere / "classifiers")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    status, _, err = command(*words(short[1], elsewhere, "--seeds", "5,6", "--resume"))
    (line,) = err.splitlines()
    assert status == 2 and line.startswith("error: --resume: fd-classifier of numbers was taken by domain-classifier-")
    assert "not comparable" in line and str(elsewhere / "classifiers") in line
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_runs_that_an_earlier_version_scored_get_no_others_beside_them(
    elsewhere: Path, short: list[Path], command: Make
) -> None:
    """Its classifiers are of another kind: there is nothing to bring back."""
    content = (elsewhere / "compare.json").read_text()
    (elsewhere / "compare.json").write_text(re.sub(r"domain-classifier-v\d+", "domain-classifier-v4", content))
    status, _, err = command(*words(short[1], elsewhere, "--seeds", "5,6", "--resume"))
    (line,) = err.splitlines()
    assert status == 2 and line.startswith(
        "error: --resume: fd-classifier of numbers was taken by domain-classifier-v4-"
    )
    assert "this version of layersync has domain-classifier-v" in line and "bring back" not in line


@pytest.mark.usefixtures("in_process")
def test_runs_that_another_extractor_would_score_are_not_begun(
    short: list[Path], command: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds are added where it is the same, and refused where it reads samples in another way than it did."""
    out = tmp_path / "out"
    layersync.compare([short[0]], seeds=[5], out=out)
    (domain,) = layersync.compare([short[0]], seeds=[5, 6], out=out, resume=True).domains
    assert [run.status for run in domain.variants["baseline"].runs] == ["finished"] * 2
    content = json.loads((out / "compare.json").read_text())
    (run, _) = content["domains"][0]["variants"]["baseline"]["runs"]
    run["environment"]["evaluation"]["metrics"]["fd-kinetic"]["preprocessing"] = "at another rate"
    (out / "compare.json").write_text(json.dumps(content))
    status, _, err = command(*words(short[0], out, "--seeds", "5,6,7", "--resume"))
    assert status == 2 and "fd-kinetic of walks was taken by " in err and "; at another rate) in finished runs" in err
    assert "take those weights, or give another --out" in err
    run["environment"]["text_encoder"] = "another"
    (out / "compare.json").write_text(json.dumps(content))
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    status, _, err = command(*words(short[0], out, "--seeds", "5,6,7", "--resume"))
    assert status == 2 and "condition.text_encoder of walks is not what its finished runs were trained with" in err


def test_data_of_every_recipe_are_looked_at_before_any_work(short: list[Path], command: Make, tmp_path: Path) -> None:
    walks, digits = short
    shutil.rmtree(tmp_path / "motions")
    status, _, err = command("compare", digits, walks, "--seeds", 1, "--out", tmp_path / "out")
    assert status == 2 and "motions is no folder" in err and not (tmp_path / "out").exists()


def test_similarity_is_measured_for_the_baseline_on_the_others_pairs(domain: Domain) -> None:
    for variant in ("baseline", "layersync"):
        found = domain.variants[variant].similarity["1-3"]
        assert len(found["cosine"].mean) == 2 and found["cosine"].mean != found["centred"].mean
        assert all(-1 <= value <= 1 for kind in found.values() for value in kind.mean)
        grid = domain.variants[variant].runs[0].similarity[-1]
        assert len(grid.cosine) == 4 and grid.cosine[0][0] == 1 and grid.cosine[0][2] == grid.cosine[2][0]
    assert domain.variants["layersync"].pairs == ((1, 3),) and domain.variants["baseline"].pairs == ()


def test_similarity_map_agrees_with_what_training_measured(folder: Path, domain: Domain) -> None:
    record = domain.variants["layersync"].runs[0]
    measured = [found for found in Run(folder / record.path).records() if "held_out_similarity" in found]
    assert record.similarity[-1].step == measured[-1]["step"]
    assert record.similarity[-1].cosine[0][2] == pytest.approx(
        measured[-1]["held_out_similarity"]["1-3"]["cosine"], abs=2e-5
    )


def test_a_failed_run_is_shown_and_takes_no_other_down(domain: Domain, folder: Path) -> None:
    runs = domain.variants["broken"].runs
    assert [run.status for run in runs] == ["failed", "failed"] and all("finite" in run.error for run in runs)
    assert any("broken: 2 of 2 runs failed" in note and "finite" in note for note in domain.notes)
    assert domain.variants["broken"].gain.seeds == 0
    assert all(run.status == "finished" for run in domain.variants["layersync"].runs)


def test_jobs_are_runs_at_a_time(folder: Path, domain: Domain) -> None:
    """By when each process began, and when it left its record."""
    spans = []
    for name in ("baseline", "layersync"):
        for run in domain.variants[name].runs:
            end = (folder / f"{run.path}.json").stat().st_mtime
            assert run.process_seconds is not None
            spans.append((end - run.process_seconds, end))
    at_once = [sum(start <= began < end for start, end in spans) for began, _ in spans]
    assert len(spans) == 4 and max(at_once) == 2


def test_checkpoints_that_were_scored_go_where_the_recipe_says_so(folder: Path, domain: Domain) -> None:
    assert Run(folder / domain.variants["layersync"].runs[0].path).checkpoint_steps() == [6]


def test_samples_are_of_the_same_noise_and_labels(folder: Path, domain: Domain, tmp_path: Path) -> None:
    """Those of seed 0, of the recipe's `evaluate`, whatever the seed that a run was trained with."""
    variants = {name: domain.variants[name] for name in ("baseline", "layersync")}
    folders = [folder / variant.samples for variant in variants.values()]
    labels = [(path / "labels.txt").read_text() for path in folders]
    assert labels[0] == labels[1] and all((path / "grid.png").is_file() for path in folders)
    for (name, variant), drawn in zip(variants.items(), folders, strict=True):
        again = write_samples(folder / variant.runs[0].path, num=16, seed=0, out=tmp_path / name)
        assert all((again / path.name).read_bytes() == path.read_bytes() for path in drawn.iterdir())
    scored = [run.environment["evaluation"]["sampling"] for variant in variants.values() for run in variant.runs]
    assert len(scored) == 4 and all(sampling == scored[0] for sampling in scored) and scored[0]["seed"] == 0


def test_the_file_has_what_others_rely_on(folder: Path) -> None:
    content = json.loads((folder / "compare.json").read_text())
    (domain,) = content["domains"]
    variant = domain["variants"]["layersync"]
    assert content["seeds"] == list(SEEDS) and {"modality", "recipe", "metric"} <= set(domain)
    assert {"seed", "steps", "scores", "seconds", "status"} <= set(variant["runs"][0])
    assert {"mean", "interval", "seeds"} <= set(variant["gain"]) and {"steps", "seconds"} <= set(variant["speed_up"])
    assert (
        domain["settings"]["sampling"]["num_samples"] == 32 and domain["settings"]["metrics"][METRICS[0]]["extractor"]
    )
    assert json.loads(json.dumps(Comparison.from_mapping(content).to_mapping())) == content


def words(recipe: Path | str, out: Path, *more: str, variants: str = "baseline,layersync") -> list[str]:
    return ["compare", str(recipe), "--out", str(out), "--variants", variants, *more]


BROKEN = ("--variant", "broken:optimizer.lr=1e30")
GIVEN = ("--seeds", "3,4", *BROKEN)


@pytest.mark.usefixtures("in_process")
def test_resume_needs_the_file_alone_and_takes_more_variants(
    folder: Path, recipe: Path, command: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With runs and checkpoints gone: what is finished stays as it is, what failed is tried again, `null` is added."""
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=lambda path, names: names if Path(path).name == "runs" else ())
    status, stdout, err = command(
        *words(recipe, out, *GIVEN, "--resume", "--jobs", "2", variants="baseline,layersync,null")
    )
    assert status == 1 and "2 of 8 runs failed" in err and str(out) in stdout
    assert "runs to make: 4; seeds: 3 and 4" in caplog.text
    assert read_comparison(out).command.endswith("--seeds 3,4 --jobs 2")
    (before,), (after,) = read_comparison(folder).domains, read_comparison(out).domains
    for name in ("baseline", "layersync"):
        assert after.variants[name].runs == before.variants[name].runs
        assert not (out / after.variants[name].runs[0].path).exists()
    null = after.variants["null"]
    assert after.variants["null"].content == before.variants["baseline"].content
    assert [run.seed for run in null.runs] == [seed + OTHER_SEEDS for seed in SEEDS]
    assert null.regularizer == {"name": "none"} and null.gain is not None and null.gain.mean is not None
    assert null.runs[0].scores != before.variants["baseline"].runs[0].scores


LONG = ("--auto-resume", "--seeds", "1", "--set", "train.steps=250", "--set", "evaluate.every=200")


@pytest.fixture
def started() -> Iterator[Callable[[Path, Path], subprocess.Popen[str]]]:
    """``started(recipe, out)``: a comparison whose first run has taken steps; none of it outlives the test."""
    with ExitStack() as held:

        def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "layersync.cli", *words(recipe, out, *LONG)]
            held.callback(end_children, recipe, out)
            process = held.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            held.callback(process.kill)
            log = out / "runs" / recipe.stem / "baseline" / "seed-0" / "metrics.jsonl"
            deadline = time.monotonic() + 120
            while not log.is_file() or log.read_text().count("\n") < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return process

        yield start


def end_children(recipe: Path, out: Path) -> None:
    for number in children(recipe, out):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def children(recipe: Path, out: Path) -> list[int]:
    """Processes that make runs of the comparison in ``out``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
                if "experiment_run" in text and str(out) in text:
                    found.append(int(entry.name))
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_saves_the_run_and_leaves_no_process(
    number: signal.Signals,
    started: Make,
    recipe: Path,
    command: Make,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The run that was being made is saved at the last step that it took."""
    out = tmp_path / "out"
    process = started(recipe, out)
    assert len(children(recipe, out)) == 1
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while children(recipe, out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children(recipe, out)
    (domain,) = read_comparison(out).domains
    assert [run.status for variant in domain.variants.values() for run in variant.runs] == ["waiting", "waiting"]
    run = Run(out / domain.variants["baseline"].runs[0].path)
    assert run.checkpoint_steps()[-1] == run.records()[-1]["step"] >= 1
    if number is signal.SIGINT:
        assert process.returncode == 1 and f"--resume --out {out}" in err and "Traceback" not in err
        request.getfixturevalue("in_process")
        status, _, err = command(*words(recipe, out, *LONG))
        assert status == 0, err
        (domain,) = read_comparison(out).domains
        assert [variant.runs[0].steps for variant in domain.variants.values()] == [(200, 250)] * 2
        assert (out / "report.html").is_file()


@pytest.mark.usefixtures("in_process")
def test_a_record_that_is_torn_is_made_again(
    folder: Path, recipe: Path, command: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a score by hand, on other settings, is not taken for the run's own."""
    out = tmp_path / "out"
    (found,) = json.loads((folder / "compare.json").read_text())["domains"]
    waiting = found["variants"]["layersync"]["runs"][1]
    left = {"seed": SEEDS[1], "status": "waiting", "path": waiting["path"]}
    copy_of(folder, out, lambda variants: variants["layersync"]["runs"].__setitem__(1, left))
    (out / f"{waiting['path']}.json").write_text('{"seed": 4, "sta')
    log = out / waiting["path"] / "evaluation.jsonl"
    by_hand = json.loads(log.read_text().splitlines()[-1])
    by_hand["sampling"]["num_samples"], by_hand["metrics"][METRICS[0]]["value"] = 2, 999.0
    log.write_text(log.read_text() + json.dumps(by_hand) + "\n")
    # its first checkpoint went when it had been scored, so that what is left of it cannot be finished
    status, _, err = command(*words(recipe, out, *GIVEN, "--resume"))
    (domain,) = read_comparison(out).domains
    record = domain.variants["layersync"].runs[1]
    assert "is damaged" in caplog.text and "Traceback" not in err
    assert status == 1 and record.status == "failed" and "step 3 is gone" in record.error
    shutil.rmtree(out / waiting["path"])
    status, _, err = command(*words(recipe, out, *GIVEN, "--resume"))
    (domain,) = read_comparison(out).domains
    again = {name: list(values) for name, values in domain.variants["layersync"].runs[1].scores.items()}
    assert status == 0 and again == waiting["scores"], err


def copy_of(folder: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A comparison's folder whose runs that failed count as finished, with its variants changed."""
    shutil.copytree(folder, out)
    content = json.loads((out / "compare.json").read_text())
    variants = content["domains"][0]["variants"]
    same = ("overrides", "recipe", "content")
    variants["broken"] = variants["baseline"] | {key: variants["broken"][key] for key in same}
    change(variants)
    (out / "compare.json").write_text(json.dumps(content))


def test_recipes_from_before_a_key_was_there_are_the_same(
    folder: Path, recipe: Path, command: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the similarities, of the pairs of variants that are finished too, are there as before."""

    def change(variants: dict[str, Any]) -> None:
        del variants["layersync"]
        for variant in variants.values():
            del variant["content"]["evaluate"]["conditions"]
            variant["pairs"] = []

    copy_of(folder, tmp_path / "out", change)
    status, _, err = command(*words(recipe, tmp_path / "out", *GIVEN, "--resume", variants="baseline"))
    assert status == 0 and "runs to make: 0" in caplog.text, err
    (domain,) = read_comparison(tmp_path / "out").domains
    assert all(set(variant.similarity) == {"1-2", "1-3"} for variant in domain.variants.values())


@pytest.mark.parametrize(
    ("where", "key", "said"),
    [
        ((), "data", "the data or the tokenizer of digits has changed"),
        (("environment",), "conditions", "finished runs of digits drew the labels of their samples from fewer"),
    ],
)
def test_runs_are_not_set_beside_others_of_other_data(
    where: tuple[str, ...], key: str, said: str, folder: Path, recipe: Path, command: Make, tmp_path: Path
) -> None:
    def change(variants: dict[str, Any]) -> None:
        found = variants["baseline"]["runs"][0]
        for name in where:
            found = found[name]
        found[key] = {"data": "another", "conditions": found.get("conditions", 0) - 1}[key]

    out = tmp_path / "out"
    copy_of(folder, out, change)
    before = (out / "compare.json").read_bytes()
    more = words(recipe, out, *GIVEN, "--resume", variants="baseline,layersync,null")
    status, _, err = command(*more)
    assert status == 2 and said in err
    assert (out / "compare.json").read_bytes() == before


def test_a_variant_of_another_condition_keeps_another_number_of_labels(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with texts does of many examples: only runs conditioned alike have to agree in it."""
    recipe = tmp_path / "numbers.yaml"
    recipe.write_text(tiny(*SHORT, "evaluate.metrics=[nearest-training]").to_yaml())
    arms = arms_of([recipe], {"baseline": (), "blind": ["condition.labels=ignored"]}, ())
    monkeypatch.setattr(experiment_checks, "num_conditions", lambda parts: 20 if parts.data.labels_used else 10)

    def check(baseline: int, blind: int) -> list[Arm]:
        kept = {"baseline": baseline, "blind": blind}
        records = {
            ("numbers", name, 5): RunRecord(
                5, "finished", name, environment={"conditions": count, "evaluation": {"metrics": {}}}
            )
            for name, count in kept.items()
        }
        return experiment_checks.check_work(tmp_path / "out", arms, (5, 6), records)

    assert [arm.variant for arm in check(20, 10)] == ["baseline", "blind"]
    with pytest.raises(InputError, match="from fewer training examples than 20"):
        check(10, 10)


@pytest.mark.usefixtures("in_process")
def test_samples_that_cannot_be_drawn_take_no_scores_down(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A modality's `render` that raises is a warning; once it does not, --resume draws of the runs that are there."""

    def failing(*_: Any, **__: Any) -> None:
        raise InputError("Adapter.render: raised ValueError")

    recipe, out = tmp_path / "numbers.yaml", tmp_path / "out"
    recipe.write_text(tiny(*SHORT, "evaluate.metrics=[nearest-training]").to_yaml())
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="seed 5: no samples could be drawn; its log"):
        patch.setattr(experiment_run, "write_samples", failing)
        (domain,) = layersync.compare([recipe], seeds=[5], out=out).domains
    assert {run.status for variant in domain.variants.values() for run in variant.runs} == {"finished"}
    assert {variant.samples for variant in domain.variants.values()} == {""}
    (again,) = layersync.compare([recipe], seeds=[5], out=out, resume=True).domains
    for name, variant in again.variants.items():
        assert variant.samples_seed == 5 and list((out / variant.samples).iterdir())
        assert variant.runs == domain.variants[name].runs


@pytest.mark.usefixtures("in_process")
def test_the_next_seed_draws_samples_where_the_first_failed(
    folder: Path, recipe: Path, command: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def change(variants: dict[str, Any]) -> None:
        for run in variants["layersync"]["runs"]:
            run |= {"status": "waiting", "steps": [], "scores": {}, "seconds": [], "held_out_loss": []}
            run |= {"similarity": []}
            (out / f"{run['path']}.json").unlink()
            shutil.rmtree(out / run["path"])
        (out / variants["layersync"]["runs"][0]["path"]).write_text("in the way")
        shutil.rmtree(out / "samples/digits/layersync")

    copy_of(folder, out, change)
    status, _, err = command(*words(recipe, out, *GIVEN, "--resume", "--jobs", "2"))
    (domain,) = read_comparison(out).domains
    found = domain.variants["layersync"]
    assert status == 1 and [run.status for run in found.runs] == ["failed", "finished"], err
    assert found.samples_seed == SEEDS[1] and list((out / found.samples).iterdir())


def test_a_record_is_of_its_recipe_alone_and_of_numbers(tiny: Make, tmp_path: Path) -> None:
    """No score by hand, in another way or by others, is taken for the run's own; what is not finite has failed."""
    (tmp_path / "recipe.yaml").write_text(tiny("train.steps=3", "evaluate.num_samples=32").to_yaml())
    run = tmp_path / "run"
    assignment = Assignment(str(tmp_path / "recipe.yaml"), 3, str(run), str(tmp_path / "run.json"), "run")
    record = carry_out(assignment)
    assert record.data == Run(run).data.fingerprint and record.held_out_split == "test"
    by_hand = layersync.evaluate(run, replications=2)
    assert by_hand.beside_recipe == {"replications": 2}
    assert by_hand.metrics["fd-classifier"].value != record.scores["fd-classifier"][-1]
    again = carry_out(assignment)
    assert again.scores == record.scores
    scored = run / "evaluation.jsonl"
    others = json.loads(scored.read_text().splitlines()[0])
    others["metrics"]["fd-classifier"] |= {"checksum": "of other classifiers", "value": 999.0}
    scored.write_text(json.dumps(others) + "\n")
    again = carry_out(assignment)
    assert again.scores == record.scores and len(scored.read_text().splitlines()) == 2, "scored anew"
    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = next(line for line in reversed(lines) if "held_out_loss" in line)
    last["held_out_loss"] = float("nan")
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match="held-out loss: is not finite"):
        carry_out(assignment)


def test_a_record_has_the_median_time_of_a_step_and_the_seconds_of_the_training(
    tiny: Make, tmp_path: Path, clock: list[float]
) -> None:
    """Of 11 steps, of which number n takes n seconds: the sixth is in the middle. Measurements take 100 each."""
    (tmp_path / "recipe.yaml").write_text(tiny("train.steps=11", "evaluate.metrics=[nearest-training]").to_yaml())
    record = carry_out(
        Assignment(str(tmp_path / "recipe.yaml"), 3, str(tmp_path / "run"), str(tmp_path / "run.json"), "run")
    )
    assert record.step_seconds == pytest.approx(6)
    assert record.seconds == (100 + sum(range(12)) + 100,)


def test_a_run_is_finished_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose comparison was killed may still be saving when the next one begins."""
    assignment = Assignment("recipe.yaml", 3, str(tmp_path / "run"), str(tmp_path / "run.json"), "run")
    done = []

    def finishing(given: Assignment) -> None:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "run.lock").acquire(timeout=0)
        done.append(given)

    monkeypatch.setattr(experiment_run, "finish", finishing)
    monkeypatch.setattr(experiment_run, "_stop_with_parent", lambda: None)  # the end of this process's input
    monkeypatch.setattr(sys, "argv", ["experiment_run", json.dumps(asdict(assignment))])
    with warnings.catch_warnings():
        assert experiment_run.main() == 0
    assert done == [assignment]
    with FileLock(tmp_path / "run.lock", timeout=0):
        pass


def test_a_loss_of_what_was_trained_on_is_said_to_be(folder: Path, recipe: Path, domain: Domain) -> None:
    arms = arms_of([recipe], {"baseline": (), "layersync": ()}, ())
    for split, said in (("test", False), ("train", True), (None, False)):
        records = {
            ("digits", arm.variant, run.seed): replace(run, held_out_split=split)
            for arm in arms
            for run in domain.variants[arm.variant].runs
        }
        notes = summarise(arms, SEEDS, records, folder).notes
        assert any("examples that were trained on" in note for note in notes) == said


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--variants", "baseline,layersink"], ["'layersink'", "did you mean 'layersync'", "KEY=VALUE"]),
        (["--variants", "baseline,baseline"], ["'baseline'", "twice"]),
        (["--variants", ""], ["--variants", "none alone", "two or more"]),
        (["--variants", "layersync"], ["--variants", "layersync alone"]),
        (["--variant", "x:train.init=/nowhere"], ["train.init", "/nowhere"]),
        (["--variant", "x:sample.guidance_channels=9"], ["sample.guidance_channels", "the latents have 1"]),
        (["--variant", "same:regularizer.weight=0.3"], ["'same'", "changes nothing", "'layersync'"]),
        (["--variant", "odd"], ["'odd'", "NAME:KEY=VALUE"]),
        (["--variant", "a/b:train.ema_decay=0.5"], ["'a/b'", "letters"]),
        (["--variant", "x:train.ema_decay=0.1", "--variant", "x:train.ema_decay=0.3"], ["x is said already"]),
        (["--variant", "few:evaluate.num_samples=16"], ["'few'", "evaluate.num_samples is 32 and 16"]),
        (
            ["--variant", "other:evaluate.metrics=[nearest-training]"],
            ["'other'", "evaluate.metrics", "cannot be compared"],
        ),
        (["--variant", "long:train.steps=12"], ["'long'", "train.steps is 6 and 12"]),
        (["--variant", "typo:train.stepz=12"], ["train.stepz", "did you mean 'steps'"]),
        (
            ["--set", "regularizer.weight=0.5"],
            ["variant 'baseline'", "regularizer.weight: unknown key", "--variant NAME:KEY=VALUE for one"],
        ),
        (["--variant", "deep:regularizer.pairs=[[2,9]]"], ["[2, 9]", "only 4 blocks"]),
        (["--set", "condition.labels=ignored"], ["metric label-agreement", "drawn for no label", "leave it out"]),
        (
            ["--variant", "nolab:condition.labels=ignored"],
            ["nolab of ", "metric label-agreement", "drawn for no label"],
        ),
        (["--seeds", "0"], ["--seeds", "at least 1"]),
        (["--seeds", "1,1"], ["--seeds", "different"]),
        (["--seeds", "20251130"], ["--seeds", "at most 10000", "the seed 20251130 alone is 20251130,"]),
        (["--seeds", "many"], ["--seeds", "'many'"]),
        (["--set", f"seed={2**63 - 1_000_001}"], ["seed: 3 from 9223372036853775807 on go beyond 2^63 - 1000001"]),
        (["--jobs", "0"], ["--jobs", "at least 1"]),
        (["--resume"], ["no such folder", "layersync compare"]),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    more: list[str], wanted: list[str], recipe: Path, command: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, stdout, err = command(*words(recipe, out, *more))
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2 and stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    assert all(word in lines[0] for word in wanted), lines[0]
    assert not out.exists()


class Stopped(OneAfterTheOther):
    """As Ctrl-C before the first run ends."""

    def run(self) -> Iterator[Task]:
        raise KeyboardInterrupt


def test_what_a_first_write_left_behind_is_no_comparison(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock and half a file; a file in the folder's place is refused before data is looked at."""
    monkeypatch.setattr(experiment, "ProcessPool", Stopped)
    recipe, out = tmp_path / "numbers.yaml", tmp_path / "out"
    recipe.write_text(tiny(*SHORT, "evaluate.metrics=[nearest-training]").to_yaml())
    out.mkdir()
    for name in (".lock", ".compare.json.0123abcd.partial"):
        (out / name).write_text("")
    with pytest.raises(Interrupted):
        layersync.compare([recipe], seeds=[5], out=out)
    assert {path.name for path in out.iterdir()} - {".lock"} == {"compare.json", "recipes"}
    (out / ".compare.json.4567cdef.partial").write_text("{")
    with pytest.raises(Interrupted):
        layersync.compare([recipe], seeds=[5], out=out, resume=True)
    assert not list(out.glob("*.partial"))
    monkeypatch.delattr(experiment, "check_work")
    with pytest.raises(InputError, match=r"numbers\.yaml is no folder"):
        layersync.compare([recipe], seeds=[5], out=recipe)


def test_a_comparison_is_made_by_one_process_at_a_time(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "ProcessPool", lambda *_, **__: pytest.fail("runs are made"))
    recipe, out = tmp_path / "numbers.yaml", tmp_path / "out"
    recipe.write_text(tiny(*SHORT, "evaluate.metrics=[nearest-training]").to_yaml())
    out.mkdir()
    with (
        FileLock(out / ".lock"),
        pytest.raises(InputError, match=r"--out: another process is at work in .*/out$"),
    ):
        layersync.compare([recipe], seeds=[5], out=out)
    assert not (out / "compare.json").exists()


def test_recipes_that_start_from_different_seeds_need_to_be_told_theirs(
    tiny: Make, recipe: Path, command: Make, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text(tiny(*SETS, "seed=7").to_yaml())
    status, out, err = command("compare", recipe, tmp_path / "other.yaml", "--out", tmp_path / "out")
    assert status == 2 and not out and not (tmp_path / "out").exists()
    assert re.search(r"error: seed: the recipes start from different ones, \{.*: 0, .*: 7\}; name them by --seeds", err)


def test_one_recipe_is_compared_once(recipe: Path, command: Make, tmp_path: Path) -> None:
    status, _, err = command("compare", recipe, recipe, "--out", tmp_path / "out")
    assert status == 2 and "there already" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ([], ["exists", "--resume"]),
        (["--resume", *GIVEN, "--set", "optimizer.lr=0.5"], ["optimizer.lr", "another comparison"]),
        (["--resume", *BROKEN, "--seeds", "3,"], ["--seeds", "[4]"]),
        (["--resume", "--seeds", "3,4"], ["broken of digits"]),
        (["--auto-resume", "--seeds", "3,4"], ["broken of digits"]),
    ],
)
def test_a_folder_of_another_comparison_is_left_as_it_was(
    more: list[str], wanted: list[str], folder: Path, recipe: Path, command: Make
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, _, err = command(*words(recipe, folder, *more))
    assert status == 2 and all(word in err for word in wanted), err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_damaged_file_is_named(recipe: Path, command: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for text in ("{", "[]", json.dumps({"seeds": [1]})):
        (out / "compare.json").write_text(text)
        status, _, err = command(*words(recipe, out, "--resume"))
        assert status == 2 and "compare.json: " in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("every", "said"), [(3, True), (6, False), (None, False)])
def test_a_falling_step_size_is_said_where_there_is_a_curve(every: int | None, said: bool, recipe: Path) -> None:
    schedules = {"baseline": "constant", "falling": "cosine"}
    arms = [
        Arm("d", str(recipe), name, (), layersync.load_recipe(recipe, [f"optimizer.schedule={schedule}"]))
        for name, schedule in schedules.items()
    ]
    evaluate = arms[0].recipe.evaluate.model_copy(update={"every": every})
    arms = [replace(arm, recipe=arm.recipe.model_copy(update={"evaluate": evaluate})) for arm in arms]
    found = [note for note in summarise(arms, SEEDS, {}, recipe.parent).notes if "optimizer.schedule" in note]
    assert len(found) == said and all(note.startswith("falling: ") and "at step 6," in note for note in found)


def test_overrides_of_a_variant_may_hold_commas() -> None:
    found = parse_variants("baseline", ["two:regularizer.pairs=[[1, 2],[2,3]],train.steps=5"])
    assert found == {"baseline": (), "two": ("regularizer.pairs=[[1, 2],[2,3]]", "train.steps=5")}
    found = parse_variants("baseline", ["a:regularizer.weight=1,optimizer.beta2=0.5,backbone.conv1d_Width=8"])
    assert found["a"] == ("regularizer.weight=1", "optimizer.beta2=0.5", "backbone.conv1d_Width=8")


def test_a_regularizers_key_means_layersync_where_the_recipe_has_none(command: Make, tmp_path: Path) -> None:
    """And is refused where it is no key of it, before anything is written."""
    options = ("--out", tmp_path / "out", "--variants", "baseline")
    status, _, err = command("compare", "image/quick", *options, "--variant", "odd:regularizer.stop_gradients=false")
    assert status == 2 and "did you mean 'stop_gradient'" in err
    assert not (tmp_path / "out").exists()


def test_a_name_keeps_its_meaning_under_overrides(recipe: Path) -> None:
    """Others start from the recipe as it is."""
    given = {"baseline": ["optimizer.lr=5.0e-4"], "layersync": ["optimizer.lr=5.0e-4"], "slow": ["optimizer.lr=1.0e-4"]}
    for source in (str(recipe), "image/quick"):
        found = {arm.variant: arm.recipe.regularizer.name for arm in arms_of([source], given, ())}
        own = layersync.load_recipe(source).regularizer.name
        assert found == {"baseline": "none", "layersync": "layersync", "slow": own}


def test_null_is_never_the_reference(recipe: Path) -> None:
    arms = arms_of([recipe], {"null": (), "layersync": ()}, ())
    assert summarise(arms, SEEDS, {}, recipe.parent).reference == "layersync"


def test_what_ends_while_another_process_checks_its_work_is_kept(
    folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's record that comes between the first look at the folder and the lock."""
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    (run,) = [run for run in read_comparison(folder).domains[0].variants["layersync"].runs if run.seed == SEEDS[1]]
    content = json.loads((out / "compare.json").read_text())
    del content["domains"][0]["variants"]["broken"]
    content["domains"][0]["variants"]["layersync"]["runs"][1] = {
        "seed": run.seed,
        "status": "waiting",
        "path": run.path,
    }
    (out / "compare.json").write_text(json.dumps(content))
    late = out / f"{run.path}.json"
    record, check = late.read_bytes(), experiment.check_work
    late.unlink()

    def slowly(*arguments: Any) -> Any:
        late.write_bytes(record)
        return check(*arguments)

    monkeypatch.setattr(experiment, "check_work", slowly)
    shutil.rmtree(out / run.path)
    found = layersync.compare([recipe], {"baseline": (), "layersync": ()}, SEEDS, out=out, resume=True)
    assert found.domains[0].variants["layersync"].runs[1] == run and not (out / run.path).exists()


def test_batches_of_unlike_size_and_many_variants_are_said(recipe: Path) -> None:
    given = {"baseline": (), "half": ["train.batch_size=4"]}
    (note,) = (
        note for note in summarise(arms_of([recipe], given, ()), SEEDS, {}, recipe.parent).notes if "batch" in note
    )
    assert "of baseline; 4 of half" in note
    many = {"baseline": ()} | {f"w{n}": [f"regularizer.weight={n}"] for n in (1, 2, 3, 4)}
    notes = summarise(arms_of([recipe], many, ()), SEEDS, {}, recipe.parent).notes
    assert any("4 variants against one reference" in note and "other seeds" in note for note in notes)


def test_runs_of_unlike_machines_are_said(folder: Path, recipe: Path, domain: Domain) -> None:
    records = {
        ("digits", name, run.seed): run for name in ("baseline", "layersync") for run in domain.variants[name].runs
    }
    elsewhere = records["digits", "layersync", SEEDS[1]]
    changes = {"git_commit": "abc", "device": "cuda", "precision": "bfloat16", "threads": 99}
    records["digits", "layersync", SEEDS[1]] = replace(elsewhere, environment=elsewhere.environment | changes)
    arms = [replace(arm, domain="digits") for arm in arms_of([recipe], {"baseline": (), "layersync": ()}, ())]
    said = " ".join(summarise(arms, SEEDS, records, folder).notes)
    for value in ("commits of layersync: ", "devices: cpu, cuda", "precisions: ", "numbers of threads: "):
        assert f"runs of different {value}" in said
    assert "runs of different" not in " ".join(domain.notes)


def edited(
    folder: Path, recipe: Path, domain: Domain, change: Callable[[str, RunRecord], RunRecord], every: int | None = 3
) -> Domain:
    """What a comparison of the finished runs says once ``change(variant, run)`` has been made to their records."""
    arms = arms_of(
        [recipe], {"baseline": (), "layersync": ()}, [f"evaluate.every={'null' if every is None else every}"]
    )
    records = {
        (arm.domain, arm.variant, run.seed): change(arm.variant, run)
        for arm in arms
        for run in domain.variants[arm.variant].runs
    }
    return summarise(arms, SEEDS, records, folder)


def test_a_curve_that_is_not_flat_is_said(folder: Path, recipe: Path, domain: Domain) -> None:
    """More than 2 % over the last interval, whichever way, of the metric that gains are of."""
    scores = {"baseline": (10.0, 9.81), "layersync": (10.0, 10.25)}

    def change(variant: str, run: RunRecord) -> RunRecord:
        return replace(run, scores={**run.scores, METRICS[0]: scores[variant], METRICS[1]: (0.1, 0.9)})

    found = [note for note in edited(folder, recipe, domain, change).notes if "flat" in note]
    assert len(found) == 1
    assert found[0].startswith(
        "layersync: fd-classifier changed by +2.5% over the last interval: its curve is not flat"
    )


def test_one_evaluation_is_said_to_show_no_curve(folder: Path, recipe: Path, domain: Domain) -> None:
    def change(_: str, run: RunRecord) -> RunRecord:
        last = {name: values[-1:] for name, values in run.scores.items()}
        return replace(run, steps=run.steps[-1:], scores=last, held_out_loss=run.held_out_loss[-1:])

    found = edited(folder, recipe, domain, change, every=None)
    assert [note for note in found.notes if "flat" in note] == [
        "one evaluation: whether the curves were flat at the end is not known"
    ]
    assert found.variants["layersync"].gain == domain.variants["layersync"].gain


def test_runs_that_are_not_comparable_after_all_are_said(folder: Path, recipe: Path, domain: Domain) -> None:
    """Of another classifier, or of another version of what they were made with."""

    def change(variant: str, run: RunRecord) -> RunRecord:
        environment = copy.deepcopy(run.environment)
        if variant == "layersync" and run.seed == SEEDS[1]:
            environment["evaluation"]["metrics"][METRICS[0]]["checksum"] = "another"
            environment["packages"] |= {"torch": "9.9", "layersync": "8.8", "numpy": "7.7"}
        return replace(run, environment=environment)

    notes = edited(folder, recipe, domain, change).notes
    (alike,) = (note for note in notes if "was not taken alike in all runs" in note)
    assert alike.startswith(f'{METRICS[0]} was not taken alike in all runs, checksum is "') and '"another"' in alike
    assert alike.endswith(": not comparable")
    versions = [note for note in notes if note.startswith("runs of different versions of ")]
    assert len(versions) == 2 and "layersync: " in versions[0] and ", 8.8" in versions[0]
    assert f"torch: {metadata.version('torch')}, 9.9" in versions[1]
    unchanged = edited(folder, recipe, domain, lambda _, run: run).notes
    assert not [note for note in unchanged if "alike" in note or "versions" in note]


def test_overhead_is_the_mean_ratio_of_step_times(folder: Path, recipe: Path, domain: Domain) -> None:
    """And what a speed-up in steps is divided by to be one in seconds."""
    times = {("baseline", 3): 0.1, ("baseline", 4): 0.2, ("layersync", 3): 0.12, ("layersync", 4): 0.3}
    scores = {"baseline": (10.0, 9.0), "layersync": (9.5, 8.0)}

    def change(variant: str, run: RunRecord, missing: int | None = None) -> RunRecord:
        seconds = None if (variant, run.seed) == ("layersync", missing) else times[variant, run.seed]
        return replace(run, step_seconds=seconds, scores={**run.scores, METRICS[0]: scores[variant]})

    found = edited(folder, recipe, domain, change).variants["layersync"]
    ratios = np.array([1.2, 1.5])
    mean, half = np.log(ratios).mean(), stats.t.ppf(0.975, 1) * np.log(ratios).std(ddof=1) / np.sqrt(2)
    assert found.overhead is not None and found.speed_up is not None
    assert found.overhead.ratio == pytest.approx(np.exp(mean))
    assert found.overhead.interval == pytest.approx((np.exp(mean - half), np.exp(mean + half)))
    assert found.speed_up.steps is not None and found.speed_up.steps > 1
    assert found.speed_up.seconds == pytest.approx(found.speed_up.steps / np.exp(mean))
    one = edited(folder, recipe, domain, lambda variant, run: change(variant, run, missing=SEEDS[1]))
    lacking = one.variants["layersync"]
    assert lacking.overhead is not None and lacking.overhead.ratio == pytest.approx(1.2)
    assert lacking.speed_up is not None and lacking.speed_up.seconds is None, "not of all pairs"


def test_recipe_of_a_variant_is_written_out_in_full(folder: Path, domain: Domain) -> None:
    content = yaml.safe_load((folder / domain.variants["baseline"].recipe).read_text())
    assert content["regularizer"] == {"name": "none"} and content["train"]["checkpoint_every"] == 3
