"""Kinetic features of a motion: how much each joint moves and accelerates.

As AIST++ (Li et al., ICCV 2021) measures motion FID, after Onuma et al. (2008) and fairmotion. For each joint three
numbers: the mean over frames of the squared horizontal speed, of the squared vertical speed, and of the size of the
acceleration. Speed and acceleration at a frame are vectors averaged over a window of 5 frames around it, fewer at the
ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layersync.modalities.motion.features.joints import JointFeatures, joints_of

REACH = 2
"""Frames before and after a frame over which its velocity is averaged."""


def kinetic_features(samples: Sequence[Any]) -> np.ndarray:
    """(samples, 72) float64: for each of 24 joints horizontal and vertical energy (m2/s2) and expenditure (m/s2).

    66 where all samples have 22 joints. Speeds are per second at each motion's own frame rate. Motions may have any
    length; one of a single frame rests.
    """
    return np.stack([kinetic_of(joints_of(sample), sample.fps) for sample in samples])


def kinetic_of(joints: np.ndarray, fps: float) -> np.ndarray:
    """(joints * 3,) float64 of joints (frames, joints, 3) in metres."""
    frames = len(joints)
    if frames < 2:
        return np.zeros(joints.shape[1] * 3)
    # Row n is the step from frame n to frame n + 1, so that the velocity of frame i is row i - 1.
    velocity = np.diff(joints, axis=0) * fps
    acceleration = np.diff(velocity, axis=0) * fps
    centres = np.arange(frames - 1)
    smooth_velocity = _windowed_mean(velocity, centres)
    smooth_acceleration = _windowed_mean(acceleration, centres)
    horizontal = np.square(smooth_velocity[..., [0, 2]]).sum(-1).mean(0)
    vertical = np.square(smooth_velocity[..., 1]).mean(0)
    expenditure = np.linalg.norm(smooth_acceleration, axis=-1).mean(0)
    return np.stack([horizontal, vertical, expenditure], axis=1).reshape(-1)


class KineticFeatures(JointFeatures):
    """The extractor ``kinetic``."""

    name = "kinetic"
    formula = staticmethod(kinetic_of)


def _windowed_mean(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Mean of the rows within ``REACH`` of each centre that exist; 0 where none does."""
    sums = np.concatenate([np.zeros((1, *rows.shape[1:])), rows.cumsum(0)])
    start = np.clip(centres - REACH, 0, len(rows))
    stop = np.clip(centres + REACH + 1, 0, len(rows))
    count = np.maximum(stop - start, 1).reshape(-1, *[1] * (rows.ndim - 1))
    return (sums[stop] - sums[start]) / count
