"""Two processes on one machine against one: the same weights, the same logs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layersync
from layersync import Run
from layersync.core.results import read_comparison
from layersync.core.sampling import write_samples

WHOLE_PROBE = True
OVERRIDES = ("train.steps=4", "train.checkpoint_every=2", "train.batch_size=8")


TWO_SITTINGS = """
import os
import signal
import sys
from layersync.cli import main
from layersync.core.trainer import Trainer

step = Trainer.train_step

def interrupted(trainer, index):
    if index == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGINT)
    return step(trainer, index)

Trainer.train_step = interrupted
try:
    main()
except SystemExit as left:
    assert left.code == 1
Trainer.train_step = step
sys.argv.append("--resume")
main()
"""
"""The command line, of which one of two processes gets Ctrl-C in its second step of training; and again, to go on."""


def launched(program: Path, *arguments: str, stdout: Path = Path(os.devnull)) -> tuple[int, str]:
    """Exit status and stderr of a program under torchrun, with all its processes gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command += [str(program), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with stdout.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            said = process.communicate(timeout=240)[1]
            return process.returncode, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def alone(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return layersync.train(tiny(*OVERRIDES), tmp_path_factory.mktemp("alone") / "run")


def test_two_processes_train_as_one(
    alone: Run, tiny: Callable[..., Any], tmp_path: Path, tensors_of: Any, largest_difference: Any
) -> None:
    """Also in two sittings: Ctrl-C at one of them stops both after the same step, and both go on from there."""
    recipe, program = tmp_path / "recipe.yaml", tmp_path / "two_sittings.py"
    recipe.write_text(tiny(*OVERRIDES).to_yaml())
    program.write_text(TWO_SITTINGS)
    status, said = launched(program, "train", str(recipe), "--out", str(tmp_path / "run"))
    assert status == 0, said[-2000:]
    run = Run(tmp_path / "run")
    assert said.count(f"stopped after step 2; go on with --resume --out {run.path}") == 2
    assert '"processes": 2' in (run.path / "environment.json").read_text()
    assert largest_difference(tensors_of(run, step=2), tensors_of(alone, step=2)) < 1e-5
    for kind in ("model", "ema"):
        assert largest_difference(tensors_of(run, kind), tensors_of(alone, kind)) < 1e-5
    assert [record["step"] for record in run.records()] == [record["step"] for record in alone.records()]
    for ours, theirs in zip(run.records(), alone.records(), strict=True):
        if "flow_loss" in ours:
            for name in ("loss", "flow_loss", "regularizer_loss", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], abs=1e-5, rel=1e-5), name
            assert ours["similarity"]["1-3"] == pytest.approx(theirs["similarity"]["1-3"], abs=1e-5)
        else:
            assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], abs=1e-5)


COMMANDS = """
import json
import os
import sys
from pathlib import Path
from layersync.cli import main

left = []
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        left.append(end.code)
(Path(__file__).parent / f"statuses-{os.environ['RANK']}.json").write_text(json.dumps(left))
"""
"""Several calls of the command line, given as JSON; their exit statuses go beside this file."""
METRICS = ["fd-classifier", "label-agreement", "nearest-training"]
MOTION_METRICS = ["fd-kinetic", "recall-kinetic", "jitter"]


@dataclass(frozen=True)
class Launch:
    """What the commands of one launch left and said."""

    folder: Path
    statuses: tuple[list[int], ...]
    out: list[str]
    err: str


@pytest.fixture(scope="module")
def launch(alone: Run, tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A training that is refused, samples and scores of a run, scores of files, a comparison, and one training in two
    goes: one after another, by two processes."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "recipe.yaml").write_text(tiny(*OVERRIDES).to_yaml())
    (folder / "commands.py").write_text(COMMANDS)
    random = np.random.default_rng(0)
    joints = random.standard_normal((2, 35, 1, 22, 3)) + 0.1 * random.standard_normal((2, 35, 12, 22, 3)).cumsum(2)
    for name, part in zip(("real", "generated"), joints, strict=True):
        np.save(folder / f"{name}.npy", part.astype(np.float32))
    train = ["train", f"{folder}/recipe.yaml", "--set", "train.batch_size=15", "--out", f"{folder}/refused"]
    again = ["train", f"{folder}/recipe.yaml", "--auto-resume", "--out"]
    begun, ended = [*again, f"{folder}/begun", "--set", "train.steps=2"], [*again, f"{folder}/begun"]
    sample = ["sample", str(alone.path), "--num", "3", "--seed", "5", "--npz", "--out", f"{folder}/samples"]
    evaluate = ["evaluate", str(alone.path), "--metrics", ",".join(METRICS), "--num-samples", "33", "--json"]
    score = ["score", "--modality", "motion", "--generated", f"{folder}/generated.npy", "--real", f"{folder}/real.npy"]
    score += ["--metrics", ",".join(MOTION_METRICS), "--json"]
    compare = ["compare", f"{folder}/recipe.yaml", "--seeds", "1", "--out", f"{folder}/comparison"]
    compare += ["--set", "train.steps=2", "--set", "evaluate.num_samples=32"]
    commands = json.dumps([train, sample, evaluate, score, compare, begun, ended])
    status, said = launched(folder / "commands.py", commands, stdout=folder / "out")
    assert status == 0, said[-2000:]
    statuses = tuple(json.loads((folder / f"statuses-{rank}.json").read_text()) for rank in (0, 1))
    return Launch(folder, statuses, (folder / "out").read_text().splitlines(), said)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(launch: Launch) -> None:
    assert [statuses[0] for statuses in launch.statuses] == [2, 2] and not (launch.folder / "refused").exists()
    assert launch.err.count("15 is no multiple of accumulate x processes, 1 x 2") == 2


def test_two_processes_draw_the_samples_of_one(launch: Launch, alone: Run, tmp_path: Path) -> None:
    """In one folder that is whole; its path is printed once."""
    drawn = write_samples(alone.path, num=3, seed=5, archive=True, out=tmp_path / "one")
    files = {file.name: file.read_bytes() for file in drawn.iterdir()}
    path = Path(launch.out[0])
    assert [statuses[1] for statuses in launch.statuses] == [0, 0] and path == launch.folder / "samples"
    assert len(files) > 4 and {file.name: file.read_bytes() for file in path.iterdir()} == files


def test_two_processes_score_a_run_as_one(launch: Launch, alone: Run) -> None:
    """33 samples: the shares differ, a sample does not."""
    assert [statuses[2] for statuses in launch.statuses] == [0, 0]
    one, two = layersync.evaluate(alone.path, METRICS, num_samples=33).metrics, json.loads(launch.out[1])["metrics"]
    for name in METRICS:
        assert two[name]["value"] == pytest.approx(one[name].value, rel=1e-4), name
        assert two[name]["num_samples"] == one[name].num_samples == 33


def test_two_processes_score_files_as_one(launch: Launch) -> None:
    assert [statuses[3] for statuses in launch.statuses] == [0, 0] and len(launch.out) > 3
    paths = [launch.folder / f"{name}.npy" for name in ("generated", "real")]
    one = layersync.score_samples("motion", paths[:1], MOTION_METRICS, real=paths[1]).metrics
    two = json.loads(launch.out[2])["metrics"]
    for name in MOTION_METRICS:
        assert two[name]["value"] == pytest.approx(one[name].value, rel=1e-6), name
        assert two[name]["num_samples"] == 35


def test_processes_of_a_launch_share_the_runs_of_a_comparison(launch: Launch) -> None:
    said = launch.err
    assert [statuses[4] for statuses in launch.statuses] == [0, 0], said
    assert "runs to make: 2" in said and "1 of 1 runs: recipe baseline seed 0 done" in said, "one for each process"
    (domain,) = read_comparison(launch.folder / "comparison").domains
    assert [variant.runs[0].status for variant in domain.variants.values()] == ["finished"] * 2
    gain = domain.variants["layersync"].gain
    assert gain is not None and gain.mean is not None and gain.seeds == 1


def test_one_command_starts_and_goes_on(launch: Launch, alone: Run, tensors_of: Any, largest_difference: Any) -> None:
    assert [statuses[5:] for statuses in launch.statuses] == [[0, 0]] * 2, launch.err
    run = Run(launch.folder / "begun")
    assert run.checkpoint_steps() == alone.checkpoint_steps() == [2, 4]
    assert largest_difference(tensors_of(run), tensors_of(alone)) < 1e-5
