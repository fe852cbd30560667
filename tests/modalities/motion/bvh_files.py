"""Writes small BVH files for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BANDAI_NAMCO = {
    "pelvis": "Hips", "spine1": "Spine", "spine2": "Chest", "neck": "Neck", "head": "Head",
    "left_hip": "UpperLeg_L", "left_knee": "LowerLeg_L", "left_ankle": "Foot_L", "left_foot": "Toes_L",
    "left_collar": "Shoulder_L", "left_shoulder": "UpperArm_L", "left_elbow": "LowerArm_L", "left_wrist": "Hand_L",
    "right_hip": "UpperLeg_R", "right_knee": "LowerLeg_R", "right_ankle": "Foot_R", "right_foot": "Toes_R",
    "right_collar": "Shoulder_R", "right_shoulder": "UpperArm_R", "right_elbow": "LowerArm_R", "right_wrist": "Hand_R",
}  # fmt: skip
"""SMPL's joints in the files of the Bandai-Namco-Research-Motiondataset, which have two joints in the spine."""
CMU = {
    "pelvis": "Hips", "spine1": "LowerBack", "spine2": "Spine", "spine3": "Spine1", "neck": "Neck", "head": "Head",
    "left_hip": "LeftUpLeg", "left_knee": "LeftLeg", "left_ankle": "LeftFoot", "left_foot": "LeftToeBase",
    "left_collar": "LeftShoulder", "left_shoulder": "LeftArm", "left_elbow": "LeftForeArm", "left_wrist": "LeftHand",
    "right_hip": "RightUpLeg", "right_knee": "RightLeg", "right_ankle": "RightFoot", "right_foot": "RightToeBase",
    "right_collar": "RightShoulder", "right_shoulder": "RightArm", "right_elbow": "RightForeArm",
    "right_wrist": "RightHand",
}  # fmt: skip
"""SMPL's joints in the BVH conversions of CMU's motion-capture database."""

Node = tuple[str, str, Sequence[float], str]
"""Joint, parent, offset, rotation order."""


def bvh_text(nodes: Sequence[Node], values: np.ndarray, fps: float = 30.0) -> str:
    """A BVH file of joints in depth-first order; ``values`` (frames, channels)."""
    children: dict[str, list[Node]] = {}
    for node in nodes:
        children.setdefault(node[1], []).append(node)

    def block(node: Node, keyword: str) -> list[str]:
        name, _, offset, order = node
        turns = " ".join(f"{axis}rotation" for axis in order)
        count, moves = (3 + len(order), "Xposition Yposition Zposition ") if keyword == "ROOT" else (len(order), "")
        lines = [f"{keyword} {name}", "{", "OFFSET " + " ".join(map(repr, map(float, offset)))]
        lines.append(f"CHANNELS {count} {moves}{turns}")
        for child in children.get(name, []):
            lines += block(child, "JOINT")
        if name not in children:
            lines += ["End Site", "{", "OFFSET 0 0 0", "}"]
        return [*lines, "}"]

    lines = [
        "HIERARCHY",
        *block(children[""][0], "ROOT"),
        "MOTION",
        f"Frames: {len(values)}",
        f"Frame Time: {1 / fps:.9f}",
    ]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in values]
    return "\n".join(lines) + "\n"
