from __future__ import annotations

import re

import numpy as np
import pytest
from bvh_files import bvh_text
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.io.bvh import read_bvh

NODES = [
    ("root", "", (1.0, 2.0, 3.0), "ZXY"),
    ("a b", "root", (0.0, 2.0, 0.5), "XYZ"),
    ("tip", "a b", (1.0, 0.0, 0.0), "YZX"),
    ("side", "root", (-1.0, 0.3, 0.0), "Z"),
]


def elementary(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "X": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "Y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "Z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def test_orientations_and_positions_agree_with_matrices_multiplied_in_channel_order(tmp_path):
    random = np.random.default_rng(0)
    values = random.uniform(-170, 170, (4, 3 + 3 + 3 + 3 + 1))
    path = tmp_path / "x.bvh"
    path.write_text(bvh_text(NODES, values, fps=24))
    source = read_bvh(path).motion()
    assert source.names == ("root", "a b", "tip", "side")
    assert source.parents == (-1, 0, 1, 0)
    assert source.fps == pytest.approx(24, rel=1e-5)
    for frame, row in enumerate(values):
        turned, place, column = [], [], 3
        for index, (_, parent, offset, order) in enumerate(NODES):
            own = np.eye(3)
            for axis in order:
                own = own @ elementary(axis, row[column])
                column += 1
            if not parent:
                turned.append(own)
                place.append(row[:3])
            else:
                above = source.parents[index]
                turned.append(turned[above] @ own)
                place.append(place[above] + turned[above] @ np.array(offset))
        np.testing.assert_allclose(source.rotations[frame], turned, atol=1e-6)
        np.testing.assert_allclose(source.positions[frame], place, atol=1e-4)


def test_position_channels_of_inner_joints_replace_their_offset(tmp_path):
    text = (
        "HIERARCHY\nROOT r\n{\nOFFSET 0 0 0\nCHANNELS 3 Xrotation Yrotation Zrotation\nJOINT j\n{\nOFFSET 9 9 9\n"
        "CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation\nEnd Site\n{\nOFFSET 0 1 0\n}\n}\n}\n"
        "MOTION\nFrames:\t2\nFrame Time:\t0.01\n0 0 90 1 2 3 0 0 0\n0 0 0 4 5 6 0 0 0\n"
    )
    path = tmp_path / "x.bvh"
    path.write_text(text.replace("\n", "\r\n"))
    source = read_bvh(path).motion()
    np.testing.assert_allclose(source.positions[:, 1], [[-2, 1, 3], [4, 5, 6]], atol=1e-9)
    np.testing.assert_allclose(
        source.rotations[0, 1], Rotation.from_euler("z", 90, degrees=True).as_matrix(), atol=1e-9
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("MOTION", "MOVIE"), "no MOTION"),
        (lambda text: text.rsplit(" ", 1)[0] + "\n", "values"),
        (lambda text: text.rsplit(" ", 1)[0] + " 1.0x\n", "numbers belong"),
        (lambda text: text.rsplit(" ", 1)[0] + " nan\n", "numbers belong"),
        (lambda text: text.replace("Zrotation", "Wrotation"), "Wrotation"),
        (lambda text: text.replace("}\nMOTION", "MOTION"), "brackets"),
        (lambda text: text.replace("OFFSET 0.0 2.0 0.5", "OFFSET 0.0 two 0.5"), "broken"),
        (lambda text: text.replace("Frames: 4", "Frames: 0"), "0 frames"),
        (lambda text: text.replace("CHANNELS 3", "CHANNELS -2", 1), "a joint with -2 channels"),
        (lambda text: text.replace("CHANNELS 3", "CHANNELS 7", 1), "a joint with 7 channels"),
        (lambda text: text.replace("Xrotation Yrotation", "Xrotation xrotation", 1), "a joint with channels"),
        (lambda text: "", "no BVH file"),
        (lambda text: re.sub(r"Frame Time: \S+", "Frame Time: 0.0.3", text), "Frame Time"),
        (lambda text: re.sub(r"Frame Time: \S+", "Frame Time: 1e999", text), "no motion"),
        (lambda text: re.sub(r"Frame Time: \S+", "Frame Time: 1e12", text), "no motion"),
        (lambda text: text.rsplit(" ", 1)[0] + " 1-2\n", "no number"),
        (lambda text: text.rsplit(" ", 1)[0] + " 1e999\n", "not finite"),
    ],
)
def test_broken_files_are_named(tmp_path, change, said):
    path = tmp_path / "broken.bvh"
    path.write_text(change(bvh_text(NODES, np.ones((4, 13)))))
    with pytest.raises(InputError, match=said) as raised:
        read_bvh(path).motion()
    assert "broken.bvh" in str(raised.value)
