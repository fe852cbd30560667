"""The dataclasses behind every JSON that we write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    """The split whose labels, texts and lengths they were drawn for."""
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
    if isinstance(value, list) and len(value) > LISTED:
        return f"[{', '.join(_short(entry) for entry in value[:LISTED])}, ... {len(value)} in all]"
    return str(value)
