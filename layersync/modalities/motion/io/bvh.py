"""BVH files: any hierarchy, rotation order and channels. Parsing of what the file says; nothing about bodies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.core.paths import read_file
from layersync.modalities.motion.retarget import SourceMotion
from layersync.modalities.motion.sample import RATES

_POSITIONS = {"Xposition": 0, "Yposition": 1, "Zposition": 2}
_ROTATIONS = {"Xrotation": "X", "Yrotation": "Y", "Zrotation": "Z"}
MOST_CHANNELS = 6
_NUMERIC = b"0123456789+-.eE \t\r\n"


@dataclass(frozen=True)
class Hierarchy:
    """The first half of a BVH file. ``offsets`` (joints, 3) in the file's unit; end sites are left out."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray
    channels: tuple[tuple[str, ...], ...]

    @property
    def num_channels(self) -> int:
        """Numbers in a frame."""
        return sum(len(channels) for channels in self.channels)


@dataclass(frozen=True)
class BvhFile:
    """A BVH file whose frames are not parsed yet."""

    path: Path
    hierarchy: Hierarchy
    num_frames: int
    frame_time: float
    body: bytes

    def values(self) -> np.ndarray:
        """(frames, channels) numbers, angles in degrees. InputError for a value that is no finite number."""
        try:
            values = np.array(self.body.split(), dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{self.path}: a frame holds something that is no number ({error})") from None
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: a frame holds a value that is not finite")
        return values.reshape(self.num_frames, self.hierarchy.num_channels)

    def motion(self) -> SourceMotion:
        """Orientation and position of every joint in the file's world and unit.

        Position channels stand for the joint's whole offset, of the root and of any other joint: what exporters write.
        """
        hierarchy, values = self.hierarchy, self.values()
        rotations = np.empty((self.num_frames, len(hierarchy.names), 3, 3))
        positions = np.empty((self.num_frames, len(hierarchy.names), 3))
        column = 0
        for joint, (parent, channels) in enumerate(zip(hierarchy.parents, hierarchy.channels, strict=True)):
            own = values[:, column : column + len(channels)]
            column += len(channels)
            turn, offset = _local(channels, own, hierarchy.offsets[joint])
            if parent < 0:
                rotations[:, joint], positions[:, joint] = turn, offset
            else:
                rotations[:, joint] = rotations[:, parent] @ turn
                carried = (rotations[:, parent] @ offset[..., None]).squeeze(-1)
                positions[:, joint] = positions[:, parent] + carried
        fps = 1 / self.frame_time
        return SourceMotion(hierarchy.names, hierarchy.parents, hierarchy.offsets, rotations, positions, fps)


def _local(channels: tuple[str, ...], values: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (frames, 3, 3) and offsets (frames, 3) of one joint relative to its parent."""
    order = "".join(_ROTATIONS[name] for name in channels if name in _ROTATIONS)
    angles = values[:, [index for index, name in enumerate(channels) if name in _ROTATIONS]]
    offsets = np.tile(offset, (len(values), 1))
    for index, name in enumerate(channels):
        if name in _POSITIONS:
            offsets[:, _POSITIONS[name]] = values[:, index]
    if not order:
        return np.tile(np.eye(3), (len(values), 1, 1)), offsets
    # Upper-case axes turn with the joint, in the order in which the channels are listed: v' = R1 R2 R3 v.
    return Rotation.from_euler(order, angles, degrees=True).as_matrix().reshape(-1, 3, 3), offsets


def read_bvh(path: Path) -> BvhFile:
    """Read and check a file without parsing its numbers.

    Raises :class:`InputError`, naming the file, for a broken hierarchy, a wrong count of values, or other text among
    the values.
    """
    content = read_file(path)
    head, found, rest = content.partition(b"MOTION")
    frames = re.match(rb"\s*Frames:\s*(\d+)\s*Frame Time:\s*([0-9.eE+-]+)[^\n]*\n?", rest)
    if not found or frames is None:
        raise InputError(f"{path}: no BVH file: it has no MOTION section with Frames and Frame Time")
    hierarchy = _parse_hierarchy(head.decode("utf-8", errors="replace"), path)
    try:
        num_frames, frame_time, body = int(frames[1]), float(frames[2]), rest[frames.end() :]
    except ValueError:
        raise InputError(f"{path}: Frame Time {frames[2].decode()!r} is no number") from None
    if num_frames < 1 or not 1 / RATES[1] <= frame_time <= 1 / RATES[0]:
        raise InputError(f"{path}: {num_frames} frames of {frame_time} s are no motion")
    if strange := body.translate(None, _NUMERIC):
        raise InputError(f"{path}: the frames hold {strange[:20].decode(errors='replace')!r} where numbers belong")
    count, wanted = len(body.split()), num_frames * hierarchy.num_channels
    if count != wanted:
        raise InputError(f"{path}: {count} values, but {num_frames} frames of {hierarchy.num_channels} make {wanted}")
    return BvhFile(path, hierarchy, num_frames, frame_time, body)


def _parse_hierarchy(text: str, path: Path) -> Hierarchy:
    words = text.split()
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[tuple[str, ...]] = []
    open_joints: list[int] = []  # -1 for an end site
    position = 0
    pending = -1
    try:
        while position < len(words):
            word = words[position]
            if word in ("ROOT", "JOINT"):
                pending = len(names)
                start = next(at for at in range(position + 1, len(words)) if words[at] == "{")
                names.append(" ".join(words[position + 1 : start]))
                parents.append(open_joints[-1] if open_joints else -1)
                offsets.append([0.0, 0.0, 0.0])
                channels.append(())
                position = start
            elif word == "End":
                pending, position = -1, position + 2
            elif word == "{":
                open_joints.append(pending)
                position += 1
            elif word == "}":
                open_joints.pop()
                position += 1
            elif word == "OFFSET":
                if open_joints[-1] >= 0:
                    offsets[open_joints[-1]] = [float(value) for value in words[position + 1 : position + 4]]
                position += 4
            elif word == "CHANNELS":
                count = int(words[position + 1])
                if not 0 <= count <= MOST_CHANNELS:
                    raise ValueError(f"a joint with {count} channels")
                channels[open_joints[-1]] = _known_channels(words[position + 2 : position + 2 + count])
                position += 2 + count
            else:
                position += 1
    except (IndexError, ValueError, StopIteration) as error:
        raise InputError(f"{path}: the BVH hierarchy is broken near word {position} ({error})") from error
    if open_joints or not names:
        raise InputError(f"{path}: the BVH hierarchy does not close its brackets or names no joint")
    return Hierarchy(tuple(names), tuple(parents), np.array(offsets), tuple(channels))


def _known_channels(channels: list[str]) -> tuple[str, ...]:
    known = {name.lower(): name for name in (*_POSITIONS, *_ROTATIONS)}
    for channel in channels:
        if channel.lower() not in known:
            raise ValueError(f"channel {channel!r} is none of {', '.join(known.values())}")
    found = tuple(known[channel.lower()] for channel in channels)
    places, turns = ([name for name in found if name in kind] for kind in (_POSITIONS, _ROTATIONS))
    again = len(set(places)) < len(places) or any(one == other for one, other in pairwise(turns))
    if again or len(turns) > 3:
        raise ValueError(f"a joint with channels {' '.join(channels)}")
    return found
