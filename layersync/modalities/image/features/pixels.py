"""What enters an image network, and in what arithmetic it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from layersync.core.adapter import Example
from layersync.core.device import float32_products
from layersync.core.errors import InputError
from layersync.core.features import Rows

Rgb = NDArray[np.uint8]
"""One image, uint8 (height, width, 3)."""


def rgb_images(examples: Sequence[Example], extractor: str) -> list[Rgb]:
    """The samples as uint8 (height, width, 3); grey becomes RGB by repetition.

    Raises :class:`InputError` naming the source of a sample that is no image.
    """
    images = []
    for example in examples:
        image = np.asarray(example.sample)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
            raise InputError(
                f"extractor {extractor}: {example.source} is {image.dtype} {list(image.shape)}; an image is uint8 "
                f"(height, width, 1 or 3)"
            )
        images.append(np.broadcast_to(image, (*image.shape[:2], 3)))
    return images


def normalised(picture: Image.Image, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """An RGB picture as float32 (3, height, width): / 255, minus ``mean``, over ``deviation``, channel by channel."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def one_row_each(features: Tensor) -> list[Rows]:
    """(batch, channels) on any device to one float32 array (1, channels) for each sample."""
    return list(features.float().cpu().numpy()[:, None])


@contextmanager
def exact_inference() -> Iterator[None]:
    """Inference in float32 proper: cuDNN would run convolutions in TF32."""
    with torch.inference_mode(), float32_products():
        yield
