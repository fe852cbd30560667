from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.io.amass import BODY_JOINTS, PELVIS_AT_REST, read_amass, write_amass


def test_what_is_written_is_read_again(make_motion, tmp_path):
    motion = make_motion(wild=1.5, fps=25.0)
    back = read_amass(write_amass(tmp_path / "deep" / "x.npz", motion))
    assert back.fps == 25
    np.testing.assert_allclose(back.translation, motion.translation, atol=1e-6)
    np.testing.assert_allclose(back.rotations[:, :BODY_JOINTS], motion.rotations[:, :BODY_JOINTS], atol=1e-5)
    with np.load(tmp_path / "deep" / "x.npz") as archive:
        assert {"poses", "trans", "betas", "gender", "mocap_framerate"} <= set(archive.files)
        assert archive["poses"].shape == (len(motion), 156)
        # AMASS has Z up: a body that stands has its height there.
        height = archive["trans"][:, 2] + PELVIS_AT_REST[2]
        np.testing.assert_allclose(height, motion.translation[:, 1], atol=1e-6)


@pytest.mark.parametrize(("width", "joints"), [(72, 24), (156, 22), (165, 22)])
@pytest.mark.parametrize("rate", ["mocap_framerate", "mocap_frame_rate"])
def test_poses_of_three_body_models_are_read(tmp_path, width, joints, rate):
    poses = np.random.default_rng(0).normal(0, 0.5, (5, width)).astype(np.float32)
    trans = np.arange(15).reshape(5, 3) / 10
    np.savez(tmp_path / "x.npz", poses=poses, trans=trans, betas=np.zeros(16), **{rate: np.array(120)})
    motion = read_amass(tmp_path / "x.npz", up="y", pelvis=(0, 0, 0))
    assert motion.fps == 120
    np.testing.assert_allclose(motion.translation, trans, atol=1e-6)
    for joint in range(24):
        vectors = poses[:, joint * 3 : joint * 3 + 3] if joint < joints else np.zeros((5, 3))
        expected = Rotation.from_rotvec(vectors).as_matrix()
        np.testing.assert_allclose(motion.rotations[:, joint], expected, atol=1e-6)


def test_z_up_and_y_up_say_the_same(tmp_path):
    upright = Rotation.from_rotvec([np.pi / 2, 0, 0])  # how AMASS stands a Y-up body on its Z-up floor
    poses = np.zeros((1, 156))
    poses[0, :3] = upright.as_rotvec()
    np.savez(tmp_path / "x.npz", poses=poses, trans=[[1.0, 2.0, 0.9]], mocap_framerate=30)
    motion = read_amass(tmp_path / "x.npz", pelvis=(0, 0, 0))
    np.testing.assert_allclose(motion.rotations[0, 0], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(motion.translation[0], [1, 0.9, -2], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trans": np.zeros((4, 3)), "mocap_framerate": 30}, "no poses"),
        ({"poses": np.zeros((4, 72)), "mocap_framerate": 30}, "no trans"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3))}, "no mocap_framerate"),
        ({"poses": np.zeros((4, 70)), "trans": np.zeros((4, 3)), "mocap_framerate": 30}, r"\(4, 70\)"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((5, 3)), "mocap_framerate": 30}, r"\(5, 3\)"),
        ({"poses": np.full((4, 72), np.nan), "trans": np.zeros((4, 3)), "mocap_framerate": 30}, "finite"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3)), "mocap_framerate": 0}, "rate"),
        ({"poses": np.array([{}]), "trans": np.zeros((1, 3)), "mocap_framerate": 30}, "npz"),
    ],
)
def test_other_archives_are_refused_by_name(tmp_path, content, said):
    np.savez(tmp_path / "clip.npz", **content)
    with pytest.raises(InputError, match=said) as raised:
        read_amass(tmp_path / "clip.npz")
    assert "clip.npz" in str(raised.value)


def test_damaged_archives_are_refused_by_name(make_motion, tmp_path):
    path = write_amass(tmp_path / "clip.npz", make_motion())
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[200:2000] = bytes(1800)
    for content in (whole[: len(whole) // 2], b"", b"no archive", bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"clip.npz"):
            read_amass(path)
