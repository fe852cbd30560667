"""``humanml3d`` and ``kit-ml``: frames of HumanML3D's features, normalised with statistics that are published."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section
from layersync.core.errors import InputError
from layersync.core.statistics import ChannelStatistics
from layersync.modalities.motion.humanml3d import NUM_FEATURES, HumanML3DFeatures, joints_to_humanml3d
from layersync.modalities.motion.kit import NUM_FEATURES as KIT_FEATURES
from layersync.modalities.motion.kit import KitFeatures
from layersync.modalities.motion.sample import JointMotion, Motion

Features = HumanML3DFeatures | KitFeatures

SMALLEST_DEVIATION = 1e-5
"""Of statistics that are taken here: what never changes is divided by this."""
EVALUATORS_CONTACTS = 0.1
"""Foot contacts are 0 or 1 and deviate by 0.2 to 0.5; the evaluator's statistics say 25 times less."""


class HumanML3DTokenizerConfig(Section):
    """The ``tokenizer`` section for features of 263 numbers (``humanml3d``) or 251 (``kit-ml``)."""

    name: Literal["humanml3d", "kit-ml"] = "humanml3d"
    num_frames: int = Field(196, ge=4)
    """Length of a window; shorter motions are padded with zeros and masked."""
    statistics: str | None = None
    """Folder of the ``Mean.npy`` and ``Std.npy`` that models are trained with; null takes them from the training data,
    deviations averaged over each group of features as published."""

    def latent_spec(self) -> LatentSpec:
        """A sequence of features."""
        channels = KIT_FEATURES if self.name == "kit-ml" else NUM_FEATURES
        return LatentSpec(channels=channels, grid=(self.num_frames,), sequence=True, variable=True)


class KitTokenizerConfig(HumanML3DTokenizerConfig):
    """The ``tokenizer`` section for KIT-ML."""

    name: Literal["kit-ml"] = "kit-ml"


class HumanML3DTokenizer(ChannelStatistics):
    """Latents are (frames, 263 or 251), each number minus its mean and divided by its deviation.

    Stored are whole motions as they are. The statistics are kept in the run, so that samples need no data set.
    """

    smallest_deviation = 0.0  # of one feature: what is averaged over a group has a least value of its own

    def __init__(self, config: HumanML3DTokenizerConfig) -> None:
        super().__init__(config.latent_spec())
        self.config, self.name = config, config.name
        self.kit = config.name == "kit-ml"
        self.fingerprint = f"{config.name}-1-frames{config.num_frames}"
        self._fitted = False

    def encode(self, samples: Sequence[Any]) -> list[Tensor]:
        """Features (frames, channels) float32 of each motion.

        ``humanml3d`` also takes motions and joints, which it describes at 20 frames a second. Raises
        :class:`InputError` for statistics that cannot be read, before anything is encoded, and for other samples.
        """
        if not self._fitted and self.config.statistics is not None:
            self._published(self.config.statistics)
        return [torch.from_numpy(self._features(sample).values.astype(np.float32)) for sample in samples]

    def fit(self, stored: Iterable[Tensor]) -> None:
        """The published statistics; without them, those of all frames of ``stored``."""
        if self.config.statistics is not None:
            self.mean, self.deviation = self._published(self.config.statistics)
        else:
            super().fit(stored)
            for group in feature_groups(self.latent.channels):
                self.deviation[group] = self.deviation[group].mean()
            self.deviation.clamp_(min=SMALLEST_DEVIATION)
        self._fitted = True

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics. Raises :class:`InputError` when they are for another latent."""
        super().load_state(state)
        self._fitted = True

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, frames, channels) windows, zeros behind the end of a motion, normalised; padding stays 0."""
        real = stored.abs().sum(-1, keepdim=True) > 0
        normalised = self.normalised(stored)
        return torch.where(real, normalised, torch.zeros_like(normalised))

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Features]:
        """Features that are not normalised, of the frames in ``mask`` only."""
        values = self.denormalised(latents).numpy()
        keep = np.ones(values.shape[:2], dtype=bool) if mask is None else mask.cpu().numpy()
        rows = [value[real] for value, real in zip(values, keep, strict=True)]
        return [KitFeatures(row) if self.kit else HumanML3DFeatures(row, certain=True) for row in rows]

    def window(self, sample: Any, position: float) -> Features:
        """The frames that one latent covers."""
        features = self._features(sample)
        room = len(features) - self.config.num_frames
        start = max(0, min(int(position * (room + 1)), room))
        return features.cut(start, start + self.config.num_frames)

    def _features(self, sample: Any) -> Features:
        if isinstance(sample, KitFeatures if self.kit else HumanML3DFeatures):
            found: Features = sample
            return found
        if not self.kit and isinstance(sample, Motion | JointMotion):
            return HumanML3DFeatures(joints_to_humanml3d(sample.joints(), sample.fps))
        raise InputError(
            f"tokenizer {self.config.name}: cannot read {type(sample).__name__}; it goes with data {self.config.name}"
        )

    def _published(self, folder: str) -> tuple[Tensor, Tensor]:
        root = Path(os.path.expandvars(folder)).expanduser()
        arrays = []
        for name in ("Mean.npy", "Std.npy"):
            if not (root / name).is_file():
                raise InputError(
                    f"tokenizer.statistics: {self.config.name} without its statistics: {root} has no {name}; null "
                    f"takes them from the training data"
                )
            try:
                array = np.load(root / name, allow_pickle=False)
            except (OSError, EOFError, ValueError) as error:
                raise InputError(f"{root / name}: no readable array ({' '.join(str(error).split())})") from None
            if array.shape != (self.latent.channels,) or not np.isfinite(array).all():
                raise InputError(
                    f"{root / name}: expected {self.latent.channels} finite numbers, found shape {array.shape}"
                )
            arrays.append(torch.from_numpy(array.astype(np.float32)))
        mean, deviation = arrays
        if not bool((deviation > 0).all()):
            raise InputError(f"{root / 'Std.npy'}: holds a deviation that is not above 0")
        if float(deviation[-4:].max()) < EVALUATORS_CONTACTS:
            raise InputError(
                f"{root / 'Std.npy'}: the foot contacts deviate by {float(deviation[-4:].max()):.3f}: these are the "
                f"evaluator's statistics, 25 times smaller there than the Std.npy that models are trained with"
            )
        return mean, deviation


def feature_groups(channels: int) -> list[slice]:
    """Yaw rate, root velocity, root height, positions, rotations, velocities, contacts of 263 or 251 features.

    Over each of which deviations are averaged (``cal_mean_variance.ipynb`` of github.com/EricGuo5513/HumanML3D).
    """
    joints = (channels + 1) // 12
    edges = [0, 1, 3, 4, 4 + 3 * (joints - 1), 4 + 9 * (joints - 1), channels - 4, channels]
    return [slice(start, stop) for start, stop in pairwise(edges)]
