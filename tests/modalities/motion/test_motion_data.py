from __future__ import annotations

import logging
import os
import re
import shutil
import warnings

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.data import AmassConfig, BvhConfig
from layersync.modalities.motion.humanml3d_data import HumanML3DConfig
from layersync.modalities.motion.io.amass import write_amass
from layersync.modalities.motion.skeleton import INDEX


@pytest.fixture
def amass_tree(make_motion, tmp_path):
    for label in ("walk", "jump"):
        for index in range(6):
            write_amass(tmp_path / label / f"{label}_{index}.npz", make_motion(frames=41, seed=index, fps=20.0))
    return tmp_path


def test_folders_are_labels_and_splits_share_no_file(amass_tree):
    config = AmassConfig(path=str(amass_tree), test_fraction=0.34)
    train, test = config.build("train"), config.build("test")
    assert train.classes == test.classes == ("jump", "walk")
    names = [{dataset[index].source for index in range(len(dataset))} for dataset in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0]) == 8
    assert sorted(test[index].condition["label"] for index in range(4)) == [0, 0, 1, 1]
    for index in range(len(train)):
        example = train[index]
        assert example.sample.fps == 30
        assert train.classes[example.condition["label"]] == example.source.split("/")[0]
    assert config.build("train").fingerprint == train.fingerprint != test.fingerprint
    assert {config.build("train")[index].source for index in range(8)} == names[0]


def test_a_changed_file_changes_the_fingerprint(amass_tree, make_motion):
    config = AmassConfig(path=str(amass_tree))
    before = [config.build(split).fingerprint for split in ("train", "test")]
    write_amass(amass_tree / "walk" / "walk_0.npz", make_motion(frames=41, seed=77))
    assert [config.build(split).fingerprint for split in ("train", "test")] != before
    assert AmassConfig(path=str(amass_tree), up="y").build("train").fingerprint not in before


@pytest.mark.parametrize("config", [AmassConfig, BvhConfig])
def test_a_fingerprint_is_of_contents_or_of_sizes_and_times(config, amass_tree, make_motion, write_body_bvh):
    """A file that was touched is another one by ``stat`` alone."""
    for name in ("run/a", "run/b"):
        write_body_bvh(f"{name}.bvh", make_motion(frames=3))
    before, after = {}, {}
    for prints in (before, after):
        for how in ("content", "stat", "auto"):
            prints[how] = config(path=str(amass_tree), fingerprint=how).build("train").fingerprint
        for file in amass_tree.rglob("*.*"):
            os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    assert after["content"] == before["content"] == before["auto"]
    assert len({before["content"], before["stat"], after["stat"]}) == 3


def test_what_files_of_the_other_split_decide_changes_the_fingerprint(make_motion, write_body_bvh, tmp_path):
    """Numbers of classes, mirroring, and how a skeleton lies: latents that are kept hold all of them."""
    for number, name in enumerate(("train/run/a", "train/walk/a", "test/run/b", "test/walk/b")):
        write_body_bvh(f"tree/{name}.bvh", make_motion(frames=21, seed=number))
    config = BvhConfig(path=str(tmp_path / "tree"), min_clips=1)
    before = config.build("test")
    write_body_bvh("tree/train/dance/a.bvh", make_motion(frames=21, seed=9))
    classes = config.build("test")
    (tmp_path / "tree" / "train" / "run" / "a.txt").write_text("a person runs to the left\n")
    mirrored = config.build("test")
    assert before.classes == ("run", "walk") and classes.classes == ("dance", "run", "walk")
    assert before.variants == classes.variants == ("original", "mirror") and mirrored.variants == ("original",)
    assert len({data.fingerprint for data in (before, classes, mirrored)}) == 3


def test_files_in_one_folder_have_no_label_unless_a_pattern_names_it(amass_tree):
    flat = AmassConfig(path=str(amass_tree / "walk"))
    assert flat.build("train").classes == ()
    assert dict(flat.build("train")[0].condition) == {}
    named = AmassConfig(path=str(amass_tree / "walk"), labels=r"_(?P<label>[0-2])|(?P<other>x)", min_clips=1)
    with pytest.raises(InputError, match=r"walk_3.npz"):
        named.build("train")
    even = AmassConfig(path=str(amass_tree / "walk"), labels=r"(?P<label>walk)")
    assert even.build("train").classes == ("walk",)


def test_one_file_without_a_label_is_enough_to_train_on(tmp_path, make_motion):
    write_amass(tmp_path / "only.npz", make_motion())
    config = AmassConfig(path=str(tmp_path), min_clips=1)
    assert [len(config.build(split)) for split in ("train", "test")] == [1, 0]


def test_rare_labels_are_left_out(amass_tree, make_motion):
    write_amass(amass_tree / "sneeze" / "s.npz", make_motion())
    assert AmassConfig(path=str(amass_tree)).build("train").classes == ("jump", "walk")
    assert AmassConfig(path=str(amass_tree), min_clips=1).build("train").classes == ("jump", "sneeze", "walk")
    with pytest.raises(InputError, match="min_clips"):
        AmassConfig(path=str(amass_tree), min_clips=9).build("train")


def sources(config, split):
    dataset = config.build(split)
    return {dataset[index].source for index in range(len(dataset))}


@pytest.mark.parametrize(("present", "held_out"), [(("test", "val"), "test"), (("val",), "val")])
def test_own_split_folders_are_used_and_share_their_classes(make_motion, tmp_path, present, held_out):
    for folder in ("train", *present, "extra"):
        for label in ("walk", "jump"):
            write_amass(tmp_path / folder / label / "0.npz", make_motion(frames=41, fps=20.0))
    for name in ("extra/sneeze/0.npz", "extra/sneeze/1.npz", "loose.npz"):
        write_amass(tmp_path / name, make_motion(frames=41, fps=20.0))
    config = AmassConfig(path=str(tmp_path))
    assert sources(config, "train") == {"train/walk/0.npz", "train/jump/0.npz"}
    assert sources(config, "test") == {f"{held_out}/walk/0.npz", f"{held_out}/jump/0.npz"}
    assert config.build("train").classes == config.build("test").classes == ("jump", "walk")
    with pytest.raises(InputError, match="min_clips"):
        AmassConfig(path=str(tmp_path), min_clips=3).build("train")
    with pytest.warns(UserWarning, match=rf"data\.test_fraction has no effect: .* train and {held_out}"):
        AmassConfig(path=str(tmp_path), test_fraction=0.5).build("train")
    chosen = AmassConfig(path=str(tmp_path), test_files="1", min_clips=1)
    assert sources(chosen, "test") == {"extra/sneeze/1.npz"}


def test_bvh_files_directly_in_split_folders_have_no_label(make_motion, write_body_bvh, tmp_path):
    for name in ("train/a", "train/b", "test/c"):
        write_body_bvh(f"tree/{name}.bvh", make_motion(frames=21))
    config = BvhConfig(path=str(tmp_path / "tree"))
    assert config.build("train").classes == () and dict(config.build("train")[0].condition) == {}
    assert (sources(config, "train"), sources(config, "test")) == ({"train/a.bvh", "train/b.bvh"}, {"test/c.bvh"})


def test_labels_that_name_a_side_are_not_mirrored(amass_tree):
    assert AmassConfig(path=str(amass_tree)).build("train").variants == ("original", "mirror")
    assert AmassConfig(path=str(amass_tree), mirror=False).build("train").variants == ("original",)
    (amass_tree / "walk").rename(amass_tree / "walk-left")
    assert AmassConfig(path=str(amass_tree)).build("train").variants == ("original",)
    assert AmassConfig(path=str(amass_tree), mirror=True).build("train").variants == ("original", "mirror")


WITHOUT_SIDE = (
    "upright bright outright downright forthright copyright birthright fright brightly frightened walk_upright "
    "UPRIGHT WalkUpright upright2 bright-uprightness mccwalk clock"
)
WITH_SIDE = (
    "walk-left left_hand TurnLeft turnleft leftward lefthanded RIGHT UpRight up-right climbright ThumbRight "
    "jumpupright brightleft uprightRight UPRIGHTHAND LEFTturn upright_left turn-clockwise CounterClockwise spin_ccw cw"
)


@pytest.mark.parametrize("label", WITHOUT_SIDE.split())
def test_words_that_only_contain_right_name_no_side(amass_tree, label, caplog):
    (amass_tree / "walk").rename(amass_tree / label)
    with caplog.at_level(logging.INFO):
        assert AmassConfig(path=str(amass_tree)).build("train").variants == ("original", "mirror")
    assert "data.mirror" not in caplog.text


@pytest.mark.parametrize("label", WITH_SIDE.split())
def test_a_side_is_found_within_words_and_said_once(amass_tree, label, caplog):
    (amass_tree / "walk").rename(amass_tree / label)
    with caplog.at_level(logging.INFO):
        for split in ("train", "test"):
            assert AmassConfig(path=str(amass_tree)).build(split).variants == ("original",)
    assert caplog.text.count(f"data.mirror: auto mirrors nothing, since '{label}' names a side") == 1


def test_a_file_without_poses_stops_or_is_skipped_and_counted(amass_tree, caplog):
    np.savez(amass_tree / "walk" / "bad.npz", trans=np.zeros((3, 3)), mocap_framerate=30)
    with pytest.raises(InputError, match=r"bad.npz.*no poses"):
        AmassConfig(path=str(amass_tree)).build("train")
    with caplog.at_level(logging.WARNING):
        skipping = AmassConfig(path=str(amass_tree), on_error="skip")
        assert len(skipping.build("train")) + len(skipping.build("test")) == 12
    assert "1 of 13" in caplog.text
    assert skipping.build("train").on_error == "skip"
    only_bad = amass_tree / "only"
    only_bad.mkdir()
    (amass_tree / "walk" / "bad.npz").rename(only_bad / "bad.npz")
    with pytest.raises(InputError, match="none of the 1"):
        AmassConfig(path=str(only_bad), on_error="skip").build("train")


def test_missing_and_empty_folders_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere"):
        BvhConfig(path=str(tmp_path / "nowhere")).build("train")
    monkeypatch.setenv("MOTIONS", str(tmp_path))
    with pytest.raises(InputError, match=r"no \.bvh file"):
        BvhConfig(path="$MOTIONS").build("train")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("labels", "walk", "label"),
        ("labels", "(", "regular expression"),
        ("skeleton", "miximo", "mixamo"),
        ("scale", 0, "greater"),
    ],
)
def test_wrong_settings_are_refused(key, value, said):
    with pytest.raises(ValidationError, match=said):
        BvhConfig(path="x", **{key: value})


def test_bvh_trees_are_mapped_resampled_and_labelled(make_motion, write_body_bvh, tmp_path, caplog):
    motions = {}
    for label in ("bow", "run"):
        for index in range(3):
            name = f"tree/{label}/set_{label}-{index}.bvh"
            motions[name] = make_motion(frames=61, seed=index, fps=60.0)
            write_body_bvh(name, motions[name])
    config = BvhConfig(path=str(tmp_path / "tree"), labels=r"set_(?P<label>[a-z]+)-")
    with caplog.at_level(logging.INFO):
        train, test = config.build("train"), config.build("test")
    assert "mixamo" in caplog.text
    assert (len(train), len(test)) == (4, 2)
    for dataset in (train, test):
        for index in range(len(dataset)):
            example = dataset[index]
            expected = motions[f"tree/{example.source}"].resampled(30)
            assert len(example.sample) == 31
            np.testing.assert_allclose(example.sample.joints()[:, :15], expected.joints()[:, :15], atol=1e-2)


def bvh_joints(tree, **settings):
    """Where the joints of a tree's only file are, (frames, 22, 3)."""
    (example,) = BvhConfig(path=str(tree), min_clips=1, **settings).build("train")
    return example.sample.joints()[:, :22]


def test_a_scale_in_metres_per_unit_says_how_far_a_body_goes(make_motion, write_body_bvh, tmp_path):
    motion = make_motion(frames=21)
    write_body_bvh("tree/a.bvh", motion, unit=0.01)
    body = bvh_joints(tmp_path / "tree")
    np.testing.assert_allclose(body, motion.joints()[:, :22], atol=1e-2)
    hips = [INDEX["left_hip"], INDEX["right_hip"]]
    for scale in (0.01, 0.03):
        found = bvh_joints(tmp_path / "tree", scale=scale)
        np.testing.assert_allclose(found[:, hips].mean(1), body[:, hips].mean(1) * scale / 0.01, rtol=1e-3)


def test_the_vertical_that_is_said_is_taken_where_none_can_be_seen(make_motion, write_body_bvh, tmp_path):
    """Of who lies on the floor the head is not above the feet."""
    motion = make_motion(frames=21, wild=0.1)
    motion.rotations[:, 0] = Rotation.from_rotvec([1.4, 0, 0]).as_matrix()
    z_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    write_body_bvh("y/a.bvh", motion)
    write_body_bvh("z/a.bvh", motion, world=z_up)
    expected = motion.joints()[:, :22]
    for up in ("y", "z"):
        np.testing.assert_allclose(bvh_joints(tmp_path / up, up=up), expected, atol=1e-2)
        assert np.abs(bvh_joints(tmp_path / up) - expected).max() > 0.5


def test_skeletons_that_seem_to_stand_along_different_axes_are_said(make_motion, write_body_bvh, tmp_path):
    """One performer, whose skeleton is its own, is only seen lying."""
    upright, lying = make_motion(frames=41, wild=0.1), make_motion(frames=21, wild=0.1)
    lying.rotations[:, 0] = Rotation.from_rotvec([1.4, 0, 0]).as_matrix()
    z_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    for place, motion, unit in (("stands/a", upright, 0.01), ("stands/b", upright, 0.01), ("lies/a", lying, 0.02)):
        write_body_bvh(f"tree/{place}.bvh", motion, unit=unit, world=z_up)
    with pytest.warns(UserWarning, match=r"data\.up: y is vertical in 1 of 3 files \(.*lies/a\.bvh is the first\)"):
        BvhConfig(path=str(tmp_path / "tree"), min_clips=1).build("train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = BvhConfig(path=str(tmp_path / "tree"), min_clips=1, up="z").build("train")
    joints = next(example for example in (found[0], found[1]) if "lies" in example.source).sample.joints()[:, :22]
    np.testing.assert_allclose(joints, lying.joints()[:, :22], atol=1e-2)


def test_the_skeleton_that_is_said_is_taken(make_motion, write_body_bvh, tmp_path):
    """These names are those of two, of which LaFAN1's has other toes."""
    motion = make_motion(frames=21)
    path = write_body_bvh("tree/a.bvh", motion)
    path.write_text(path.read_text().replace("mixamorig:", ""))
    toes = INDEX["left_foot"]
    for skeleton, expected in (("auto", motion.rotations[:, toes]), ("lafan1", np.tile(np.eye(3), (21, 1, 1)))):
        config = BvhConfig(path=str(tmp_path / "tree"), skeleton=skeleton, min_clips=1)
        found = config.build("train")[0].sample.rotations
        np.testing.assert_allclose(found[:, toes], expected, atol=1e-4)
    with pytest.raises(InputError, match=r"a.bvh: skeleton 'mixamo' does not know"):
        BvhConfig(path=str(tmp_path / "tree"), skeleton="mixamo", min_clips=1).build("train")


def test_a_namespace_before_every_joint_makes_no_difference(make_motion, write_body_bvh, tmp_path):
    motion = make_motion(frames=11)
    path = write_body_bvh("tree/a.bvh", motion)
    text = path.read_text()
    for namespace in ("mixamorig1:", "mixamorig_", "mixamorig", "Character1:", "Scene:mixamorig:", ""):
        path.write_text(text.replace("mixamorig:", namespace))
        np.testing.assert_allclose(bvh_joints(tmp_path / "tree"), motion.joints()[:, :22], atol=1e-2)
        if "mixamorig" in namespace:
            assert len(BvhConfig(path=str(tmp_path / "tree"), min_clips=1, skeleton="mixamo").build("train")) == 1
    path.write_text(text.replace("mixamorig:Head", "Character1:Head"))
    np.testing.assert_allclose(bvh_joints(tmp_path / "tree"), motion.joints()[:, :22], atol=1e-2)
    path.write_text(text.replace("mixamorig:Head", "Head"))
    with pytest.raises(InputError, match=r"a\.bvh: .* also takes a YAML file"):
        bvh_joints(tmp_path / "tree")


OWN = {
    "pelvis": "root", "left_hip": "l1", "right_hip": "r1", "left_knee": "l2", "right_knee": "r2", "left_ankle": "l3",
    "right_ankle": "r3", "spine1": "s1", "head": "h",
}  # fmt: skip


def test_a_file_says_which_joint_of_an_own_skeleton_is_which(make_motion, write_body_bvh, tmp_path, monkeypatch):
    theirs = ["Hips", "LeftUpLeg", "RightUpLeg", "LeftLeg", "RightLeg", "LeftFoot", "RightFoot", "Spine", "Head"]
    motion, table = make_motion(frames=11), tmp_path / "own.yaml"
    path = write_body_bvh("tree/a.bvh", motion)
    for joint, name in zip(theirs, OWN.values(), strict=True):
        path.write_text(path.read_text().replace(f"mixamorig:{joint}\n", f"rig:{name}\n"))
    path.write_text(path.read_text().replace("mixamorig:", "rig:"))
    monkeypatch.setenv("TABLES", str(tmp_path))
    for prefix in ("", "rig:"):
        table.write_text("".join(f"{joint}: '{prefix}{name}'\n" for joint, name in OWN.items()))
        found = bvh_joints(tmp_path / "tree", skeleton="$TABLES/own.yaml")
        legs = [INDEX[joint] for joint in OWN if "_" in joint]
        np.testing.assert_allclose(found[:, legs], motion.joints()[:, legs], atol=1e-2)
    for change, said in (
        ({"pelvsi": "x"}, r"SMPL has no joint 'pelvsi'; did you mean 'pelvis'\?"),
        ({"neck": "h1"}, r"a\.bvh: has no joint 'h1' of .*own\.yaml; there are: rig:LeftArm"),
        ({"neck": "h"}, "'h' stands for 2 joints"),
        ({"neck": 3}, "neck is 3; the name of a joint"),
        ({"head": None}, "head is None; the name of a joint"),
    ):
        table.write_text("".join(f"{joint}: {name or ''}\n" for joint, name in {**OWN, **change}.items()))
        with pytest.raises(InputError, match=said):
            bvh_joints(tmp_path / "tree", skeleton=str(table))
    for content, said in (
        ("pelvis: root", "lacks left_hip, right_hip"),
        ("{}", "lacks pelvis"),
        ("[]", "a skeleton is"),
    ):
        table.write_text(content)
        with pytest.raises(InputError, match=said):
            bvh_joints(tmp_path / "tree", skeleton=str(table))
    with pytest.raises(InputError, match=r"data\.skeleton: .*none\.yaml' does not exist"):
        bvh_joints(tmp_path / "tree", skeleton="none.yaml")


def test_a_skeleton_without_lengths_is_refused(make_motion, write_body_bvh, tmp_path):
    path = write_body_bvh("tree/a.bvh", make_motion(frames=3))
    path.write_text(re.sub("OFFSET .*", "OFFSET 0 0 0", path.read_text()))
    with pytest.raises(InputError, match=r"a\.bvh: skeleton 'mixamo': the OFFSETs of knees and ankles are 0"):
        bvh_joints(tmp_path / "tree")


def test_the_vertical_of_amass_files_is_the_one_that_is_said(make_motion, tmp_path):
    """``up: y`` leaves the axes as they are: a file with Z up then lies on its back."""
    motion = make_motion(frames=21)
    write_amass(tmp_path / "a.npz", motion)
    back, forth = (AmassConfig(path=str(tmp_path), min_clips=1, up=up).build("train")[0].sample for up in ("z", "y"))
    np.testing.assert_allclose(back.translation, motion.translation, atol=1e-5)
    x, y, z = motion.translation.T
    np.testing.assert_allclose(forth.translation, np.stack([x, -z, y], axis=1), atol=1e-5)
    turned = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ motion.rotations[:, 0]
    np.testing.assert_allclose(forth.rotations[:, 0], turned, atol=1e-5)


def test_a_broken_bvh_file_stops_or_is_skipped(make_motion, write_body_bvh, tmp_path, caplog):
    for index in range(3):
        write_body_bvh(f"tree/good_{index}.bvh", make_motion(frames=10, seed=index))
    (tmp_path / "tree" / "broken.bvh").write_text("HIERARCHY")
    with pytest.raises(InputError, match=r"broken.bvh"):
        BvhConfig(path=str(tmp_path / "tree")).build("train")
    skipping = BvhConfig(path=str(tmp_path / "tree"), on_error="skip")
    assert len(skipping.build("train")) + len(skipping.build("test")) == 3
    assert "1 of 4" in caplog.text


def test_linked_folders_are_read_and_hidden_names_are_not(amass_tree, tmp_path_factory):
    config = AmassConfig(path=str(amass_tree))
    before = [config.build(split).fingerprint for split in ("train", "test")]
    outside = tmp_path_factory.mktemp("outside") / "walk"
    (amass_tree / "walk").rename(outside)
    (amass_tree / "walk").symlink_to(outside)
    (outside / "._walk_0.npz").write_bytes(b"\0\5\x16\7")
    (amass_tree / ".trash").mkdir()
    for number in range(2):
        shutil.copy(outside / "walk_0.npz", amass_tree / ".trash" / f"{number}.npz")
    assert config.build("train").classes == ("jump", "walk")
    digests = [str(config.build(split).fingerprint) for split in ("train", "test")]
    assert digests == before


def test_names_that_are_no_utf8_are_read_and_become_text(amass_tree):
    (amass_tree / "walk" / "walk_0.npz").rename(amass_tree / "walk" / os.fsdecode(b"caf\xe9.npz"))
    (amass_tree / "jump").rename(amass_tree / os.fsdecode(b"caf\xe9"))
    config = AmassConfig(path=str(amass_tree))
    found = {split: config.build(split) for split in ("train", "test")}
    assert found["train"].classes == (r"caf\xe9", "walk")
    named = set().union(*(sources(config, split) for split in found))
    assert len(named) == 12 and r"walk/caf\xe9.npz" in named and r"caf\xe9/jump_0.npz" in named


def test_the_label_is_no_part_of_the_ending(amass_tree):
    flat = str(amass_tree / "walk")
    for fitting in (r"^(?P<label>.{4})", r"(?P<label>walk)_\d\.npz$", r"(?P<label>[a-z]+)"):
        assert AmassConfig(path=flat, labels=fitting).build("train").classes == ("walk",)
    (amass_tree / "walk" / "walk_0.npz").rename(amass_tree / "walk" / "0.npz")
    with pytest.raises(InputError, match=r"finds no label in the file name 0\.npz"):
        AmassConfig(path=flat, labels=r"(?P<label>[a-z]+)").build("train")
    optional = AmassConfig(path=flat, labels=r"^(?P<label>[a-z]+)?").build("train")
    assert optional.classes == ("walk",) and None in {optional[i].condition.get("label") for i in range(len(optional))}


def test_a_fraction_beside_a_pattern_of_test_files_is_said(amass_tree):
    with pytest.warns(UserWarning, match=r"data\.test_fraction has no effect: data\.test_files chooses the test split"):
        AmassConfig(path=str(amass_tree), test_files="_0", test_fraction=0.5).build("train")


def test_a_pattern_of_test_files_is_found_in_names_and_in_folders(make_motion, tmp_path):
    for name in ("CMU/walk/a_0", "CMU/walk/a_1", "KIT/walk/a_0", "KIT/walk/b_1"):
        write_amass(tmp_path / f"{name}.npz", make_motion(frames=21))
    for pattern, held_out in (
        ("^KIT/", {"KIT/walk/a_0.npz", "KIT/walk/b_1.npz"}),
        ("^a_0", {"CMU/walk/a_0.npz", "KIT/walk/a_0.npz"}),
        (r"CMU.*_1\.npz$", {"CMU/walk/a_1.npz"}),
    ):
        config = AmassConfig(path=str(tmp_path), test_files=pattern)
        with pytest.warns(UserWarning, match=r"folders CMU/walk and KIT/walk become one label, 'walk'"):
            train = sources(config, "train")
        assert sources(config, "test") == held_out and not train & held_out and len(train | held_out) == 4
    with pytest.warns(UserWarning, match=r"'\^walk' is in no file name: nothing is held out"):
        AmassConfig(path=str(tmp_path), test_files="^walk").build("train")


def test_folders_that_are_no_labels_are_not_said_to_be_merged(make_motion, tmp_path):
    for name in ("train/walk/a_0", "train/run/a_0", "test/walk/a_1"):
        write_amass(tmp_path / f"{name}.npz", make_motion(frames=21))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(AmassConfig(path=str(tmp_path), min_clips=1).build("train")) == 2
        write_amass(tmp_path / "train" / "more" / "walk" / "b_0.npz", make_motion(frames=21))
        assert len(AmassConfig(path=str(tmp_path), labels="(?P<label>.)_").build("train")) == 2


def test_an_unreadable_bvh_file_stops_or_is_skipped(make_motion, write_body_bvh, tmp_path):
    for index in range(2):
        write_body_bvh(f"tree/good_{index}.bvh", make_motion(frames=10, seed=index))
    (tmp_path / "tree" / "bad.bvh").symlink_to("/proc/self/mem")  # which nobody reads at its start
    with pytest.raises(InputError, match=r"bad\.bvh: cannot be read"):
        BvhConfig(path=str(tmp_path / "tree")).build("train")
    skipping = BvhConfig(path=str(tmp_path / "tree"), on_error="skip")
    assert len(skipping.build("train")) + len(skipping.build("test")) == 2


@pytest.mark.parametrize("config", [AmassConfig, BvhConfig, HumanML3DConfig])
def test_an_empty_path_is_refused(monkeypatch, config):
    with pytest.raises(ValidationError, match="names nothing; a file or folder is wanted"):
        config(path="")
    monkeypatch.setenv("NOTHING", "")
    with pytest.raises(InputError, match=r"data\.path: '\$NOTHING' names nothing"):
        config(path="$NOTHING").build("train")
