"""The FID Inception: TensorFlow's Inception v3 of 2015-12-05, as torch-fidelity ports it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams, UrlWeights
from layersync.core.pretrained import read_tensors
from layersync.modalities.image.features.pixels import Rgb, exact_inference, one_row_each, rgb_images

WEIGHTS = UrlWeights(
    owner="extractor inception-v3",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
INPUT_SIZE = 299
SPATIAL_CHANNELS = 7
TO_MIXED_6C = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "MaxPool_1",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "MaxPool_2",
    "Mixed_5b",
    "Mixed_5c",
    "Mixed_5d",
    "Mixed_6a",
    "Mixed_6b",
    "Mixed_6c",
)
FROM_MIXED_6D = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")


def inception_input(images: Sequence[Rgb], device: torch.device) -> Tensor:
    """uint8 (height, width, 3) images to float32 (batch, 3, 299, 299), as the graph of 2015 prepares them itself.

    Its ``ResizeBilinear`` has ``align_corners`` and ``half_pixel_centers`` off and does not smooth before it shrinks.
    """
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    resized = []
    for image in images:  # one by one: what is made on the way stays in a processor's cache, twice as fast as in one go
        pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float()
        size = (INPUT_SIZE, INPUT_SIZE)
        resized.append(interpolate_bilinear_2d_like_tensorflow1x(pixels, size=size, align_corners=False))
    return (torch.cat(resized) - 128) / 128


class InceptionV3(FeatureExtractor):
    """Features for FID, KID, precision and recall (``pool``), sFID (``spatial``) and the inception score (``logits``).

    - ``pool`` (2048): the graph's ``pool_3``.
    - ``spatial`` (2023): the first 7 channels of the graph's ``mixed_6/conv`` on its 17 x 17 grid (ADM's evaluator),
      the rectified 1x1 branch of the port's ``Mixed_6d``, in the order of ADM's files: rows, columns, channels.
    - ``logits`` (1008): the last layer without its bias, as ADM and torch-fidelity take the inception score.
    """

    name = "inception-v3"
    published_weights = True
    streams: ClassVar[tuple[str, ...]] = ("pool", "spatial", "logits")
    batch_size: ClassVar[int] = 64
    preprocessing = (
        "RGB, grey repeated; TensorFlow 1 bilinear to 299x299 (align_corners and half_pixel_centers off, no "
        "antialiasing); (x - 128) / 128"
    )

    def __init__(self, weights: str | None = None):
        from layersync.core.device import default_device

        path, self.checksum = WEIGHTS.locate(weights)
        self.device = default_device()
        self.network = _load_network(path).to(self.device)
        if self.device.type == "cpu":  # where it takes two thirds of the time so
            self.network.to(memory_format=torch.channels_last)

    def __call__(self, examples: Sequence[Example]) -> Streams:  # noqa: D102
        images = rgb_images(examples, self.name)
        with exact_inference():
            x = inception_input(images, self.device)
            for layer in TO_MIXED_6C:
                x = self.network.get_submodule(layer)(x)
            spatial = self.network.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            for layer in FROM_MIXED_6D:
                x = self.network.get_submodule(layer)(x)
            pool = x.flatten(1)
            logits = pool @ self.network.fc.weight.T
        return {"pool": one_row_each(pool), "spatial": one_row_each(spatial), "logits": one_row_each(logits)}


def _load_network(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The constructor unpickles whatever file it is given. It gets tensors that were read without unpickling, written
    # anew in memory.
    tensors = io.BytesIO()
    torch.save(read_tensors(path, "extractor inception-v3"), tensors)
    tensors.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=tensors)
    except RuntimeError:
        raise InputError(
            f"extractor inception-v3: {path} holds the tensors of another network than torch-fidelity's Inception v3 "
            f"({WEIGHTS.file})"
        ) from None
