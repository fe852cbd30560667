"""What a motion sample is: where the pelvis goes and how each of SMPL's 24 joints turns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from layersync.modalities.motion.skeleton import MIRROR, NUM_JOINTS, forward_kinematics


def yaw_of(matrices: np.ndarray) -> np.ndarray:
    """Heading of rotations (..., 3, 3): the angle about Y, in radians, of their twist about the vertical.

    0 faces +Z, pi/2 faces +X. Twist rather than the direction of an axis: it is undefined only upside down, so that a
    cartwheel and a person who lies on the back still have a heading.
    """
    return np.arctan2(matrices[..., 0, 2] - matrices[..., 2, 0], matrices[..., 0, 0] + matrices[..., 2, 2])


def about_y(angle: np.ndarray | float) -> np.ndarray:
    """Rotation matrices (..., 3, 3) about the vertical by ``angle`` radians."""
    return Rotation.from_rotvec(np.multiply.outer(np.asarray(angle, dtype=np.float64), [0.0, 1.0, 0.0])).as_matrix()


def interpolate_rotations(matrices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Spherical interpolation of (frames, ..., 3, 3) at fractional frame ``positions`` (n,), each joint by itself."""
    last = len(matrices) - 1
    start = np.clip(np.floor(positions).astype(int), 0, max(last - 1, 0))
    share = np.broadcast_to(
        (positions - start).reshape(-1, *[1] * (matrices.ndim - 3)), (len(positions), *matrices.shape[1:-2])
    )
    before = Rotation.from_matrix(matrices[start].reshape(-1, 3, 3))
    after = Rotation.from_matrix(matrices[np.minimum(start + 1, last)].reshape(-1, 3, 3))
    turn = Rotation.from_rotvec((before.inv() * after).as_rotvec() * share.reshape(-1, 1))
    return (before * turn).as_matrix().reshape(len(positions), *matrices.shape[1:])


def resampled_joints(joints: np.ndarray, fps: float, to_fps: float) -> np.ndarray:
    """Joints (..., frames, joints, 3) at ``fps`` read at ``to_fps``, from the first frame on, by cubic splines.

    At a rate that divides ``fps`` these are frames of the motion itself. Straight lines between frames would shorten
    limbs in the middle and so add a tremor.
    """
    frames = joints.shape[-3]
    if abs(fps - to_fps) < 1e-3 or frames < 2:
        return joints
    positions = np.arange(int(np.floor((frames - 1) * to_fps / fps + 1e-6)) + 1) * fps / to_fps
    resampled: np.ndarray = CubicSpline(np.arange(frames), joints, axis=joints.ndim - 3)(positions)
    return resampled


RATES = (0.1, 1e5)
"""Frames a second of the files that are read. At a far lower rate a motion at 30 fps would fill the memory."""


@dataclass(frozen=True)
class Motion:
    """A pose sequence on SMPL's skeleton.

    ``translation`` (frames, 3) float32: position of the pelvis joint in metres, Y up, floor at 0.
    ``rotations`` (frames, 24, 3, 3) float32: rotation matrices relative to the parent joint, the first one to the
    world; identity is the T-pose that faces +Z. Matrices, not axis-angle: they have no wrap-around, and forward
    kinematics, mirroring and the 6-D form take them as they are.
    ``fps``: frames a second.
    """

    translation: np.ndarray
    rotations: np.ndarray
    fps: float = 30.0

    def __post_init__(self) -> None:
        frames = len(self.translation)
        if self.translation.shape != (frames, 3) or self.rotations.shape != (frames, NUM_JOINTS, 3, 3):
            raise ValueError(
                f"a motion is translation (frames, 3) and rotations (frames, 24, 3, 3), "
                f"not {self.translation.shape} and {self.rotations.shape}"
            )

    def __len__(self) -> int:
        return len(self.translation)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self) / self.fps

    def joints(self) -> np.ndarray:
        """Joint positions (frames, 24, 3) in metres on the generic skeleton."""
        joints = forward_kinematics(torch.from_numpy(self.translation), torch.from_numpy(self.rotations))
        return joints.numpy()

    def cut(self, start: int, stop: int) -> Motion:
        """Frames ``start`` to ``stop``, without ``stop``."""
        return replace(self, translation=self.translation[start:stop], rotations=self.rotations[start:stop])

    def resampled(self, fps: float) -> Motion:
        """The same motion at ``fps``: positions interpolated linearly, rotations spherically."""
        if abs(fps - self.fps) < 1e-3 or len(self) < 2:
            return replace(self, fps=fps)
        count = int(np.floor((len(self) - 1) * fps / self.fps + 1e-6)) + 1
        return sample_at(self, np.arange(count) * self.fps / fps, fps)

    def mirrored(self) -> Motion:
        """Left and right exchanged: the joints are those of this motion reflected in the plane x = 0."""
        reflection = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)
        rotations = reflection @ self.rotations[:, MIRROR] @ reflection
        return replace(self, translation=self.translation * np.array([-1, 1, 1], dtype=np.float32), rotations=rotations)

    def canonical(self) -> Motion:
        """Moved and turned so that the first frame stands at x = z = 0 and faces +Z. Heights stay."""
        if not len(self):
            return self
        turn = about_y(-yaw_of(self.rotations[0, 0].astype(np.float64)))
        origin = self.translation[0] * np.array([1, 0, 1], dtype=np.float32)
        rotations = self.rotations.copy()
        rotations[:, 0] = turn @ self.rotations[:, 0]
        translation = (self.translation - origin) @ turn.T
        return replace(self, translation=translation.astype(np.float32), rotations=rotations)


def sample_at(motion: Motion, positions: np.ndarray, fps: float) -> Motion:
    """``motion`` read at fractional frame ``positions`` (n,)."""
    frames = np.arange(len(motion))
    translation = np.stack([np.interp(positions, frames, motion.translation[:, axis]) for axis in range(3)], axis=1)
    rotations = interpolate_rotations(motion.rotations.astype(np.float64), positions)
    return Motion(translation.astype(np.float32), rotations.astype(np.float32), fps)


@dataclass(frozen=True)
class JointMotion:
    """A motion of which only the places of the joints are known.

    ``positions`` (frames, 22 or 24, 3) float32: SMPL's first 22 joints or all 24, in metres, Y up, floor at 0.
    ``fps``: frames a second.
    """

    positions: np.ndarray
    fps: float = 20.0

    def __post_init__(self) -> None:
        if self.positions.ndim != 3 or self.positions.shape[1] not in (22, NUM_JOINTS) or self.positions.shape[2] != 3:
            raise ValueError(f"joints of a motion are (frames, 22 or {NUM_JOINTS}, 3), not {self.positions.shape}")

    def __len__(self) -> int:
        return len(self.positions)

    def joints(self) -> np.ndarray:
        """Joint positions (frames, 22 or 24, 3) in metres."""
        return self.positions

    def cut(self, start: int, stop: int) -> JointMotion:
        """Frames ``start`` to ``stop``, without ``stop``."""
        return replace(self, positions=self.positions[start:stop])
