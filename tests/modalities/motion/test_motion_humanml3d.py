"""HumanML3D's representation against the published code, and back.

Golden numbers: ``tests/golden/motion_humanml3d.npz`` holds joints of a smooth made-up motion of 97 frames and one whole
turn, and what the published ``process_file`` (without and with ``uniform_skeleton``, every second and sixth row) and
``recover_from_ric`` (every fourth frame) made of them; github.com/EricGuo5513/HumanML3D, commit 9176e8f,
``motion_representation.ipynb``, ``common/skeleton.py``, ``common/quaternion.py``, run with the versions in ``source``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluator_files import GOLDEN, model_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion import humanml3d_to_joints, joints_to_humanml3d
from layersync.modalities.motion.humanml3d import (
    BONE_DIRECTIONS,
    CHAINS,
    CONTACTS,
    PARENTS,
    POSITIONS,
    ROOT_HEIGHT,
    ROOT_VELOCITY,
    ROTATIONS,
    VELOCITIES,
    YAW_RATE,
    HumanML3DFeatures,
    skeleton_offsets,
)
from layersync.modalities.motion.representation import sixd_to_matrix
from layersync.modalities.motion.sample import resampled_joints


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_features_are_those_of_the_published_code(golden):
    features = joints_to_humanml3d(golden["joints"])
    assert features.shape == (96, 263)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[::2], golden["features"], atol=1e-4)
    np.testing.assert_array_equal(features[::2, CONTACTS], golden["features"][:, CONTACTS])
    assert 0.05 < golden["features"][:, CONTACTS].mean() < 0.95


def test_the_published_oddity_of_headings_is_kept(golden):
    """Where the body turns past "backwards" the turn of one frame has the other sign; its neighbours do not."""
    features = joints_to_humanml3d(golden["joints"])
    np.testing.assert_allclose(features[:, 0], golden["yaw_rates"], atol=1e-6)
    lone = (features[1:-1, 0] < -0.03) & (features[:-2, 0] > 0.02) & (features[2:, 0] > 0.02)
    assert lone.sum() == 1


def test_features_on_a_given_skeleton_are_those_of_the_published_code(golden):
    offsets = golden["bone_lengths"][:, None] * BONE_DIRECTIONS
    features = joints_to_humanml3d(golden["joints"], target_offsets=offsets)
    np.testing.assert_allclose(features[::6], golden["features_on_skeleton"], atol=1e-4)
    assert np.abs(features - joints_to_humanml3d(golden["joints"]))[:, POSITIONS].max() > 0.02
    joints = humanml3d_to_joints(features)
    np.testing.assert_allclose(
        np.linalg.norm(skeleton_offsets(joints), axis=1), np.linalg.norm(offsets, axis=1), atol=1e-5
    )
    np.testing.assert_allclose(
        joints_to_humanml3d(golden["joints"], target_offsets=skeleton_offsets(joints)), features, atol=1e-5
    )


def test_joints_are_those_of_the_published_code(golden):
    joints = humanml3d_to_joints(joints_to_humanml3d(golden["joints"]))
    np.testing.assert_allclose(joints[::4], golden["recovered"], atol=1e-4)


def turning(frames: int, seed: int, turn: float) -> np.ndarray:
    """Joints (frames, 22, 3) of a body that sways and turns by ``turn`` radians in all."""
    random = np.random.default_rng(seed)
    time = np.linspace(0, frames / 20, frames)[:, None, None]
    place = np.zeros((22, 3))
    place[[1, 16], 0], place[[2, 17], 0] = (0.1, 0.2), (-0.1, -0.2)
    for child, parent in PARENTS.items():
        place[child] += place[parent] + BONE_DIRECTIONS[child] * 0.2
    sway = 0.05 * np.sin(time * random.uniform(1, 4, (1, 22, 3)) + random.uniform(0, 6, (1, 22, 3)))
    heading = Rotation.from_rotvec(np.outer(np.linspace(0, turn, frames) + random.uniform(0, 6), [0, 1, 0])).as_matrix()
    path = np.stack([time[:, 0, 0] * 0.7, 0.02 * np.sin(time[:, 0, 0]) + 2, np.cos(time[:, 0, 0])], axis=1)
    return (place + sway) @ heading.swapaxes(1, 2) + path[:, None] + random.uniform(-3, 3, 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), turn=st.floats(-1.0, 1.0), frames=st.integers(12, 60))
def test_joints_come_back_up_to_place_and_heading(seed, turn, frames):
    """Of bodies that never face backwards: see the module on what the published code makes of that."""
    joints = turning(frames, seed, turn)
    features = joints_to_humanml3d(joints)
    back = humanml3d_to_joints(features.astype(np.float64))
    assert back.shape == (frames - 1, 22, 3)
    assert back[:, :, 1].min() >= -1e-6
    np.testing.assert_allclose(back[0, 0, [0, 2]], 0, atol=1e-6)
    moved = back - back.mean((0, 1))
    there = joints[:-1] - joints[:-1].mean((0, 1))
    flat = [0, 2]
    # The least-squares turn about the vertical between the two.
    turn_y = np.arctan2(
        (moved[..., 0] * there[..., 2] - moved[..., 2] * there[..., 0]).sum(),
        (moved[..., flat] * there[..., flat]).sum(),
    )
    aligned = moved @ Rotation.from_rotvec([0, -turn_y, 0]).as_matrix().T
    np.testing.assert_allclose(aligned, there, atol=2e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), turn=st.floats(0, 6.28), x=st.floats(-9, 9), y=st.floats(-2, 2))
def test_features_do_not_depend_on_where_a_motion_starts_and_faces(seed, turn, x, y):
    joints = turning(30, seed, 1.0)
    moved = joints @ Rotation.from_rotvec([0, turn, 0]).as_matrix().T + np.array([x, y, -x])
    np.testing.assert_allclose(joints_to_humanml3d(moved), joints_to_humanml3d(joints), atol=1e-4)


def test_groups_hold_what_their_names_say(golden):
    features = joints_to_humanml3d(golden["joints"]).astype(np.float64)
    assert [features[:, group].shape[1] for group in (YAW_RATE, ROOT_VELOCITY, ROOT_HEIGHT)] == [1, 2, 1]
    joints = humanml3d_to_joints(features)
    np.testing.assert_allclose(features[:, 3], joints[:, 0, 1], atol=1e-6)
    steps = np.linalg.norm(np.diff(joints[:, :, [0, 1, 2]], axis=0), axis=-1)
    # Until the turn at which the published headings go wrong.
    np.testing.assert_allclose(
        np.linalg.norm(features[:-1, VELOCITIES].reshape(-1, 22, 3), axis=-1)[:80], steps[:80], atol=1e-5
    )
    matrices = sixd_to_matrix(torch.from_numpy(features[:, ROTATIONS].reshape(-1, 21, 6))).numpy()
    local = features[:, POSITIONS].reshape(-1, 21, 3)
    local = np.concatenate([np.array([[[0.0, 1, 0]]]) * features[:, 3, None, None], local], axis=1)
    # Along a chain the rotations multiply to where its bones point, as seen from the heading.
    chain = CHAINS[0]
    facing = Rotation.from_rotvec(np.outer(2 * np.r_[0, np.cumsum(features[:-1, 0])], [0, 1, 0])).as_matrix()
    world = facing
    for parent, joint in pairwise(chain):
        world = world @ matrices[:, joint - 1]
        bone = local[:, joint] - local[:, parent]
        expected = (facing.swapaxes(1, 2) @ bone[..., None])[..., 0]
        along = (world @ BONE_DIRECTIONS[joint]) * np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(along[:80], expected[:80], atol=1e-4)


def test_a_motion_at_another_rate_is_resampled_to_20(golden):
    joints = golden["joints"].astype(np.float64)
    fast = resampled_joints(joints, 20, 60)
    assert len(fast) == 3 * 96 + 1
    np.testing.assert_allclose(joints_to_humanml3d(fast, fps=60), joints_to_humanml3d(joints), atol=1e-5)
    odd = joints_to_humanml3d(resampled_joints(joints, 20, 30), fps=30)
    np.testing.assert_allclose(odd[:, POSITIONS], joints_to_humanml3d(joints)[:, POSITIONS], atol=2e-3)


def test_batches_torch_and_surplus_joints(golden):
    joints = golden["joints"]
    more = np.concatenate([joints, np.ones((97, 2, 3), np.float32)], axis=1)
    pair = np.stack([more[:50], more[40:90]])
    features = joints_to_humanml3d(pair)
    assert features.shape == (2, 49, 263)
    for row, part in zip(features, (joints[:50], joints[40:90]), strict=True):
        np.testing.assert_allclose(row, joints_to_humanml3d(part), atol=1e-6)
    as_torch = joints_to_humanml3d(torch.from_numpy(pair))
    np.testing.assert_array_equal(as_torch.numpy(), features)
    leaf = as_torch.clone().requires_grad_()
    back = humanml3d_to_joints(leaf)
    assert back.shape == (2, 49, 22, 3)
    assert back.dtype == torch.float32
    np.testing.assert_allclose(back.detach().numpy(), humanml3d_to_joints(features), atol=1e-6)
    back.sum().backward()
    used = leaf.grad.abs().sum((0, 1)) > 0
    assert used[3:67].all()
    assert not used[67:].any()


@pytest.mark.parametrize(
    ("joints", "fps", "message"),
    [
        (np.zeros((10, 21, 3)), 20, ">= 22"),
        (np.zeros((22, 3)), 20, ">= 22"),
        (np.zeros((10, 22, 3)), 20, "coincide"),
        (np.full((10, 22, 3), np.nan), 20, "not finite"),
        (np.ones((1, 22, 3)), 20, "fewer than 2"),
        (np.ones((3, 22, 3)), 120, "fewer than 2"),
    ],
)
def test_what_is_no_motion_is_refused(joints, fps, message):
    with pytest.raises(InputError, match=message):
        joints_to_humanml3d(joints, fps)


def test_wrong_shapes_of_features_and_skeletons_are_refused(golden):
    for shape in ((263,), (10, 251), (10, 22, 3)):
        with pytest.raises(InputError, match="263"):
            humanml3d_to_joints(np.zeros(shape))
    with pytest.raises(InputError, match="target_offsets"):
        joints_to_humanml3d(golden["joints"], target_offsets=np.ones(22))
    with pytest.raises(InputError, match=">= 22"):
        skeleton_offsets(golden["joints"][:, :5])


def test_normalised_features_have_one_way_in(golden):
    mean, std = model_statistics()
    features = golden["features"]
    sample = HumanML3DFeatures(features)
    assert len(sample) == 48
    np.testing.assert_allclose(sample.joints(), humanml3d_to_joints(features), atol=1e-6)
    np.testing.assert_array_equal(sample.cut(3, 9).values, features[3:9])
    normalised = (features - mean) / std
    with pytest.raises(InputError, match="look normalised"):
        HumanML3DFeatures(normalised)
    np.testing.assert_allclose(HumanML3DFeatures.from_normalised(normalised, mean, std).values, features, atol=1e-5)
    with pytest.raises(InputError, match="when not normalised"):
        HumanML3DFeatures.from_normalised(features, mean, std)
    with pytest.raises(InputError, match="7 values"):
        HumanML3DFeatures(np.where(np.arange(263) < 7, np.where(np.arange(48)[:, None] == 5, np.nan, 0), features))
    with pytest.raises(InputError, match="263"):
        HumanML3DFeatures(features[:, :251])
