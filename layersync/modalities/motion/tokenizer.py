"""``smpl6d``: a window of motion as root channels and 24 rotations of 6 numbers a frame, normalised."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section
from layersync.core.errors import InputError
from layersync.core.statistics import ChannelStatistics
from layersync.modalities.motion.representation import (
    ROOT_CHANNELS,
    RootForm,
    integrate_root,
    matrix_to_sixd,
    root_features,
    sixd_to_matrix,
)
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import NUM_JOINTS

SMALLEST_DEVIATION = 0.02
"""Channels that vary less are divided by this. 0.02 in a 6-D number is about one degree: below it there is only noise
to amplify, and joints that a data set never moves have no deviation at all."""


class Smpl6dConfig(Section):
    """The ``tokenizer`` section of a motion recipe."""

    name: Literal["smpl6d"] = "smpl6d"
    num_frames: int = Field(64, ge=2)
    """Length of a window; shorter clips are padded and masked."""
    root: RootForm = "velocity"
    fps: PositiveFloat = 30.0

    def latent_spec(self) -> LatentSpec:
        """Root channels and 6 numbers for each joint, frame by frame."""
        channels = ROOT_CHANNELS[self.root] + NUM_JOINTS * 6
        return LatentSpec(channels=channels, grid=(self.num_frames,), sequence=True, variable=True)

    def stored_channels(self) -> int:
        """Pelvis position and 6 numbers for each joint."""
        return 3 + NUM_JOINTS * 6


class Smpl6dTokenizer(ChannelStatistics):
    """Latents are (frames, root channels + 144): root first, then 6 numbers for each joint in SMPL's order.

    Stored are whole clips as they are, (frames, 147): pelvis position in metres and 6-D rotations. What depends on
    where a window starts is computed when it is read, so that each window stands at the origin and faces +Z in its
    first frame, wherever in the clip it was cut.
    """

    smallest_deviation = SMALLEST_DEVIATION

    def __init__(self, config: Smpl6dConfig) -> None:
        super().__init__(config.latent_spec())
        self.config, self.name = config, config.name
        # The stored form does not know the window, but what else is cached under this name is made of windows.
        self.fingerprint = f"smpl6d-1-fps{config.fps:g}-frames{config.num_frames}"

    def encode(self, samples: Sequence[Motion]) -> list[Tensor]:
        """Stored form (frames, 147) float32 of each motion, at the tokenizer's frame rate."""
        stored = []
        for sample in samples:
            if not isinstance(sample, Motion):
                raise InputError(
                    f"tokenizer smpl6d: takes motions with rotations, as BVH and AMASS files have; "
                    f"{type(sample).__name__} goes with tokenizer humanml3d or kit-ml"
                )
            if sample.fps < self.config.fps - 1e-3:
                warnings.warn(
                    f"tokenizer.fps: {self.config.fps:g}, and motions come at {sample.fps:g} frames a second: those in "
                    f"between are interpolated, which is no more motion",
                    stacklevel=2,
                )
            motion = sample.resampled(self.config.fps)
            sixd = matrix_to_sixd(torch.from_numpy(motion.rotations)).flatten(1)
            stored.append(torch.cat([torch.from_numpy(motion.translation), sixd], dim=1).float())
        return stored

    def fit(self, stored: Iterable[Tensor]) -> None:
        """Mean and deviation of each channel over windows that start every quarter of a window."""
        length, stride = self.config.num_frames, max(1, self.config.num_frames // 4)
        super().fit(
            self._features(
                torch.stack([clip[at : at + length] for at in range(0, max(len(clip) - length, 0) + 1, stride)]).float()
            )
            for clip in stored
        )

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, frames, 147) stored windows, zeros behind the end of a clip, to normalised latents; padding stays
        0.
        """
        real = stored[..., 3:].abs().sum(-1, keepdim=True) > 0
        normalised = self.normalised(self._features(stored))
        return torch.where(real, normalised, torch.zeros_like(normalised))

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Motion]:
        """Motions from latents (batch, frames, channels), in their windows' own frame; the frames in ``mask`` only."""
        values = self.denormalised(latents)
        root_channels = ROOT_CHANNELS[self.config.root]
        rotations = sixd_to_matrix(values[..., root_channels:].unflatten(-1, (NUM_JOINTS, 6)))
        translation, rotations[..., 0, :, :] = integrate_root(
            values[..., :root_channels], rotations[..., 0, :, :], self.config.fps, self.config.root
        )
        keep = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        return [
            Motion(translation[row, keep[row]].numpy(), rotations[row, keep[row]].numpy(), self.config.fps).canonical()
            for row in range(len(values))
        ]

    def window(self, sample: Motion, position: float) -> Motion:
        """The excerpt that one latent covers, standing at the origin and facing +Z in its first frame."""
        motion = sample.resampled(self.config.fps)
        room = len(motion) - self.config.num_frames
        start = max(0, min(int(position * (room + 1)), room))
        return motion.cut(start, start + self.config.num_frames).canonical()

    def _features(self, stored: Tensor) -> Tensor:
        sixd = stored[..., 3:]
        root, rotation = root_features(
            stored[..., :3], sixd_to_matrix(sixd[..., :6]), self.config.fps, self.config.root
        )
        return torch.cat([root, matrix_to_sixd(rotation), sixd[..., 6:]], dim=-1)
