from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.data import AmassConfig
from layersync.modalities.motion.io.amass import BODY_JOINTS, PELVIS_AT_REST, read_amass, write_amass
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.samples import open_motion_samples
from layersync.modalities.motion.skeleton import REST, STANDING_HEIGHT


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


def write_published(folder, body, frames=8):
    """The keys that AMASS's two releases have, and the other files that lie beside the motions."""
    random = np.random.default_rng(len(body))
    folder.mkdir(parents=True)
    trans = np.cumsum(random.normal(0, 0.01, (frames, 3)), 0) + np.array([0, 0, 0.9])
    betas = random.normal(0, 1, 16)
    if body == "smplh":
        poses = random.normal(0, 0.2, (frames, 156))
        content = {"poses": poses, "dmpls": np.zeros((frames, 8)), "mocap_framerate": np.array(60.0)}
        name, other = "01_01_poses.npz", {"shape.npz": {"betas": betas, "gender": "male"}}
    else:
        poses = random.normal(0, 0.2, (frames, 165))
        parts = {"root_orient": 3, "pose_body": 63, "pose_jaw": 3, "pose_eye": 6, "pose_hand": 90}
        stops = np.cumsum(list(parts.values()))
        content = {key: poses[:, stop - width : stop] for (key, width), stop in zip(parts.items(), stops, strict=True)}
        content |= {
            "poses": poses, "surface_model_type": "smplx", "mocap_frame_rate": np.array(60.0), "num_betas": 16,
            "mocap_time_length": np.array(frames / 60), "markers_latent": np.zeros((41, 3)),
            "latent_labels": np.array(["C7"] * 41), "markers_latent_vids": np.array([{"C7": 1}], dtype=object),
        }  # fmt: skip
        name, other = "01_01_stageii.npz", {"neutral_stagei.npz": {"betas": betas, "markers_latent": np.zeros((41, 3))}}
    np.savez(folder / name, trans=trans, betas=betas, gender=np.array("male"), **content)
    for file, values in other.items():
        np.savez(folder / file, **values)
    return folder / name


@pytest.mark.parametrize("body", ["smplh", "smplx"])
def test_folders_of_both_releases_are_read_and_what_holds_no_motion_is_left(tmp_path, body):
    paths = [write_published(tmp_path / "CMU" / f"{number:02d}", body) for number in range(3)]
    data = AmassConfig(path=str(tmp_path), min_clips=1, pelvis=(0, -0.35, 0), floor="keep").build("train")
    assert len(data) == 3 and data.classes == ("00", "01", "02")
    motion = data[0].sample
    assert motion.fps == 30 and len(motion) == 4
    with np.load(paths[0], allow_pickle=True) as archive:
        x, y, z = archive["trans"][0] + [0, -0.35, 0]
        body_pose = archive["poses"][0, 3:66].reshape(21, 3)
    np.testing.assert_allclose(motion.translation[0], [x, z, -y], atol=1e-6)
    np.testing.assert_allclose(motion.rotations[0, 1:22], Rotation.from_rotvec(body_pose).as_matrix(), atol=1e-6)
    assert len(open_motion_samples(tmp_path / "CMU")) == 3


def test_the_body_alone_is_enough(tmp_path):
    path = write_published(tmp_path / "x", "smplx")
    whole = read_amass(path)
    with np.load(path, allow_pickle=True) as archive:
        kept = {key: archive[key] for key in ("root_orient", "pose_body", "trans", "mocap_frame_rate")}
    np.savez(tmp_path / "part.npz", **kept)
    part = read_amass(tmp_path / "part.npz")
    np.testing.assert_array_equal(part.rotations, whole.rotations)
    np.testing.assert_array_equal(part.translation, whole.translation)
    np.savez(tmp_path / "torn.npz", **{key: value for key, value in kept.items() if key != "pose_body"})
    with pytest.raises(InputError, match="no poses"):
        read_amass(tmp_path / "torn.npz")


def test_clips_of_other_bodies_are_put_on_the_floor_and_only_moved(tmp_path):
    """A tall one walks, a short one jumps, and one whose shape is not said; a sample of a model is left as it is."""
    frames, feet = 60, [7, 8, 10, 11]
    hop = np.maximum(0, np.sin(np.linspace(0, 6, frames))) * 0.4
    for name, higher, up in (("tall", 0.07, 0 * hop), ("short", -0.09, hop), ("bare", 0.05, hop), ("model", 0.3, hop)):
        places = np.stack([hop, STANDING_HEIGHT + higher + up, 0 * hop], axis=1).astype(np.float32)
        places[3, 1] -= 0.5  # one bad frame of the fit
        motion = Motion(places, np.tile(np.eye(3, dtype=np.float32), (frames, 24, 1, 1)))
        with np.load(write_amass(tmp_path / f"{name}.npz", motion)) as archive:
            content = {**archive, "betas": np.full(16, 0.0 if name == "model" else 0.7)}
        np.savez(tmp_path / f"{name}.npz", **{key: content[key] for key in content if (name, key) != ("bare", "betas")})
    auto, keep = (AmassConfig(path=str(tmp_path), min_clips=1, test_files="x", floor=how) for how in ("auto", "keep"))
    with pytest.warns(UserWarning, match="nothing is held out"):
        moved, raw = auto.build("train"), keep.build("train")
    assert moved.fingerprint != raw.fingerprint
    standing = REST[feet, 1] + STANDING_HEIGHT
    scored = open_motion_samples(tmp_path)
    for index in range(4):
        one, other = moved[index].sample, raw[index].sample
        np.testing.assert_array_equal(scored[index].sample.translation, one.translation)
        by = one.translation - other.translation
        assert np.ptp(by, axis=0).max() < 1e-6 and not by[:, [0, 2]].any()
        np.testing.assert_array_equal(one.rotations, other.rotations)
        lowest = np.sort((one.joints()[:, feet, 1] - standing).min(axis=1))
        if moved[index].source == "model.npz":
            assert not by.any() and lowest[1] == pytest.approx(0.3, abs=1e-4)
        else:
            assert lowest[1] == pytest.approx(0, abs=1e-4) and abs(by[0, 1]) > 0.04


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
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3)), "mocap_framerate": np.nan}, "rate of nan"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3)), "mocap_framerate": np.inf}, "rate of inf"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3)), "mocap_framerate": 1e-12}, r"from 0\.1 to 100000 a"),
        ({"poses": np.zeros(()), "trans": np.zeros((4, 3)), "mocap_framerate": 30}, r"shape \(\)"),
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
