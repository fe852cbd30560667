"""Several runs, paired by seed, compared: what ``layersync compare`` does.

A comparison is a directory. ``compare.json`` holds all that is known of its runs, and is enough to go on with it: run
directories and checkpoints may be gone. The plan is made and checked here, runs are processes of their own
(:mod:`layersync.core.experiment_run`), what they say together comes from :mod:`layersync.core.gain`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from layersync.core.adapter import registered
from layersync.core.comparison import BASELINE, Arm, Records, summarise
from layersync.core.errors import InputError, Interrupted, nearest
from layersync.core.evaluation import reads_classifier
from layersync.core.experiment_checks import CLASSIFIERS, check_same, check_work, metrics_of
from layersync.core.experiment_run import Assignment, read_record, write_record
from layersync.core.parallel import Processes
from layersync.core.process_pool import POLL_SECONDS, ProcessPool, Task, dealt
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe
from layersync.core.regularizer.base import REGULARIZER_GROUP
from layersync.core.results import COMPARISON, Comparison, RunRecord, read_comparison, seed_names
from layersync.core.run import atomic_write, differing_keys, package_versions, writable_parent

logger = logging.getLogger(__name__)

NULL = "null"
OTHER_SEEDS = 1_000_000
"""What the variant ``null`` adds to a seed: the reference again, trained from other draws."""
MOST_SEEDS = 10_000
"""A larger number was meant as a seed."""
LOCK = ".lock"
LEFTOVERS = f".{COMPARISON}.*.partial"
"""What a process that was killed while it wrote leaves behind."""
COMMON = ("modality", "seed", "data", "tokenizer", "evaluate", "train.steps")
"""Keys in which the variants of a comparison agree: with others, the difference of two scores would mean something
else."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OVERRIDE = r"\s*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+="
NEXT_OVERRIDE = re.compile(rf",(?={OVERRIDE})")
"""The commas between overrides, not those inside of their values."""


def compare(
    recipes: Sequence[str | os.PathLike[str]],
    variants: Sequence[str] | Mapping[str, Sequence[str]] = (BASELINE, "layersync"),
    seeds: int | Sequence[int] = 3,
    *,
    out: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    resume: bool | Literal["auto"] = False,
    shown: bool = False,
) -> Comparison:
    """Train every recipe under every variant with every seed, score all runs at every evaluated step, and compare.

    Runs of the same seed have the same initial weights, draws and sampling noise.

    Args:
        recipes: files or shipped names; each is a domain of its own.
        variants: names (``baseline``: no regularizer; any registered regularizer: with the recipe's keys if it is the
            recipe's own, else its defaults; ``null``: the reference once more with other seeds), or a mapping of names
            to overrides, none for those names. The reference is ``baseline``, or the first where there is none.
        seeds: how many, from the recipe's on, or which.
        out: directory to make; with ``resume``, the one to go on with.
        overrides: ``section.key=value`` for all recipes.
        jobs: runs at the same time; by default one for each GPU, or one. They share the cores of the machine.
        resume: keep the runs that are finished in ``out``. Seeds, variants and recipes may have been added. ``"auto"``:
            where there is a comparison, else begin it.
        shown: whether a progress bar is drawn.

    Raises:
        InputError: before any work, for whatever cannot be run or compared.
        Interrupted: after Ctrl-C, once the runs have saved their state.
    """
    directory = Path(out)
    named = dict.fromkeys(variants, ()) if not isinstance(variants, Mapping) else variants
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arms = arms_of(recipes, named, overrides)
        chosen = _seeds(seeds, arms)
        earlier = _earlier(directory, resume)
        if earlier is not None:
            check_same(directory, arms, earlier)
    for message in dict.fromkeys(str(warning.message) for warning in caught):  # each once, not once a variant
        warnings.warn(message, stacklevel=2)
    count = _jobs(jobs)
    records = _finished(directory, arms, chosen, earlier)
    arms = check_work(directory, arms, chosen, records)
    gc.collect()
    torch.cuda.empty_cache()  # of the networks that were tried: runs want the GPU for themselves
    experiment = _Experiment(directory, arms, chosen, _command(recipes, named, chosen, overrides, count), records)
    processes = Processes.here()
    with experiment.alone(resume=earlier is not None) if processes.main else nullcontext():
        processes.wait()
        experiment.records = processes.gather([experiment.records])[0]
        tasks = experiment.tasks()
        logger.info("runs to make: %d; seeds: %s", len(tasks), seed_names(chosen))
        pool = ProcessPool(
            count, dealt(tasks, processes.rank, processes.count, len(arms)), shown=shown and processes.main
        )
        try:
            for task in pool.run():
                experiment.note(task)
                if processes.main:
                    experiment.write()
            if processes.main:
                experiment.wait_for_others(tasks)
                experiment.write()
                undrawn = experiment.undrawn()
                for task in ProcessPool(count, undrawn).run():
                    if not Path(task.assignment.samples).is_dir():
                        log = f"{task.assignment.run}.log"
                        warnings.warn(f"{task.title}: no samples could be drawn; its log: {log}", stacklevel=2)
                if undrawn:
                    experiment.write()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; go on with --resume --out {directory}: what was saved is kept") from None
    return experiment.comparison()


def parse_variants(named: str, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Variants by name, from ``a,b`` and from ``NAME:KEY=VALUE[,KEY=VALUE]`` each, which may be among the names."""
    found: dict[str, tuple[str, ...]] = {}
    for name in named.split(",") if named.strip() else []:
        if name.strip() in found:
            raise InputError(f"--variants: {name.strip()!r} is named twice")
        found[name.strip()] = ()
    seen = set()
    for text in given:
        name, colon, rest = text.partition(":")
        changes = tuple(part.strip() for part in NEXT_OVERRIDE.split(rest))
        if not colon or not all(re.match(OVERRIDE, change) for change in changes):
            raise InputError(
                f"--variant {text!r}: is not NAME:KEY=VALUE[,KEY=VALUE], such as weak:regularizer.weight=0.05"
            )
        if name in seen:
            raise InputError(f"--variant {text!r}: {name} is said already")
        seen.add(name)
        found[name] = changes  # at its place among --variants where it is named there, else behind them
    return found


def _seeds(seeds: int | Sequence[int], arms: Sequence[Arm]) -> tuple[int, ...]:
    if not isinstance(seeds, int):
        found = tuple(seeds)
        if not found or len(set(found)) < len(found) or min(found) < 0 or max(found) >= 2**63 - OTHER_SEEDS:
            raise InputError(f"--seeds: {list(found)} are not different numbers from 0 to 2^63 - {OTHER_SEEDS + 1}")
        return found
    if seeds < 1:
        raise InputError(f"--seeds: {seeds}; at least 1")
    if seeds > MOST_SEEDS:
        raise InputError(f"--seeds: {seeds} is how many, at most {MOST_SEEDS}; the seed {seeds} alone is {seeds},")
    first = {arm.given: arm.recipe.seed for arm in arms}
    if len(set(first.values())) > 1:
        raise InputError(f"seed: the recipes start from different ones, {first}; name them by --seeds 0,1,...")
    start = next(iter(first.values()))
    if start + seeds > 2**63 - OTHER_SEEDS:
        raise InputError(
            f"seed: {seeds} from {start} on go beyond 2^63 - {OTHER_SEEDS + 1}; name others by --seeds 0,1,..."
        )
    return tuple(range(start, start + seeds))


def _jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: {jobs}; at least 1")
    if jobs is not None:
        return jobs
    return 1 if os.environ.get("LOCAL_RANK") is not None else max(1, torch.cuda.device_count())


def arms_of(
    recipes: Sequence[str | os.PathLike[str]], variants: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> list[Arm]:
    """All variants of all recipes, checked as far as recipes alone can be."""
    if not recipes:
        raise InputError("compare: needs at least one recipe")
    if len(variants) < 2:
        raise InputError(f"--variants: {', '.join(variants) or 'none'} alone is nothing to compare; give two or more")
    for name in variants:
        if not NAME.fullmatch(name):
            raise InputError(f"variant {name!r}: a name is letters, digits, dots, dashes and underlines")
    reference = BASELINE if BASELINE in variants else next(name for name in variants if name != NULL)
    arms: list[Arm] = []
    for source in recipes:
        regularizing = [change for change in overrides if _of_regularizer(change)]
        base = load_recipe(source, [change for change in overrides if change not in regularizing])
        file = Path(source).expanduser()
        domain = file.stem if file.is_file() else str(source).replace("/", "-")
        if not NAME.fullmatch(domain):
            raise InputError(f"recipe {str(source)!r}: its name becomes a folder; letters, digits, dots, - and _ only")
        if any(arm.domain == domain for arm in arms):
            raise InputError(f"recipe {str(source)!r}: {domain} is there already; give it once, or another file name")
        own = []
        for name, given in variants.items():
            again = name == NULL and not given
            model = reference if again else name
            changes = _changes(model, tuple(variants[model]), base)
            try:
                recipe = load_recipe(source, [*overrides, *changes])
            except InputError as error:
                about = any(change.partition("=")[0].strip() in str(error) for change in regularizing)
                hint = "; --set is for all variants, --variant NAME:KEY=VALUE for one" if about else ""
                raise InputError(f"variant {name!r}: {error}{hint}") from None
            own.append(Arm(domain, str(source), name, changes, recipe, OTHER_SEEDS if again else 0))
        _check_comparable(own)
        arms += own
    return arms


def _of_regularizer(change: str) -> bool:
    """Whether an override is about a key of the regularizer, of which other regularizers need not have any."""
    return change.strip().startswith("regularizer.") and not change.strip().startswith("regularizer.name")


def _changes(name: str, given: tuple[str, ...], base: Recipe) -> tuple[str, ...]:
    """Overrides that make the variant ``name`` of a recipe."""
    keys = [change.partition("=")[0].strip() for change in given]
    if "regularizer.name" in keys:
        return given
    if name == BASELINE:
        return ("regularizer.name=none", *given)
    names = registered(REGULARIZER_GROUP)
    if name in names:
        return (f"regularizer.name={name}", *given)
    if not given:
        hint = nearest(name, [BASELINE, NULL, *names])
        raise InputError(f"variant {name!r}: is unknown; {hint}; or --variant {name}:KEY=VALUE")
    about = any(key.startswith("regularizer.") for key in keys)
    return ("regularizer.name=layersync", *given) if about and base.regularizer.name == "none" else given


def _check_comparable(arms: Sequence[Arm]) -> None:
    """Variants of one recipe differ, and not in what a score means."""
    for number, arm in enumerate(arms):
        for other in arms[:number]:
            ours, theirs = arm.recipe.to_mapping(), other.recipe.to_mapping()
            differing = differing_keys(ours, theirs)
            if not differing and arm.offset == other.offset:
                raise InputError(f"variant {arm.variant!r} of {arm.given}: changes nothing against {other.variant!r}")
            for key in differing:
                if any(key == common or key.startswith(f"{common}.") for common in COMMON):
                    values = " and ".join(repr(_at(side, key)) for side in (theirs, ours))
                    raise InputError(
                        f"variants {other.variant!r} and {arm.variant!r} of {arm.given}: cannot be compared, {key} is "
                        f"{values}; it must be the same, by --set"
                    )


def _at(mapping: Any, key: str) -> Any:
    for part in key.split("."):
        mapping = mapping.get(part) if isinstance(mapping, dict) else None
    return mapping


def _earlier(directory: Path, resume: bool | Literal["auto"]) -> Comparison | None:
    """What is in ``directory`` already; InputError where it should not be."""
    if resume is True or (resume == "auto" and (directory / COMPARISON).exists()):
        return read_comparison(directory)
    if not os.path.lexists(directory):
        writable_parent(directory, "--out")
    elif not directory.is_dir():
        raise InputError(f"--out: {directory} is no folder, as a comparison is; give another")
    elif any(path.name != LOCK and not path.match(LEFTOVERS) for path in directory.iterdir()):
        raise InputError(f"--out: {directory} exists; give another, or --resume to go on with that comparison")
    return None


def _finished(directory: Path, arms: Sequence[Arm], seeds: Sequence[int], earlier: Comparison | None) -> Records:
    """Runs that need not be made again: those of ``compare.json``, and those that ended since it was written."""
    found: Records = {}
    if earlier is None:
        return found
    for domain in earlier.domains:
        for name, variant in domain.variants.items():
            for seed, record in zip(earlier.seeds, variant.runs, strict=True):
                if record.status == "finished":
                    found[domain.name, name, seed] = record
    missing = set(earlier.seeds) - set(seeds)
    if missing:
        raise InputError(f"--seeds: {directory} has runs with {sorted(missing)} too, which are not asked for now")
    for arm in arms:
        for seed in seeds:
            left = read_record(directory / f"{arm.run(seed)}.json")
            if left is not None and left.status == "finished":
                found.setdefault((arm.domain, arm.variant, seed), left)
    return found


def _command(
    recipes: Sequence[str | os.PathLike[str]],
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    overrides: Sequence[str],
    jobs: int,
) -> str:
    words = ["layersync", "compare", *map(str, recipes)]
    words += ["--variants", ",".join(variants)]
    for name, changes in variants.items():
        if changes:
            words += ["--variant", f"{name}:{','.join(changes)}"]
    for override in overrides:
        words += ["--set", override]
    which = ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")  # a number without a comma says how many
    return shlex.join([*words, "--seeds", which, "--jobs", str(jobs)])


class _Experiment:
    """The runs of a comparison and what is known of them."""

    def __init__(self, directory: Path, arms: Sequence[Arm], seeds: Sequence[int], command: str, records: Records):
        self.directory, self.arms, self.seeds, self.command = directory, arms, seeds, command
        self.records = records

    @contextmanager
    def alone(self, *, resume: bool) -> Iterator[None]:
        """Make the directory and keep it to this process, so that no other one works at the same comparison."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with FileLock(self.directory / LOCK, timeout=0):
                if resume:
                    self.catch_up()
                elif (self.directory / COMPARISON).exists():
                    raise InputError(f"--out: another process has just worked in {self.directory}; --resume goes on")
                self._begin()
                yield
        except Timeout:
            raise InputError(f"--out: another process is at work in {self.directory}") from None

    def _begin(self) -> None:
        """Write down the plan and what is known so far; the file that says what this folder is comes first."""
        try:
            for leftover in self.directory.glob(LEFTOVERS):
                leftover.unlink(missing_ok=True)
            self.write()
            for arm in self.arms:
                path = self.directory / arm.file
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as partial:
                    partial.write_text(arm.trained.to_yaml())
                for seed in self.seeds:
                    if (arm.domain, arm.variant, seed) not in self.records:
                        (self.directory / f"{arm.run(seed)}.json").unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"--out: {self.directory} cannot be written ({error.strerror or error})") from None

    def catch_up(self) -> None:
        """Take over runs that another process has finished since the checks, which may take minutes, began."""
        found = _finished(self.directory, self.arms, self.seeds, read_comparison(self.directory))
        self.records = found | self.records

    def tasks(self) -> list[Task]:
        """What is left to do: seed by seed, so that an early stop leaves whole pairs."""
        found = []
        for seed in self.seeds:
            for arm in self.arms:
                if (arm.domain, arm.variant, seed) in self.records:
                    continue
                found.append(self._task(arm, seed, samples=seed == self.seeds[0]))
        return found

    def undrawn(self) -> list[Task]:
        """To draw samples: of each variant without any, a finished run that is still there."""
        found = []
        for arm in self.arms:
            if any((self.directory / arm.samples(seed)).is_dir() for seed in self.seeds):
                continue
            for seed in self.seeds:
                target = self.directory / arm.run(seed)
                record = read_record(Path(f"{target}.json"))
                if record is not None and record.status == "finished" and target.is_dir():
                    found.append(self._task(arm, seed, samples=True))
                    break
        return found

    def _task(self, arm: Arm, seed: int, *, samples: bool) -> Task:
        run = arm.run(seed)
        target = self.directory / run
        assignment = Assignment(
            recipe=str(self.directory / arm.file),
            seed=seed + arm.offset,
            run=str(target),
            result=f"{target}.json",
            path=run,
            classifiers=str(self.directory / CLASSIFIERS) if reads_classifier(metrics_of(arm.recipe)) else "",
            samples=str(self.directory / arm.samples(seed)) if samples else "",
            keep=arm.recipe.train.keep,
            keep_every=arm.recipe.train.keep_every,
        )
        title = f"{arm.domain} {arm.variant} seed {seed}"
        return Task((arm.domain, arm.variant, seed), title, assignment, arm.recipe.train.steps)

    def note(self, task: Task) -> None:
        """Take over what an ended process left behind."""
        record = read_record(Path(task.assignment.result))
        if record is None:
            record = RunRecord(task.assignment.seed, "failed", task.assignment.path, error=task.error)
            write_record(Path(task.assignment.result), record)
        self.records[task.key] = record

    def wait_for_others(self, tasks: Sequence[Task]) -> None:
        """Until every run of the other processes of this launch has ended, too."""
        waiting = [task for task in tasks if task.key not in self.records]
        while waiting:
            for task in list(waiting):
                record = read_record(Path(task.assignment.result))
                if record is not None:
                    self.records[task.key] = record
                    waiting.remove(task)
                    self.write()
            if waiting:
                time.sleep(POLL_SECONDS)

    def write(self) -> None:
        """Bring ``compare.json`` up to date."""
        with atomic_write(self.directory / COMPARISON) as partial:
            partial.write_text(json.dumps(self.comparison().to_mapping()) + "\n")

    def comparison(self) -> Comparison:
        """What is known so far."""
        domains = []
        for name in dict.fromkeys(arm.domain for arm in self.arms):
            own = [arm for arm in self.arms if arm.domain == name]
            domains.append(summarise(own, self.seeds, self.records, self.directory))
        machine: dict[str, Any] = {"cores": os.cpu_count()}
        for key in ("device", "device_name", "threads", "precision", "precision_reason", "git_commit"):
            known = [record.environment.get(key) for record in self.records.values()]
            values = [value for value in dict.fromkeys(known) if value is not None]
            if values:
                machine[key] = values[0] if len(values) == 1 else " and ".join(map(str, values))
        versions = next(
            (record.environment["packages"] for record in self.records.values() if record.environment), None
        )
        return Comparison(tuple(self.seeds), tuple(domains), self.command, versions or package_versions(), machine)
