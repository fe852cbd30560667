from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bvh_files import BANDAI_NAMCO, CMU
from PIL import Image
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.io.bvh import read_bvh
from layersync.modalities.motion.presets import PRESETS, choose_preset
from layersync.modalities.motion.render import overlay
from layersync.modalities.motion.retarget import align, least_turn
from layersync.modalities.motion.sample import Motion, yaw_of
from layersync.modalities.motion.skeleton import INDEX, JOINTS, REST

LIMBS = [
    (f"{side}_{start}", f"{side}_{end}")
    for side in ("left", "right")
    for start, end in (
        ("hip", "knee"), ("knee", "ankle"), ("ankle", "foot"), ("shoulder", "elbow"), ("elbow", "wrist"),
    )
]  # fmt: skip


def worst_angle(motion: Motion, other: np.ndarray, joints: dict[int, int]) -> float:
    """Largest angle in degrees between bones of ``motion`` and those of ``other`` (frames, joints, 3)."""
    ours = motion.joints().astype(np.float64)
    worst = 0.0
    for start, end in LIMBS:
        a = ours[:, INDEX[end]] - ours[:, INDEX[start]]
        b = other[:, joints[INDEX[end]]] - other[:, joints[INDEX[start]]]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        worst = max(worst, float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max()))
    return worst


def hanging(name: str) -> np.ndarray:
    """Axes of a skeleton that is unrotated with hanging arms and faces +X."""
    facing = Rotation.from_rotvec([0, np.pi / 2, 0]).as_matrix()
    down = {"left": -np.pi / 2, "right": np.pi / 2}
    side = name.split("_")[0]
    if side in down and name.split("_")[1] in ("shoulder", "elbow", "wrist"):
        return facing @ Rotation.from_rotvec([0, 0, down[side]]).as_matrix()
    return facing


def along_x(name: str) -> np.ndarray:
    """Axes of a skeleton whose every bone lies along local X, twisted differently at each joint but the root."""
    child = {"pelvis": "spine1", "spine1": "spine2", "spine2": "spine3", "spine3": "neck", "neck": "head"}
    chains = {
        "hip": "knee",
        "knee": "ankle",
        "ankle": "foot",
        "collar": "shoulder",
        "shoulder": "elbow",
        "elbow": "wrist",
    }
    side, _, part = name.partition("_")
    following = child.get(name) or (f"{side}_{chains[part]}" if part in chains else None)
    if name == "pelvis" or following is None:
        return least_turn(np.array([0.0, 1, 0]), np.array([1.0, 0, 0]))
    bone = REST[INDEX[following]] - REST[INDEX[name]]
    twist = Rotation.from_rotvec([0.9 * (sum(map(ord, name)) % 7), 0, 0]).as_matrix()
    return twist @ least_turn(bone.astype(float), np.array([1.0, 0, 0]))


@pytest.mark.parametrize(("axes", "how"), [(None, "unrotated pose"), (hanging, "unrotated pose"), (along_x, "motion")])
@pytest.mark.parametrize("unit", [1.0, 0.01, 0.0254])
def test_bones_point_the_same_way_whatever_the_rest_pose(make_motion, write_body_bvh, axes, how, unit):
    motion = make_motion(frames=60)
    source = read_bvh(write_body_bvh("x.bvh", motion, axes, unit)).motion()
    preset = choose_preset(source.names)
    assert preset.name == "mixamo"
    alignment = align([source], preset)
    assert alignment.how == how
    assert alignment.scale == pytest.approx(unit, rel=1e-3)
    mapped = alignment.apply(source)
    assert worst_angle(mapped, alignment.positions(source), dict(alignment.joints)) < 1.0
    # The skeleton is the generic one, so that also lengths, root and twist-free joints must come back.
    body = [index for index in range(22) if index != INDEX["head"]]
    np.testing.assert_allclose(mapped.joints()[:, body], motion.joints()[:, body], atol=0.02)
    yaws = np.unwrap(yaw_of(mapped.rotations[:, 0])) - np.unwrap(yaw_of(motion.rotations[:, 0]))
    assert np.abs(yaws).max() < 0.1


def published_axes(name: str) -> np.ndarray:
    """The columns that the preset's text says: SMPL's left, up and forward in the joint's own axes."""
    text = PRESETS["bandai-namco"].axes[name]
    return np.stack([np.eye(3)["xyz".index(text[i + 1])] * (-1 if text[i] == "-" else 1) for i in (0, 2, 4)], axis=1)


@pytest.mark.parametrize(
    ("preset", "names", "axes", "how"),
    [("bandai-namco", BANDAI_NAMCO, published_axes, "preset"), ("cmu", CMU, None, "unrotated pose")],
)
def test_bones_of_published_skeletons_point_the_same_way(make_motion, write_body_bvh, preset, names, axes, how):
    motion = make_motion(frames=40)
    source = read_bvh(write_body_bvh("x.bvh", motion, axes, names=names)).motion()
    assert set(source.names) == set(names.values())
    chosen = choose_preset(source.names)
    assert chosen.name == preset
    alignment = align([source], chosen)
    assert alignment.how == how and alignment.scale == pytest.approx(0.01, rel=1e-3)
    assert {JOINTS[joint]: source.names[other] for joint, other in alignment.joints.items()} == names
    mapped = alignment.apply(source)
    assert worst_angle(mapped, alignment.positions(source), dict(alignment.joints)) < 1.0
    if "spine3" in names:  # the same body, so that its joints are where they were
        body = [index for index in range(22) if index != INDEX["head"]]
        np.testing.assert_allclose(mapped.joints()[:, body], motion.joints()[:, body], atol=0.02)


def test_bones_of_bandai_namcos_rest_pose_lie_along_local_x():
    """Towards the child on the left side and in the middle, away from it on the right, as its files have them."""
    down, ahead, left = np.array([0, -1, 0]), np.array([0, 0, 1]), np.array([1, 0, 0])
    bones = {"hip": down, "knee": down, "ankle": ahead, "collar": left, "shoulder": left, "elbow": left}
    for part, bone in bones.items():
        across = -bone if part in ("collar", "shoulder", "elbow") else bone
        np.testing.assert_array_equal(published_axes(f"left_{part}") @ bone, [1, 0, 0], part)
        np.testing.assert_array_equal(published_axes(f"right_{part}") @ across, [-1, 0, 0], part)
    for part in ("pelvis", "spine1", "spine2", "neck"):
        np.testing.assert_array_equal(published_axes(part) @ -down, [1, 0, 0], part)


def test_an_upright_unrotated_pose_gives_back_the_rotations(make_motion, write_body_bvh):
    motion = make_motion(frames=30)
    source = read_bvh(write_body_bvh("x.bvh", motion)).motion()
    mapped = align([source], choose_preset(source.names)).apply(source)
    kept = [index for index in range(22) if index not in (INDEX["head"],)]
    np.testing.assert_allclose(mapped.rotations[:, kept], motion.rotations[:, kept], atol=1e-4)


def test_a_file_with_z_up_is_turned_upright(make_motion, write_body_bvh):
    motion = make_motion(frames=30)
    z_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    source = read_bvh(write_body_bvh("x.bvh", motion, world=z_up)).motion()
    mapped = align([source], choose_preset(source.names)).apply(source)
    np.testing.assert_allclose(mapped.joints()[:, :22], motion.joints()[:, :22], atol=1e-2)


def test_a_given_scale_is_kept(make_motion, write_body_bvh):
    source = read_bvh(write_body_bvh("x.bvh", make_motion(frames=10))).motion()
    doubled = align([source], choose_preset(source.names), scale=0.02).apply(source)
    plain = align([source], choose_preset(source.names), scale=0.01).apply(source)
    travel = [np.linalg.norm(np.ptp(motion.joints()[:, 1:3].mean(1), axis=0)) for motion in (doubled, plain)]
    assert travel[0] == pytest.approx(2 * travel[1], rel=1e-3)


def test_axes_of_a_preset_are_used(make_motion, write_body_bvh):
    source = read_bvh(write_body_bvh("x.bvh", make_motion(frames=20), along_x)).motion()
    preset = choose_preset(source.names)
    given = dataclasses.replace(preset, axes=dict.fromkeys(INDEX, "-y+x+z"))
    alignment = align([source], given)
    assert alignment.how == "preset"
    np.testing.assert_array_equal(alignment.turns[0], np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]))


def test_every_axis_of_every_preset_is_a_rotation():
    for preset in PRESETS.values():
        assert not preset.axes or set(preset.joints) <= set(preset.axes)
        for text in preset.axes.values():
            columns = [np.eye(3)["xyz".index(text[2 * i + 1])] * (-1 if text[2 * i] == "-" else 1) for i in range(3)]
            assert np.linalg.det(np.stack(columns, axis=1)) == pytest.approx(1), (preset.name, text)


def test_unknown_skeletons_are_refused():
    with pytest.raises(InputError, match=r"clip.bvh.*mixamo"):
        choose_preset(["Wheel", "Axle"], where="clip.bvh")
    with pytest.raises(InputError, match="cmu"):
        choose_preset([f"mixamorig:{name}" for name in ("Hips", "Head")], "cmu", "clip.bvh")


def test_the_overlay_shows_both_skeletons(make_motion, write_body_bvh, tmp_path):
    source = read_bvh(write_body_bvh("x.bvh", make_motion(frames=20), along_x)).motion()
    alignment = align([source], choose_preset(source.names))
    sheet = Image.open(overlay(source, alignment, tmp_path / "out" / "overlay.png", num_shown=3))
    colours = {colour for _, colour in sheet.convert("RGB").getcolors(100_000)}
    assert {(40, 160, 90), (214, 80, 70), (52, 110, 190)} <= colours
    assert Image.open(overlay(source, alignment, tmp_path / "overlay.gif")).n_frames == 10
