"""The image modality as the core sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from layersync.core.adapter import Backbone, ConditionSpec, LatentSpec, Section, Split, Tokenizer
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync.modalities.image.backbone import SiTConfig
from layersync.modalities.image.data import SOURCES, ImageData, ImageDataset
from layersync.modalities.image.features.clip import Clip
from layersync.modalities.image.features.dinov2 import Dinov2
from layersync.modalities.image.features.inception import InceptionV3
from layersync.modalities.image.render import render_images
from layersync.modalities.image.samples import ImageSamples, open_image_samples, write_adm_samples
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig, Vae, VaeConfig

CLASSIFIER_SIZE = 64
REDUCED_AT_ONCE = 256
ALIASES = {
    "fid": "fd-inception-v3.pool",
    "sfid": "fd-inception-v3.spatial",
    "is": "is-inception-v3.logits",
    "kid": "kd-inception-v3.pool",
    "precision": "precision-inception-v3.pool",
    "recall": "recall-inception-v3.pool",
    "density": "density-inception-v3.pool",
    "coverage": "coverage-inception-v3.pool",
    "clip-score": "similarity-clip",
}


class ImageAdapter:
    """Samples are uint8 arrays (height, width, 1 or 3)."""

    api = 1
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

    def backbone(self, config: SiTConfig, latent: LatentSpec, condition: ConditionSpec) -> Backbone:  # noqa: D102
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:  # noqa: D102
        return {InceptionV3.name: InceptionV3, Dinov2.name: Dinov2, Clip.name: Clip}

    def metrics(self) -> Mapping[str, Metric]:
        """None: every score of images is taken on features."""
        return {}

    def aliases(self) -> Mapping[str, str]:
        """What the field calls scores on the FID Inception, and the CLIP score."""
        return ALIASES

    def open_samples(self, path: Path) -> ImageSamples:
        """A folder of images, an ADM ``.npz`` or an ``.npy``."""
        return open_image_samples(path)

    def archive(self, samples: Sequence[np.ndarray], labels: Sequence[int] | None, path: Path) -> None:
        """ADM's layout: ``arr_0`` uint8 (n, height, width, 3), ``arr_1`` labels."""
        write_adm_samples(path, samples, labels)

    def classifier_input(self, samples: Sequence[np.ndarray]) -> tuple[Tensor, None]:
        """Pixels in [-1, 1]; images larger than 64 pixels a side are averaged down to it."""
        shapes = {sample.shape for sample in samples}
        if len(shapes) > 1:
            raise InputError(f"images of differing shapes cannot be compared: {sorted(shapes)}")
        parts = []
        for first in range(0, len(samples), REDUCED_AT_ONCE):  # as float32 they are four times as large
            part = torch.from_numpy(np.stack(samples[first : first + REDUCED_AT_ONCE]))
            part = part.permute(0, 3, 1, 2).float() / 127.5 - 1
            if max(part.shape[2:]) > CLASSIFIER_SIZE:
                part = F.interpolate(part, CLASSIFIER_SIZE, mode="area")
            parts.append(part)
        return torch.cat(parts), None

    def render(self, samples: Sequence[np.ndarray], directory: Path) -> list[Path]:  # noqa: D102
        return render_images(samples, directory)
