"""KIT-ML's motions in HumanML3D's representation: 251 numbers a frame, on a skeleton of 21 joints that is not SMPL's.

As github.com/EricGuo5513/HumanML3D distributes them (``new_joint_vecs`` of KIT-ML, skeleton in ``paramUtil.py``): 12.5
frames a second, lengths in a unit of the data's own, of which a standing body is about 800 high.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from layersync.core.errors import InputError
from layersync.modalities.motion.humanml3d import recovered_joints

FPS = 12.5
NUM_JOINTS = 21
NUM_FEATURES = 251

CHAINS = ((0, 11, 12, 13, 14, 15), (0, 16, 17, 18, 19, 20), (0, 1, 2, 3, 4), (3, 5, 6, 7), (3, 8, 9, 10))
"""``kit_kinematic_chain``: right leg, left leg, spine, left arm, right arm of the file's naming."""
BONES = tuple(bone for chain in CHAINS for bone in pairwise(chain))
METRES_SHOWN = 0.002
"""A unit in drawings, at which the mean head (``kit_mean.npy``) is 1.6 m high."""


@dataclass(frozen=True)
class KitFeatures:
    """A motion as KIT-ML's features, ``values`` (frames, 251) float32 that are not normalised.

    It has no ``joints()``, as its joints are not SMPL's: scores that name SMPL's joints refuse it. Raises
    :class:`InputError` for another shape and values that are not finite.
    """

    values: np.ndarray
    fps: ClassVar[float] = FPS

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != NUM_FEATURES or not len(self.values):
            raise InputError(f"KIT-ML features of a motion are (frames, {NUM_FEATURES}), not {self.values.shape}")
        if bad := int((~np.isfinite(self.values)).sum()):
            raise InputError(f"features hold {bad} values that are not finite numbers")

    def __len__(self) -> int:
        return len(self.values)

    def places(self) -> np.ndarray:
        """Joint positions (frames, 21, 3) in the data's unit."""
        joints: np.ndarray = recovered_joints(torch.from_numpy(self.values.astype(np.float64)), NUM_JOINTS).numpy()
        return joints

    def cut(self, start: int, stop: int) -> KitFeatures:
        """Rows ``start`` to ``stop``, without ``stop``."""
        return replace(self, values=self.values[start:stop])
