from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from layersync.modalities.motion.sample import Motion, yaw_of
from layersync.modalities.motion.skeleton import JOINTS, MIRROR, PARENTS, REST, STANDING_HEIGHT


def test_rest_is_a_standing_adult_in_t_pose():
    assert len(JOINTS) == len(PARENTS) == len(REST) == 24
    assert all(parent < joint for joint, parent in enumerate(PARENTS))
    height = REST[JOINTS.index("head"), 1] + STANDING_HEIGHT
    assert 1.4 < height < 1.65  # the head joint, below the crown
    left_arm = REST[JOINTS.index("left_wrist")] - REST[JOINTS.index("left_shoulder")]
    assert left_arm[0] > 0.98 * np.linalg.norm(left_arm)
    np.testing.assert_allclose(REST[MIRROR] * [-1, 1, 1], REST)


def test_forward_kinematics_agrees_with_rotations_chained_one_by_one(make_motion):
    motion = make_motion(frames=7, wild=1.5)
    joints = motion.joints()
    for frame in range(7):
        turned, place = {}, {}
        for joint, parent in enumerate(PARENTS):
            own = Rotation.from_matrix(motion.rotations[frame, joint])
            if parent < 0:
                turned[joint], place[joint] = own, motion.translation[frame].astype(float)
            else:
                turned[joint] = turned[parent] * own
                place[joint] = place[parent] + turned[parent].apply(REST[joint] - REST[parent])
        np.testing.assert_allclose(joints[frame], np.array([place[j] for j in range(24)]), atol=1e-5)


def test_mirrored_joints_are_the_reflected_joints_with_sides_exchanged(make_motion):
    motion = make_motion(wild=1.2)
    np.testing.assert_allclose(motion.mirrored().joints(), motion.joints()[:, MIRROR] * [-1, 1, 1], atol=1e-5)
    twice = motion.mirrored().mirrored()
    np.testing.assert_array_equal(twice.rotations, motion.rotations)
    np.testing.assert_array_equal(twice.translation, motion.translation)


def test_canonical_moves_rigidly_to_the_origin_facing_forward(make_motion):
    motion = make_motion()
    canonical = motion.canonical()
    assert abs(yaw_of(canonical.rotations[0, 0])) < 1e-5
    np.testing.assert_allclose(canonical.translation[0, [0, 2]], 0, atol=1e-6)
    np.testing.assert_allclose(canonical.translation[:, 1], motion.translation[:, 1], atol=1e-6)
    distances = [np.linalg.norm(m.joints()[:, :, None] - m.joints()[:, None], axis=-1) for m in (motion, canonical)]
    np.testing.assert_allclose(*distances, atol=1e-5)
    travelled = [np.linalg.norm(np.diff(m.translation, axis=0), axis=1) for m in (motion, canonical)]
    np.testing.assert_allclose(*travelled, atol=1e-5)


def test_resampling_keeps_shared_frames_and_turns_evenly():
    turns = Rotation.from_rotvec(np.outer(np.arange(11) * 0.2, [0, 0, 1])).as_matrix()
    rotations = np.tile(np.eye(3), (11, 24, 1, 1))
    rotations[:, 5] = turns
    motion = Motion(np.arange(33).reshape(11, 3).astype(np.float32), rotations.astype(np.float32), 20.0)
    faster = motion.resampled(40.0)
    assert len(faster) == 21
    np.testing.assert_allclose(faster.rotations[::2], motion.rotations, atol=1e-6)
    angles = Rotation.from_matrix(faster.rotations[:, 5]).as_rotvec()[:, 2]
    np.testing.assert_allclose(np.diff(angles), 0.1, atol=1e-5)
    assert len(motion.resampled(30.0)) == 16
    assert motion.resampled(30.0).fps == 30.0


def test_a_motion_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(frames, 24, 3, 3\)"):
        Motion(np.zeros((3, 3), np.float32), np.zeros((3, 22, 3, 3), np.float32))
