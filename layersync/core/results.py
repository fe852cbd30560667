"""The dataclasses behind every JSON that we write."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layersync.core.errors import InputError

ENOUGH_SEEDS = 5
"""Fewer make an interval that says little about itself: it is called indicative."""
ONE_SEED = "one seed: no error bar"
BY_CLASSIFIER = "by_classifier"
"""In the details of ``fd-classifier``: the distance by each classifier, of which it is the mean."""


@dataclass(frozen=True)
class SamplingSettings:
    """How the samples behind a score were drawn."""

    solver: str
    steps: int
    guidance: float
    guidance_interval: tuple[float, float]
    guidance_channels: int | None
    num_samples: int
    seed: int
    precision: str
    conditions: str
    """The split whose labels, texts and lengths they were drawn for, or how: ``evaluate.conditions``."""
    adaptive: dict[str, float] | None = None
    """For an adaptive solver its tolerances ``atol`` and ``rtol``, and ``batch_size``, on which its steps depend."""


@dataclass(frozen=True)
class Reference:
    """The set that a score was taken against."""

    data: str
    split: str
    count: int | None
    """``None`` for statistics that do not say of how many samples they are."""


@dataclass(frozen=True)
class Score:
    """One metric. ``interval`` is a 95 % interval or ``None``; ``details`` what a reader needs beside the value.

    ``checksum`` is the SHA-256 of the extractor's weights (empty: it has none), ``preprocessing`` what happened to a
    sample before it, ``num_samples`` how many generated samples it is of.
    """

    value: float
    interval: tuple[float, float] | None
    extractor: str
    reference: Reference | None
    details: dict[str, Any]
    checksum: str = ""
    preprocessing: str = ""
    num_samples: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What ``layersync evaluate`` prints and appends to ``RUN/evaluation.jsonl``."""

    run: str
    step: int
    weights: str
    sampling: SamplingSettings
    metrics: dict[str, Score]
    versions: dict[str, str]
    beside_recipe: dict[str, Any] = field(default_factory=dict)
    """What no recipe says: the caller's ``reference``, ``extractors``, ``replications``; ``without_text``, how many
    examples no sample was drawn for since they have none. Empty for none."""
    failed: dict[str, str] = field(default_factory=dict)
    """Metrics without a score, and why."""

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SetScores:
    """What ``layersync score`` prints: scores of samples that no run of ours need have made."""

    modality: str
    generated: tuple[str, ...]
    real: str | None
    metrics: dict[str, Score]
    versions: dict[str, str]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class DryRun:
    """What a training would need, from two steps of it."""

    parameters: int
    seconds_per_step: float
    seconds_total: float
    peak_memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    device: str
    precision: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SimilarityMap:
    """How similar the outputs of all blocks are after ``step`` steps, on one fixed held-out batch.

    ``cosine`` and ``centred`` are (depth, depth), symmetric, the first row that of block 1; ``centred`` has each
    sample's mean over its tokens removed first.
    """

    step: int
    cosine: tuple[tuple[float, ...], ...]
    centred: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RunRecord:
    """One run of a comparison: a variant trained with one seed.

    ``steps`` are those that were evaluated, ascending; ``scores``, ``seconds`` (of training, evaluation left out),
    ``held_out_loss`` and ``similarity`` have an entry for each of them.
    """

    seed: int
    status: Literal["finished", "failed", "waiting"]
    path: str
    """The run directory, relative to the comparison's."""
    steps: tuple[int, ...] = ()
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    held_out_loss: tuple[float, ...] = ()
    similarity: tuple[SimilarityMap, ...] = ()
    step_seconds: float | None = None
    """Median time of a training step, over the logged ones."""
    process_seconds: float | None = None
    """Life of the run's process until its record: start, training, scores."""
    data: str = ""
    """Fingerprint of data and tokenizer; empty where it is not known."""
    held_out_split: Literal["train", "test"] | None = None
    """What ``held_out_loss`` is of: ``train`` where the data holds nothing out. ``None`` where it is not known."""
    error: str = ""
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """What a variant gains over the comparison's reference variant in one metric, paired by seed.

    A fraction: 0.1 is 10 % better, whichever way the metric improves, -0.1 is 10 % worse. Mean and interval are taken
    on logarithms of ratios. ``None`` stands for what cannot be said: ``interval`` and ``resolution`` of one seed, all
    of a metric without a better side or with scores that are not positive; ``note`` then says why.
    """

    mean: float | None
    interval: tuple[float, float] | None
    seeds: int
    resolution: float | None = None
    """Half the width of the interval of the log-ratio, as a gain: smaller ones could not have been told from none, and
    a true gain of this size is told in about half of such comparisons."""
    note: str = ""
    by_classifier: tuple[float, ...] = ()
    """Of ``fd-classifier``, a mean over classifiers, the gain by each alone. The interval is over seeds only."""


@dataclass(frozen=True)
class SpeedUp:
    """How many times sooner than the reference a variant comes to the reference's last score: 2 is in half the steps.

    ``steps`` and ``seconds`` are ``None`` where it does not come there: ``note`` says so. In intervals, 95 % over
    resampled seeds, 0 stands for "not reached".
    """

    steps: float | None
    steps_interval: tuple[float, float] | None
    seconds: float | None
    seconds_interval: tuple[float, float] | None
    reference_step: float | None = None
    """The step at which the reference variant's own mean curve, of the paired seeds, first is at its last score."""
    variant_step: float | None = None
    """The step at which the variant's is: ``steps`` is the first over the second. ``None`` where nothing is read."""
    note: str = ""


@dataclass(frozen=True)
class Overhead:
    """Time of a training step over the reference variant's, paired by seed: 1.02 is 2 % slower."""

    ratio: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Curve:
    """A quantity at each evaluated step: mean over seeds, and its 95 % t interval where there are two seeds or more."""

    mean: tuple[float, ...]
    interval: tuple[tuple[float, float], ...] | None


@dataclass(frozen=True)
class Variant:
    """One arm of a comparison. ``overrides`` made it of the recipe; ``pairs`` are those that its regularizer aligns."""

    overrides: tuple[str, ...]
    recipe: str
    """Its recipe file, relative to the comparison's directory."""
    regularizer: dict[str, Any]
    pairs: tuple[tuple[int, int], ...]
    runs: tuple[RunRecord, ...]
    curves: dict[str, Curve] = field(default_factory=dict)
    gain: Gain | None = None
    """In the domain's metric, at the last step; ``None`` for the reference variant."""
    gains: dict[str, Gain] = field(default_factory=dict)
    """The same for every metric. They are never averaged."""
    held_out_loss: Curve | None = None
    """Flow loss of the averaged weights on fixed held-out examples, noise and times; the regularizer is not in it."""
    held_out_gain: Gain | None = None
    """In that loss, at the last step. It is seen in far fewer seeds than a gain in a metric, and is no substitute for
    one: it says how well the network predicts, not how good its samples are."""
    speed_up: SpeedUp | None = None
    overhead: Overhead | None = None
    similarity: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """Of each pair (``"4-7"``) that any variant aligns, and the paper's: ``cosine`` and ``centred``."""
    samples: str = ""
    """Folder of rendered samples of one run, relative to the comparison's directory; the same noise and conditions for
    every variant. Empty until there are any."""
    samples_seed: int | None = None
    """Training seed of the run that the samples are of; ``None`` where unknown."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of this variant's numbers: the same keys as the domain's ``settings``."""
    content: dict[str, Any] = field(default_factory=dict)
    """Its recipe, resolved, as in the file."""


@dataclass(frozen=True)
class Domain:
    """One recipe of a comparison, under all variants."""

    name: str
    modality: str
    recipe: str
    """As it was given: a shipped name or a file's name."""
    metric: str
    """The first of the recipe's: what gain and speed-up are about."""
    reference: str
    """The variant that the others are compared with."""
    better: dict[str, Literal["lower", "higher"] | None]
    """Of each metric: ``lower``, ``higher``, or ``None`` where neither is."""
    settings: dict[str, Any]
    """Of the reference's numbers: steps, sampling settings, of each metric extractor, checksum and reference."""
    variants: dict[str, Variant]
    notes: tuple[str, ...] = ()
    """What a reader has to know: few seeds, failed runs, curves that were still falling."""


@dataclass(frozen=True)
class Comparison:
    """What ``layersync compare`` writes to ``compare.json``."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012

    seeds: tuple[int, ...]
    domains: tuple[Domain, ...]
    command: str
    """What makes it again."""
    versions: dict[str, str]
    machine: dict[str, Any]

    def runs(self, status: str | None = None) -> list[RunRecord]:
        """All runs, or those of one status."""
        every = [run for domain in self.domains for variant in domain.variants.values() for run in variant.runs]
        return [run for run in every if status in (None, run.status)]

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, content: Any) -> Comparison:
        """The inverse of :meth:`to_mapping`. Raises ValueError for anything else."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(content)


COMPARISON = "compare.json"
PAIR = re.compile(r"([1-9][0-9]{0,5})-([1-9][0-9]{0,5})")


def read_comparison(directory: str | os.PathLike[str]) -> Comparison:
    """The comparison of a folder, whose parts fit together.

    Raises:
        InputError: there is none, or what is there is damaged or something else.
    """
    path = Path(directory) / COMPARISON
    if not Path(directory).is_dir():
        raise InputError(f"{directory}: there is no such folder; give the one that layersync compare wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode("utf-8")
        comparison = Comparison.from_mapping(content)
    except FileNotFoundError:
        raise InputError(f"{directory}: holds no {COMPARISON}; give the folder that layersync compare wrote") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(f"{path}: is damaged: {half} in one of its texts is half a character") from None
    except ValueError as error:
        why = " ".join(str(error).split("For further information", maxsplit=1)[0].split())
        raise InputError(f"{path}: is no comparison that layersync compare wrote ({why})") from None
    for what in _misfits(comparison):
        raise InputError(f"{path}: is damaged: {' '.join(what.split())}")
    return comparison


def _misfits(found: Comparison) -> Iterator[str]:
    """What does not fit together in a comparison."""
    if not found.seeds or len(set(found.seeds)) < len(found.seeds):
        yield f"its seeds {list(found.seeds)} are not one or more different numbers"
    if not found.domains:
        yield "it has no domains"
    for domain in found.domains:
        if domain.reference not in domain.variants:
            yield f"the reference {domain.reference!r} of {domain.name} is none of its variants"
        if domain.metric not in domain.better:
            yield f"{domain.name} does not say which way its metric {domain.metric!r} improves"
        done = [run.steps for variant in domain.variants.values() for run in variant.runs if run.status == "finished"]
        steps = done[0] if done else ()
        for name, variant in domain.variants.items():
            about = f"{domain.name}, {name}"
            if len(variant.runs) != len(found.seeds):
                yield f"{about}: has {len(variant.runs)} runs for {len(found.seeds)} seeds"
            for run in variant.runs:
                yield from (f"{about}, seed {run.seed}: {what}" for what in _run_misfits(run))
            yield from (f"{about}: {what}" for what in _variant_misfits(variant, domain, len(steps)))
        if any(other != steps for other in done):
            yield f"the finished runs of {domain.name} were evaluated at different steps"


def _run_misfits(run: RunRecord) -> Iterator[str]:
    if run.status == "finished" and not run.steps:
        yield "is finished without an evaluated step"
    if any(step < 0 for step in run.steps) or any(b <= a for a, b in zip(run.steps, run.steps[1:], strict=False)):
        yield f"its steps {list(run.steps)} are not ascending from 0 on"
    lengths = {f"scores of {metric}": len(scores) for metric, scores in run.scores.items()}
    lengths |= {"times": len(run.seconds), "held-out losses": len(run.held_out_loss), "maps": len(run.similarity)}
    for what, length in lengths.items():
        if length != len(run.steps):
            yield f"has {length} {what} for {len(run.steps)} evaluated steps"
    grids = [grid for found in run.similarity for grid in (found.cosine, found.centred)]
    if any(not grid or len(grid) != len(grids[0]) or any(len(row) != len(grid) for row in grid) for grid in grids):
        yield "its maps of similarity are not square, or not of one size"


def _variant_misfits(variant: Variant, domain: Domain, count: int) -> Iterator[str]:
    """``count`` is how many steps of the domain were evaluated."""
    done = [run for run in variant.runs if run.status == "finished"]
    depths = {len(run.similarity[0].cosine) for run in done if run.similarity}
    if len(depths) > 1:
        yield "its runs have maps of different sizes"
    curves = {f"curve of {metric}": curve for metric, curve in variant.curves.items()}
    if variant.held_out_loss is not None:
        curves["curve of held-out loss"] = variant.held_out_loss
    for metric in domain.better:
        if done and (metric not in variant.curves or any(metric not in run.scores for run in done)):
            yield f"{metric} is not in its curves and in all of its finished runs"
    for pair, kinds in variant.similarity.items():
        blocks = PAIR.fullmatch(pair)
        if not blocks:
            yield f"{pair!r} is no pair of blocks such as 4-7"
        elif any(int(block) > depth for block in blocks.groups() for depth in depths):
            yield f"it has no pair of blocks {pair}: its maps are of {min(depths)} blocks"
        if set(kinds) != {"cosine", "centred"}:
            yield f"the similarity of {pair} is of {sorted(kinds)}, not of cosine and centred"
        curves |= {f"curve of {pair}, {kind}": curve for kind, curve in kinds.items()}
    for what, curve in curves.items():
        if len(curve.mean) != count or (curve.interval is not None and len(curve.interval) != count):
            yield f"the {what} is not of {count} evaluated steps"


def seed_names(seeds: Sequence[int]) -> str:
    """``0 to 99`` where they are more than two in a row, else ``3, 5 and 9``."""
    *before, last = seeds
    if len(before) > 1 and list(seeds) == list(range(before[0], last + 1)):
        return f"{before[0]} to {last}"
    return f"{', '.join(map(str, before))} and {last}" if before else str(last)


def few_seeds(count: int) -> str:
    """What has to be said of a gain over ``count`` seeds; empty where they are enough."""
    if count == 1:
        return ONE_SEED
    return f"indicative: {count} seeds, fewer than {ENOUGH_SEEDS}" if count < ENOUGH_SEEDS else ""


LISTED = 3
"""Entries of a list that the text shows; all are in the JSON."""


def score_table(scores: Mapping[str, Score]) -> str:
    """Scores as text for people: a line each, then how each was made."""
    rows = [("metric", "value", "95 % interval", "samples", "against")]
    notes = []
    for name, score in scores.items():
        interval = f"[{score.interval[0]:.4g}, {score.interval[1]:.4g}]" if score.interval else "-"
        against = "-"
        if score.reference is not None:
            count = "an unknown number" if score.reference.count is None else str(score.reference.count)
            against = f"{count} of {score.reference.split}, {score.reference.data}"
        count = "-" if score.num_samples is None else str(score.num_samples)
        rows.append((name, f"{score.value:.4g}", interval, count, against))
        details = "; ".join(f"{key} {_short(value)}" for key, value in score.details.items() if key != "meaning")
        notes.append(f"  {name}: {score.extractor}" + (f"; {details}" if details else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"  {row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    made = {
        f"  {score.extractor}: weights {score.checksum[:12] or 'none'}; {score.preprocessing}"
        for score in scores.values()
        if score.preprocessing
    }
    return "\n".join([*lines, "", *notes, *sorted(made)])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        more = f", ... {len(value)} in all" if len(value) > LISTED else ""
        return f"[{', '.join(map(_short, value[:LISTED]))}{more}]"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min {rest} s"
