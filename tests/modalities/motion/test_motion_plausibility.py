"""Foot skating, jitter and depth below the floor on motions of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from evaluator_files import GOLDEN

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.modalities.motion.adapter import MotionAdapter
from layersync.modalities.motion.features.plausibility import floor_penetration, foot_skating, jitter
from layersync.modalities.motion.humanml3d import HumanML3DFeatures, joints_to_humanml3d
from layersync.modalities.motion.sample import JointMotion

LEFT_TOE, RIGHT_TOE = 10, 11


def standing(frames: int = 41, joints: int = 22) -> np.ndarray:
    """All joints at 1 m, the toes on the floor, nothing moves."""
    places = np.zeros((frames, joints, 3))
    places[..., 1] = 1.0
    places[:, [LEFT_TOE, RIGHT_TOE], 1] = 0.01
    return places


def example(joints: np.ndarray, fps: float = 20.0) -> Example:
    return Example(JointMotion(joints, fps), {}, "motion.npy")


def test_a_still_foot_does_not_skate_and_a_sliding_one_does():
    time = np.arange(41) / 20
    slides = standing()
    slides[:, LEFT_TOE, 0] = 0.6 * time
    slow = standing()
    slow[:, LEFT_TOE, 0] = 0.49 * time
    lifted = slides.copy()
    lifted[:, LEFT_TOE, 1] = 0.06
    falls = standing()
    falls[:, RIGHT_TOE, 1] -= 5 * time
    values = foot_skating([example(each) for each in (standing(), slides, slow, lifted, falls)])
    assert values.dtype == np.float64
    # 40 steps; at 0.6 m/s the mean over 5 steps falls below 0.5 m/s only where one or two of them lie beyond an end.
    assert values.tolist() == [0, 36 / 40, 0, 0, 0]


def test_either_foot_counts_and_half_a_slide_counts_half():
    joints = standing(frames=81)
    joints[:41, LEFT_TOE, 2] = 1.5 * np.arange(41) / 20
    joints[41:, LEFT_TOE, 2] = joints[40, LEFT_TOE, 2]
    half = foot_skating([example(joints)])[0]
    assert half == pytest.approx(0.5, abs=0.03)
    joints[40:, RIGHT_TOE, 0] = -1.5 * np.arange(41) / 20
    assert foot_skating([example(joints)])[0] == pytest.approx(1, abs=0.03)


def test_one_fast_step_is_no_skating():
    joints = standing()
    joints[20:, LEFT_TOE, 0] = 0.06
    assert foot_skating([example(joints)])[0] == 0


def test_skating_is_that_of_the_published_code():
    """GMD's ``calculate_skating_ratio``, run on the golden motion; see test_motion_humanml3d.py."""
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        joints, expected = stored["joints"], float(stored["skating"])
    assert expected > 0
    assert foot_skating([example(joints)])[0] == pytest.approx(expected)


def test_skating_is_taken_at_20_frames_a_second():
    time = np.arange(121) / 60
    joints = standing(frames=121)
    joints[:, LEFT_TOE, 0] = 0.6 * time
    assert foot_skating([example(joints, fps=60.0)])[0] == 36 / 40


def test_jitter_of_a_cubic_is_its_third_derivative():
    time = np.arange(30) / 25
    joints = np.zeros((30, 22, 3))
    joints += np.stack([2 * time**3, 1 - time**2, 5 * time], axis=1)[:, None]
    assert jitter([example(joints, fps=25.0)])[0] == pytest.approx(12)
    joints[:, :11] += 0.5 * time[:, None, None] ** 3 * np.array([0.0, 6.0, 0.0])
    assert jitter([example(joints, fps=25.0)])[0] == pytest.approx((12 + np.hypot(12, 18)) / 2)
    still, slow = jitter([example(standing()), example(np.cumsum(np.ones((9, 22, 3)), axis=0))])
    assert still == pytest.approx(0, abs=1e-9)
    assert slow == pytest.approx(0, abs=1e-9)


def test_jitter_of_noise_is_that_of_its_third_differences():
    """Third differences of white noise have the variance 1 + 9 + 9 + 1 = 20; the mean length of a 3-D one is 1.596."""
    noise = np.random.default_rng(0).normal(0, 0.001, (2000, 22, 3))
    assert jitter([example(noise)])[0] == pytest.approx(0.001 * np.sqrt(20) * 1.5958 * 20**3, rel=0.01)


def test_penetration_is_the_mean_depth_of_the_lowest_joint():
    joints = standing(frames=10)
    joints[:5, 7, 1], joints[:5, LEFT_TOE, 1] = -0.02, -0.04
    values = floor_penetration([example(joints), example(standing()), example(standing() - [0, 0.11, 0])])
    np.testing.assert_allclose(values, [0.02, 0, 0.10], atol=1e-12)


def test_hands_play_no_part_and_any_motion_is_taken(make_motion):
    motion = make_motion(frames=60)
    low = standing(joints=24)
    low[:, 22:, 1] = -3
    low[::2, 22:, 0] = 1
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        features = HumanML3DFeatures(joints_to_humanml3d(stored["joints"]))
    whole, body = (example(motion.joints()[:, :count], 30.0) for count in (24, 22))
    for name, metric in MotionAdapter().metrics().items():
        of_motion = metric([Example(motion, {}, ""), Example(features, {}, "")])
        assert of_motion.shape == (2,)
        assert metric([whole])[0] == metric([body])[0] == pytest.approx(of_motion[0], rel=1e-6)
        assert metric([example(low)])[0] == pytest.approx(0, abs=1e-9), name


def test_what_cannot_be_scored_is_named():
    with pytest.raises(InputError, match=r"motion\.npy has 3 frames"):
        jitter([example(standing(frames=3))])
    for metric in MotionAdapter().metrics().values():
        with pytest.raises(InputError, match=r"odd: ndarray is no motion"):
            metric([Example(standing(), {}, "odd")])
    assert foot_skating([example(standing(frames=1))])[0] == 0
