"""What the runs of a comparison say: from their records to a :class:`Comparison`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layersync.core.gain import FLAT, curve, last_change, overhead, paired_gain, speed_up
from layersync.core.metric import Better, parse_metrics
from layersync.core.recipe import Recipe
from layersync.core.regularizer.layersync import Pair
from layersync.core.results import BY_CLASSIFIER, Domain, Gain, RunRecord, Variant, few_seeds
from layersync.core.run import differing_keys

BASELINE = "baseline"
SCORED_BY = ("extractor", "checksum", "preprocessing", "reference", "num_samples")
"""What two scores of a metric have to share."""
MANY = 3
"""Variants beside the reference from which on chance alone is likely to make one look better or worse."""
LOSS_OF = ("objective.interpolant", "objective.prediction", "objective.num_timesteps")
"""Keys of a recipe of which the flow loss is another quantity."""
ALIKE = {
    "git_commit": "commits of layersync",
    "device": "devices",
    "device_name": "processors",
    "precision": "precisions",
    "threads": "numbers of threads",
}
"""What runs of one comparison are expected to share, and how it is called."""


@dataclass(frozen=True)
class Arm:
    """One variant of one recipe."""

    domain: str
    given: str
    """The recipe as it was named."""
    variant: str
    overrides: tuple[str, ...]
    recipe: Recipe
    offset: int = 0
    """Added to every seed."""
    pairs: tuple[Pair, ...] = ()
    """What its regularizer aligns, or the paper's pair; known once the data is."""

    @property
    def file(self) -> str:
        """Its recipe file, relative to the comparison."""
        return f"recipes/{self.domain}/{self.variant}.yaml"

    @property
    def trained(self) -> Recipe:
        """What is trained: a checkpoint at each evaluated step, and all stay until they are scored."""
        every, saved = self.recipe.evaluate.every, self.recipe.train.checkpoint_every
        if every is not None and every % saved:
            saved = every
        return self.recipe.model_copy(
            update={
                "train": self.recipe.train.model_copy(
                    update={"checkpoint_every": saved, "keep": None, "keep_every": None}
                )
            }
        )

    def samples(self, seed: int) -> str:
        """Folder of rendered samples of its run with ``seed``, relative to the comparison."""
        return f"samples/{self.domain}/{self.variant}/seed-{seed}"

    def run(self, seed: int) -> str:
        """Directory of its run with ``seed``, relative to the comparison."""
        return f"runs/{self.domain}/{self.variant}/seed-{seed}"


Records = dict[tuple[str, str, int], RunRecord]
"""What is known of runs: by domain, variant and seed (without the variant's offset)."""


def summarise(arms: Sequence[Arm], seeds: Sequence[int], records: Records, directory: Path) -> Domain:
    """The variants of one recipe, compared with its reference: ``baseline``, or the first where there is none."""
    recipe = arms[0].recipe
    metrics = {metric.name: metric.better for metric in parse_metrics(recipe.modality, recipe.evaluate.metrics)}
    reference = next((arm for arm in arms if arm.variant == BASELINE), None) or next(a for a in arms if not a.offset)
    runs = {
        arm.variant: tuple(
            records.get((arm.domain, arm.variant, seed), RunRecord(seed + arm.offset, "waiting", arm.run(seed)))
            for seed in seeds
        )
        for arm in arms
    }
    pairs = tuple(dict.fromkeys(pair for arm in arms for pair in arm.pairs))
    first = next(iter(recipe.evaluate.metrics))
    variants = {arm.variant: _variant(arm, reference, runs, metrics, pairs, directory) for arm in arms}
    return Domain(
        name=reference.domain,
        modality=recipe.modality,
        recipe=reference.given,
        metric=first,
        reference=reference.variant,
        better=dict(metrics),
        settings=variants[reference.variant].settings,
        variants=variants,
        notes=(*_notes(seeds, first, reference.variant, runs), *_schedules(arms), *_batches(arms), *_many(arms)),
    )


def _variant(
    arm: Arm,
    reference: Arm,
    runs_of: Mapping[str, tuple[RunRecord, ...]],
    metrics: Mapping[str, Better | None],
    pairs: Sequence[Pair],
    directory: Path,
) -> Variant:
    runs = runs_of[arm.variant]
    done = [run for run in runs if run.status == "finished"]
    curves = {name: curve([run.scores[name] for run in done]) for name in metrics} if done else {}
    similarity = {}
    for student, teacher in pairs:
        if done and teacher <= len(done[0].similarity[0].cosine):
            similarity[f"{student}-{teacher}"] = {
                kind: curve(
                    [[getattr(found, kind)[student - 1][teacher - 1] for found in run.similarity] for run in done]
                )
                for kind in ("cosine", "centred")
            }
    drawn = next((run.seed for run in runs if (directory / arm.samples(run.seed - arm.offset)).is_dir()), None)
    found = Variant(
        overrides=arm.overrides,
        recipe=arm.file,
        regularizer=arm.recipe.regularizer.model_dump(mode="json"),
        pairs=arm.pairs if arm.recipe.regularizer.name == "layersync" else (),
        runs=runs,
        curves=curves,
        held_out_loss=curve([run.held_out_loss for run in done]) if done else None,
        similarity=similarity,
        samples="" if drawn is None else arm.samples(drawn - arm.offset),
        samples_seed=drawn,
        settings=_settings(arm.recipe, done),
        content=arm.trained.to_mapping(),
    )
    if arm is reference:
        return found
    sides = zip(runs_of[reference.variant], runs, strict=True)
    both = [(before, after) for before, after in sides if _finished_both(before, after)]
    gains = {
        name: replace(
            paired_gain([b.scores[name][-1] for b, _ in both], [a.scores[name][-1] for _, a in both], better),
            by_classifier=_gains_by_classifier(name, both, better),
        )
        for name, better in metrics.items()
    }
    timed = [(b.step_seconds, a.step_seconds) for b, a in both if b.step_seconds and a.step_seconds]
    cost = overhead([b for b, _ in timed], [a for _, a in timed])
    first = next(iter(metrics))
    speed = speed_up(
        both[0][0].steps if both else (),
        [b.scores[first] for b, _ in both],
        [a.scores[first] for _, a in both],
        metrics[first],
        ([b for b, _ in timed], [a for _, a in timed]) if both and len(timed) == len(both) else None,
    )
    loss = _held_out_gain(arm, reference, both)
    return replace(found, gain=gains[first], gains=gains, held_out_gain=loss, speed_up=speed, overhead=cost)


def _gains_by_classifier(
    metric: str, both: Sequence[tuple[RunRecord, RunRecord]], better: Better | None
) -> tuple[float, ...]:
    """The gain at the last step by each classifier, for a metric that averages over them."""
    details = [[run.environment["evaluation"]["metrics"][metric]["details"] for run in pair] for pair in both]
    values = [[of_run.get(BY_CLASSIFIER) for of_run in pair] for pair in details]
    if not values or any(value is None for pair in values for value in pair):
        return ()
    sides = np.asarray(values, dtype=np.float64).transpose(2, 1, 0)  # (classifiers, before and after, seeds)
    gains = [paired_gain(before, after, better).mean for before, after in sides]
    known = tuple(gain for gain in gains if gain is not None)
    return known if len(known) == len(gains) else ()


def _held_out_gain(arm: Arm, reference: Arm, both: Sequence[tuple[RunRecord, RunRecord]]) -> Gain:
    changed = differing_keys(reference.recipe.to_mapping(), arm.recipe.to_mapping())
    other = [key for key in changed if key in LOSS_OF]
    if other:
        return Gain(None, None, len(both), note=f"another loss than the reference's: {', '.join(other)}")
    return paired_gain([b.held_out_loss[-1] for b, _ in both], [a.held_out_loss[-1] for _, a in both], "lower")


def _finished_both(before: RunRecord, after: RunRecord) -> bool:
    return before.status == after.status == "finished"


def _settings(recipe: Recipe, done: Sequence[RunRecord]) -> dict[str, Any]:
    """What a number is never reported without."""
    found: dict[str, Any] = {
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "evaluate_every": recipe.evaluate.every,
        "num_samples": recipe.evaluate.num_samples,
        "sample": recipe.sample.model_dump(mode="json"),
        "data": recipe.data.model_dump(mode="json"),
    }
    if done:
        evaluation = done[0].environment["evaluation"]
        found["sampling"], found["weights"] = evaluation["sampling"], evaluation["weights"]
        found["metrics"] = {
            name: {key: score[key] for key in SCORED_BY} for name, score in evaluation["metrics"].items()
        }
    return found


def _notes(seeds: Sequence[int], metric: str, reference: str, runs: Mapping[str, Sequence[RunRecord]]) -> Iterator[str]:
    if few := few_seeds(len(seeds)):
        yield few
    for name, of in runs.items():
        failed = [run for run in of if run.status == "failed"]
        waiting = sum(run.status == "waiting" for run in of)
        if failed:
            listed = ", ".join(f"seed {run.seed} ({run.error})" for run in failed)
            yield f"{name}: {len(failed)} of {len(of)} runs failed and are left out: {listed}"
        if waiting:
            yield f"{name}: {waiting} of {len(of)} runs are not finished"
    done = {name: [run for run in of if run.status == "finished"] for name, of in runs.items()}
    finished = [run for of in done.values() for run in of]
    yield from _differences(finished)
    if any(run.held_out_split == "train" for run in finished):
        yield "the held-out loss is of examples that were trained on: the data holds none out"
    for name, of in done.items():
        curves = [run.scores[metric] for run in of]
        if curves and len(curves[0]) == 1:
            if name == reference:
                yield "one evaluation: whether the curves were flat at the end is not known"
        elif curves and abs(change := last_change(curves)) > FLAT:
            yield (
                f"{name}: {metric} changed by {change:+.1%} over the last interval: its curve is not flat, a longer "
                f"training may say something else"
            )


def _schedules(arms: Sequence[Arm]) -> Iterator[str]:
    """What a step size that falls towards the last step does to the curves before it."""
    falling = [arm for arm in arms if arm.recipe.optimizer.schedule != "constant"]
    if falling and (falling[0].recipe.evaluate.every or math.inf) < falling[0].recipe.train.steps:
        yield (
            f"{', '.join(arm.variant for arm in falling)}: optimizer.schedule lets the step size fall to 0 at step "
            f"{falling[0].recipe.train.steps}, so an earlier score is not what a training of that length comes to, "
            f"nor is a speed-up read off the curve"
        )


def _many(arms: Sequence[Arm]) -> Iterator[str]:
    if len(arms) - 1 > MANY:
        yield (
            f"{len(arms) - 1} variants against one reference: an interval or two that leave out 0 are to be expected "
            f"by chance; run what looks best again, with other seeds"
        )


def _batches(arms: Sequence[Arm]) -> Iterator[str]:
    sizes: dict[int, list[str]] = {}
    for arm in arms:
        sizes.setdefault(arm.recipe.train.batch_size, []).append(arm.variant)
    if len(sizes) > 1:
        listed = "; ".join(f"{size} of {', '.join(names)}" for size, names in sizes.items())
        yield f"train.batch_size is not the same, {listed}: a step is not as many examples, nor the same ones"


def _differences(done: Sequence[RunRecord]) -> Iterator[str]:
    """What finished runs, or their first and last sittings, do not have in common and should."""
    for name in dict.fromkeys(name for run in done for name in run.scores):
        for key in SCORED_BY:
            values = {json.dumps(run.environment["evaluation"]["metrics"][name][key]) for run in done}
            if len(values) > 1:
                yield f"{name} was not taken alike in all runs, {key} is {' or '.join(sorted(values))}: not comparable"
    sittings = [run.environment for run in done]
    last = [found["finished_by"] for found in sittings if "finished_by" in found]  # records of earlier versions lack it
    for package in ("layersync", "torch"):
        versions = {found["packages"][package] for found in (*sittings, *last)}
        if len(versions) > 1:
            yield f"runs of different versions of {package}: {', '.join(sorted(versions))}"
    for key, what in ALIKE.items():
        values = {str(found.get(key)) for found in sittings} | {str(found[key]) for found in last if key in found}
        if len(values) > 1:
            yield f"runs of different {what}: {', '.join(sorted(values))}"
