"""One run of a comparison, in a process of its own: train, score every evaluated step, compare blocks, draw samples.

``python -m layersync.core.experiment_run ASSIGNMENT`` with an :class:`Assignment` as JSON. Whatever was done before an
end of any kind is found again: call it once more to go on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import TypeAdapter

from layersync.core.device import default_device
from layersync.core.errors import InputError, Interrupted, TrainingError
from layersync.core.evaluation import evaluate, open_extractors, takers
from layersync.core.features import FeatureExtractor
from layersync.core.generation import load, sampling_settings
from layersync.core.metric import parse_metrics
from layersync.core.probe import Probe
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe
from layersync.core.results import RunRecord, SimilarityMap
from layersync.core.run import Run, atomic_write, environment, leave_newest
from layersync.core.sampling import write_samples
from layersync.core.session import train
from layersync.core.trainer import PROBE_SIZE, Parts, build_parts

logger = logging.getLogger(__name__)

MODULE = "layersync.core.experiment_run"
SHOWN = 16
"""Samples that a report shows of each variant."""
DIGITS = 5
TIMED = 10
"""Logged intervals that a median time of a step is taken of; of fewer it says nothing."""
FINISHED_BY = ("packages", "git_commit", "device_name", "threads")
"""What is kept of the process that finished a run; its device and precision are those of the first sitting."""


@dataclass(frozen=True)
class Assignment:
    """What one process is to do. Paths are absolute, or relative to its working directory."""

    recipe: str
    seed: int
    run: str
    result: str
    """Where the :class:`RunRecord` goes, as JSON, when it is scored."""
    path: str
    """The run directory as the record names it."""
    classifiers: str = ""
    """Folder of the classifiers that all runs of the comparison are scored by; empty for the cache."""
    samples: str = ""
    """Folder for rendered samples; empty for none."""
    keep: int | None = None
    """How many checkpoints stay once they are scored; ``None`` for all."""
    keep_every: int | None = None
    """Of multiples of so many steps they stay as well."""
    began: float = 0.0
    """When the process was started: seconds since the epoch."""


def carry_out(assignment: Assignment) -> RunRecord:
    """Do, or finish, what ``assignment`` says.

    Raises:
        InputError, TrainingError, Interrupted: as :func:`layersync.core.session.train` and
            :func:`layersync.core.evaluation.evaluate` do.
    """
    recipe = load_recipe(assignment.recipe, [f"seed={assignment.seed}"])
    run = train(recipe, assignment.run, resume=Path(assignment.run).exists())
    classifiers = assignment.classifiers or None
    parts = build_parts(recipe, fresh=False)
    extractors = open_extractors(recipe.modality, parse_metrics(recipe.modality, recipe.evaluate.metrics), {})
    by = takers(recipe, parts.tokenizer, extractors, None if classifiers is None else Path(classifiers))
    for step in evaluated_steps(recipe):
        if not run.checkpoint(step).is_dir():
            raise InputError(
                f"{run.path}: the checkpoint of step {step} is gone; delete the folder to make the run again"
            )
        if step not in _scores(run, by):
            for name, why in evaluate(run.path, step=step, classifiers=classifiers).failed.items():
                raise InputError(f"metric {name}: {why}")
            if step not in _scores(run, by):
                raise TrainingError(f"{run.path}: the scores of step {step} could not be kept there")
    return _record(assignment, run, _scores(run, by), _similarity_maps(run, parts))


def evaluated_steps(recipe: Recipe) -> list[int]:
    """Steps at which a run of a comparison is scored: those of ``evaluate.every``, and the last."""
    every, last = recipe.evaluate.every or recipe.train.steps, recipe.train.steps
    return [*range(every, last, every), last]


def _scores(run: Run, by: Mapping[str, FeatureExtractor]) -> dict[int, dict[str, Any]]:
    """The last evaluation of each step that is the recipe's alone: its metrics and sampling, averaged weights.

    Those that another extractor or other classifiers took than ``by``, the present ones, are left out.
    """
    recipe = run.recipe
    count, seed = recipe.evaluate.num_samples, recipe.evaluate.seed
    settings = sampling_settings(recipe.sample, count, seed, recipe.evaluate.conditions)
    sampling = json.loads(json.dumps(dataclasses.asdict(settings)))
    networks = {name: (taker.name, taker.checksum, taker.preprocessing) for name, taker in by.items()}
    found = [
        record
        for record in run.records("evaluation.jsonl")
        if set(recipe.evaluate.metrics) <= set(record["metrics"])
        and (record["weights"], record["sampling"]) == ("ema", sampling)
        and not record.get("beside_recipe")
        and all(
            tuple(record["metrics"][name].get(key) for key in ("extractor", "checksum", "preprocessing")) == network
            for name, network in networks.items()
        )
    ]
    return {record["step"]: record for record in found}


def _similarity_maps(run: Run, parts: Parts) -> tuple[SimilarityMap, ...]:
    """Similarities of all pairs of blocks at each checkpoint, on the batch that training measures them on."""
    recipe = run.recipe
    cache = parts.held_out or parts.cache
    interpolant, maps = recipe.objective.build(), []
    for step in evaluated_steps(recipe):
        model = load(run.path, step=step)
        probe = Probe.make(cache, parts.tokenizer, parts.data.condition, parts.texts, PROBE_SIZE, model.device)
        depth = int(getattr(model.backbone, "depth"))  # noqa: B009
        pairs = list(combinations(range(1, depth + 1), 2))
        found = probe.similarity(model.backbone, interpolant, pairs)
        grids: dict[str, list[tuple[float, ...]]] = {}
        for kind in ("cosine", "centred"):
            grid = np.eye(depth)
            for student, teacher in pairs:
                value = round(found[f"{student}-{teacher}"][kind], DIGITS)
                grid[student - 1, teacher - 1] = grid[teacher - 1, student - 1] = value
            grids[kind] = [tuple(row) for row in grid.tolist()]
        maps.append(SimilarityMap(step, tuple(grids["cosine"]), tuple(grids["centred"])))
    return tuple(maps)


def _record(
    assignment: Assignment, run: Run, scores: Mapping[int, dict[str, Any]], maps: tuple[SimilarityMap, ...]
) -> RunRecord:
    recipe: Recipe = run.recipe
    steps = tuple(found.step for found in maps)
    logs = run.records()
    measured = {found["step"]: found for found in logs if "held_out_loss" in found}
    rates = [found["samples_per_second"] for found in logs if "samples_per_second" in found]
    losses = tuple(measured[step]["held_out_loss"] for step in steps)
    numbers: dict[str, Sequence[Any]] = {
        f"metric {name}": [scores[step]["metrics"][name]["value"] for step in steps] for name in recipe.evaluate.metrics
    }
    numbers["held-out loss"] = losses
    numbers["similarity of blocks"] = [float(np.sum([found.cosine, found.centred])) for found in maps]
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            raise TrainingError(f"{name}: is not finite at every evaluated step: {list(values)}")
    now = environment(default_device(), "", "", 1)
    known = run.environment | {"finished_by": {key: now[key] for key in FINISHED_BY}}
    known["evaluation"] = scores[steps[-1]] | {"run": assignment.path}
    known["text_encoder"] = run.data.text_encoder
    return RunRecord(
        seed=assignment.seed,
        status="finished",
        path=assignment.path,
        steps=steps,
        scores={
            name: tuple(scores[step]["metrics"][name]["value"] for step in steps) for name in recipe.evaluate.metrics
        },
        seconds=tuple(measured[step]["seconds"] for step in steps),
        held_out_loss=losses,
        similarity=maps,
        step_seconds=float(recipe.train.batch_size / np.median(rates)) if len(rates) >= TIMED else None,
        process_seconds=time.time() - assignment.began,
        data=run.data.fingerprint,
        held_out_split=measured[steps[-1]].get("held_out_split"),
        environment=known,
    )


def finish(assignment: Assignment) -> None:
    """Carry out the assignment and leave its record, unless it is there; then only, let checkpoints go, draw samples.

    Samples that cannot be drawn are a warning: they take no scores down.
    """
    record = read_record(Path(assignment.result))
    if record is None or record.status != "finished":
        write_record(Path(assignment.result), carry_out(assignment))
    if assignment.keep is not None:
        leave_newest(Path(assignment.run) / "checkpoints", assignment.keep, assignment.keep_every)
    samples = Path(assignment.samples)
    if assignment.samples and not samples.exists():
        try:
            write_samples(assignment.run, num=SHOWN, seed=Run(assignment.run).recipe.evaluate.seed, out=samples)
        except (InputError, OSError) as error:
            logger.warning("%s: no samples could be drawn (%s)", assignment.run, error)


def write_record(path: Path, record: RunRecord) -> None:
    """Leave what is known of a run where :func:`read_record` finds it."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(record)) + "\n")


def read_record(path: Path) -> RunRecord | None:
    """The record that a run's process left; ``None`` while there is none, or none that can be read."""
    try:
        return TypeAdapter(RunRecord).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s: is damaged, or of another version of layersync: the run is finished again", path)
        return None


def _stop_with_parent() -> None:
    """End as after SIGTERM, with the state saved, when whoever holds the other end of stdin is gone."""

    def watch() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold when Python ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Carry out the assignment given as JSON; its errors are one line on stderr, its exit status as the CLI's."""
    assignment = Assignment(**json.loads(sys.argv[1]))
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("layersync").setLevel(logging.INFO)
    warnings.simplefilter("ignore", UserWarning)  # the process that compares has said them once for all runs
    _stop_with_parent()
    try:
        with FileLock(f"{assignment.run}.lock"):  # until a process of a comparison that was killed has stopped
            finish(assignment)
    except (InputError, TrainingError, Interrupted) as error:
        logger.error("error: %s", " ".join(str(error).split()))
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
