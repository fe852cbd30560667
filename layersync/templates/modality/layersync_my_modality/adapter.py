"""Adapter: the one object that layersync asks for; it names the parts, and each is a file beside this one.

The way of a sample: ``dataset`` reads it, the tokenizer encodes it once, the backbone learns to make its latents from
noise, the tokenizer decodes what was made, ``features`` and ``metrics`` score it, ``render`` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import Backbone, ConditionSpec, LatentSpec, Section, Split
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync.core.listed import ListedExamples
from layersync_my_modality.backbone import BackboneConfig
from layersync_my_modality.data import BeatsConfig, Signal, open_samples
from layersync_my_modality.features import Shape
from layersync_my_modality.metrics import roughness
from layersync_my_modality.render import render, write_archive
from layersync_my_modality.tokenizer import SignalConfig, SignalTokenizer


class MyModalityAdapter:
    """Samples are float32 arrays (samples,) in millivolts."""

    api = 1
    name = "my-modality"
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {"beats": BeatsConfig},
        "tokenizer": {"signal": SignalConfig},
        "backbone": {"transformer": BackboneConfig},
    }

    def dataset(self, data: BeatsConfig, split: Split) -> ListedExamples:
        """The samples of a ``data`` section."""
        return data.build(split)

    def tokenizer(self, config: SignalConfig) -> SignalTokenizer:
        """The tokenizer of a ``tokenizer`` section."""
        return SignalTokenizer(config)

    def backbone(self, config: BackboneConfig, latent: LatentSpec, condition: ConditionSpec) -> Backbone:
        """The network of a ``backbone`` section, for latents of this shape."""
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """Extractors by name."""
        return {Shape.name: Shape}

    def metrics(self) -> Mapping[str, Metric]:
        """Scores of generated samples alone, by name."""
        return {"roughness": roughness}

    def aliases(self) -> Mapping[str, str]:
        """Other names of metrics: what papers call ``fd-shape``, for instance."""
        return {}

    def open_samples(self, path: Path) -> ListedExamples:
        """Samples in files, for ``layersync score``."""
        return open_samples(path)

    def archive(self, samples: Sequence[Signal], labels: Sequence[int] | None, path: Path) -> None:
        """All samples in one file, for ``layersync sample --npz``."""
        write_archive(path, samples, labels)

    def classifier_input(self, samples: Sequence[Signal]) -> tuple[Tensor, Tensor | None]:
        """What the classifiers behind ``fd-classifier`` read: (batch, channels, *grid) of order 1, and a frame mask.

        REPLACE: by your samples in such a form; it may be coarser than they are.
        """
        return torch.from_numpy(np.stack(samples))[:, None], None

    def render(self, samples: Sequence[Signal], directory: Path) -> list[Path]:
        """Files to look at or listen to."""
        return render(samples, directory)
