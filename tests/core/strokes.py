"""A small modality of the tests' own, whole and real: pen strokes, circles and zigzags of varying length.

Tests install copies of this file as packages (``plugins.py``), as they are or broken in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import (
    Backbone,
    ConditionSpec,
    DataConfig,
    Example,
    ExampleDataset,
    LatentSpec,
    Section,
    Split,
    Tokenizer,
)
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, FeatureExtractorFactory, Metric, Streams
from layersync.core.transformer import TransformerConfig

Stroke = NDArray[np.float32]
"""(frames, 2): where the pen is."""


class StrokesConfig(DataConfig):
    """The ``data`` section."""

    packaged: ClassVar[str] = "drawn when they are read: circles and zigzags, 2 classes"
    name: Literal["strokes"] = "strokes"
    size: int = Field(96, ge=2)

    def build(self, split: Split) -> ExampleDataset:
        return Strokes(self.size, split)


class Strokes(ExampleDataset):
    """Even numbers are circles, odd ones zigzags; 12 to 40 frames long."""

    classes = ("circle", "zigzag")

    def __init__(self, size: int, split: Split):
        self.size, self.split = size, split
        self.fingerprint = f"strokes-1-{size}-{split}"

    def __len__(self) -> int:
        return self.size if self.split == "train" else self.size // 3

    def __getitem__(self, index: int) -> Example:
        source = np.random.default_rng([index, int(self.split == "test")])
        label, frames = index % 2, int(source.integers(12, 41))
        angle = np.arange(frames) * source.uniform(0.3, 0.5) + source.uniform(0, 6)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        zigzag = np.stack([np.abs(angle / np.pi % 2 - 1) * 2 - 1, np.linspace(-1, 1, frames)], axis=1)
        sample = ((circle, zigzag)[label] * source.uniform(0.8, 1.2)).astype(np.float32)
        return Example(sample, {"label": label}, f"{self.split} stroke {index}")


class OffsetsConfig(Section):
    """The ``tokenizer`` section."""

    name: Literal["offsets"] = "offsets"
    num_frames: int = Field(24, ge=4)

    def latent_spec(self) -> LatentSpec:
        return LatentSpec(2, (self.num_frames,), sequence=True, variable=True)


class Offsets(Tokenizer):
    """Positions, divided by their deviation over the training set."""

    round_trip_tolerance = 1e-5

    def __init__(self, config: OffsetsConfig):
        self.latent = config.latent_spec()
        self.num_frames = config.num_frames
        self.fingerprint = "offsets-1"
        self.scale = torch.ones(2)

    def encode(self, samples: Sequence[Stroke]) -> list[Tensor]:
        return [torch.from_numpy(sample) for sample in samples]

    def fit(self, stored: Any) -> None:
        self.scale = torch.cat(list(stored)).std(0)

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if set(state) != {"scale"} or state["scale"].shape != (2,):
            raise InputError(f"tokenizer offsets: a state of {sorted(state)} is not one of its own")
        self.scale = state["scale"].clone()

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return stored / self.scale

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Stroke]:
        strokes = (latents.float() * self.scale).numpy()
        if mask is None:
            return list(strokes)
        return [stroke[: int(length)] for stroke, length in zip(strokes, mask.sum(1), strict=True)]

    def window(self, sample: Stroke, position: float) -> Stroke:
        room = max(0, len(sample) - self.num_frames)
        first = min(int(position * (room + 1)), room)
        return sample[first : first + self.num_frames]


class PenConfig(TransformerConfig):
    """The ``backbone`` section: the core's transformer over frames."""

    name: Literal["pen"] = "pen"
    depth: int = Field(4, ge=3)
    hidden_size: int = Field(32, ge=8)
    num_heads: int = Field(4, ge=1)


class Outline(FeatureExtractor):
    """Mean, deviation and mean step of the pen's position."""

    name = "outline"
    preprocessing = "as it is"

    def __init__(self, weights: str | None = None):
        if weights is not None:
            raise InputError("extractor outline: takes no weights")

    def __call__(self, examples: Sequence[Example]) -> Streams:
        rows = []
        for example in examples:
            stroke = example.sample
            parts = [stroke.mean(0), stroke.std(0), np.abs(np.diff(stroke, axis=0)).mean(0)]
            rows.append(np.concatenate(parts)[None].astype(np.float32))
        return {"features": rows}


def reach(examples: Sequence[Example]) -> NDArray[np.float64]:
    """How far the pen goes from the origin, a number a sample."""
    return np.array([np.linalg.norm(example.sample, axis=1).max() for example in examples], dtype=np.float64)


class OpenStrokes(ExampleDataset):
    """What :meth:`StrokesAdapter.archive` wrote, or a file like it that has ``texts`` too."""

    def __init__(self, path: Path):
        with np.load(path) as archive:
            self.values, self.lengths, self.labels = archive["values"], archive["lengths"], archive["labels"]
            self.texts = archive.get("texts", ())
        self.path, self.fingerprint = path, str(path)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Example:
        condition = {"label": int(self.labels[index])} if len(self.labels) else {}
        condition |= {"text": str(self.texts[index])} if len(self.texts) else {}
        return Example(self.values[index, : self.lengths[index]], condition, f"{self.path} [{index}]")


class StrokesAdapter:
    """Samples are (frames, 2) float32."""

    api = 1
    name = "strokes"
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {"strokes": StrokesConfig},
        "tokenizer": {"offsets": OffsetsConfig},
        "backbone": {"pen": PenConfig},
    }

    def dataset(self, data: StrokesConfig, split: Split) -> ExampleDataset:
        return data.build(split)

    def tokenizer(self, config: OffsetsConfig) -> Tokenizer:
        return Offsets(config)

    def backbone(self, config: PenConfig, latent: LatentSpec, condition: ConditionSpec) -> Backbone:
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        return {"outline": Outline}

    def metrics(self) -> Mapping[str, Metric]:
        return {"reach": reach}

    def aliases(self) -> Mapping[str, str]:
        return {"fod": "fd-outline"}

    def open_samples(self, path: Path) -> ExampleDataset:
        return OpenStrokes(path)

    def archive(self, samples: Sequence[Stroke], labels: Sequence[int] | None, path: Path) -> None:
        lengths = [len(sample) for sample in samples]
        values = np.zeros((len(samples), max(lengths), 2), dtype=np.float32)
        for row, sample in enumerate(samples):
            values[row, : len(sample)] = sample
        np.savez(path, values=values, lengths=lengths, labels=[] if labels is None else labels)

    def classifier_input(self, samples: Sequence[Stroke]) -> tuple[Tensor, Tensor | None]:
        longest = max(len(sample) for sample in samples)
        values = torch.zeros(len(samples), 2, longest)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            values[row, :, : len(sample)] = torch.from_numpy(sample).T
            mask[row, : len(sample)] = True
        return values, mask

    def render(self, samples: Sequence[Stroke], directory: Path) -> list[Path]:
        files = []
        for number, sample in enumerate(samples):
            path = directory / f"{number:04d}.csv"
            np.savetxt(path, sample, delimiter=",", fmt="%.4f")
            files.append(path)
        return files
