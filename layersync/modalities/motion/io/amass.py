"""AMASS-style ``.npz`` files: SMPL poses as axis-angle vectors. Read and written.

AMASS's world has Z up, ours Y up: ``(x, y, z)`` becomes ``(x, z, -y)``. SMPL's ``trans`` moves the whole body model,
whose pelvis does not lie at the model's origin; a :class:`Motion` says where the pelvis is. Between them lies the
rest position of the pelvis, that of SMPL's neutral mean body unless a body model gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from layersync.core.archive import opened_npz
from layersync.core.errors import InputError
from layersync.modalities.motion.sample import RATES, Motion
from layersync.modalities.motion.skeleton import INDEX, NUM_JOINTS, REST, STANDING_HEIGHT

Floor = Literal["auto", "keep"]

PELVIS_AT_REST = np.array([-0.0018, -0.2233, 0.0282])
"""Metres; the pelvis of SMPL's neutral mean body in its T-pose, rounded."""

BODY_JOINTS = 22
"""SMPL-H and SMPL-X share SMPL's first 22 joints; where SMPL has two hand joints they have fingers."""

_FEET = [INDEX[f"{side}_{joint}"] for side in ("left", "right") for joint in ("ankle", "foot")]
_ON_FLOOR_PERCENTILE = 5
"""Of frames, those in which the feet may be lower than standing: below the lowest lie slips of the fit."""

_Z_UP_TO_Y_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
_RATE_KEYS = ("mocap_framerate", "mocap_frame_rate", "fps")
_BODY_KEYS = ("root_orient", "pose_body")


def holds_motion(path: Path) -> bool:
    """Whether a file's name is that of a motion: AMASS has ``shape.npz`` (SMPL-H) and ``*_stagei.npz`` (SMPL-X) beside
    them, which hold a body's shape and where its markers are.
    """
    return path.name != "shape.npz" and not path.name.endswith("_stagei.npz")


def read_amass(
    path: Path, *, up: Literal["y", "z"] = "z", pelvis: Sequence[float] | None = None, floor: Floor = "keep"
) -> Motion:
    """Read a pose sequence of SMPL (72 values a frame), SMPL-H (156) or SMPL-X (165).

    Of the last two the body is taken; hands rest. Where a file has no ``poses``, its ``root_orient`` (3) and
    ``pose_body`` (63) are the body. ``up`` is the file's vertical; ``pelvis`` (3,) the pelvis of its body
    in T-pose, in metres.

    ``floor="auto"`` moves the clip of a body with a shape of its own up or down until the generic skeleton's feet are
    on the floor, y = 0: ``trans`` has the height of the subject's pelvis, whose legs are longer or shorter, so that
    feet would float or sink. In all but 5 % of the frames ankles and toes are then no lower than where it stands. Where
    ``betas`` are all 0, as :func:`write_amass` writes them, heights are those of the mean body, and stay.

    Raises :class:`InputError`, naming the file, for anything that is no such file.
    """
    poses, trans, fps, shaped = _arrays(path)
    if poses.ndim != 2 or len(poses) < 1 or poses.shape[1] not in (72, 156, 165, BODY_JOINTS * 3):
        raise InputError(
            f"{path}: poses have shape {poses.shape}; expected (frames, 72), (frames, 156) or (frames, 165)"
        )
    frames = len(poses)
    if trans.shape != (frames, 3):
        raise InputError(f"{path}: trans has shape {trans.shape}; expected ({frames}, 3) as poses have {frames} frames")
    if not (np.isfinite(poses).all() and np.isfinite(trans).all()):
        raise InputError(f"{path}: poses or trans hold values that are not finite")
    if not RATES[0] <= fps <= RATES[1]:
        raise InputError(f"{path}: a frame rate of {fps:g}; from {RATES[0]:g} to {RATES[1]:g} a second are read")
    joints = NUM_JOINTS if poses.shape[1] == 72 else BODY_JOINTS
    vectors = np.zeros((frames, NUM_JOINTS, 3))
    vectors[:, :joints] = poses[:, : joints * 3].reshape(frames, joints, 3)
    rotations = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(frames, NUM_JOINTS, 3, 3)
    translation = trans + (PELVIS_AT_REST if pelvis is None else np.asarray(pelvis))
    if up == "z":
        translation = translation @ _Z_UP_TO_Y_UP.T
        rotations[:, 0] = _Z_UP_TO_Y_UP @ rotations[:, 0]
    motion = Motion(translation.astype(np.float32), rotations.astype(np.float32), fps)
    return _on_floor(motion) if shaped and floor == "auto" else motion


def _on_floor(motion: Motion) -> Motion:
    above = (motion.joints()[:, _FEET, 1] - (REST[_FEET, 1] + STANDING_HEIGHT)).min(axis=1)
    height = np.percentile(above, _ON_FLOOR_PERCENTILE)
    return replace(motion, translation=motion.translation - np.array([0, height, 0], dtype=np.float32))


def read_amass_header(path: Path) -> tuple[str, ...]:
    """The names of the arrays in a file. Raises :class:`InputError`, naming it, when those of a motion are not
    there.
    """
    with _opened(path) as archive:
        return tuple(archive.files)


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """``poses``, ``trans`` and the frame rate of a file, and whether its body may differ from the mean one."""
    with _opened(path) as archive:
        rate = archive[next(key for key in _RATE_KEYS if key in archive)].item()
        poses = archive["poses"] if "poses" in archive else np.concatenate([archive[key] for key in _BODY_KEYS], axis=1)
        shaped = "betas" not in archive or bool(np.any(archive["betas"]))
        return poses.astype(np.float64), archive["trans"].astype(np.float64), float(rate), shaped


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An archive that holds what makes a motion."""
    with opened_npz(path) as archive:
        missing = [key for key in ("poses", "trans") if key not in archive]
        if "poses" in missing and all(key in archive for key in _BODY_KEYS):
            missing.remove("poses")
        if not any(key in archive for key in _RATE_KEYS):
            missing.append("mocap_framerate")
        if missing:
            raise InputError(f"{path}: no {' and no '.join(missing)} in it; it holds {', '.join(archive.files)}")
        yield archive


def write_amass(path: Path, motion: Motion) -> Path:
    """Write ``motion`` as AMASS does: SMPL-H's 156 values with resting hands, Z up, betas of 0.

    SMPL's two hand joints have no place in it; they carry no finger and move no joint.
    """
    frames = len(motion)
    rotations = motion.rotations.astype(np.float64)
    rotations[:, 0] = _Z_UP_TO_Y_UP.T @ rotations[:, 0]
    vectors = Rotation.from_matrix(rotations[:, :BODY_JOINTS].reshape(-1, 3, 3)).as_rotvec().reshape(frames, -1)
    poses = np.zeros((frames, 156))
    poses[:, : BODY_JOINTS * 3] = vectors
    trans = motion.translation.astype(np.float64) @ _Z_UP_TO_Y_UP - PELVIS_AT_REST
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        poses=poses,
        trans=trans,
        betas=np.zeros(16),
        gender=np.array("neutral"),
        mocap_framerate=np.array(motion.fps),
    )
    return path
