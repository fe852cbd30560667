"""Geometric features of a motion: the share of frames in which each of 32 relations between joints holds.

The relations, joints and thresholds are those with which AIST++ (Li et al., ICCV 2021) measures motion FID, after
Mueller et al. (2005) and fairmotion. They are numbered as there. One thing differs: public code takes every frame to
last 1/120 s in the relations that hold a speed against a threshold; here it lasts what the motion's frame rate says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from layersync.modalities.motion.features.joints import JointFeatures, joints_of
from layersync.modalities.motion.skeleton import INDEX

HUMERUS = 0.2568
"""Metres; length of the upper arm of SMPL's mean body, the unit of most thresholds in AIST++."""
SHOULDER_WIDTH = 0.3908
HIP_WIDTH = 0.1192


class Relation(NamedTuple):
    """A test on each frame. What ``points`` mean depends on ``kind``; ``bounds`` are metres, m/s or degrees.

    ``along``: the third point, relative to the first, moves along the line from the first to the second faster than the
    bound. ``across``: the fourth does along the normal of the first three. ``fast``: the point moves faster.
    ``beyond``: the fourth point lies further than the bound from the third, along the line from the first to the
    second. ``above``: the fourth lies further than the bound above the plane of the first three. ``angle``: between
    the line of the first two and that of the last two, within both bounds.
    """

    kind: str
    points: tuple[str, ...]
    bounds: tuple[float, ...]


def _both_sides(kind: str, points: Sequence[str], *bounds: float, first: str = "right") -> list[Relation]:
    """The relation for one side and then for the other; ``*`` is the side itself, ``~`` the other one."""
    other = {"right": "left", "left": "right"}
    sides = (first, other[first])
    return [
        Relation(kind, tuple(point.replace("*", side).replace("~", other[side]) for point in points), bounds)
        for side in sides
    ]


_UP = ("zero", "up")
RELATIONS: tuple[Relation, ...] = (
    *_both_sides("across", ("neck", "*_hip", "~_hip", "*_wrist"), 1.8 * HUMERUS),
    *_both_sides("beyond", ("spine3", "neck", "neck", "*_wrist"), 0.2 * HUMERUS),
    *_both_sides("along", ("spine1", "spine3", "spine3", "*_wrist"), 1.8 * HUMERUS),
    *_both_sides("angle", ("*_elbow", "*_shoulder", "*_elbow", "*_wrist"), 0, 110),
    Relation("beyond", ("left_shoulder", "right_shoulder", "left_wrist", "right_wrist"), (2.5 * SHOULDER_WIDTH,)),
    Relation("along", ("left_wrist", "right_wrist", "right_wrist", "left_wrist"), (1.4 * HUMERUS,)),
    *_both_sides("along", ("*_wrist", "pelvis", "~_wrist", "pelvis"), 1.4 * HUMERUS),
    *_both_sides("fast", ("*_wrist",), 2.5 * HUMERUS),
    *_both_sides("above", ("pelvis", "*_hip", "*_foot", "~_ankle"), 0.38 * HUMERUS, first="left"),
    *_both_sides("beyond", (*_UP, "lowest", "*_ankle"), 1.2 * HUMERUS),
    Relation("beyond", ("left_hip", "right_hip", "left_ankle", "right_ankle"), (2.1 * HIP_WIDTH,)),
    *_both_sides("angle", ("*_knee", "*_hip", "*_knee", "*_ankle"), 0, 110),
    *_both_sides("fast", ("*_ankle",), 2.5 * HUMERUS),
    *_both_sides("angle", ("neck", "pelvis", "*_shoulder", "*_elbow"), 25, 180),
    *_both_sides("angle", ("neck", "pelvis", "*_hip", "*_knee"), 50, 180),
    Relation("above", ("right_ankle", "neck", "left_ankle", "pelvis"), (0.5 * HUMERUS,)),
    Relation("angle", ("neck", "pelvis", *_UP), (70, 110)),
    *_both_sides("beyond", ("zero", "down", "lowest", "*_wrist"), -1.2 * HUMERUS),
    Relation("fast", ("pelvis",), (2.3 * HUMERUS,)),
)


def geometric_features(samples: Sequence[Any]) -> np.ndarray:
    """(samples, 32) float64 in [0, 1]: the share of frames, from the second on, in which each relation holds.

    Motions may have any length; one of a single frame fulfils none.
    """
    return np.stack([geometric_of(joints_of(sample), sample.fps) for sample in samples])


def geometric_of(joints: np.ndarray, fps: float) -> np.ndarray:
    """(32,) float64 of joints (frames, 22 or 24, 3) in metres."""
    if len(joints) < 2:
        return np.zeros(len(RELATIONS))
    before, now = _points(joints[:-1]), _points(joints[1:])
    return np.array([_holds(relation, before, now, fps).mean() for relation in RELATIONS])


class GeometricFeatures(JointFeatures):
    """The extractor ``geometric``."""

    name = "geometric"
    formula = staticmethod(geometric_of)


def _points(joints: np.ndarray) -> dict[str, np.ndarray]:
    """(frames, 3) places by name: the joints, the origin, a metre above and below it, and the height of the lowest
    joint.
    """
    points = {name: joints[:, index] for name, index in INDEX.items() if index < joints.shape[1]}
    lowest = np.zeros((len(joints), 3))
    lowest[:, 1] = joints[..., 1].min(1)
    vertical = np.tile([0.0, 1.0, 0.0], (len(joints), 1))
    return points | {"zero": 0 * vertical, "up": vertical, "down": -vertical, "lowest": lowest}


def _holds(
    relation: Relation, before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], fps: float
) -> np.ndarray:
    """(frames,) whether the relation holds."""
    points = [now[name] for name in relation.points]
    if relation.kind == "angle":
        start, end = points[1] - points[0], points[3] - points[2]
        cosine = _dot(start, end) / np.maximum(_length(start) * _length(end), 1e-12)
        degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        return (degrees > relation.bounds[0]) & (degrees < relation.bounds[1])
    if relation.kind == "fast":
        return _length(points[0] - before[relation.points[0]]) * fps > relation.bounds[0]
    if relation.kind == "beyond":
        return _along(points[3] - points[2], points[1] - points[0]) > relation.bounds[0]
    normal = np.cross(points[2] - points[0], points[1] - points[0])
    if relation.kind == "above":
        return _along(points[3] - points[0], normal) > relation.bounds[0]
    mover = 3 if relation.kind == "across" else 2
    moved = (points[mover] - points[0]) - (before[relation.points[mover]] - before[relation.points[0]])
    velocity = moved * fps
    return _along(velocity, normal if relation.kind == "across" else points[1] - points[0]) > relation.bounds[0]


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * y).sum(-1)


def _length(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def _along(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Component of ``x`` along ``direction``; 0 along a direction of no length."""
    return _dot(x, direction) / np.maximum(_length(direction), 1e-12)
