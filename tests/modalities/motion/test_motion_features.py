"""The vectorised features against loops written from the definitions, frame by frame and joint by joint."""

from __future__ import annotations

import numpy as np
import pytest

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.modalities.motion.adapter import MotionAdapter
from layersync.modalities.motion.features.geometric import HIP_WIDTH, HUMERUS, SHOULDER_WIDTH, geometric_features
from layersync.modalities.motion.features.kinetic import kinetic_features
from layersync.modalities.motion.sample import JointMotion, Motion
from layersync.modalities.motion.skeleton import INDEX


def slow_kinetic(motion: Motion) -> list[float]:
    joints, fps, values = motion.joints().astype(float), motion.fps, []
    for joint in range(24):
        horizontal = vertical = expenditure = 0.0
        for frame in range(1, len(joints)):
            velocities, accelerations = [], []
            for near in range(frame - 2, frame + 3):
                if near - 1 >= 0 and near < len(joints):
                    velocities.append((joints[near, joint] - joints[near - 1, joint]) * fps)
                if near - 1 >= 0 and near + 1 < len(joints):
                    accelerations.append(
                        (joints[near + 1, joint] - 2 * joints[near, joint] + joints[near - 1, joint]) * fps**2
                    )
            x, y, z = np.mean(velocities, axis=0)
            horizontal += x * x + z * z
            vertical += y * y
            expenditure += np.linalg.norm(np.mean(accelerations, axis=0)) if accelerations else 0.0
        values += [total / (len(joints) - 1) for total in (horizontal, vertical, expenditure)]
    return values


@pytest.mark.parametrize("frames", [2, 3, 6, 40])
def test_kinetic_features_agree_with_the_definition(make_motion, frames):
    motion = make_motion(frames=frames, fps=20.0)
    np.testing.assert_allclose(kinetic_features([motion])[0], slow_kinetic(motion), rtol=1e-9, atol=1e-9)


def test_a_glide_has_horizontal_energy_only(make_motion):
    motion = make_motion(frames=30)
    glide = Motion(
        np.stack([np.arange(30) / 30 * 2.0, np.full(30, 0.9), np.zeros(30)], axis=1).astype(np.float32),
        np.repeat(motion.rotations[:1], 30, axis=0),
    )
    values = kinetic_features([glide])[0].reshape(24, 3)
    np.testing.assert_allclose(values[:, 0], 4.0, rtol=1e-4)
    np.testing.assert_allclose(values[:, 1:], 0, atol=1e-3)


def slow_geometric(motion: Motion) -> np.ndarray:
    joints, fps = motion.joints().astype(float), motion.fps
    totals = np.zeros(32)
    for frame in range(1, len(joints)):
        now = {name: joints[frame, index] for name, index in INDEX.items()}
        old = {name: joints[frame - 1, index] for name, index in INDEX.items()}
        floor = joints[frame, :, 1].min()

        def speed_along(mover, origin, direction, now=now, old=old):
            relative = (now[mover] - now[origin]) - (old[mover] - old[origin])
            return relative @ direction / np.linalg.norm(direction) * fps

        def normal(a, b, c, now=now):
            return np.cross(now[c] - now[a], now[b] - now[a])

        def degrees(u, v):
            return np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))

        def beyond(p, a, direction):
            return (p - a) @ direction / np.linalg.norm(direction)

        def speed(name, now=now, old=old):
            return np.linalg.norm(now[name] - old[name]) * fps

        n, left, right = now, "left", "right"
        trunk = n["pelvis"] - n["neck"]
        up = np.array([0.0, 1, 0])
        found = []
        for a, b in ((right, left), (left, right)):
            found.append(speed_along(f"{a}_wrist", "neck", normal("neck", f"{a}_hip", f"{b}_hip")) > 1.8 * HUMERUS)
        for a in (right, left):
            found.append(beyond(n[f"{a}_wrist"], n["neck"], n["neck"] - n["spine3"]) > 0.2 * HUMERUS)
        for _ in (right, left):  # the wrist is named in the relation and plays no part in it, in AIST++ too
            found.append(
                ((n["spine3"] - n["spine1"]) - (old["spine3"] - old["spine1"]))
                @ (n["spine3"] - n["spine1"])
                / np.linalg.norm(n["spine3"] - n["spine1"])
                * fps
                > 1.8 * HUMERUS
            )
        for a in (right, left):
            found.append(degrees(n[f"{a}_shoulder"] - n[f"{a}_elbow"], n[f"{a}_wrist"] - n[f"{a}_elbow"]) < 110)
        across = n["right_shoulder"] - n["left_shoulder"]
        found.append(beyond(n["right_wrist"], n["left_wrist"], across) > 2.5 * SHOULDER_WIDTH)
        found.append(speed_along("right_wrist", "left_wrist", n["right_wrist"] - n["left_wrist"]) > 1.4 * HUMERUS)
        for a, b in ((right, left), (left, right)):
            found.append(speed_along(f"{b}_wrist", f"{a}_wrist", n["pelvis"] - n[f"{a}_wrist"]) > 1.4 * HUMERUS)
        found += [speed("right_wrist") > 2.5 * HUMERUS, speed("left_wrist") > 2.5 * HUMERUS]
        for a, b in ((left, right), (right, left)):
            plane = normal("pelvis", f"{a}_hip", f"{a}_foot")
            found.append(beyond(n[f"{b}_ankle"], n["pelvis"], plane) > 0.38 * HUMERUS)
        found += [n[f"{a}_ankle"][1] - floor > 1.2 * HUMERUS for a in (right, left)]
        found.append(beyond(n["right_ankle"], n["left_ankle"], n["right_hip"] - n["left_hip"]) > 2.1 * HIP_WIDTH)
        found += [
            degrees(n[f"{a}_hip"] - n[f"{a}_knee"], n[f"{a}_ankle"] - n[f"{a}_knee"]) < 110 for a in (right, left)
        ]
        found += [speed("right_ankle") > 2.5 * HUMERUS, speed("left_ankle") > 2.5 * HUMERUS]
        found += [degrees(trunk, n[f"{a}_elbow"] - n[f"{a}_shoulder"]) > 25 for a in (right, left)]
        found += [degrees(trunk, n[f"{a}_knee"] - n[f"{a}_hip"]) > 50 for a in (right, left)]
        plane = normal("right_ankle", "neck", "left_ankle")
        found.append(beyond(n["pelvis"], n["right_ankle"], plane) > 0.5 * HUMERUS)
        found.append(70 < degrees(trunk, up) < 110)
        found += [floor - n[f"{a}_wrist"][1] > -1.2 * HUMERUS for a in (right, left)]
        found.append(speed("pelvis") > 2.3 * HUMERUS)
        totals += np.array(found, dtype=float)
    return totals / (len(joints) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_geometric_features_agree_with_the_definition(make_motion, seed):
    motion = make_motion(frames=50, seed=seed, wild=0.5 + 0.4 * seed)
    values = geometric_features([motion])[0]
    np.testing.assert_allclose(values, slow_geometric(motion), atol=1e-9)
    assert ((values > 0) & (values < 1)).sum() > 5


def test_features_do_not_depend_on_the_frame_rate_of_a_slow_motion(make_motion):
    motion = make_motion(frames=181, fps=60.0)
    a, b = kinetic_features([motion, motion.resampled(30)])
    np.testing.assert_allclose(a.reshape(24, 3)[:, :2], b.reshape(24, 3)[:, :2], rtol=0.1, atol=0.02)
    a, b = geometric_features([motion, motion.resampled(30)])
    np.testing.assert_allclose(a, b, atol=0.06)


@pytest.mark.parametrize("features", [kinetic_features, geometric_features])
def test_motions_of_any_length_have_the_same_number_of_features(make_motion, features):
    values = features([make_motion(frames=frames) for frames in (1, 2, 3, 77)])
    assert values.shape == (4, 72 if features is kinetic_features else 32)
    assert np.isfinite(values).all()
    assert not values[0].any()


@pytest.mark.parametrize(("name", "formula"), [("kinetic", kinetic_features), ("geometric", geometric_features)])
def test_extractors_give_one_row_a_motion_by_these_formulas(make_motion, name, formula):
    extractor = MotionAdapter().features()[name](None)
    motions = [make_motion(frames=frames, seed=frames) for frames in (20, 50)]
    rows = extractor([Example(motion, {}, str(number)) for number, motion in enumerate(motions)])["features"]
    np.testing.assert_allclose(np.concatenate(rows), formula(motions), rtol=1e-6)
    assert (extractor.name, extractor.checksum, extractor.streams) == (name, "", ("features",))
    with pytest.raises(InputError, match=f"{name} is a formula"):
        MotionAdapter().features()[name]("weights.pt")


def test_motions_of_joints_alone_have_features_and_sets_do_not_mix(make_motion):
    motion = make_motion(frames=40)
    body = Example(JointMotion(motion.joints()[:, :22], motion.fps), {}, "body.npy")
    whole = Example(JointMotion(motion.joints(), motion.fps), {}, "whole.npy")
    features = MotionAdapter().features()
    np.testing.assert_array_equal(
        features["kinetic"](None)([body])["features"][0], kinetic_features([motion])[:, :66].astype(np.float32)
    )
    assert np.abs(features["geometric"](None)([body])["features"][0] - geometric_features([motion])).max() < 0.2
    for name in ("kinetic", "geometric"):
        extractor = features[name](None)
        extractor([whole])
        with pytest.raises(InputError, match=rf"body\.npy has 22 joints and whole\.npy 24.*--extractor {name}=22"):
            extractor([body])
        first_22 = features[name]("22")
        rows = first_22([whole, body])["features"]
        np.testing.assert_array_equal(rows[0], rows[1])
        assert first_22.preprocessing != extractor.preprocessing


def test_other_rates_are_said_once(make_motion, caplog):
    extractor = MotionAdapter().features()["kinetic"](None)
    extractor([Example(make_motion(frames=30, fps=fps), {}, f"{fps:g}") for fps in (30.0, 20.0, 20.0)])
    assert sum("frames a second" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("sample", "message"),
    [("walk", "no motion"), (np.zeros((5, 24, 3)), "no motion"), (JointMotion(np.zeros((0, 24, 3))), "joints are")],
)
def test_what_is_no_motion_is_refused(sample, message):
    with pytest.raises(InputError, match=f"odd.*{message}"):
        MotionAdapter().features()["kinetic"](None)([Example(sample, {}, "odd")])
    broken = JointMotion(np.full((5, 22, 3), np.nan))
    with pytest.raises(InputError, match=r"odd.*330 coordinates"):
        MotionAdapter().features()["kinetic"](None)([Example(broken, {}, "odd")])
