"""Motion of another skeleton brought onto SMPL's 24 joints.

Two skeletons that stand in the same pose differ in what "no rotation" means: SMPL's joints are unrotated in a T-pose,
another file's in whatever pose it was exported with, often none that a body could take. For each joint there is one
constant matrix C, SMPL's axes in the joint's local axes, with ``R_smpl(t) = R_source(t) @ C``. It is found in two
steps:

1. Which local axes point left, up and forward when the body stands in T-pose. The preset names them; or the hips have
   enough neighbours to say (:func:`_hip_axes`), and for the other joints either the pose without rotations is a
   standing body, so that the axes of the hips serve all, or they are read off motion: the twist about the bone is the
   one that is nearest to the parent's on average over reference clips (:func:`_axes_from_motion`).
2. A least turn, so that SMPL's bone and the source's bone point the same way exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.presets import REQUIRED, Preset
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import INDEX, JOINTS, NUM_JOINTS, PARENTS, REST

Up = Literal["auto", "y", "z"]

_NEXT = {
    "pelvis": "spine1", "spine1": "spine2", "spine2": "spine3", "spine3": "neck", "neck": "head",
} | {
    f"{side}_{joint}": f"{side}_{child}"
    for side in ("left", "right")
    for joint, child in (
        ("hip", "knee"), ("knee", "ankle"), ("ankle", "foot"), ("collar", "shoulder"), ("shoulder", "elbow"),
        ("elbow", "wrist"), ("wrist", "hand"),
    )
}  # fmt: skip
"""The joint that a joint's bone points to."""


@dataclass(frozen=True)
class SourceMotion:
    """A captured motion on its own skeleton, in its own world and unit.

    ``offsets`` (joints, 3) from the parent, in the parent's axes. ``rotations`` (frames, joints, 3, 3) and
    ``positions`` (frames, joints, 3) are those of each joint in the world.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray
    rotations: np.ndarray
    positions: np.ndarray
    fps: float

    def unrotated(self) -> np.ndarray:
        """(joints, 3) positions when no joint is rotated, with the root at the origin."""
        places = np.zeros_like(self.offsets)
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                places[joint] = places[parent] + self.offsets[joint]
        return places


@dataclass(frozen=True)
class Alignment:
    """How one skeleton is brought onto SMPL's.

    ``joints`` maps SMPL's joint numbers to the source's, ``turns`` holds C for each, ``world`` (3, 3) brings the
    source's world to Y up, ``scale`` its unit to metres (of the generic skeleton, unless the user gave a scale).
    """

    joints: Mapping[int, int]
    turns: Mapping[int, np.ndarray]
    world: np.ndarray
    scale: float
    how: str

    def apply(self, source: SourceMotion, fps: float | None = None) -> Motion:
        """``source`` on SMPL's joints, resampled to ``fps``.

        Joints that the source does not have keep still relative to their parent. The middle between the hip joints is
        placed where the source's is: skeletons disagree on where between hips and waist the root lies.
        """
        frames = len(source.rotations)
        turned = np.empty((frames, NUM_JOINTS, 3, 3))
        for joint in range(NUM_JOINTS):
            if joint in self.joints:
                turned[:, joint] = self.world @ source.rotations[:, self.joints[joint]] @ self.turns[joint]
            else:
                turned[:, joint] = turned[:, PARENTS[joint]]
        local = turned.copy()
        local[:, 1:] = turned[:, list(PARENTS[1:])].swapaxes(-1, -2) @ turned[:, 1:]
        hips = [INDEX["left_hip"], INDEX["right_hip"]]
        middle = self.positions(source)[:, [self.joints[hip] for hip in hips]].mean(axis=1)
        translation = middle - turned[:, 0] @ REST[hips].mean(axis=0).astype(np.float64)
        motion = Motion(translation.astype(np.float32), local.astype(np.float32), source.fps)
        return motion if fps is None else motion.resampled(fps)

    @property
    def vertical(self) -> Literal["y", "z"]:
        """The source's."""
        return "y" if np.array_equal(self.world, np.eye(3)) else "z"

    @cached_property
    def told(self) -> str:
        """What it does, in numbers that are the same on every machine."""
        numbers = np.concatenate([self.world.ravel(), *(self.turns[joint].ravel() for joint in sorted(self.turns))])
        return f"{sorted(self.joints.items())} {(numbers.round(4) + 0.0).tolist()} {self.scale:.6g}"

    def positions(self, source: SourceMotion) -> np.ndarray:
        """Joints (frames, joints, 3) of the source in metres, Y up: what the mapped joints should coincide with."""
        return source.positions @ self.world.T * self.scale


def align(
    references: Sequence[SourceMotion], preset: Preset, *, up: Up = "auto", scale: float | None = None
) -> Alignment:
    """Solve how the skeleton of ``references`` (clips of one skeleton) lies on SMPL's.

    ``scale``: metres per unit of the source; ``None`` makes its legs as long as the generic skeleton's, whatever the
    unit, so that feet meet the floor.
    """
    source = references[0]
    joints = preset.matched(source.names)
    if joints is None:
        raise InputError(f"skeleton {preset.name!r} lacks joints that it needs: {', '.join(REQUIRED)}")
    rest = source.unrotated()
    mapped_rest = {smpl: rest[joint] for smpl, joint in joints.items()}
    if scale is None:
        legs = _leg_length(mapped_rest)
        if legs == 0:
            raise InputError(
                f"skeleton {preset.name!r}: the OFFSETs of knees and ankles are 0, as where every joint has position "
                "channels instead: bones without a length have no direction"
            )
        scale = _leg_length(dict(enumerate(REST))) / legs
    axes, how = _rest_axes(references, preset, joints, mapped_rest)
    turns = {joint: _onto_bone(joint, axes[joint], mapped_rest) for joint in joints}
    return Alignment(joints, turns, _upright(references, joints, up), scale, how)


def _leg_length(positions: Mapping[int, np.ndarray]) -> float:
    """From hip to knee to ankle, the mean of both sides."""
    total = 0.0
    for side in ("left", "right"):
        hip, knee, ankle = (positions[INDEX[f"{side}_{part}"]] for part in ("hip", "knee", "ankle"))
        total += float(np.linalg.norm(knee - hip) + np.linalg.norm(ankle - knee)) / 2
    return total


def _upright(references: Sequence[SourceMotion], joints: Mapping[int, int], up: Up) -> np.ndarray:
    """The rotation that makes the source's vertical Y. ``auto``: the axis along which heads are furthest from feet."""
    if up == "auto":
        ankles = [joints[INDEX["left_ankle"]], joints[INDEX["right_ankle"]]]
        spans = [
            clip.positions[:, joints[INDEX["head"]]] - clip.positions[:, ankles].mean(axis=1) for clip in references
        ]
        span = np.median(np.concatenate(spans), axis=0)
        up = "z" if abs(span[2]) > abs(span[1]) else "y"
    return np.eye(3) if up == "y" else np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def _bone(joint: int, positions: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Directions from ``joint`` to the next joint that ``positions`` has: on the generic skeleton and on the other."""
    name: str | None = JOINTS[joint]
    while (name := _NEXT.get(name or "")) is not None:
        child = INDEX[name]
        if child in positions and np.linalg.norm(positions[child] - positions[joint]) > 1e-6:
            return REST[child] - REST[joint], positions[child] - positions[joint]
    return None


def least_turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation matrices (..., 3, 3) by the least angle that turn ``start`` (3,) to point along ``end`` (..., 3)."""
    start = start / np.linalg.norm(start)
    end = end / np.linalg.norm(end, axis=-1, keepdims=True)
    axis, cosine = np.cross(np.broadcast_to(start, end.shape), end), (end @ start)[..., None]
    # For opposite directions any axis across the bone will do.
    across = np.cross(start, np.eye(3)[np.argmin(np.abs(start))])
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    unit = np.where(sine > 1e-9, axis / np.maximum(sine, 1e-12), across / np.linalg.norm(across))
    vectors = unit * np.arctan2(sine, cosine)
    return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(*end.shape[:-1], 3, 3)


def _onto_bone(joint: int, axes: np.ndarray, positions: Mapping[int, np.ndarray]) -> np.ndarray:
    """C of one joint: ``axes``, then the least turn that makes the bones point the same way."""
    bone = _bone(joint, positions)
    if bone is None or joint == INDEX["pelvis"]:
        return axes
    ours, theirs = bone
    return least_turn(axes @ ours, theirs) @ axes


def _frame(up: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Columns left, up, forward; ``left`` exact, ``up`` made orthogonal to it."""
    left = left / np.linalg.norm(left)
    up = up - (up @ left) * left
    up = up / np.linalg.norm(up)
    return np.stack([left, up, np.cross(left, up)], axis=1)


def _hip_axes(positions: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """Axes of the pelvis from the spine above it and the hip joints beside it.

    Where they come within 30 degrees of the file's own axes they are those: exporters align the root, whereas the first
    bone of the spine leans by some degrees in one skeleton and not in another.
    """
    bone = _bone(INDEX["pelvis"], positions)
    across = positions[INDEX["left_hip"]] - positions[INDEX["right_hip"]]
    if bone is None or np.linalg.norm(np.cross(across, bone[1])) < 1e-3 * np.linalg.norm(across) * np.linalg.norm(
        bone[1]
    ):
        return None
    axes = _frame(bone[1], across) @ _frame(bone[0], np.array([1.0, 0, 0])).T
    snapped = np.rint(axes)
    if abs(np.linalg.det(snapped) - 1) < 1e-9 and np.trace(axes.T @ snapped) > 1 + 2 * np.cos(np.radians(30)):
        return snapped
    return axes


def _stands(axes: np.ndarray, positions: Mapping[int, np.ndarray]) -> bool:
    """Whether the pose without rotations is a standing body: legs down, back up, as seen from the hips."""
    checks = [("pelvis", 1.0)] + [(f"{side}_{part}", -1.0) for side in ("left", "right") for part in ("hip", "knee")]
    for name, sign in checks:
        bone = _bone(INDEX[name], positions)
        if bone is None or sign * (axes.T @ bone[1])[1] < 0.7 * np.linalg.norm(bone[1]):
            return False
    return True


def _rest_axes(
    references: Sequence[SourceMotion], preset: Preset, joints: Mapping[int, int], positions: Mapping[int, np.ndarray]
) -> tuple[dict[int, np.ndarray], str]:
    """For each joint, local axes (3, 3) that are left, up and forward in T-pose, as columns; and how they were
    found.
    """
    if preset.axes:
        return {smpl: _named_axes(preset.axes[JOINTS[smpl]]) for smpl in joints}, "preset"
    hips = _hip_axes(positions)
    if hips is None:
        raise InputError(f"skeleton {preset.name!r}: hips and spine lie on one line, so that left and up are not known")
    if _stands(hips, positions):
        return dict.fromkeys(joints, hips), "unrotated pose"
    return _axes_from_motion(references, joints, positions, hips), "motion"


def _named_axes(text: str) -> np.ndarray:
    """``"-y+x+z"`` to columns: left is -Y, up is +X, forward is +Z."""
    axes = np.zeros((3, 3))
    for column in range(3):
        sign, axis = text[2 * column], text[2 * column + 1]
        axes["xyz".index(axis), column] = -1.0 if sign == "-" else 1.0
    return axes


def _axes_from_motion(
    references: Sequence[SourceMotion],
    joints: Mapping[int, int],
    positions: Mapping[int, np.ndarray],
    hips: np.ndarray,
) -> dict[int, np.ndarray]:
    """Axes whose twist about each bone is, on average over the clips, that of the parent.

    With U the parent's orientation on SMPL's skeleton and b the bone in the world, the twist-free orientation of a
    joint is the least turn of U that lays SMPL's bone on b; its mean in the joint's local axes is what is asked.
    """
    world = np.concatenate([clip.rotations for clip in references])
    axes = {INDEX["pelvis"]: hips}
    turned = {INDEX["pelvis"]: world[:, joints[INDEX["pelvis"]]] @ hips}
    for joint in sorted(set(joints) - {INDEX["pelvis"]}):
        parent = PARENTS[joint]
        while parent not in turned:
            parent = PARENTS[parent]
        local = world[:, joints[joint]]
        bone = _bone(joint, positions)
        expected = turned[parent]
        if bone is not None:
            ours, theirs = bone
            in_parent = (turned[parent].swapaxes(-1, -2) @ (local @ theirs)[..., None]).squeeze(-1)
            expected = turned[parent] @ least_turn(ours, in_parent)
        axes[joint] = Rotation.from_matrix(local.swapaxes(-1, -2) @ expected).mean().as_matrix()
        turned[joint] = local @ _onto_bone(joint, axes[joint], positions)
    return axes
