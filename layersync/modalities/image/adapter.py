"""The image modality as the core sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersync.core.adapter import ConditionSpec, FeatureExtractorFactory, LatentSpec, Metric, Section, Split, Tokenizer
from layersync.core.errors import InputError
from layersync.modalities.image.backbone import SiTConfig
from layersync.modalities.image.data import SOURCES, ImageData, ImageDataset
from layersync.modalities.image.render import render_images
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig, Vae, VaeConfig

CLASSIFIER_SIZE = 64


class ImageAdapter:
    """Samples are uint8 arrays (height, width, 1 or 3)."""

    name = "image"
    sections: Mapping[str, Mapping[str, type[Section]]] = {
        "data": SOURCES,
        "tokenizer": {"pixels": PixelsConfig, "vae": VaeConfig},
        "backbone": {"sit": SiTConfig},
    }

    def dataset(self, data: ImageData, split: Split) -> ImageDataset:  # noqa: D102
        return data.build(split)

    def tokenizer(self, config: PixelsConfig | VaeConfig) -> Tokenizer:  # noqa: D102
        return Vae(config) if isinstance(config, VaeConfig) else Pixels(config)

    def backbone(self, config: SiTConfig, latent: LatentSpec, condition: ConditionSpec) -> nn.Module:  # noqa: D102
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:  # noqa: D102
        return {}

    def metrics(self) -> Mapping[str, Metric]:  # noqa: D102
        return {}

    def classifier_input(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, None]:
        """Pixels in [-1, 1]; images larger than 64 pixels a side are averaged down to it."""
        shapes = {sample.shape for sample in samples}
        if len(shapes) > 1:
            raise InputError(f"images of differing shapes cannot be compared: {sorted(shapes)}")
        batch = torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if max(batch.shape[2:]) > CLASSIFIER_SIZE:
            batch = F.interpolate(batch, CLASSIFIER_SIZE, mode="area")
        return batch, None

    def render(self, samples: Sequence[np.ndarray], directory: Path) -> list[Path]:  # noqa: D102
        return render_images(samples, directory)
