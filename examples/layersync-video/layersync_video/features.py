"""What clips are scored on: how they move, without weights; a published video network; and flickering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, HubWeights, Streams
from layersync.core.pretrained import load_pretrained, read_config
from layersync_video.clip import Clip, conformed

NUM_DIRECTIONS = 8
VIDEOMAE = HubWeights("extractor videomae", "MCG-NJU/videomae-base-finetuned-ssv2")


def clip_of(example: Example, least: int) -> Clip:
    """The sample, checked to be a clip of at least ``least`` frames. InputError naming its source otherwise."""
    if not isinstance(example.sample, Clip) or len(example.sample) < least:
        raise InputError(f"{example.source}: has to be a clip of at least {least} frames")
    return example.sample


class NormalFlow(FeatureExtractor):
    """Where brightness moves: histograms of the normal flow's direction in cells of space and time. No weights.

    At each pixel the motion along the brightness gradient is -I_t (I_x, I_y), up to its scale (Horn and Schunck 1981,
    eq. 4). As Polana and Nelson (1994) do with normal flow, and Laptev et al. (CVPR 2008) with optical flow, its
    direction is counted, weighted by its length, in 8 bins in each of 2 x 2 x 2 cells of height, width and time. A
    Fréchet distance on these is blind to what is shown unless it moves: it stands beside fd-classifier, and is no FVD.
    """

    name = "normal-flow"
    preprocessing = "grey in [0, 1]; central differences; 8 directions in 2x2x2 cells, square root of the mean length"

    def __init__(self, given: str | None = None) -> None:
        if given is not None:
            raise InputError(f"--extractor {self.name}={given}: {self.name} is a formula without weights")

    def __call__(self, examples: Sequence[Example]) -> Streams:
        """One row (1, 64) a clip, which has 3 frames or more."""
        return {"features": [_flow_histogram(clip_of(example, 3)).reshape(1, -1) for example in examples]}


def _flow_histogram(clip: Clip) -> NDArray[np.float32]:
    grey = clip.frames.mean(axis=3) / 255
    time, rows, columns = np.gradient(grey)
    flow = -time * (columns + 1j * rows)
    direction = np.round(np.angle(flow) / (2 * np.pi) * NUM_DIRECTIONS).astype(int) % NUM_DIRECTIONS
    lengths = np.abs(flow)[..., None] * (direction[..., None] == np.arange(NUM_DIRECTIONS))
    halves = [lengths]
    for axis in range(3):
        halves = [part for whole in halves for part in np.array_split(whole, 2, axis)]
    return np.sqrt(np.stack([cell.mean(axis=(0, 1, 2)) for cell in halves])).astype(np.float32)


class VideoMae(FeatureExtractor):
    """VideoMAE (Tong et al., NeurIPS 2022), fine-tuned on Something-Something v2, whose labels are motions.

    ``features`` are what its classifier reads. Ge et al. (CVPR 2024) show that a Fréchet video distance on features of
    this kind, unlike FVD's I3D, is not decided by single frames. Theirs is a larger network: numbers do not compare.
    """

    name = "videomae"
    streams: ClassVar[tuple[str, ...]] = ("features", "logits")
    batch_size: ClassVar[int] = 4
    published_weights: ClassVar[bool] = True

    def __init__(self, given: str | None = None) -> None:
        from transformers import VideoMAEForVideoClassification

        folder, self.checksum = VIDEOMAE.locate(given)
        self.network = load_pretrained(VideoMAEForVideoClassification, "videomae", folder, f"extractor {self.name}")
        published = read_config(folder, f"extractor {self.name}", "preprocessor_config.json")
        self.mean, self.deviation = published["image_mean"], published["image_std"]
        self.preprocessing = (
            f"RGB, {self.network.config.num_frames} evenly spaced frames, those of shorter clips repeated; centred "
            f"square, Pillow bilinear to {self.network.config.image_size}; / 255; minus {self.mean}, "
            f"over {self.deviation}"
        )

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Features (hidden size) and logits (classes), one row a clip."""
        settings, device = self.network.config, self.network.device
        clips = []
        for example in examples:
            clip = evenly_spaced(clip_of(example, 1), settings.num_frames)
            clip = conformed(clip, settings.image_size, 3, resample=Image.Resampling.BILINEAR)
            clips.append(torch.from_numpy(clip.frames))
        pixels = torch.stack(clips).float() / 255
        pixels = (pixels - torch.tensor(self.mean)) / torch.tensor(self.deviation)
        tokens = self.network.videomae(pixel_values=pixels.permute(0, 1, 4, 2, 3).to(device)).last_hidden_state
        norm = self.network.fc_norm
        features = tokens[:, 0] if norm is None else norm(tokens.mean(1))
        logits = self.network.classifier(features)
        return {"features": list(features.cpu().numpy()[:, None]), "logits": list(logits.cpu().numpy()[:, None])}


def evenly_spaced(clip: Clip, count: int) -> Clip:
    """``count`` frames from the first to the last; shorter clips give some twice."""
    chosen = np.linspace(0, len(clip) - 1, count).round().astype(int)
    return Clip(clip.frames[chosen], clip.fps * count / len(clip))


def temporal_flickering(examples: Sequence[Example]) -> NDArray[np.float64]:
    """(samples,) in [0, 1]: (255 - mean absolute difference of neighbouring frames) / 255.

    VBench's ``temporal_flickering`` (Huang et al., CVPR 2024), on all samples: 1 is a still. What moves differs from
    frame to frame too, so it is read against the value of real clips, and a generated set may lie on either side of it.
    """
    frames = [clip_of(example, 2).frames.astype(np.float64) for example in examples]
    return np.array([1 - np.abs(np.diff(clip, axis=0)).mean() / 255 for clip in frames])
