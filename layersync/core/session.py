"""One sitting of training: start or resume a run, take its steps, keep its logs, stop well."""

from __future__ import annotations

import functools
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from layersync.core.adapter import Split
from layersync.core.checkpoint import read_tensors
from layersync.core.errors import InputError, Interrupted
from layersync.core.latents import LatentCache
from layersync.core.metric import check_labels, parse_metrics
from layersync.core.parallel import Processes
from layersync.core.plugin import calling
from layersync.core.progress import progress
from layersync.core.recipe import Recipe
from layersync.core.results import DryRun
from layersync.core.run import (
    DataSummary,
    Run,
    apart,
    atomic_write,
    differing_keys,
    environment,
    may_change_on_resume,
    outside_data,
    writable_parent,
)
from layersync.core.signals import REPEATED_WITHIN_SECONDS
from layersync.core.trainer import Parts, Trainer, build_parts, check_launch

logger = logging.getLogger(__name__)

CONDITIONS_LIMIT = 1_000_000
"""Examples whose label and length a run keeps, and draws those of its samples from."""
CAPTIONS_LIMIT = 10_000
"""The same where their texts are kept too."""
SEEN_WITHIN_SECONDS = 90
"""That shared storage may take to show other machines a new folder."""


def train(recipe: Recipe, out: str | os.PathLike[str], *, resume: bool | Literal["auto"] = False) -> Run:
    """Train ``recipe`` in the run directory ``out``, or go on with the run that is there.

    Final weights are always saved; Ctrl-C saves too.

    Args:
        recipe: what is trained.
        out: the run directory.
        resume: go on with the run in ``out``; ``"auto"``: where there is one, else start it.

    Raises:
        InputError: before anything is written, for a directory that exists (without ``resume``), a changed recipe
            (with it), or data that cannot be had.
        TrainingError: for a loss that is not finite; the checkpoints so far stay.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    path = Path(out)
    if resume == "auto":
        check_launch(recipe)  # before processes are connected
        resume = _is_there(path)
    run = _resumable(path, recipe) if resume else None
    if run is None and os.path.lexists(path):
        raise InputError(f"{path}: exists; give another --out, or --resume to go on with it")
    check_launch(recipe)
    with ExitStack() as held:
        if run is not None and Processes.leads():
            held.enter_context(_alone(run))  # before its state is read
        return _trained(recipe, path, run)


def _trained(recipe: Recipe, path: Path, run: Run | None) -> Run:
    """The run in ``path``, made or gone on with."""
    if run is not None:
        _check_steps(path, (run.checkpoint_steps() or [0])[-1])
    if run is not None and run.checkpoint_steps()[-1:] == [recipe.train.steps]:
        if run.recipe != recipe and Processes.here().main:  # in what may change: how it is sampled and scored
            _write_recipe(run, recipe)
        logger.info("%s has taken its %d steps already: nothing to do", path, recipe.train.steps)
        return Run(path)
    writable_parent(path, "--out")
    if run is None:
        outside_data(path, recipe.data, "--out")
    if run is not None and not run.data.fingerprint:
        raise InputError(f"--resume: an imported run is a start: give another --out and --set train.init={path}")
    fresh = run is None or not run.checkpoint_steps()
    check = None if run is None else functools.partial(_check_data, run)
    parts = build_parts(recipe, fresh=fresh, check=check)
    if run is not None:
        parts.tokenizer.check_state(read_tensors(run.path / "tokenizer.safetensors"))
    _warn_of_metrics(recipe, parts)
    trainer = Trainer(recipe, parts, fresh=fresh, precision=None if run is None else run.environment.get("precision"))
    start, seconds = 0, 0.0
    if run is not None and run.checkpoint_steps():
        start, seconds = trainer.restore(run.latest_checkpoint())
        if start > recipe.train.steps:
            raise InputError(f"train.steps: {recipe.train.steps} is less than the {start} steps that {path} has taken")
    accelerator = trainer.accelerator
    with ExitStack() as held:
        if accelerator.is_main_process:
            if run is None:
                run = _create(path, recipe, trainer, parts)
                held.enter_context(_alone(run))
            else:
                run.clear_leftovers()
                run.cut_back(start or -1)
                _write_recipe(run, recipe)
        accelerator.wait_for_everyone()
        run = _seen(path)
        _Session(trainer, run, start, seconds).take_steps()
    return run


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Keep other trainings of the run out, and InputError where there is one."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(run.path / "training.lock").acquire(timeout=0))
        except Timeout:
            raise InputError(f"--resume: another process is training {run.path}; wait until it has ended") from None
        except OSError as error:
            logger.warning("%s: cannot be locked against a second training (%s)", run.path, error.strerror or error)
        yield


def _warn_of_metrics(recipe: Recipe, parts: Parts) -> None:
    """Say before a training what would refuse to score it."""
    metrics = parse_metrics(recipe.modality, recipe.evaluate.metrics)
    try:
        check_labels(recipe, metrics, parts.data.classes, parts.data.condition)
    except InputError as error:
        what = str(error).partition(";")[0]
        warnings.warn(f"evaluate.metrics: this run cannot be scored by them: {what}", stacklevel=3)


def _is_there(path: Path) -> bool:
    """Whether the first process of the launch finds something at ``path``, which the others then wait for."""
    processes = Processes.here()
    there: bool = processes.gather([os.path.lexists(path)])[0]
    if there and not processes.main:
        _seen(path)
    return there


def _seen(path: Path) -> Run:
    """The run that the main process has made, once this machine sees it: shared storage may take a while."""
    until = time.monotonic() + SEEN_WITHIN_SECONDS
    while not (path / "recipe.yaml").is_file():
        if time.monotonic() > until:
            raise InputError(f"--out: {path.absolute()} is not seen here; it has to lie where all machines see it")
        time.sleep(0.1)
    return Run(path)


def _check_data(run: Run, data: DataSummary) -> None:
    """Refuse to go on with another ``data``, tokenizer or text encoder than the run began with."""
    if run.data.fingerprint != data.fingerprint:
        raise InputError(f"{run.path}: the data or the tokenizer has changed since; start a new run with train.init")
    run.data.check_text_encoder(data.text_encoder, run.recipe)


def _check_steps(path: Path, taken: int) -> None:
    """Raise :class:`InputError` where the processes of this launch see different last checkpoints."""
    found = sorted(set(Processes.here().gather([taken])))
    if len(found) > 1:
        raise InputError(
            f"--resume: machines see different checkpoints in {path}, of steps {' and '.join(map(str, found))}; "
            f"it has to lie where all of them see it"
        )


def _resumable(path: Path, recipe: Recipe) -> Run:
    run = Run(path)
    changed = differing_keys(recipe.to_mapping(), run.recipe.to_mapping())
    refused = [key for key in changed if not may_change_on_resume(key)]
    if refused:
        raise InputError(
            f"--resume: the recipe differs from the one in {path} in {', '.join(refused)}; "
            f"only train.steps, keep, accumulate and gradient_checkpointing, *_every, evaluate and sample may change"
        )
    if not os.access(path, os.W_OK):
        raise InputError(f"--resume: {path} is not writable")
    return run


def _write_recipe(run: Run, recipe: Recipe) -> None:
    with atomic_write(run.path / "recipe.yaml") as partial:
        partial.write_text(recipe.to_yaml())


def _create(path: Path, recipe: Recipe, trainer: Trainer, parts: Parts) -> Run:
    precision = str(trainer.dtype).removeprefix("torch.")
    found = environment(trainer.device, precision, trainer.precision_reason, trainer.accelerator.num_processes)
    keep = _evenly(parts.cache, num_conditions(parts))
    found["conditions"] = len(keep)
    conditions = {
        "label": torch.from_numpy(parts.cache.labels[keep]),
        "frames": torch.from_numpy(parts.cache.frames[keep]),
    }
    with calling(parts.tokenizer, "state"):
        tensors = {"tokenizer": apart(parts.tokenizer.state()), "conditions": conditions}
    captions = [parts.cache.captions[row] for row in keep.tolist()] if parts.texts is not None else ()
    run = Run.create(path, recipe, found, parts.data, tensors, captions)
    classes = f"{len(parts.data.classes)} classes" if parts.data.classes else "no classes"
    logger.info("%d examples of %s, latents %s", len(parts.cache), classes, "x".join(map(str, parts.data.latent.shape)))
    logger.info("training in %s on %s, %s because %s", path, trainer.device, precision, trainer.precision_reason)
    return run


def num_conditions(parts: Parts) -> int:
    """Of how many training examples a run keeps what samples are drawn for."""
    return min(len(parts.cache), CONDITIONS_LIMIT if parts.texts is None else CAPTIONS_LIMIT)


def _evenly(cache: LatentCache, limit: int) -> NDArray[np.int64]:
    """Rows of at most ``limit`` examples, in order; every n-th by label and length, so that shares stay."""
    if len(cache) <= limit:
        return np.arange(len(cache))
    ordered = np.lexsort((cache.frames, cache.labels))
    return np.sort(ordered[np.arange(limit) * len(cache) // limit])


class _Session:
    """The loop around :meth:`Trainer.train_step`."""

    def __init__(self, trainer: Trainer, run: Run, start: int, seconds: float):
        self.trainer, self.run, self.start = trainer, run, start
        self.recipe = trainer.recipe
        self.before, self.began = seconds, time.monotonic()
        self.stopped_at: float | None = None
        self.logged_step, self.logged_at = start, time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, earlier sittings included."""
        return self.before + time.monotonic() - self.began

    def take_steps(self) -> None:
        """From where the run stands to its last step."""
        train, trainer = self.recipe.train, self.trainer
        main = trainer.accelerator.is_main_process
        columns = ("loss", "similarity", "samples/s")
        remaining = train.steps - self.start
        with (
            self._signals(),
            self._writer() as writer,
            progress("training", remaining, columns=columns, shown=main) as advance,
        ):
            self.write = writer
            if self.start == 0:
                self._measure(0)
            trainer.model.train()
            for step in range(self.start, train.steps):
                found = trainer.train_step(step)
                done = step + 1
                fields = {}
                if done % train.log_every == 0 or done == train.steps:
                    fields = self._log(done, found)
                every = self.recipe.evaluate.every
                if done == train.steps or (every and done % every == 0):
                    self._measure(done)
                    trainer.model.train()
                stopping = done < train.steps and self._stopping()
                regular = done == train.steps or done % train.checkpoint_every == 0
                if stopping or regular:
                    trainer.save(self.run, done, self.seconds, interrupted=not regular)
                if stopping:
                    raise Interrupted(f"stopped after step {done}; go on with --resume --out {self.run.path}")
                advance(1, **fields)

    def _stopping(self) -> bool:
        """Whether a signal came to any process: asked after every step, since launchers soon kill."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self.stopped_at is not None
        wanted = torch.tensor(float(self.stopped_at is not None), device=self.trainer.device)
        return bool(accelerator.reduce(wanted, "sum") > 0)

    def _log(self, done: int, found: dict[str, Tensor]) -> dict[str, str]:
        reduced: dict[str, Tensor] = self.trainer.accelerator.reduce(found, "mean")
        values = {name: float(value) for name, value in reduced.items()}
        now = time.monotonic()
        rate = (done - self.logged_step) * self.recipe.train.batch_size / max(now - self.logged_at, 1e-9)
        self.logged_step, self.logged_at = done, now
        similarity = {k.removeprefix("similarity/"): v for k, v in values.items() if k.startswith("similarity/")}
        other = {k: v for k, v in values.items() if not k.startswith("similarity/")}
        record: dict[str, Any] = {"step": done, "loss": values["flow_loss"] + values["regularizer_loss"], **other}
        record |= {"similarity": similarity, "lr": self.trainer.optimizer.param_groups[0]["lr"]}
        record |= {"samples_per_second": rate, "seconds": self.seconds}
        self.write(record)
        shown = " ".join(f"{value:.3f}" for value in similarity.values()) or "-"
        return {"loss": f"{record['loss']:.4f}", "similarity": shown, "samples/s": f"{rate:.0f}"}

    def _measure(self, done: int) -> None:
        if self.trainer.accelerator.is_main_process:
            record = self.trainer.measure()
            self.write({"step": done, **record, "seconds": self.seconds})
            what = "held-out loss" if record["held_out_split"] == "test" else "none held out, loss of training examples"
            logger.info("step %d of %d: %s %.4f", done, self.recipe.train.steps, what, record["held_out_loss"])
        self.trainer.accelerator.wait_for_everyone()
        self.logged_step, self.logged_at = done, time.monotonic()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a stop after the current step; a second one, later, stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self.stopped_at is None:
                self.stopped_at = time.monotonic()
            elif time.monotonic() - self.stopped_at > REPEATED_WITHIN_SECONDS:
                raise KeyboardInterrupt

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        """Yield a function that takes a record to ``metrics.jsonl`` and to TensorBoard, on the main process."""
        if not self.trainer.accelerator.is_main_process:
            yield lambda record: None
            return
        from torch.utils.tensorboard import SummaryWriter

        purged = self.start + 1 if self.start else 0  # a start anew measures before its first step once more
        with SummaryWriter(str(self.run.path / "tensorboard"), purge_step=purged) as board:

            def write(record: dict[str, Any]) -> None:
                self.run.append("metrics.jsonl", record)
                for name, value in _flat(record):
                    board.add_scalar(name, value, record["step"])

            yield write


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", float(value)


def dry_run(recipe: Recipe) -> DryRun:
    """Build everything, take two steps, and say what the whole training would need. Writes nothing that stays."""
    with tempfile.TemporaryDirectory(prefix="layersync-dry-run-") as scratch:
        limit = max(2 * recipe.train.batch_size, 64)
        parts = build_parts(recipe, limit=limit, directory=Path(scratch))
        _warn_of_metrics(recipe, parts)
        trainer = Trainer(recipe, parts)
        trainer.model.train()
        for step in range(2):  # the first makes what later ones find made
            began = time.monotonic()
            trainer.train_step(step)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize(trainer.device)
            seconds = time.monotonic() - began
        parameters = sum(p.numel() for p in trainer.backbone.parameters())
        trained = sum(p.numel() for p in trainer.names)
        checkpoint = 4 * (2 * parameters + 2 * trained)
        train = recipe.train
        kept = train.num_kept(beside=1)  # a new one is written before an old one goes
        splits: list[tuple[LatentCache, Split]] = [(parts.cache, recipe.data.split)]
        splits += [(parts.held_out, "test")] if parts.held_out else []
        sizes = [(cache, len(recipe.adapter.dataset(recipe.data, split))) for cache, split in splits]
        latents = sum(cache.meta["bytes"] * size // len(cache) for cache, size in sizes)
        return DryRun(
            parameters=parameters,
            seconds_per_step=seconds,
            seconds_total=seconds * train.steps,
            peak_memory_bytes=peak_memory(trainer.device),
            checkpoint_bytes=checkpoint,
            disk_bytes=kept * checkpoint + latents,
            device=str(trainer.device),
            precision=str(trainer.dtype).removeprefix("torch."),
        )


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: allocated on a GPU, resident in this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
