"""Anybody's motion samples: every layout that is taken, and what is said of those that are not."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from evaluator_files import GOLDEN, model_statistics

from layersync.core.adapter import ExampleDataset, load_adapter
from layersync.core.errors import InputError
from layersync.modalities.motion.adapter import MotionAdapter
from layersync.modalities.motion.humanml3d import (
    CONTACTS,
    POSITIONS,
    ROOT_HEIGHT,
    ROOT_VELOCITY,
    ROTATIONS,
    VELOCITIES,
    YAW_RATE,
    HumanML3DFeatures,
    joints_to_humanml3d,
)
from layersync.modalities.motion.io.amass import write_amass
from layersync.modalities.motion.mocap import MocapClipsConfig
from layersync.modalities.motion.sample import JointMotion, Motion

GROUPS = (YAW_RATE, ROOT_VELOCITY, ROOT_HEIGHT, POSITIONS, ROTATIONS, VELOCITIES, CONTACTS)


@pytest.fixture(scope="module")
def joints() -> np.ndarray:
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        array: np.ndarray = stored["joints"]
    return array


@pytest.fixture(scope="module")
def features(joints: np.ndarray) -> np.ndarray:
    return joints_to_humanml3d(joints)


def open_samples(path: Path) -> ExampleDataset:
    return load_adapter("motion").open_samples(path)


def samples_of(path: Path) -> list:
    dataset = open_samples(path)
    return [dataset[index].sample for index in range(len(dataset))]


def test_folders_of_humanml3d_files(tmp_path, joints, features):
    for folder, arrays in (("new_joints", (joints, joints[:50])), ("new_joint_vecs", (features, features[:50]))):
        (tmp_path / folder).mkdir()
        for number, array in enumerate(arrays):
            np.save(tmp_path / folder / f"{number:06d}.npy", array)
    found = samples_of(tmp_path / "new_joints")
    assert [type(sample) for sample in found] == [JointMotion] * 2
    assert [(len(sample), sample.fps) for sample in found] == [(97, 20.0), (50, 20.0)]
    found = samples_of(tmp_path / "new_joint_vecs")
    assert [type(sample) for sample in found] == [HumanML3DFeatures] * 2
    np.testing.assert_array_equal(found[1].values, features[:50])
    with pytest.raises(InputError, match=r"joints \(new_joints/.*features \(new_joint_vecs/|features.*and joints"):
        open_samples(tmp_path)


def test_linked_folders_are_read_as_others_are(tmp_path, joints):
    for folder, length in (("one", 97), ("two", 50)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "000000.npy", joints[:length])
        (tmp_path / "joint" / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "joint" / folder).symlink_to(tmp_path / folder)
    assert [len(sample) for sample in samples_of(tmp_path / "joint")] == [97, 50]


def test_features_beside_a_mean_and_deviation_are_denormalised_with_them(tmp_path, features):
    mean, std = model_statistics()
    for name, array in (("Mean", mean), ("Std", std), ("a", (features - mean) / std)):
        np.save(tmp_path / f"{name}.npy", array)
    dataset = open_samples(tmp_path)
    assert len(dataset) == 1
    np.testing.assert_allclose(dataset[0].sample.values, features, atol=1e-5)
    np.save(tmp_path / "b.npy", features)
    with pytest.raises(InputError, match=r"b\.npy.*when not normalised"):
        open_samples(tmp_path)[1]
    with pytest.raises(InputError, match=r"b\.npy.*when not normalised"):
        open_samples(tmp_path / "b.npy")[0]
    (tmp_path / "b.npy").unlink()
    (tmp_path / "Std.npy").unlink()
    with pytest.raises(InputError, match=r"Mean\.npy alone"):
        open_samples(tmp_path)
    (tmp_path / "Mean.npy").unlink()
    with pytest.raises(InputError, match=r"a\.npy.*look normalised.*mean\.npy and std\.npy"):
        open_samples(tmp_path)[0]


def test_normalised_features_of_real_motions_are_told_from_raw_ones():
    clips = MocapClipsConfig(split="train").build("train")
    raw = [joints_to_humanml3d(clips[index].sample.joints(), clips[index].sample.fps) for index in range(len(clips))]
    together = np.concatenate(raw)
    mean, std = together.mean(0), together.std(0)
    for group in GROUPS:
        std[group] = std[group].mean()
    for values in raw:
        normalised = (values - mean) / std
        assert len(HumanML3DFeatures(values)) == len(values)
        np.testing.assert_allclose(HumanML3DFeatures.from_normalised(normalised, mean, std).values, values, atol=1e-4)
        with pytest.raises(InputError, match="look normalised"):
            HumanML3DFeatures(normalised)
        with pytest.raises(InputError, match="when not normalised"):
            HumanML3DFeatures.from_normalised(values, mean, std)


def test_what_a_run_renders_opens_again(tmp_path, make_motion):
    motions = [make_motion(frames=30 + number, seed=number) for number in range(3)]
    MotionAdapter().render(motions, tmp_path)
    found = samples_of(tmp_path)
    assert all(isinstance(sample, Motion) for sample in found)
    for sample, motion in zip(found, motions, strict=True):
        np.testing.assert_allclose(sample.joints()[:, :22], motion.joints()[:, :22], atol=1e-4)
    assert len(samples_of(tmp_path / "motion-001.npz")) == 1


def test_amass_and_bvh_come_at_30_frames_a_second(tmp_path, make_motion, write_body_bvh):
    for number, fps in enumerate((60.0, 120.0)):
        write_amass(tmp_path / "amass" / f"sub{number}" / "clip.npz", make_motion(frames=122, fps=fps))
        write_body_bvh(f"bvh/{number}.bvh", make_motion(frames=122, fps=fps, seed=number))
    assert [(sample.fps, len(sample)) for sample in samples_of(tmp_path / "amass")] == [(30.0, 61), (30.0, 31)]
    assert [(sample.fps, len(sample)) for sample in samples_of(tmp_path / "bvh")] == [(30.0, 61), (30.0, 31)]
    assert len(samples_of(tmp_path / "bvh" / "1.bvh")) == 1
    assert open_samples(tmp_path / "amass")[1].source == "sub1/clip.npz"
    with np.load(tmp_path / "amass" / "sub1" / "clip.npz") as archive:
        parts = {key: archive[key] for key in archive.files if key != "poses"}
        parts |= {"root_orient": archive["poses"][:, :3], "pose_body": archive["poses"][:, 3:66]}
    np.savez(tmp_path / "alone.npz", **parts)
    assert [(sample.fps, len(sample)) for sample in samples_of(tmp_path / "alone.npz")] == [(30.0, 31)]
    write_amass(tmp_path / "bvh" / "extra.npz", make_motion())
    with pytest.raises(InputError, match=r"holds \.bvh and \.npz"):
        open_samples(tmp_path / "bvh")


def test_a_name_that_is_no_utf8_is_scored_as_others_are(tmp_path, joints, command):
    """Of an older system, or of an archive from one."""
    many = np.stack([joints[start : start + 40] for start in range(0, 40, 2)])
    np.save(tmp_path / "real.npy", many)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.npy"))
    np.save(tmp_path / "plain.npy", many[:8])
    (tmp_path / "plain.npy").rename(odd)
    scored = ("score", "--modality", "motion", "--real", tmp_path / "real.npy", "--generated", odd)
    for more in ((), ("--json",)):
        status, out, err = command(*scored, "--metrics", "fd-kinetic", *more)
        assert status == 0 and "fd-kinetic" in out and "caf" in out, err


def test_one_array_of_many_motions(tmp_path, joints, features):
    many = np.stack([joints[:40], joints[40:80], joints[50:90]])
    np.save(tmp_path / "many.npy", many)
    dataset = open_samples(tmp_path / "many.npy")
    assert [dataset[index].source for index in range(3)] == ["many.npy[0]", "many.npy[1]", "many.npy[2]"]
    np.testing.assert_array_equal(dataset[2].sample.joints(), many[2])
    assert dataset[0].condition == {}
    lengths = np.array([40, 12, 33])
    padded = many.copy()
    padded[1, 12:] = np.nan
    np.savez(tmp_path / "cut.npz", motion=padded, lengths=lengths, text=np.array(["a", "b#b/X#0#0", "c"]), fps=25)
    dataset = open_samples(tmp_path / "cut.npz")
    assert [len(dataset[index].sample) for index in range(3)] == lengths.tolist()
    assert [dataset[index].condition["text"] for index in range(3)] == ["a", "b#b/X#0#0", "c"]
    assert dataset[1].sample.fps == 25
    np.save(tmp_path / "vecs.npy", np.stack([features[:30], features[30:60]]))
    assert [type(sample) for sample in samples_of(tmp_path / "vecs.npy")] == [HumanML3DFeatures] * 2
    np.save(tmp_path / "one.npy", joints)
    assert open_samples(tmp_path / "one.npy")[0].source == "one.npy"
    with_hands = np.concatenate([joints, joints[:, 20:]], axis=1)
    np.savez(tmp_path / "hands.npz", with_hands[None])
    assert samples_of(tmp_path / "hands.npz")[0].joints().shape == (97, 24, 3)


def test_captions_beside_the_samples(tmp_path, joints):
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", joints[:40])
    (tmp_path / "a.txt").write_text("a man walks#a/DET man/NOUN walk/VERB#1.0#1.5\nanother line\n")
    (tmp_path / "b.txt").write_text("\n a person turns \n")
    dataset = open_samples(tmp_path)
    assert [dataset[index].condition.get("text") for index in range(3)] == [
        "a man walks#a/DET man/NOUN walk/VERB#1.0#1.5", "a person turns", None,
    ]  # fmt: skip
    assert len(dataset[0].sample) == 40
    np.save(tmp_path / "many.npy", joints[None, :40].repeat(2, axis=0))
    (tmp_path / "many.txt").write_text("first\nsecond\n")
    many = open_samples(tmp_path / "many.npy")
    assert [many[index].condition["text"] for index in range(2)] == ["first", "second"]
    (tmp_path / "many.txt").write_text("first\n")
    with pytest.raises(InputError, match=r"many\.txt: has 1 lines.*2 motions"):
        open_samples(tmp_path / "many.npy")


def test_humanml3ds_texts_describe_the_whole_or_a_part(tmp_path, features):
    texts, vecs = tmp_path / "texts", tmp_path / "new_joint_vecs"
    texts.mkdir()
    vecs.mkdir()
    for name in ("000001", "000002"):
        np.save(vecs / f"{name}.npy", features)
    (texts / "000001.txt").write_text(
        "walks slowly#walk/VERB slowly/ADV#0.0#0.0\nwalks#walk/VERB#0.0#0.0\nstops#stop/VERB#1.5#3.75\n"
    )
    (texts / "000002.txt").write_text("turns#turn/VERB#nan#nan\n")
    dataset = open_samples(vecs)
    found = [(len(dataset[index].sample), dataset[index].condition["text"].partition("#")[0]) for index in range(3)]
    assert found == [(96, "walks slowly"), (45, "stops"), (96, "turns")]
    np.testing.assert_array_equal(dataset[1].sample.values, features[30:75])
    (texts / "000002.txt").write_text("turns#turn/VERB#9.0#12.0\n")
    with pytest.raises(InputError, match=r"000002\.npy: has no frame from 9 to 12 s"):
        open_samples(vecs)[2]
    (texts / "000002.txt").write_text("turns#turn/VERB#soon#later\n")
    with pytest.raises(InputError, match=r"000002\.txt.*two times"):
        open_samples(vecs)


def test_a_split_of_humanml3d_has_the_published_lengths(tmp_path, features, caplog):
    vecs, texts = tmp_path / "new_joint_vecs", tmp_path / "texts"
    vecs.mkdir()
    texts.mkdir()
    frames = {"a": 39, "b": 40, "c": 96, "d": 200}
    for name, length in frames.items():
        np.save(vecs / f"{name}.npy", np.resize(features, (length, 263)))
        (texts / f"{name}.txt").write_text("walks#walk/VERB#0.0#0.0\nstops#stop/VERB#0.0#1.5\n")
    (tmp_path / "test.txt").write_text("d\nc\na\nmissing\nb\n")
    with caplog.at_level(logging.WARNING):
        dataset = open_samples(tmp_path / "test.txt")
    assert [dataset[index].source for index in range(len(dataset))] == ["c.npy", "b.npy"]
    assert "1 of 5 names" in caplog.text
    (tmp_path / "test.txt").write_text("b\nc\nnan\nmute\n")
    np.save(vecs / "nan.npy", np.full((84, 263), np.nan, np.float32))
    np.save(vecs / "mute.npy", np.resize(features, (84, 263)))
    (texts / "nan.txt").write_text("walks#walk/VERB#0.0#0.0\n")
    with caplog.at_level(logging.WARNING):
        dataset = open_samples(tmp_path / "test.txt")
    assert [dataset[index].source for index in range(len(dataset))] == ["b.npy", "c.npy"], "as the published test set"
    assert "1 of 4 motions are left out: values that are not finite" in caplog.text
    assert "1 of 3 motions are left out: no texts" in caplog.text
    (tmp_path / "test.txt").write_text("a\n")
    with pytest.raises(InputError, match="40 to 199"):
        open_samples(tmp_path / "test.txt")
    (tmp_path / "test.txt").write_text("x\n")
    with pytest.raises(InputError, match="none of its 1 names"):
        open_samples(tmp_path / "test.txt")
    vecs.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"needs .*new_joint_vecs"):
        open_samples(tmp_path / "test.txt")


def test_the_fingerprint_changes_with_content_text_and_statistics(tmp_path, features):
    mean, std = model_statistics()
    np.save(tmp_path / "a.npy", features)
    prints = [open_samples(tmp_path).fingerprint]
    assert open_samples(tmp_path).fingerprint == prints[0]
    np.save(tmp_path / "a.npy", features * 1.001)
    prints.append(open_samples(tmp_path).fingerprint)
    (tmp_path / "a.txt").write_text("walks")
    prints.append(open_samples(tmp_path).fingerprint)
    np.save(tmp_path / "mean.npy", mean)
    np.save(tmp_path / "std.npy", std)
    prints.append(open_samples(tmp_path).fingerprint)
    np.save(tmp_path / "std.npy", std * 2)
    prints.append(open_samples(tmp_path).fingerprint)
    np.save(tmp_path / "b.npy", features)
    prints.append(open_samples(tmp_path).fingerprint)
    assert len(set(prints)) == len(prints)


def test_pickled_results_are_not_read_and_it_is_said_how_to_convert_them(tmp_path, joints):
    motion = joints[:40].transpose(1, 2, 0)[None]
    results = {"motion": motion, "text": ["walks"], "lengths": np.array([30]), "num_samples": 1}
    np.save(tmp_path / "results.npy", results)
    with pytest.raises(InputError, match=r"results\.npy: holds pickled.*savez") as raised:
        open_samples(tmp_path / "results.npy")
    assert "\n" not in str(raised.value)
    # The advice, followed.
    r = np.load(tmp_path / "results.npy", allow_pickle=True).item()
    archive = tmp_path / "motions.npz"
    np.savez(archive, motion=r["motion"].transpose(0, 3, 1, 2), lengths=r["lengths"], text=r["text"], fps=20)
    example = open_samples(archive)[0]
    np.testing.assert_array_equal(example.sample.joints(), joints[:30])
    assert example.condition == {"text": "walks"}
    np.save(tmp_path / "motion.npy", motion)
    with pytest.raises(InputError, match=r"frames last; transpose\(0, 3, 1, 2\)"):
        open_samples(tmp_path / "motion.npy")


def test_what_is_no_sample_is_named(tmp_path, joints):
    with pytest.raises(InputError, match="nowhere: there is no such folder or file"):
        open_samples(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no motion samples in it"):
        open_samples(tmp_path)
    (tmp_path / "clip.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"clip\.gif: motion samples are"):
        open_samples(tmp_path / "clip.gif")
    broken = joints.copy()
    broken[3, 4] = np.nan
    cases = {
        "torn.npy": (b"\x93NUMPY torn", "no readable array"),
        "torn.npz": (b"PK\x03\x04 torn", "no readable npz"),
        "shape.npy": (np.zeros((40, 21, 3)), "a motion is"),
        "kit.npy": (np.zeros((40, 251)), "shape"),
        "whole.npy": (np.zeros((40, 22, 3), dtype=int), "floating-point"),
        "empty.npy": (np.zeros((0, 22, 3)), "a motion is"),
        "none.npy": (np.zeros((0, 40, 22, 3)), "expected"),
        "number.npy": (np.array(3.0), "a motion is|expected"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(InputError, match=f"{name}.*({message})"):
            open_samples(path)
    for path in tmp_path.iterdir():
        path.unlink()
    np.save(tmp_path / "nan.npy", broken)
    for path in (tmp_path, tmp_path / "nan.npy"):
        with pytest.raises(InputError, match=r"nan\.npy: holds 3 values that are not finite"):
            open_samples(path)[0]
    (tmp_path / "nan.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"nan\.txt: holds no caption"):
        open_samples(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([41, 2])}, "lengths are not 2 numbers from 1 to 40"),
        ({"lengths": np.array([0, 2])}, "lengths are not"),
        ({"lengths": np.array([3])}, "lengths are not"),
        ({"lengths": np.array([3.0, 2.0])}, "not whole numbers"),
        ({"text": np.array(["a"])}, "but there are 2 motions"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": np.array([20, 20])}, r"fps is int64 \[2\]; one number above 0 is wanted$"),
        ({"fps": "fast"}, r"fps is <U4 \[\]; one number above 0 is wanted$"),
        ({"fps": np.nan}, "fps is nan; one number above 0 is wanted$"),
        ({"other": np.zeros((2, 40, 22, 3))}, "expected one array"),
    ],
)
def test_archives_must_fit_together(tmp_path, joints, change, message):
    content = {"motion": np.stack([joints[:40], joints[40:80]]), "fps": 20} | change
    np.savez(tmp_path / "odd.npz", **content)
    with pytest.raises(InputError, match=rf"odd\.npz: .*{message}"):
        open_samples(tmp_path / "odd.npz")
