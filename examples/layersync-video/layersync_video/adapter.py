"""The video modality as the core sees it: everything else in this package is reached from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersync.core.adapter import ConditionSpec, DataConfig, ExampleDataset, LatentSpec, Section, Split
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync_video.backbone import VideoTransformerConfig
from layersync_video.clip import Clip
from layersync_video.data import Folder, MovingDigits
from layersync_video.features import NormalFlow, VideoMae, evenly_spaced, temporal_flickering
from layersync_video.render import render_clips
from layersync_video.samples import open_clips, write_clips
from layersync_video.tokenizer import Pixels, PixelsConfig

CLASSIFIER_FRAMES, CLASSIFIER_SIZE = 8, 32


class VideoAdapter:
    """Samples are :class:`layersync_video.clip.Clip`."""

    name = "video"
    api = 1
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {"moving-digits": MovingDigits, "folder": Folder},
        "tokenizer": {"pixels": PixelsConfig},
        "backbone": {"transformer": VideoTransformerConfig},
    }

    def dataset(self, data: DataConfig, split: Split) -> ExampleDataset:
        """The clips of ``split``."""
        return data.build(split)

    def tokenizer(self, config: PixelsConfig) -> Pixels:
        """Pixels; there is nothing to fit."""
        return Pixels(config)

    def backbone(self, config: VideoTransformerConfig, latent: LatentSpec, condition: ConditionSpec) -> nn.Module:
        """The core's transformer on a grid of height, width and frames."""
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """A formula of motion without weights, and a published network."""
        return {NormalFlow.name: NormalFlow, VideoMae.name: VideoMae}

    def metrics(self) -> Mapping[str, Metric]:
        """VBench's."""
        return {"temporal-flickering": temporal_flickering}

    def aliases(self) -> Mapping[str, str]:
        """A Fréchet video distance; the bare name FVD is that of I3D features, which are not here."""
        return {"fvd-videomae": "fd-videomae.features"}

    def open_samples(self, path: Path) -> ExampleDataset:
        """A folder of animations or of frames, or an ``.npz``."""
        return open_clips(path)

    def archive(self, samples: Sequence[Clip], labels: Sequence[int] | None, path: Path) -> None:
        """``videos`` uint8 (n, frames, height, width, channels), ``fps``, ``lengths``, ``labels``."""
        write_clips(path, samples, labels)

    def classifier_input(self, samples: Sequence[Clip]) -> tuple[Tensor, None]:
        """Pixels in [-1, 1] of 8 evenly spaced frames, laid over each other as channels.

        So an image classifier sees motion from its first layer on (Simonyan and Zisserman, NeurIPS 2014, stack frames
        like this). Frames larger than 32 pixels are averaged down to it. All clips have to have one size.
        """
        shapes = {clip.frames.shape[1:] for clip in samples}
        if len(shapes) > 1:
            raise InputError(f"clips of differing sizes cannot be compared: {sorted(shapes)}")
        frames = np.stack([evenly_spaced(clip, CLASSIFIER_FRAMES).frames for clip in samples])
        batch = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 127.5 - 1
        if max(batch.shape[2:]) > CLASSIFIER_SIZE:
            batch = F.interpolate(batch, CLASSIFIER_SIZE, mode="area")
        return batch, None

    def render(self, samples: Sequence[Clip], directory: Path) -> list[Path]:
        """A GIF for each clip, and a sheet of frames."""
        return render_clips(samples, directory)
