"""Writes small BVH files for the tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
