"""What is done to samples. ``level`` says how much; the same ``rng`` draws the same noise for every level."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import butter, sosfiltfilt

from layersync.modalities.audio.clip import Clip
from layersync.modalities.motion.sample import JointMotion, Motion, about_y, resampled_joints, yaw_of
from layersync.modalities.motion.skeleton import INDEX

Image = NDArray[np.uint8]

FEET = [INDEX[name] for name in ("left_ankle", "left_foot", "right_ankle", "right_foot")]
FILTER_ORDER = 4


def blurred(image: Image, sigma: float) -> Image:
    """Gaussian blur of an image (height, width, channels), ``sigma`` in pixels."""
    return as_bytes(gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)))


def noisy_image(image: Image, sigma: float, rng: Generator) -> Image:
    """Gaussian noise of deviation ``sigma``, in grey levels of 255."""
    return as_bytes(image + sigma * rng.standard_normal(image.shape))


def as_bytes(pixels: NDArray[np.floating]) -> Image:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def clipped(clip: Clip, overdrive: float) -> Clip:
    """Cut off ``overdrive`` dB below the clip's own peak, then brought back to its loudness (RMS)."""
    limit = np.abs(clip.waveform).max() / 10 ** (overdrive / 20)
    cut = np.clip(clip.waveform, -limit, limit)
    return as_clip(cut * (rms(clip.waveform) / rms(cut)), clip.sample_rate)


def noisy_clip(clip: Clip, snr: float, rng: Generator) -> Clip:
    """White noise ``snr`` dB below the clip's own loudness."""
    noise = rng.standard_normal(len(clip.waveform)) * rms(clip.waveform) / 10 ** (snr / 20)
    return as_clip(clip.waveform + noise, clip.sample_rate)


def low_passed(clip: Clip, cutoff: float) -> Clip:
    """Nothing left much above ``cutoff`` Hz: a Butterworth filter forwards and backwards, so without delay."""
    sections = butter(FILTER_ORDER, cutoff, fs=clip.sample_rate, output="sos")
    return as_clip(sosfiltfilt(sections, clip.waveform), clip.sample_rate)


def as_clip(waveform: NDArray[np.floating], sample_rate: int) -> Clip:
    return Clip(waveform.astype(np.float32), sample_rate)


def rms(waveform: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


def frozen_feet(motion: Motion, share: float) -> JointMotion:
    """For the first ``share`` of its frames the body glides: ankles and toes stay where they are below the pelvis in
    the first frame, turn with it, and keep the least height they have in the clip.
    """
    joints = motion.joints().astype(np.float64)
    heights = joints[:, FEET, 1].min(0)
    count = round(share * len(joints))
    heading = yaw_of(motion.rotations[:count, 0].astype(np.float64))
    turns = about_y(heading - yaw_of(motion.rotations[0, 0].astype(np.float64)))
    held = joints[:count, :1] + np.einsum("fij,kj->fki", turns, joints[0, FEET] - joints[0, 0])
    held[..., 1] = heights
    joints[:count, FEET] = held
    return as_joints(joints, motion.fps)


def shaken(motion: Motion, millimetres: float, rng: Generator) -> JointMotion:
    """Gaussian noise on the place of every joint in every frame, each by itself."""
    joints = motion.joints()
    return as_joints(joints + millimetres / 1000 * rng.standard_normal(joints.shape), motion.fps)


def stretched(motion: Motion, speed: float) -> JointMotion:
    """The same way ``speed`` times as fast, so in as many times fewer frames."""
    return as_joints(resampled_joints(motion.joints(), motion.fps, motion.fps / speed), motion.fps)


def as_joints(joints: NDArray[np.floating], fps: float) -> JointMotion:
    return JointMotion(joints.astype(np.float32), fps)
