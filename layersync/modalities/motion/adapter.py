"""Motion as a modality: what :class:`layersync.core.adapter.ModalityAdapter` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import (
    Backbone,
    ConditionSpec,
    DataConfig,
    ExampleDataset,
    LatentSpec,
    Section,
    Split,
    Tokenizer,
)
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync.modalities.motion.backbone import MotionTransformerConfig
from layersync.modalities.motion.data import AmassConfig, BvhConfig
from layersync.modalities.motion.features.geometric import GeometricFeatures
from layersync.modalities.motion.features.kinetic import KineticFeatures
from layersync.modalities.motion.features.plausibility import floor_penetration, foot_skating, jitter
from layersync.modalities.motion.features.text_motion import TextMotion
from layersync.modalities.motion.humanml3d_data import HumanML3DConfig, KitConfig
from layersync.modalities.motion.humanml3d_tokenizer import (
    HumanML3DTokenizer,
    HumanML3DTokenizerConfig,
    KitTokenizerConfig,
)
from layersync.modalities.motion.mdm import MdmConfig
from layersync.modalities.motion.mocap import MocapClipsConfig
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.samples import open_motion_samples, write_motion_archive
from layersync.modalities.motion.skeleton import NUM_JOINTS, STANDING_HEIGHT
from layersync.modalities.motion.tokenizer import Smpl6dConfig, Smpl6dTokenizer


class MotionAdapter:
    """Pose sequences on SMPL's 24 joints, or as HumanML3D's features."""

    api = 1
    name = "motion"
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {
            "mocap-clips": MocapClipsConfig,
            "bvh": BvhConfig,
            "amass": AmassConfig,
            "humanml3d": HumanML3DConfig,
            "kit-ml": KitConfig,
        },
        "tokenizer": {
            "smpl6d": Smpl6dConfig,
            "humanml3d": HumanML3DTokenizerConfig,
            "kit-ml": KitTokenizerConfig,
        },
        "backbone": {"transformer": MotionTransformerConfig, "mdm": MdmConfig},
    }

    def dataset(self, data: DataConfig, split: Split) -> ExampleDataset:
        """The samples of ``split``: :class:`Motion` at 30 fps, or features at the data set's own rate."""
        return data.build(split)

    def tokenizer(self, config: Smpl6dConfig | HumanML3DTokenizerConfig) -> Tokenizer:
        """The tokenizer, with statistics that leave values as they are until it is fitted."""
        if isinstance(config, HumanML3DTokenizerConfig):
            return HumanML3DTokenizer(config)
        return Smpl6dTokenizer(config)

    def backbone(
        self, config: MotionTransformerConfig | MdmConfig, latent: LatentSpec, condition: ConditionSpec
    ) -> Backbone:
        """The core's transformer over frames, or MDM's encoder."""
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """AIST++'s kinetic and geometric features, without weights, and HumanML3D's text-motion evaluator."""
        return {"kinetic": KineticFeatures, "geometric": GeometricFeatures, "text-motion": TextMotion}

    def metrics(self) -> Mapping[str, Metric]:
        """Whether bodies could move so."""
        return {"foot-skating": foot_skating, "jitter": jitter, "floor-penetration": floor_penetration}

    def aliases(self) -> Mapping[str, str]:
        """What text-to-motion papers call scores on the text-motion evaluator."""
        names = ("r-precision-1", "r-precision-2", "r-precision-3", "matching", "diversity", "multimodality")
        return {"motion-fid": "fd-text-motion"} | {name: f"{name}-text-motion" for name in names}

    def open_samples(self, path: Path) -> ExampleDataset:
        """Folders of AMASS, BVH or HumanML3D files, or one array of joints."""
        return open_motion_samples(path)

    def archive(self, samples: Sequence[Any], labels: Sequence[int] | None, path: Path) -> None:
        """``joints`` (n, frames, 24, 3) in metres, or features (n, frames, 263), zeros behind the end, ``lengths``,
        ``fps``, ``labels``.
        """
        write_motion_archive(path, samples, labels)

    def classifier_input(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """(batch, 72, frames): where each joint is, seen from the pelvis, and how the pelvis moves; and a frame mask.

        Axes are those of the first frame: Y up, Z where it faces. 23 joints give their offset from the pelvis in
        metres; the pelvis gives its velocity in x and z in m/s, and its height in metres above or below that of a
        standing body. Samples are :class:`Motion`: of joints alone it is not known how a body turns.
        """
        for sample in samples:
            if not isinstance(sample, Motion):
                raise InputError(
                    f"the domain classifier reads motions with rotations, as runs, AMASS and BVH files have; "
                    f"{type(sample).__name__} has joints alone: fd-kinetic, fd-geometric and text-motion read these"
                )
        longest = max(len(sample) for sample in samples)
        values = np.zeros((len(samples), NUM_JOINTS * 3, longest), dtype=np.float32)
        mask = np.zeros((len(samples), longest), dtype=bool)
        for row, sample in enumerate(samples):
            values[row, :, : len(sample)] = _seen_from_pelvis(sample.canonical()).T
            mask[row, : len(sample)] = True
        return torch.from_numpy(values), torch.from_numpy(mask)

    def render(self, samples: Sequence[Any], directory: Path) -> list[Path]:
        """An animated GIF of the first samples side by side, and each sample as AMASS-style ``.npz``, or as features in
        ``.npy``.
        """
        from layersync.modalities.motion.render import render

        return render(samples, directory)


def _seen_from_pelvis(motion: Motion) -> np.ndarray:
    joints = motion.joints()
    pelvis = joints[:, 0].copy()
    channels = joints - pelvis[:, None]
    velocity = np.diff(pelvis, axis=0, prepend=pelvis[:1]) * motion.fps
    if len(motion) > 1:
        velocity[0] = velocity[1]
    channels[:, 0] = velocity
    channels[:, 0, 1] = pelvis[:, 1] - STANDING_HEIGHT
    return channels.reshape(len(motion), -1)
