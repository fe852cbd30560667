"""Joints of whatever sample a score is asked of, and extractors that are a formula of them."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams
from layersync.modalities.motion.skeleton import NUM_JOINTS

logger = logging.getLogger(__name__)

BODY_JOINTS = 22
"""SMPL's joints without the hands: what HumanML3D has."""


def joints_of(sample: Any, source: str = "") -> np.ndarray:
    """(frames, 22 or 24, 3) float64 metres of a sample with ``joints()`` and ``fps``; more than 24 are cut off.

    Raises :class:`InputError`, naming ``source``, for a sample of another kind, without frames, with fewer joints, or
    with places that are not finite.
    """
    if not (hasattr(sample, "joints") and hasattr(sample, "fps")):
        raise InputError(f"{source}: {type(sample).__name__} is no motion: it has no joints() and fps")
    joints = np.asarray(sample.joints(), dtype=np.float64)
    if joints.ndim != 3 or joints.shape[1] < BODY_JOINTS or joints.shape[2] != 3 or not len(joints):
        raise InputError(f"{source}: joints are {joints.shape}, not (frames, {BODY_JOINTS} or {NUM_JOINTS}, 3)")
    if bad := int((~np.isfinite(joints)).sum()):
        raise InputError(f"{source}: {bad} coordinates of joints are not finite numbers")
    return joints[:, : NUM_JOINTS if joints.shape[1] >= NUM_JOINTS else BODY_JOINTS]


class JointFeatures(FeatureExtractor):
    """One row a motion, by a formula of its joints.

    A set has 22 joints or 24, not both: rows would not compare. ``--extractor NAME=22`` takes the first 22 of all.
    """

    def __init__(self, given: str | None = None) -> None:
        if given not in (None, str(BODY_JOINTS)):
            raise InputError(
                f"--extractor {self.name}={given}: {self.name} is a formula without weights; {self.name}={BODY_JOINTS} "
                f"takes the first {BODY_JOINTS} joints of all motions"
            )
        self._count = NUM_JOINTS if given is None else BODY_JOINTS
        taken = "22 or 24 joints" if given is None else f"the first {BODY_JOINTS} joints"
        self.preprocessing = f"{taken} in metres at each motion's own frame rate"
        self._first: tuple[int, float, str] | None = None
        self._rates_differ = False

    @staticmethod
    @abstractmethod
    def formula(joints: np.ndarray, fps: float) -> np.ndarray:
        """(features,) float64 of joints (frames, 22 or 24, 3) in metres."""

    def __call__(self, examples: Sequence[Example]) -> Streams:
        """One row (1, features) a motion.

        Raises :class:`InputError` where the number of joints differs from that of motions seen before.
        """
        rows = []
        for example in examples:
            joints = self._joints(example)
            rows.append(self.formula(joints, float(example.sample.fps))[None].astype(np.float32))
        return {self.streams[0]: rows}

    def look(self, example: Example) -> None:
        """Compare its joints and its frame rate with those of motions seen before."""
        self._joints(example)

    def _joints(self, example: Example) -> np.ndarray:
        """Those that are taken, once they are compared with the first motion that was seen."""
        joints = joints_of(example.sample, example.source)[:, : self._count]
        self._compare(joints.shape[1], float(example.sample.fps), example.source)
        return joints

    def _compare(self, count: int, fps: float, source: str) -> None:
        first_count, first_fps, first = self._first = self._first or (count, fps, source)
        if count != first_count:
            raise InputError(
                f"extractor {self.name}: {source} has {count} joints and {first} {first_count}: not to be compared; "
                f"--extractor {self.name}={BODY_JOINTS} takes the first {BODY_JOINTS} of all"
            )
        if abs(fps - first_fps) > 1e-3 and not self._rates_differ:
            self._rates_differ = True
            logger.warning(
                "extractor %s: %s has %g frames a second and %s %g: the features are biased by the rate",
                self.name, source, fps, first, first_fps,
            )  # fmt: skip
