"""DINOv2 ViT-L/14, as FD-DINOv2 was published on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from layersync.core.adapter import Example
from layersync.core.features import FeatureExtractor, HubWeights, Streams
from layersync.core.pretrained import load_pretrained
from layersync.modalities.image.features.pixels import Rgb, exact_inference, normalised, one_row_each, rgb_images

WEIGHTS = HubWeights("extractor dinov2", "facebook/dinov2-large")
INPUT_SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
POSITION_OFFSET = 0.1


def dinov2_input(images: Sequence[Rgb]) -> Tensor:
    """uint8 (height, width, 3) images to float32 (batch, 3, 224, 224), as dgm-eval's ``DINOv2Encoder`` does.

    Both sides become 224 whatever the shape was: Pillow's bicubic, which smooths where it shrinks.
    """
    return torch.stack(
        [
            normalised(
                Image.fromarray(image).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC),
                IMAGENET_MEAN,
                IMAGENET_DEVIATION,
            )
            for image in images
        ]
    )


def resample_positions(positions: Tensor, side: int) -> Tensor:
    """Positional embeddings (1, 1 + n * n, channels) for a grid of ``side`` patches, as DINOv2's own code does it.

    Its bicubic samples ``n / (side + 0.1)`` apart; transformers samples ``n / side`` apart, which gives other features.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    if grid == side:
        return positions
    scale = (side + POSITION_OFFSET) / grid
    patches = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    resampled = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resampled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class Dinov2(FeatureExtractor):
    """``features``: the class token after the last norm, 1024 values for the published ViT-L/14."""

    name = "dinov2"
    published_weights = True
    preprocessing = (
        f"RGB, grey repeated; Pillow bicubic with antialiasing to {INPUT_SIZE}x{INPUT_SIZE} whatever the shape; / 255; "
        f"minus {IMAGENET_MEAN}, over {IMAGENET_DEVIATION}; positions resampled with offset {POSITION_OFFSET}"
    )

    def __init__(self, weights: str | None = None):
        from transformers import Dinov2Model

        folder, self.checksum = WEIGHTS.locate(weights)
        self.network = load_pretrained(Dinov2Model, "dinov2", folder, f"extractor {self.name}")
        embeddings = self.network.embeddings
        side = INPUT_SIZE // self.network.config.patch_size
        positions = resample_positions(embeddings.position_embeddings.data, side)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    def __call__(self, examples: Sequence[Example]) -> Streams:  # noqa: D102
        batch = dinov2_input(rgb_images(examples, self.name))
        with exact_inference():
            features = self.network(pixel_values=batch.to(self.network.device)).pooler_output
        return {"features": one_row_each(features)}
