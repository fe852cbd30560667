from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion import mocap
from layersync.modalities.motion.io.deepmimic import PARENTS, read_deepmimic
from layersync.modalities.motion.mocap import CLIPS, WHEEL, MocapClipsConfig, alignment, closed_loop, on_smpl, unrolled
from layersync.modalities.motion.sample import yaw_of
from layersync.modalities.motion.skeleton import INDEX, NUM_JOINTS


@pytest.fixture(scope="module")
def directory():
    return WHEEL.prepare()


@pytest.fixture(scope="module")
def splits():
    config = MocapClipsConfig()
    return config.build("train"), config.build("test")


def clip_file(directory, name):
    return read_deepmimic(directory / f"humanoid3d_{name}.txt")


def looping(directory):
    return [clip.name for clip in CLIPS if clip_file(directory, clip.name).loops]


def test_fifteen_clips_with_labels_captions_and_mirror(splits):
    train, test = splits
    assert len(train) == len(test) == 15
    assert train.classes == test.classes
    assert len(train.classes) == 13
    assert train.reference_variants == train.variants == ("original", "mirror")
    assert train.fingerprint != test.fingerprint
    assert train.fingerprint != MocapClipsConfig(seconds=9).build("train").fingerprint
    for index in range(15):
        example = train[index]
        assert example.sample.fps == 30
        assert example.sample.rotations.shape[1:] == (NUM_JOINTS, 3, 3)
        assert "person" in example.condition["text"]
    assert {train[index].condition["label"] for index in range(15)} == set(range(13))
    np.testing.assert_array_equal(train.variant(example.sample, "mirror").joints(), example.sample.mirrored().joints())


def test_the_test_split_plays_the_clips_slower(splits, directory):
    train, test = splits
    for index, clip in enumerate(CLIPS):
        keyframes = clip_file(directory, clip.name)
        first, second = train[index].sample, test[index].sample
        if keyframes.loops:
            assert (len(first), len(second)) == (240, 120)
        else:
            assert first.seconds == pytest.approx(keyframes.duration, abs=0.05)
            assert second.seconds == pytest.approx(keyframes.duration / 0.9, abs=0.05)
        # The same way at other instants: frames on the 0.9 grid coincide every tenth frame, none of the others do.
        frames = min(len(second), int(0.9 * len(first)), round(0.6 * keyframes.duration * 30))
        np.testing.assert_allclose(
            second.joints()[10:frames:10],
            first.joints()[9 : int(0.9 * frames) : 9][: len(second.joints()[10:frames:10])],
            atol=0.02,
        )
        apart = np.abs(second.joints()[1:9, None] - first.joints()[None]).max(axis=(2, 3)).min(axis=1)
        assert np.median(apart) > 1e-4, clip.name


def test_a_tail_goes_on_where_training_ends(directory):
    config = MocapClipsConfig(hold_out="tail", seconds=6, test_seconds=3, tail_fraction=0.4)
    train, test = config.build("train"), config.build("test")
    for index, clip in enumerate(CLIPS):
        keyframes = clip_file(directory, clip.name)
        first, second = train[index].sample, test[index].sample
        whole = unrolled(keyframes, len(first) + len(second)) if keyframes.loops else on_smpl(keyframes)
        np.testing.assert_array_equal(np.concatenate([first.rotations, second.rotations]), whole.rotations)
        if keyframes.loops:
            assert (len(first), len(second)) == (180, 90)
        else:
            assert len(second) == pytest.approx(0.4 * len(whole), abs=0.51) and len(second) > 10


def test_loops_are_unrolled_as_long_as_is_said_and_mirrored_only_where_wanted(splits, monkeypatch):
    chosen = [index for index, clip in enumerate(CLIPS) if clip.name in ("kick", "walk")]
    usual = [[data[index].sample.rotations for index in chosen] for data in splits]
    monkeypatch.setattr(mocap, "CLIPS", [CLIPS[index] for index in chosen])
    config = MocapClipsConfig(seconds=4, test_seconds=2.5, mirror=False)
    for split, (kick, walk), frames in zip(("train", "test"), usual, (120, 75), strict=True):
        data = config.build(split)
        assert data.variants == data.reference_variants == ("original",)
        np.testing.assert_array_equal(data[0].sample.rotations, kick)
        np.testing.assert_array_equal(data[1].sample.rotations, walk[:frames])


def test_bodies_are_plausible(splits):
    for index in range(15):
        joints = splits[0][index].sample.joints()
        lowest = joints[..., 1].min(axis=1)
        assert -0.1 < lowest.min() < 0.05, CLIPS[index].name
        assert joints[..., 1].max() < 2.3, CLIPS[index].name
        assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() * 30 < 15, CLIPS[index].name


@pytest.mark.parametrize("name", ["walk", "run"])
def test_walkers_face_where_they_go(splits, name):
    motion = splits[0][[clip.name for clip in CLIPS].index(name)].sample
    velocity = np.diff(motion.translation, axis=0)
    travel = np.arctan2(velocity[:, 0], velocity[:, 2])
    turned = Rotation.from_rotvec(np.outer(travel - yaw_of(motion.rotations[:-1, 0]), [0, 1, 0])).magnitude()
    assert np.degrees(np.median(turned)) < 15
    toes = motion.joints()[:, INDEX["left_foot"]] - motion.joints()[:, INDEX["left_ankle"]]
    forward = np.stack([np.sin(travel), np.cos(travel)], axis=1)
    assert np.median((toes[:-1, [0, 2]] * forward).sum(1)) > 0.05


def test_mapped_bones_lie_along_the_captured_ones(directory):
    lies = alignment()
    for clip in CLIPS:
        source = clip_file(directory, clip.name).sampled(30).source(30)
        joints, positions = lies.apply(source).joints(), lies.positions(source)
        for start, end in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")):
            for side in ("left", "right"):
                a, b = INDEX[f"{side}_{start}"], INDEX[f"{side}_{end}"]
                ours = joints[:, b] - joints[:, a]
                theirs = positions[:, lies.joints[b]] - positions[:, lies.joints[a]]
                cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
                assert np.degrees(np.arccos(np.clip(cosine.min(), -1, 1))) < 0.5, (clip.name, side, start)
        knees = [INDEX["left_knee"], INDEX["right_knee"]]
        apart = joints[:, knees] - positions[:, [lies.joints[knee] for knee in knees]]
        assert np.linalg.norm(apart, axis=-1).max() < 0.06


def test_source_joints_hang_together(directory):
    source = clip_file(directory, "cartwheel").source(60)
    for joint, parent in enumerate(PARENTS[1:], start=1):
        lengths = np.linalg.norm(source.positions[:, joint] - source.positions[:, parent], axis=1)
        np.testing.assert_allclose(lengths, np.linalg.norm(source.offsets[joint]), atol=1e-9)


def test_loops_close_and_have_no_jump_at_the_seam(directory):
    names = looping(directory)
    assert len(names) == 11
    for name in names:
        keyframes = clip_file(directory, name)
        closed = closed_loop(keyframes)
        np.testing.assert_allclose(closed.local[-1, 1:], closed.local[0, 1:], atol=1e-9)
        np.testing.assert_allclose(closed.root[-1, 1], closed.root[0, 1], atol=1e-9)
        np.testing.assert_array_equal(closed.root[:, [0, 2]], keyframes.root[:, [0, 2]])
        cycle = round(keyframes.duration * 30)
        joints = unrolled(keyframes, 3 * cycle + 10).joints()
        steps = np.linalg.norm(np.diff(joints, axis=0), axis=-1).max(axis=1)
        seams = [steps[seam - 2 : seam + 2].max() for seam in (cycle, 2 * cycle)]
        assert max(seams) < 1.3 * steps[: cycle - 3].max() + 0.02, name


def test_unrolling_goes_on_from_place_and_heading(directory):
    keyframes = clip_file(directory, "dance_a")
    per_cycle = yaw_of(keyframes.local[-1, 0] @ keyframes.local[0, 0].T)
    frames = round(keyframes.duration * 30 * 4)
    motion = unrolled(keyframes, frames + 1)
    turned = yaw_of(motion.rotations[[0, -1], 0].astype(float))
    assert np.exp(1j * (turned[1] - turned[0])) == pytest.approx(np.exp(4j * per_cycle), abs=0.05)
    walk = unrolled(clip_file(directory, "walk"), 300)
    assert np.linalg.norm(walk.translation[-1] - walk.translation[0]) > 5


def test_other_json_is_refused(tmp_path):
    for content in ("{}", "[1, 2]", '{"Loop": "wrap", "Frames": [[1, 2], [3, 4]]}', "\x00"):
        path = tmp_path / "clip.txt"
        path.write_text(content)
        with pytest.raises(InputError, match=r"clip.txt"):
            read_deepmimic(path)
