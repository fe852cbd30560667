"""A training that was killed, interrupted or torn goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from plugins import Installer

import layersync
from layersync import InputError, Run, load_recipe
from layersync.core import sampling, session
from layersync.core.errors import Interrupted
from layersync.core.latents import LatentCache
from layersync.core.parallel import Processes
from layersync.core.recipe_reading import shipped_recipes
from layersync.core.trainer import Trainer, choose_precision

WHOLE_PROBE = True
Make = Callable[..., Any]
QUICK = sorted(name for name in shipped_recipes() if name.endswith("/quick"))
SMALLER = (
    "backbone.depth=3", "backbone.hidden_size=32", "backbone.num_heads=4", "train.batch_size=16", "train.steps=9",
    "train.checkpoint_every=4", "train.log_every=1", "train.ema_decay=0.9", "backbone.dropout=0.1",
    "evaluate.every=3", "optimizer.lr=1.0e-3", "optimizer.warmup=2",
)  # fmt: skip
LESS_DATA = {"audio/quick": ("data.num_pitches=3",)}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start("train", ...)``: the command line in a process of its own, which does not outlive the test."""
    with ExitStack() as held:

        def begin(*arguments: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "layersync.cli", *map(str, arguments)]
            process = held.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            held.callback(process.kill)
            return process

        yield begin


def wait_for_log(process: subprocess.Popen[str], log: Path, step: int) -> None:
    """Until the log holds a step, or the process has ended."""
    while process.poll() is None:
        if log.is_file() and f'{{"step": {step},' in log.read_text():
            return
        time.sleep(0.005)


def logged(run: Run) -> list[dict[str, Any]]:
    """What was logged, apart from how long it took."""
    timed = ("seconds", "samples_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in run.records()]


@pytest.mark.parametrize("name", QUICK)
def test_killed_and_resumed_ends_bit_identical(
    name: str, start: Make, tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    smaller = (*SMALLER, *LESS_DATA.get(name, ()))
    unbroken = layersync.train(load_recipe(name, smaller), tmp_path / "unbroken")
    out = tmp_path / "killed"
    options = [word for override in smaller for word in ("--set", override)]
    # a checkpoint after step 4, the kill after step 6; 400 steps, so that it cannot be done before the kill
    process = start("train", name, *options, "--set", "train.steps=400", "--out", out)
    wait_for_log(process, out / "metrics.jsonl", 6)
    assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.wait()
    steps = Run(out).checkpoint_steps()
    assert steps and steps[0] == 4
    for extra in steps[1:]:  # the machine may have been slow to kill it
        for file in Run(out).checkpoint(extra).iterdir():
            file.unlink()
        Run(out).checkpoint(extra).rmdir()
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "loss": 0.5')  # torn
    resumed = layersync.train(load_recipe(name, smaller), out, resume=True)
    for kind in ("model", "ema", "optimizer"):
        assert identical(tensors_of(resumed, kind), tensors_of(unbroken, kind)), kind
    assert logged(resumed) == logged(unbroken)


def test_resume_at_every_checkpoint_equals_a_straight_run(
    tiny: Make, tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    overrides = ["backbone.dropout=0.2", "optimizer.schedule=cosine", "optimizer.warmup=3", "train.checkpoint_every=2"]
    straight = layersync.train(tiny(*overrides, "train.steps=6"), tmp_path / "straight")
    for kept in (2, 4):
        run = layersync.train(tiny(*overrides, "train.steps=6"), tmp_path / f"from-{kept}")
        for step in [s for s in run.checkpoint_steps() if s > kept]:
            for file in run.checkpoint(step).iterdir():
                file.unlink()
            run.checkpoint(step).rmdir()
        resumed = layersync.train(tiny(*overrides, "train.steps=6"), run.path, resume=True)
        assert resumed.checkpoint_steps() == straight.checkpoint_steps()
        for kind in ("model", "ema", "optimizer"):
            assert identical(tensors_of(resumed, kind), tensors_of(straight, kind)), (kept, kind)
        assert logged(resumed) == logged(straight)


MAPPED = '''
import torch
from layersync.core.regularizer.base import Regularizer, RegularizerConfig, RegularizerOutput

class Config(RegularizerConfig):
    weight: float = 0.5

class Mapped(Regularizer):
    """Tokens of a deep block are to be read out of those of another, by a map that is trained with both."""

    Config = Config

    def __init__(self, size):
        super().__init__()
        self.map = torch.nn.Linear(size, size)

    @classmethod
    def from_config(cls, config, depth, hidden_size):
        return cls(hidden_size)

    def taps(self, step):
        return (1, 3)

    def forward(self, context):
        shallow, deep = (context.features[block].float() for block in (1, 3))
        return RegularizerOutput((self.map(shallow) - deep.detach()).square().mean(), {})
'''


def test_a_regularizers_own_weights_go_on_with_the_others(
    installer: Installer, tiny_mapping: dict[str, Any], tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    installer.package(MAPPED, {}, {"mapped": "Mapped"})
    sizes = ("train.steps=4", "train.checkpoint_every=2", "optimizer.lr=0.01")
    recipe = load_recipe({**tiny_mapping, "regularizer": {"name": "mapped"}}, sizes)
    straight = layersync.train(recipe, tmp_path / "straight")
    own = {step: tensors_of(straight, "regularizer", step) for step in (2, 4)}
    assert set(own[4]) == {"map.weight", "map.bias"} and not torch.allclose(own[2]["map.bias"], own[4]["map.bias"])
    run = Run(shutil.copytree(straight.path, tmp_path / "run"))
    shutil.rmtree(run.checkpoint(4))
    layersync.train(recipe, run.path, resume=True)
    for kind in ("regularizer", "model", "ema", "optimizer"):
        assert identical(tensors_of(run, kind), tensors_of(straight, kind)), kind


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a record by its place in it."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict | list):
            found |= flat(dict(enumerate(value)) if isinstance(value, list) else value, f"{prefix}{name}/")
        elif not isinstance(value, str) and name != "step":
            found[f"{prefix}{name}"] = value
    return found


def shown(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads of a run: step and value of every curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_what_was_logged_and_no_step_twice(tiny: Make, tmp_path: Path) -> None:
    """Of a run as it is, and resumed from its first checkpoint or from none."""
    recipe = tiny("train.steps=3", "train.checkpoint_every=2")
    whole = layersync.train(recipe, tmp_path / "whole")
    for kept in (3, 2, 0):
        run = Run(shutil.copytree(whole.path, tmp_path / f"from-{kept}"))
        for step in run.checkpoint_steps():
            if step > kept:
                shutil.rmtree(run.checkpoint(step))
        layersync.train(recipe, run.path, resume=True)
        wanted: dict[str, list[Any]] = {}
        for record in run.records():
            for name, value in flat(record).items():
                wanted.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
        assert {"loss", "similarity/1-3", "held_out_loss_by_t/7", "held_out_similarity/1-3/centred"} <= set(wanted)
        assert [step for step, _ in wanted["loss"]] == [1, 2, 3] and shown(run) == wanted


def test_more_steps_may_be_asked_for(tiny: Make, tmp_path: Path, tensors_of: Make, identical: Make) -> None:
    long = layersync.train(tiny("train.steps=6"), tmp_path / "long")
    layersync.train(tiny("train.steps=3"), tmp_path / "run")
    run = layersync.train(tiny("train.steps=6"), tmp_path / "run", resume=True)
    assert identical(tensors_of(run), tensors_of(long))
    assert Run(run.path).recipe.train.steps == 6
    with pytest.raises(InputError, match="less than the 6 steps"):
        layersync.train(tiny("train.steps=4"), tmp_path / "run", resume=True)


def test_a_finished_run_says_so(command: Make, tiny_file: Path, tmp_path: Path, caplog: Any) -> None:
    assert command("train", tiny_file, "--out", tmp_path / "run")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    caplog.set_level("INFO", logger="layersync")
    assert command("train", tiny_file, "--out", tmp_path / "run", "--resume")[0] == 0
    assert "has taken its 5 steps already" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_one_command_starts_goes_on_and_ends(
    command: Make, tiny: Make, tmp_path: Path, tensors_of: Make, identical: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """What a batch system does that runs a requeued job's script once more; and what lies there is never lost."""
    out, straight = tmp_path / "runs" / "run", layersync.train(tiny(), tmp_path / "straight")
    for steps in (3, 5):
        (tmp_path / "recipe.yaml").write_text(tiny(f"train.steps={steps}").to_yaml())
        assert command("train", tmp_path / "recipe.yaml", "--out", out, "--auto-resume")[0] == 0
        assert Run(out).checkpoint_steps()[-1] == steps
    assert identical(tensors_of(Run(out)), tensors_of(straight))
    caplog.set_level("INFO", logger="layersync")
    status, _, err = command("train", tmp_path / "recipe.yaml", "--out", out, "--auto-resume", "--resume")
    assert status == 0 and "has taken its 5 steps already" in caplog.text
    assert "warning: --resume: has no effect beside --auto-resume" in err
    (tmp_path / "recipe.yaml").write_text(tiny("optimizer.lr=0.5").to_yaml())
    status, _, err = command("train", tmp_path / "recipe.yaml", "--out", out, "--auto-resume")
    assert status == 2 and "the recipe differs from the one in" in err
    (tmp_path / "mine").mkdir()
    status, _, err = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "mine", "--auto-resume")
    assert status == 2 and "has no recipe.yaml: it is no run" in err and not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr"),
        (["seed=3"], "seed"),
        (["backbone.depth=5", "train.batch_size=8"], "backbone.depth, train.batch_size"),
    ],
)
def test_a_changed_recipe_is_refused(tiny: Make, trained: Run, changes: list[str], named: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}
    with pytest.raises(InputError, match=f"differs from the one in .* in {named};"):
        layersync.train(tiny("train.steps=40", *changes), trained.path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")} == before


def test_what_changes_no_step_may_change(
    tiny: Make, tmp_path: Path, tensors_of: Make, largest_difference: Make
) -> None:
    layersync.train(tiny("train.steps=2"), tmp_path / "run")
    changes = ["train.checkpoint_every=3", "train.log_every=2", "evaluate.num_samples=9", "sample.steps=7"]
    changes += ["train.keep=1", "train.accumulate=2", "train.gradient_checkpointing=true"]
    found = layersync.train(tiny("train.steps=4", *changes), tmp_path / "run", resume=True)
    assert Run(tmp_path / "run").recipe.sample.steps == 7 and found.checkpoint_steps() == [4]
    straight = layersync.train(tiny("train.steps=4"), tmp_path / "straight")
    assert largest_difference(tensors_of(found), tensors_of(straight)) < 1e-5


def test_what_is_sampled_may_change_of_a_finished_run_too(tiny: Make, tmp_path: Path) -> None:
    layersync.train(tiny("train.steps=2"), tmp_path / "run")
    found = layersync.train(tiny("train.steps=2", "sample.guidance=2"), tmp_path / "run", resume=True)
    assert found.recipe.sample.guidance == Run(tmp_path / "run").recipe.sample.guidance == 2


def test_without_a_checkpoint_it_starts_from_the_weights_it_was_given(
    tiny: Make, trained: Run, tmp_path: Path, tensors_of: Make, identical: Make
) -> None:
    """A run that was killed before its first checkpoint."""
    recipe = tiny("train.steps=2", f"train.init={trained.path}")
    straight = layersync.train(recipe, tmp_path / "straight")
    killed = layersync.train(recipe, tmp_path / "killed")
    shutil.rmtree(killed.path / "checkpoints")
    again = layersync.train(recipe, killed.path, resume=True)
    assert identical(tensors_of(again), tensors_of(straight)) and logged(again) == logged(straight)


def test_it_goes_on_in_the_precision_it_began_in(
    tiny: Make, tmp_path: Path, tensors_of: Make, identical: Make, recwarn: pytest.WarningsRecorder
) -> None:
    """As a run does that is carried to a machine on which ``auto`` means the other one."""
    native = choose_precision(torch.device("cpu"), "auto")[0] == torch.bfloat16
    other = "float32" if native else "bf16"
    sizes = ("train.steps=4", "train.checkpoint_every=2")
    straight = layersync.train(tiny(*sizes, f"train.precision={other}"), tmp_path / "straight")
    run = layersync.train(tiny(*sizes, f"train.precision={other}"), tmp_path / "run")
    shutil.rmtree(run.checkpoint(4))
    recipe = tiny(*sizes, "train.precision=auto")
    (run.path / "recipe.yaml").write_text(recipe.to_yaml())
    again = layersync.train(recipe, run.path, resume=True)
    assert identical(tensors_of(again), tensors_of(straight))
    assert any("goes on in" in str(warning.message) for warning in recwarn)


def test_changed_data_is_refused(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of it is tokenized."""
    run = layersync.train(tiny("train.steps=2", "train.checkpoint_every=1"), tmp_path / "run")
    data = run.path / "data.json"
    data.write_text(json.dumps({**json.loads(data.read_text()), "fingerprint": "another"}))
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    with pytest.raises(InputError, match="the data or the tokenizer has changed"):
        layersync.train(tiny("train.steps=3", "train.checkpoint_every=1"), run.path, resume=True)


def test_leftovers_of_an_interrupted_write_are_cleared(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("train.steps=2"), tmp_path / "run")
    (run.path / "checkpoints" / ".step-00000003").mkdir()
    (run.path / "checkpoints" / ".step-00000003" / "model.safetensors").write_bytes(b"torn")
    (run.path / ".recipe.yaml.partial").write_text("modal")
    others = (".gitignore", "samples/.samples-of-a-sample-that-runs")
    for name in others:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).touch()
    assert run.checkpoint_steps() == [2]
    layersync.train(tiny("train.steps=3"), run.path, resume=True)
    assert {str(path.relative_to(run.path)) for path in run.path.rglob(".*")} == set(others)


def test_a_run_is_trained_by_one_process_at_a_time(tiny: Make, tmp_path: Path) -> None:
    recipe = tiny("train.steps=2")
    run = layersync.train(recipe, tmp_path / "run")
    shutil.rmtree(run.latest_checkpoint())
    leftover = run.path / "checkpoints" / ".step-00000002"
    leftover.mkdir()
    with (
        FileLock(run.path / "training.lock"),
        pytest.raises(InputError, match=r"another process is training .*/run; wait until it has ended"),
    ):
        layersync.train(recipe, run.path, resume=True)
    assert leftover.exists() and len(run.records()) > 2
    layersync.train(recipe, run.path, resume=True)
    assert run.checkpoint_steps() == [2]


class Elsewhere(Processes):
    """One of two processes; the other one, on another machine, sees a run of 20 steps."""

    def gather(self, local: list[Any]) -> list[Any]:
        return [True if local == [False] else 20, *local]


def test_machines_that_see_different_checkpoints_do_not_go_on(
    tiny: Make, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run")
    monkeypatch.setattr(Processes, "here", lambda: Elsewhere(1, 2))
    with pytest.raises(InputError, match=r"machines see different checkpoints in .*/run, of steps 20 and 40; it has"):
        layersync.train(tiny("train.steps=40"), run, resume=True)


def test_a_machine_that_does_not_see_the_run_says_so(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it has waited for what another one made there; such a storage may be slow."""
    monkeypatch.setattr(Processes, "here", lambda: Elsewhere(1, 2))
    monkeypatch.setattr(session, "SEEN_WITHIN_SECONDS", 0.05)
    with pytest.raises(InputError, match=r"--out: .*/run is not seen here; it has to lie where all machines see it"):
        layersync.train(tiny(), tmp_path / "run", resume="auto")
    assert not (tmp_path / "run").exists()


def test_a_log_that_was_torn_goes_on(tiny: Make, tmp_path: Path) -> None:
    """What a full disk cut off is left out, and what comes after it is read."""
    run = layersync.train(tiny("train.steps=2"), tmp_path / "run")
    for torn in ('{"step": 2, "metr', '{"step": 2, "metrics": {"a": {}}'):
        with (run.path / "evaluation.jsonl").open("a") as log:
            log.write(torn)
        run.append("evaluation.jsonl", {"step": 2, "after": torn})
    assert [record["after"] for record in run.records("evaluation.jsonl")] == [
        '{"step": 2, "metr', '{"step": 2, "metrics": {"a": {}}',
    ]  # fmt: skip
    layersync.train(tiny("train.steps=3"), run.path, resume=True)
    assert len(run.records("evaluation.jsonl")) == 2


def test_a_run_that_exists_is_refused_without_resume(tiny: Make, trained: Run) -> None:
    with pytest.raises(InputError, match="exists; give another --out, or --resume"):
        layersync.train(tiny(), trained.path)


@pytest.mark.parametrize(("number", "log_every"), [(signal.SIGINT, 100), (signal.SIGTERM, 1)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals,
    log_every: int,
    tiny: Make,
    tmp_path: Path,
    monkeypatch: Any,
    tensors_of: Make,
    identical: Make,
) -> None:
    recipe = tiny("train.steps=7", f"train.log_every={log_every}")
    straight = layersync.train(recipe, tmp_path / "straight")
    step = Trainer.train_step

    def interrupted(trainer: Trainer, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), number)
        return step(trainer, index)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(Interrupted, match=r"after step 3; go on with --resume"):
            layersync.train(recipe, tmp_path / "run")
    assert Run(tmp_path / "run").checkpoint_steps() == [3]
    resumed = layersync.train(recipe, tmp_path / "run", resume=True)
    assert identical(tensors_of(resumed), tensors_of(straight))


def test_what_an_interruption_saved_goes_with_the_next_checkpoint(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a machine is taken away, ``train.keep`` counts what the recipe asked for; a stop there is one."""
    recipe = tiny("train.steps=12", "train.checkpoint_every=4", "train.keep=2")
    step, seen = Trainer.train_step, []

    def interrupted(trainer: Trainer, index: int) -> Any:
        if index + 1 in (2, 3, 4, 6, 9) and index + 1 not in seen:
            seen.append(index + 1)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, index)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    found = []
    for sitting in range(5):
        with pytest.raises(Interrupted):
            layersync.train(recipe, tmp_path / "run", resume=sitting > 0)
        found.append(Run(tmp_path / "run").checkpoint_steps())
    assert found == [[2], [3], [4], [4, 6], [4, 8, 9]]
    assert layersync.train(recipe, tmp_path / "run", resume=True).checkpoint_steps() == [8, 12]


@pytest.mark.parametrize("apart", [0, 2])
def test_a_second_signal_stops_at_once(
    apart: int, command: Make, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it comes within a second: batch systems and launchers both send one, and the state is saved."""
    step, handlers = Trainer.train_step, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def interrupted(trainer: Trainer, index: int) -> Any:
        for _ in range(2 * (index == 3)):
            os.kill(os.getpid(), signal.SIGINT)
            moment[0] += apart
        return step(trainer, index)

    moment, now = [0], time.monotonic
    monkeypatch.setattr(session.time, "monotonic", lambda: now() + moment[0])
    monkeypatch.setattr(Trainer, "train_step", interrupted)
    status, _, said = command("train", tiny_file, "--set", "train.checkpoint_every=2", "--out", tmp_path / "run")
    ends = ("stopped after step 4; go on with", "error: interrupted; what had been saved before is kept\n")
    assert status == 1 and ends[apart > 0] in said and ends[apart == 0] not in said
    assert Run(tmp_path / "run").checkpoint_steps() == ([2] if apart else [2, 4])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_clears_away_what_is_half_written(
    command: Make, trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM of a batch system, in any command: the scratch folder of samples goes, and the handler is what it was."""
    handler = signal.getsignal(signal.SIGTERM)

    def ended(*arguments: Any, **_: Any) -> None:
        (arguments[4] / "000.png").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    def removed(*arguments: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher passes it on, while the folder is cleared away
        rmtree(*arguments, **named)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", removed)

    monkeypatch.setattr(sampling, "_write_decoded", ended)
    status, out, err = command("sample", trained.path, "--num", 2, "--out", tmp_path / "samples")
    assert status == 1 and out == "" and "error: interrupted; what had been saved before is kept" in err
    assert not any(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == handler


def test_ctrl_c_on_the_command_line(start: Make, tiny_file: Path, tmp_path: Path) -> None:
    process = start("train", tiny_file, "--set", "train.steps=100000", "--out", tmp_path / "run")
    wait_for_log(process, tmp_path / "run" / "metrics.jsonl", 5)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    step = Run(tmp_path / "run").checkpoint_steps()[-1]
    assert f"stopped after step {step}; go on with --resume --out {tmp_path / 'run'}" in said
    assert "Traceback" not in said
