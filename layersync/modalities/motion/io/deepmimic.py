"""DeepMimic's motion files: JSON with a frame of 44 numbers, on a humanoid of 15 joints with hanging arms.

The layout is read from Peng et al., DeepMimic (2018) and its public ``humanoid3d`` files: duration in seconds, root
position (3) in metres, and quaternions with w first, knees and elbows as one angle about Z. Y is up, the body faces +X
and its right side is +Z.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.retarget import SourceMotion
from layersync.modalities.motion.sample import interpolate_rotations

_SPHERICAL, _HINGE, _FIXED = 4, 1, 0
_JOINTS: tuple[tuple[str, str, tuple[float, float, float], int], ...] = (
    ("root", "", (0.0, 0.0, 0.0), _SPHERICAL),
    ("chest", "root", (0.0, 0.236151, 0.0), _SPHERICAL),
    ("neck", "chest", (0.0, 0.223894, 0.0), _SPHERICAL),
    ("right_hip", "root", (0.0, 0.0, 0.084887), _SPHERICAL),
    ("right_knee", "right_hip", (0.0, -0.421546, 0.0), _HINGE),
    ("right_ankle", "right_knee", (0.0, -0.409870, 0.0), _SPHERICAL),
    ("right_shoulder", "chest", (-0.024050, 0.243500, 0.183110), _SPHERICAL),
    ("right_elbow", "right_shoulder", (0.0, -0.274788, 0.0), _HINGE),
    ("left_hip", "root", (0.0, 0.0, -0.084887), _SPHERICAL),
    ("left_knee", "left_hip", (0.0, -0.421546, 0.0), _HINGE),
    ("left_ankle", "left_knee", (0.0, -0.409870, 0.0), _SPHERICAL),
    ("left_shoulder", "chest", (-0.024050, 0.243500, -0.183110), _SPHERICAL),
    ("left_elbow", "left_shoulder", (0.0, -0.274788, 0.0), _HINGE),
    ("right_wrist", "right_elbow", (0.0, -0.258947, 0.0), _FIXED),
    ("left_wrist", "left_elbow", (0.0, -0.258947, 0.0), _FIXED),
    ("head", "neck", (0.0, 0.175000, 0.0), _FIXED),
)
"""Joint, parent, offset in metres, numbers in a frame; in the order of the frame. Offsets are those of
``humanoid.urdf`` (at its scale of 4) in the same package. ``head`` is the centre of the head ball."""

NAMES = tuple(joint[0] for joint in _JOINTS)
PARENTS = tuple(NAMES.index(parent) if parent else -1 for _, parent, _, _ in _JOINTS)
OFFSETS = np.array([offset for _, _, offset, _ in _JOINTS])
_FRAME = 1 + 3 + sum(width for *_, width in _JOINTS)


@dataclass(frozen=True)
class Keyframes:
    """The frames of a file: ``times`` (frames,) s, ``root`` (frames, 3) m, ``local`` (frames, 16, 3, 3) rotations.

    Where ``loops`` is true the last frame is the first one again, a cycle later.
    """

    times: np.ndarray
    root: np.ndarray
    local: np.ndarray
    loops: bool

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.times[-1])

    def at_tempo(self, tempo: float) -> Keyframes:
        """The same frames played at ``tempo`` times their speed."""
        return replace(self, times=self.times / tempo)

    def sampled(self, fps: float) -> Keyframes:
        """Frames at ``fps`` from 0 up to, and not beyond, the last."""
        times = np.arange(int(np.floor(self.duration * fps + 1e-6)) + 1) / fps
        positions = np.interp(times, self.times, np.arange(len(self.times)))
        root = np.stack([np.interp(times, self.times, self.root[:, axis]) for axis in range(3)], axis=1)
        return Keyframes(times, root, interpolate_rotations(self.local, positions), self.loops)

    def source(self, fps: float) -> SourceMotion:
        """Every joint in the world, at evenly spaced frames."""
        rotations, positions = np.empty_like(self.local), np.empty((*self.local.shape[:2], 3))
        for joint, parent in enumerate(PARENTS):
            if parent < 0:
                rotations[:, joint], positions[:, joint] = self.local[:, joint], self.root
            else:
                rotations[:, joint] = rotations[:, parent] @ self.local[:, joint]
                positions[:, joint] = positions[:, parent] + rotations[:, parent] @ OFFSETS[joint]
        return SourceMotion(NAMES, PARENTS, OFFSETS, rotations, positions, fps)


def read_deepmimic(path: Path) -> Keyframes:
    """Read a motion file. Raises :class:`InputError`, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text())
        frames = np.array(content["Frames"], dtype=np.float64)
        loops = content["Loop"] == "wrap"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no DeepMimic motion file ({error})") from error
    if frames.ndim != 2 or frames.shape[1] != _FRAME or len(frames) < 2 or not np.isfinite(frames).all():
        raise InputError(f"{path}: frames are {frames.shape}, not at least 2 frames of {_FRAME} finite numbers")
    times = np.concatenate([[0.0], np.cumsum(frames[:-1, 0])])
    local = np.tile(np.eye(3), (len(frames), len(_JOINTS), 1, 1))
    column = 4
    for joint, (*_, width) in enumerate(_JOINTS):
        values = frames[:, column : column + width]
        column += width
        if width == _SPHERICAL:
            local[:, joint] = Rotation.from_quat(np.roll(values, -1, axis=1)).as_matrix()
        elif width == _HINGE:
            local[:, joint] = Rotation.from_euler("z", values).as_matrix().reshape(-1, 3, 3)
    return Keyframes(times, frames[:, 1:4], local, loops)
