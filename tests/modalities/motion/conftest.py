from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from bvh_files import bvh_text
from scipy.spatial.transform import Rotation

from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import JOINTS, PARENTS, REST


@pytest.fixture
def make_motion() -> Callable[..., Motion]:
    """A smooth random motion: every joint turns, the body travels and turns on the floor."""

    def make(frames: int = 90, seed: int = 0, fps: float = 30.0, wild: float = 0.5) -> Motion:
        random = np.random.default_rng(seed)
        time = np.linspace(0, 3, frames)[:, None, None]
        vectors = wild * np.sin(time * random.uniform(0.5, 2, (1, 24, 3)) + random.uniform(0, 6, (1, 24, 3)))
        rotations = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(frames, 24, 3, 3)
        heading = Rotation.from_rotvec(np.outer(np.linspace(0.7, 4, frames), [0, 1, 0])).as_matrix()
        rotations[:, 0] = heading @ rotations[:, 0]
        path = np.stack([time[:, 0, 0] * 0.8, 0.93 + 0.05 * np.sin(4 * time[:, 0, 0]), np.sin(time[:, 0, 0])], axis=1)
        return Motion((path + np.array([2.0, 0, -1.0])).astype(np.float32), rotations.astype(np.float32), fps)

    return make


_MIXAMO = {
    "pelvis": "Hips", "spine1": "Spine", "spine2": "Spine1", "spine3": "Spine2", "neck": "Neck", "head": "Head",
    "left_hip": "LeftUpLeg", "left_knee": "LeftLeg", "left_ankle": "LeftFoot", "left_foot": "LeftToeBase",
    "left_collar": "LeftShoulder", "left_shoulder": "LeftArm", "left_elbow": "LeftForeArm", "left_wrist": "LeftHand",
}  # fmt: skip


@pytest.fixture
def write_body_bvh(tmp_path: Path) -> Callable[..., Path]:
    """Write a motion of SMPL's body as a BVH file whose joints have other rest orientations.

    ``axes(name)`` gives the matrix whose columns are SMPL's axes in the local axes of the joint; ``unit``: metres;
    ``names``: what the file calls SMPL's joints, those of Mixamo by default.
    """

    def write(
        name: str,
        motion: Motion,
        axes: Callable[[str], np.ndarray] | None = None,
        unit: float = 0.01,
        world: np.ndarray | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Path:
        if names is None:
            right = {
                joint.replace("left", "right"): other.replace("Left", "Right")
                for joint, other in _MIXAMO.items()
                if joint.startswith("left")
            }
            names = {joint: f"mixamorig:{other}" for joint, other in (_MIXAMO | right).items()}
        order: list[int] = []

        def above(index: int) -> int:
            """The next joint towards the root that the file has."""
            parent = PARENTS[index]
            return parent if parent < 0 or JOINTS[parent] in names else above(parent)

        def visit(index: int) -> None:
            order.append(index)
            for child in range(1, len(PARENTS)):
                if JOINTS[child] in names and above(child) == index:
                    visit(child)

        visit(0)
        local = {index: np.eye(3) if axes is None else axes(JOINTS[index]) for index in order}
        world = np.eye(3) if world is None else world
        absolute = np.empty((len(motion), 24, 3, 3))
        for index in range(24):
            own = motion.rotations[:, index].astype(np.float64)
            absolute[:, index] = own if index == 0 else absolute[:, PARENTS[index]] @ own
        nodes, columns = [], [motion.translation.astype(np.float64) @ world.T / unit]
        for index in order:
            parent = above(index)
            turned = world @ absolute[:, index] @ local[index].T
            offset = np.zeros(3)
            if index:
                turned = (world @ absolute[:, parent] @ local[parent].T).swapaxes(1, 2) @ turned
                offset = local[parent] @ (REST[index] - REST[parent]) / unit
            columns.append(Rotation.from_matrix(turned).as_euler("ZXY", degrees=True))
            nodes.append((names[JOINTS[index]], names[JOINTS[parent]] if index else "", offset, "ZXY"))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(bvh_text(nodes, np.concatenate(columns, axis=1), motion.fps))
        return path

    return write
