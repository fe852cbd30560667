"""HumanML3D's representation of a motion, 263 numbers a frame, from joints and back to joints.

After ``motion_representation.ipynb``, ``common/skeleton.py`` and ``paramUtil.py`` of github.com/EricGuo5513/HumanML3D
(Guo et al., CVPR 2022), oddities included, because published evaluators and models were trained on what that code
gives. Two of them are worth knowing:

- The heading of a frame mixes up the hips: it is taken across left minus right hip plus right minus left shoulder, and
  smoothed over time by a Gaussian of 20 frames.
- Headings are half angles in (-pi/2, pi/2], so that where one passes "facing backwards" the turn of that one frame has
  the wrong sign, and what is recovered after it is turned by twice that frame's turn.

At 20 frames a second; Y is up; lengths are metres and velocities metres a frame. Row n says where frame n is and how
one comes to frame n + 1, so that a motion of n frames has n - 1 rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, TypeVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from layersync.core.errors import InputError
from layersync.modalities.motion.representation import turn_about_y
from layersync.modalities.motion.retarget import least_turn
from layersync.modalities.motion.sample import about_y, resampled_joints

FPS = 20.0
NUM_JOINTS = 22
"""The first 22 of SMPL's 24: all but the hands."""

YAW_RATE, ROOT_VELOCITY, ROOT_HEIGHT = slice(0, 1), slice(1, 3), slice(3, 4)
POSITIONS, ROTATIONS, VELOCITIES, CONTACTS = slice(4, 67), slice(67, 193), slice(193, 259), slice(259, 263)
NUM_FEATURES = 263

CHAINS = ((0, 2, 5, 8, 11), (0, 1, 4, 7, 10), (0, 3, 6, 9, 12, 15), (9, 14, 17, 19, 21), (9, 13, 16, 18, 20))
"""``t2m_kinematic_chain``: the rotation of a chain's first bone is relative to the heading, in the arms too."""

_AXES = {"left": (1, 0, 0), "right": (-1, 0, 0), "up": (0, 1, 0), "down": (0, -1, 0), "forward": (0, 0, 1)}
BONE_DIRECTIONS = np.array(
    [
        (0, 0, 0),
        *(
            _AXES[name]
            for name in (
                "left", "right", "up", "down", "down", "up", "down", "down", "up", "forward", "forward", "up",
                "left", "right", "forward", "down", "down", "down", "down", "down", "down",
            )
        ),
    ],
    dtype=np.float64,
)  # fmt: skip
"""``t2m_raw_offsets`` (22, 3): where each joint lies from its parent when nothing is rotated."""

CONTACT_THRESHOLD = 0.002
"""Square metres: a foot joint that moves less than its root, 4.5 cm, from one frame to the next is in contact."""
HEADING_SMOOTHING = 20
"""Frames; the Gaussian's deviation."""

_LEFT_HIP, _RIGHT_HIP, _LEFT_SHOULDER, _RIGHT_SHOULDER = 1, 2, 16, 17
_LEFT_FOOT, _RIGHT_FOOT = (7, 10), (8, 11)
_LOWER_LEG = (5, 8)
PARENTS = {child: parent for chain in CHAINS for parent, child in pairwise(chain)}

Array = TypeVar("Array", np.ndarray, Tensor)


def humanml3d_to_joints(features: Array) -> Array:
    """Joints (..., frames, 22, 3) in metres of features (..., frames, 263) that are **not** normalised.

    The published ``recover_from_ric``: only the first 67 numbers matter. The first frame stands at x = z = 0 and faces
    +Z. NumPy gives NumPy, torch gives torch (with gradients), of the same precision. Raises :class:`InputError` for
    another shape.
    """
    if isinstance(features, Tensor):
        return recovered_joints(features, NUM_JOINTS)
    values = np.asarray(features)
    precision = values.dtype if np.issubdtype(values.dtype, np.floating) else np.dtype(np.float32)
    recovered = recovered_joints(torch.from_numpy(values.astype(np.float64)), NUM_JOINTS)
    joints: np.ndarray = recovered.numpy().astype(precision)
    return joints


def recovered_joints(features: Tensor, num_joints: int) -> Tensor:
    """Joints (..., frames, num_joints, 3) of features on a skeleton of ``num_joints``, HumanML3D's or KIT-ML's."""
    channels = 12 * num_joints - 1
    if features.ndim < 2 or features.shape[-1] != channels:
        raise InputError(f"HumanML3D features are (..., frames, {channels}), not {tuple(features.shape)}")
    values = features.double()
    # Rates of a row lead to the next frame, so that the first frame has none.
    half_turn = torch.nn.functional.pad(values[..., :-1, 0], (1, 0)).cumsum(-1)
    turn = turn_about_y(-2 * half_turn)
    step = torch.nn.functional.pad(values[..., :-1, ROOT_VELOCITY], (0, 0, 1, 0))
    level = torch.stack([step[..., 0], torch.zeros_like(half_turn), step[..., 1]], dim=-1)
    path = (turn @ level[..., None]).squeeze(-1).cumsum(-2)
    root = torch.stack([path[..., 0], values[..., 3], path[..., 2]], dim=-1)
    local = values[..., 4 : 3 * num_joints + 1].unflatten(-1, (num_joints - 1, 3))
    others = local @ turn.transpose(-1, -2) + path[..., None, :]
    return torch.cat([root[..., None, :], others], dim=-2).to(features.dtype)


def skeleton_offsets(joints: np.ndarray) -> np.ndarray:
    """Bones (22, 3) in metres of the first frame of joints (frames, >= 22, 3), each along its axis when unrotated.

    HumanML3D brings every motion onto the skeleton of its file ``joints/000021.npy``, which is made from AMASS and may
    not be passed on: give that file's array, and the result to :func:`joints_to_humanml3d`.
    """
    if joints.ndim != 3 or joints.shape[1] < NUM_JOINTS or joints.shape[2] != 3 or not len(joints):
        raise InputError(f"joints are (frames, >= {NUM_JOINTS}, 3), not {joints.shape}")
    lengths = np.zeros(NUM_JOINTS)
    for child, parent in PARENTS.items():
        lengths[child] = np.linalg.norm(joints[0, child].astype(np.float64) - joints[0, parent])
    offsets: np.ndarray = lengths[:, None] * BONE_DIRECTIONS
    return offsets


def joints_to_humanml3d(joints: Array, fps: float = FPS, *, target_offsets: np.ndarray | None = None) -> Array:
    """Features (..., frames - 1, 263), not normalised, of joints (..., frames, >= 22, 3) in metres, Y up.

    The published ``process_file``: put on the floor, to x = z = 0 and facing +Z, then described. Joints at another rate
    are first resampled to 20 a second (at a multiple of it: every so many frames, as published).

    Args:
        joints: SMPL's in its order, of which the first 22 are taken. NumPy gives NumPy, torch gives torch; float32.
        fps: their frames a second.
        target_offsets: bones (22, 3) of the skeleton that the motion is brought onto, :func:`skeleton_offsets` of
            HumanML3D's ``000021.npy``; ``None`` leaves the body as it is, right for joints of that skeleton only.

    Raises:
        InputError: for another shape, fewer than 2 frames, values that are not finite, joints that coincide.
    """
    if isinstance(joints, Tensor):
        described = _described(joints.detach().cpu().numpy(), fps, target_offsets)
        return torch.from_numpy(described).to(joints.device)
    return _described(np.asarray(joints), fps, target_offsets)


def _described(joints: np.ndarray, fps: float, target_offsets: np.ndarray | None) -> np.ndarray:
    _check_joints(joints)
    places = resampled_joints(joints[..., :NUM_JOINTS, :].astype(np.float64), fps, FPS)
    if places.shape[-3] < 2:
        raise InputError(f"{joints.shape[-3]} frames at {fps:g} a second are fewer than 2 at {FPS:g}")
    bones = _bones(places)
    if target_offsets is not None:
        places = _onto_skeleton(places, bones, np.asarray(target_offsets, dtype=np.float64))
    places = _canonical(places)
    half_turn = _half_turns(places)
    turn = about_y(2 * half_turn)
    root = places[..., 0, :]
    local = places - root[..., None, :] * np.array([1.0, 0.0, 1.0])
    velocity = _turned(turn[..., 1:, :, :], np.diff(root, axis=-2)[..., None, :])[..., 0, :]
    parts = [
        np.arcsin(np.sin(np.diff(half_turn, axis=-1)))[..., None],
        velocity[..., [0, 2]],
        root[..., :-1, 1:2],
        _flat(_turned(turn, local)[..., :-1, 1:, :]),
        _flat(_rotations(_bones(places), turn)[..., :-1, 1:, :]),
        _flat(_turned(turn[..., :-1, :, :], np.diff(places, axis=-3))),
        _contacts(places),
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _check_joints(joints: np.ndarray) -> None:
    if joints.ndim < 3 or joints.shape[-2] < NUM_JOINTS or joints.shape[-1] != 3:
        raise InputError(f"joints are (..., frames, >= {NUM_JOINTS}, 3), not {joints.shape}")
    if not np.isfinite(joints).all():
        raise InputError("joints hold values that are not finite numbers")


def _bones(places: np.ndarray) -> np.ndarray:
    """(..., frames, 22, 3) from its parent to each joint, 0 for the pelvis."""
    bones = np.zeros_like(places)
    for child, parent in PARENTS.items():
        bones[..., child, :] = places[..., child, :] - places[..., parent, :]
        if not np.linalg.norm(bones[..., child, :], axis=-1).min() > 1e-6:
            raise InputError(f"joints {parent} and {child} coincide in some frame (frames that only pad are cut off)")
    return bones


def _onto_skeleton(places: np.ndarray, bones: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The published ``uniform_skeleton``: the same directions with other bone lengths, the path scaled as the legs."""
    if offsets.shape != (NUM_JOINTS, 3):
        raise InputError(f"target_offsets are ({NUM_JOINTS}, 3), not {offsets.shape}")
    lengths = np.linalg.norm(offsets, axis=-1)
    own = np.linalg.norm(bones, axis=-1)
    scale = lengths[list(_LOWER_LEG)].sum() / own[..., 0, list(_LOWER_LEG)].sum(-1)
    moved = np.empty_like(places)
    moved[..., 0, :] = places[..., 0, :] * scale[..., None, None]
    for child, parent in PARENTS.items():
        direction = bones[..., child, :] / own[..., child, None]
        moved[..., child, :] = moved[..., parent, :] + direction * lengths[child]
    return moved


def _canonical(places: np.ndarray) -> np.ndarray:
    """On the floor, which is the lowest joint of the clip, at x = z = 0 and facing +Z in the first frame."""
    origin = places[..., :1, :1, :] * np.array([1.0, 0.0, 1.0])
    origin[..., 1] = places[..., 1].min(axis=(-2, -1))[..., None, None]
    first = places[..., 0, :, :]
    across = (first[..., _RIGHT_HIP, :] - first[..., _LEFT_HIP, :]) + (
        first[..., _RIGHT_SHOULDER, :] - first[..., _LEFT_SHOULDER, :]
    )
    return _turned(about_y(-_heading(across))[..., None, :, :], places - origin)


def _heading(across: np.ndarray) -> np.ndarray:
    """Angle about Y from +Z of the level direction to the left of ``across`` (..., 3), which points right."""
    return np.arctan2(across[..., 2], -across[..., 0])


def _half_turns(places: np.ndarray) -> np.ndarray:
    """(..., frames) half the angle about Y that makes each frame face +Z; 0 in the first, whatever it faces."""
    across = (places[..., _LEFT_HIP, :] - places[..., _RIGHT_HIP, :]) + (
        places[..., _RIGHT_SHOULDER, :] - places[..., _LEFT_SHOULDER, :]
    )
    across = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-12)
    half_turns: np.ndarray = -_heading(gaussian_filter1d(across, HEADING_SMOOTHING, axis=-2, mode="nearest")) / 2
    half_turns[..., 0] = 0
    return half_turns


def _rotations(bones: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(..., frames, 22, 6) first two columns of each bone's rotation relative to the one before it in its chain."""
    sixd = np.zeros((*bones.shape[:-1], 6))
    for chain in CHAINS:
        before = turn
        for joint in chain[1:]:
            now = least_turn(BONE_DIRECTIONS[joint], bones[..., joint, :])
            local = before.swapaxes(-1, -2) @ now
            sixd[..., joint, :] = local[..., :2].swapaxes(-1, -2).reshape(*local.shape[:-2], 6)
            before = now
    return sixd


def _contacts(places: np.ndarray) -> np.ndarray:
    """(..., frames - 1, 4) whether left ankle, left toe, right ankle, right toe stand still until the next frame."""
    feet = places[..., [*_LEFT_FOOT, *_RIGHT_FOOT], :]
    return (np.square(np.diff(feet, axis=-3)).sum(-1) < CONTACT_THRESHOLD).astype(np.float64)


def _turned(turn: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., frames, joints, 3) turned by one matrix (..., frames, 3, 3) a frame."""
    return points @ turn.swapaxes(-1, -2)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(*values.shape[:-2], -1)


@dataclass(frozen=True)
class HumanML3DFeatures:
    """A motion as HumanML3D's features, ``values`` (frames, 263) float32 that are **not** normalised.

    Two normalisations are about, the models' (HumanML3D's ``Mean.npy``, ``Std.npy``) and the evaluator's, 25 times
    larger in root and contacts; a score of features in one that are taken for the other is wrong without a sign of it.
    So there is one way in for either: :meth:`from_normalised`. Raises :class:`InputError` for another shape, values
    that are not finite, and values that look normalised, unless it is ``certain`` that they are not: what a network
    draws before it has learned anything looks like nothing in particular.
    """

    values: np.ndarray
    certain: bool = field(default=False, repr=False, compare=False)
    fps: ClassVar[float] = FPS

    def __post_init__(self) -> None:
        _check_features(self.values)
        below, longest, _ = _marks(self.values)
        if not self.certain and below > 0.1 and longest > 1.5:
            raise InputError(
                f"features look normalised ({below:.0%} of the joints' heights are more than 10 cm below the floor): "
                f"denormalise them, or put the mean.npy and std.npy that they were normalised with beside them"
            )

    @classmethod
    def from_normalised(cls, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> HumanML3DFeatures:
        """Features of ``values`` (frames, 263) that were normalised with ``mean`` and ``std`` (263,).

        Raises :class:`InputError`, besides, for values that look as if they were not.
        """
        _check_features(values)
        below, _, typical = _marks(values)
        if below < 0.05 and 0.75 < typical < 1.25:
            raise InputError("features look as they are when not normalised, but a mean and std were given with them")
        return cls((values * std.astype(np.float64) + mean).astype(np.float32))

    def __len__(self) -> int:
        return len(self.values)

    def joints(self) -> np.ndarray:
        """Joint positions (frames, 22, 3) in metres."""
        return humanml3d_to_joints(self.values)

    def cut(self, start: int, stop: int) -> HumanML3DFeatures:
        """Rows ``start`` to ``stop``, without ``stop``."""
        return replace(self, values=self.values[start:stop])


def _check_features(values: np.ndarray) -> None:
    if values.ndim != 2 or values.shape[1] != NUM_FEATURES or not len(values):
        raise InputError(f"HumanML3D features of a motion are (frames, {NUM_FEATURES}), not {values.shape}")
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"features hold {bad} values that are not finite numbers")


def _marks(values: np.ndarray) -> tuple[float, float, float]:
    """What tells normalised features: the share of joints' heights more than 10 cm below the floor; the length of
    which a tenth of the rotations' columns are longer; the median length, which is 1 of rotations.

    Of the published example and the clips of ``mocap-clips`` 0, 1.0 and 1.0; normalised at least 0.26, 1.8 and 0.86.
    """
    heights = values[:, POSITIONS].reshape(len(values), -1, 3)[..., 1]
    lengths = np.linalg.norm(values[:, ROTATIONS].reshape(len(values), -1, 3), axis=-1)
    return float((heights < -0.1).mean()), float(np.quantile(lengths, 0.9)), float(np.median(lengths))
