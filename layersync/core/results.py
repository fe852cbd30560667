"""The dataclasses behind every JSON that we write."""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True)
class Reference:
    """The set that a score was taken against."""

    data: str
    split: str
    count: int


@dataclass(frozen=True)
class Score:
    """One metric. ``interval`` is a 95 % interval or ``None``; ``details`` what a reader needs beside the value."""

    value: float
    interval: tuple[float, float] | None
    extractor: str
    reference: Reference | None
    details: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What ``layersync evaluate`` prints and appends to ``RUN/evaluation.jsonl``."""

    run: str
    step: int
    weights: str
    sampling: SamplingSettings
    metrics: dict[str, Score]

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
