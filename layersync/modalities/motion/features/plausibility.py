"""Whether bodies could move so: scores of generated motions alone, from their joints.

All of them take SMPL's first 22 joints, so that motions with hands and without compare, Y up and the floor at y = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import improves
from layersync.modalities.motion.features.joints import BODY_JOINTS, joints_of
from layersync.modalities.motion.sample import resampled_joints

SKATING_FPS = 20.0
SKATING_FEET = (10, 11)
"""Left and right toe."""
SKATING_HEIGHT = 0.05
"""Metres; lower than this in two frames in a row, a foot is on the ground."""
SKATING_SPEED = 0.5
"""Metres a second over the ground."""
SKATING_WINDOW = 5
"""Frames over which the speed must be as high on average, too."""


@improves("lower")
def foot_skating(examples: Sequence[Example]) -> NDArray[np.float64]:
    """(samples,) share of frames, in [0, 1], in which either foot slides over the ground.

    ``calculate_skating_ratio`` of GMD (Karunratanakul et al., ICCV 2023; github.com/korrawe/guided-motion-diffusion,
    ``data_loaders/humanml/utils/metrics.py``), thresholds included: a toe lower than 5 cm before and after a step that
    is faster than 0.5 m/s, as is the mean of the five steps around it, steps beyond the ends counted as 0. At 20 frames
    a second, to which motions at other rates are resampled. A motion without a step skates in none.
    """
    return np.array([_skating(_body(example), float(example.sample.fps)) for example in examples], dtype=np.float64)


def jitter(examples: Sequence[Example]) -> NDArray[np.float64]:
    """(samples,) mean length of the third derivative of the joints' places, in m/s^3.

    As motion capture papers take it (TransPose, Yi et al., SIGGRAPH 2021, after Flash and Hogan 1985), which print it
    in 100 m/s^3: third differences times the cube of the frame rate, mean over frames and joints. At each motion's own
    rate: noise counts by its cube, so that only motions at one rate compare. Raises :class:`InputError` for fewer than
    4 frames.
    """
    return np.array([_jitter(_body(example), float(example.sample.fps), example.source) for example in examples])


@improves("lower")
def floor_penetration(examples: Sequence[Example]) -> NDArray[np.float64]:
    """(samples,) mean over frames of how deep the lowest joint lies below y = 0, in metres; 0 where it lies above.

    After PhysDiff's ``Penetrate`` (Yuan et al., ICCV 2023), which takes the lowest vertex of a body's surface and lets
    5 mm pass; joints lie inside the body, so that this is less, and nothing is let pass.
    """
    return np.array([np.maximum(0.0, -_body(example)[..., 1].min(1)).mean() for example in examples], dtype=np.float64)


def _body(example: Example) -> NDArray[np.float64]:
    joints: NDArray[np.float64] = joints_of(example.sample, example.source)[:, :BODY_JOINTS]
    return joints


def _skating(joints: np.ndarray, fps: float) -> float:
    feet = resampled_joints(joints[:, SKATING_FEET], fps, SKATING_FPS)
    if len(feet) < 2:
        return 0.0
    speed = np.linalg.norm(np.diff(feet[..., [0, 2]], axis=0), axis=-1) * SKATING_FPS
    around = uniform_filter1d(speed, SKATING_WINDOW, axis=0, mode="constant")
    low = feet[..., 1] < SKATING_HEIGHT
    slides = low[:-1] & low[1:] & (speed > SKATING_SPEED) & (around > SKATING_SPEED)
    return float(slides.any(axis=1).mean())


def _jitter(joints: np.ndarray, fps: float, source: str) -> float:
    if len(joints) < 4:
        raise InputError(f"jitter: {source} has {len(joints)} frames; it takes at least 4")
    return float(np.linalg.norm(np.diff(joints, n=3, axis=0) * fps**3, axis=-1).mean())
