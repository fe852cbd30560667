"""SMPL's 24 joints on a generic skeleton, and forward kinematics through smplx.

Positions are metres, Y points up, the body faces +Z, so that its left side is +X. Rotations are 3x3 matrices, each
relative to the parent joint, and all identity in the T-pose: SMPL's own conventions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

JOINTS = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
"""Names in SMPL's order."""

INDEX = {name: index for index, name in enumerate(JOINTS)}
NUM_JOINTS = len(JOINTS)
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

_MIDDLE_AND_LEFT_OFFSETS = {
    "pelvis": (0.0, 0.0, 0.0),
    "spine1": (0.0, 0.110, -0.025),
    "spine2": (0.0, 0.135, 0.005),
    "spine3": (0.0, 0.055, 0.015),
    "neck": (0.0, 0.210, -0.030),
    "head": (0.0, 0.090, 0.050),
    "left_hip": (0.065, -0.085, -0.005),
    "left_knee": (0.035, -0.385, 0.0),
    "left_ankle": (-0.010, -0.400, -0.035),
    "left_foot": (0.025, -0.055, 0.120),
    "left_collar": (0.075, 0.115, -0.015),
    "left_shoulder": (0.115, 0.035, -0.010),
    "left_elbow": (0.260, -0.010, -0.020),
    "left_wrist": (0.250, 0.010, 0.0),
    "left_hand": (0.085, -0.010, -0.010),
}
"""Each joint from its parent, in metres; the right side is the left one reflected.

Our own round numbers for an adult of about 1.7 m in T-pose. They approximate the proportions of SMPL's mean body and
are not its learned joint regressor: with a body model file, take the joints from :mod:`layersync.modalities.motion.io`.
"""


def other_side(name: str) -> str:
    """The joint on the other side of the body, or ``name`` itself for a joint in the middle."""
    for side, opposite in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return opposite + name.removeprefix(side)
    return name


MIRROR = np.array([INDEX[other_side(name)] for name in JOINTS])
"""``array[MIRROR]`` swaps left and right."""


def _rest_positions() -> np.ndarray:
    rest = np.zeros((NUM_JOINTS, 3))
    for index, name in enumerate(JOINTS):
        if name.startswith("right_"):
            offset = np.array(_MIDDLE_AND_LEFT_OFFSETS[other_side(name)]) * (-1, 1, 1)
        else:
            offset = np.array(_MIDDLE_AND_LEFT_OFFSETS[name])
        rest[index] = offset + (rest[PARENTS[index]] if index else 0)
    return rest.astype(np.float32)


REST = _rest_positions()
"""(24, 3) joints of the generic skeleton in T-pose, in metres, with the pelvis at the origin."""

REST.flags.writeable = False

STANDING_HEIGHT = float(-REST[:, 1].min()) + 0.02
"""Height of the pelvis over the floor when the generic skeleton stands: its toe joints are 2 cm above the floor."""


def forward_kinematics(translation: Tensor, rotations: Tensor) -> Tensor:
    """Joint positions (frames, 24, 3) of the generic skeleton, in metres.

    ``translation`` (frames, 3) is where the pelvis is, ``rotations`` (frames, 24, 3, 3) are relative to the parent.
    """
    from smplx.lbs import batch_rigid_transform

    rest = torch.tensor(REST).to(rotations).expand(len(rotations), -1, -1)
    parents = torch.tensor(PARENTS, device=rotations.device)
    joints, _ = batch_rigid_transform(rotations, rest, parents, rotations.dtype)
    return joints + translation[:, None]
