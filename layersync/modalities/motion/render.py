"""Stick figures: animated GIFs of motions, and overlays that show whether a mapping is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from layersync.modalities.motion import kit
from layersync.modalities.motion.io.amass import write_amass
from layersync.modalities.motion.retarget import Alignment, SourceMotion
from layersync.modalities.motion.sample import Motion, resampled_joints
from layersync.modalities.motion.skeleton import JOINTS, PARENTS

NUM_SHOWN = 8
COLUMNS = 4
CELL = 220
FRAME_RATE = 15
"""Of the GIF; half of the motion's, which keeps the file small."""
_DURATIONS = (70, 70, 60)
"""Milliseconds, in turn: a GIF counts in hundredths of a second, of which a frame takes six and two thirds."""
SECONDS_SHOWN = 6.0
TITLE_WIDTH = 34
"""Letters in a line of a title."""

_BACKGROUND, _FLOOR, _GRID, _SHADOW = (250, 250, 252), (236, 238, 243), (212, 216, 226), (196, 200, 210)
_LEFT, _RIGHT, _MIDDLE, _SOURCE = (214, 80, 70), (52, 110, 190), (60, 60, 70), (40, 160, 90)
_YAW, _PITCH = np.radians(35.0), np.radians(14.0)
_VIEW_METRES = 2.5
"""Width of what a cell shows."""
_FLOOR_METRES = 1.5


def _bones(parents: Sequence[int]) -> list[tuple[int, int]]:
    return [(parent, joint) for joint, parent in enumerate(parents) if parent >= 0]


def _colour(name: str) -> tuple[int, int, int]:
    return _LEFT if name.startswith("left") else _RIGHT if name.startswith("right") else _MIDDLE


class _Camera:
    """Orthographic view from the front, from the left and a little above, that follows ``centre`` over the floor."""

    def __init__(self, centre: np.ndarray) -> None:
        self.centre = centre

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) metres to (n, 2) pixels."""
        x, y, z = (points - [self.centre[0], 0, self.centre[1]]).T
        across = x * np.cos(_YAW) - z * np.sin(_YAW)
        depth = x * np.sin(_YAW) + z * np.cos(_YAW)
        height = y * np.cos(_PITCH) - depth * np.sin(_PITCH)
        scale = CELL / _VIEW_METRES
        return np.stack([CELL / 2 + across * scale, CELL * 0.82 - height * scale], axis=1)


def _draw_floor(draw: ImageDraw.ImageDraw, camera: _Camera) -> None:
    """A square of floor around the camera's centre with lines every half metre that stand still in the world."""
    cx, cz = camera.centre
    low_x, high_x, low_z, high_z = cx - _FLOOR_METRES, cx + _FLOOR_METRES, cz - _FLOOR_METRES, cz + _FLOOR_METRES
    corners = np.array([[low_x, 0, low_z], [high_x, 0, low_z], [high_x, 0, high_z], [low_x, 0, high_z]])
    draw.polygon([tuple(point) for point in camera(corners)], fill=_FLOOR)
    for x in np.arange(np.ceil(low_x * 2), np.floor(high_x * 2) + 1) / 2:
        draw.line([tuple(point) for point in camera(np.array([[x, 0, low_z], [x, 0, high_z]]))], fill=_GRID)
    for z in np.arange(np.ceil(low_z * 2), np.floor(high_z * 2) + 1) / 2:
        draw.line([tuple(point) for point in camera(np.array([[low_x, 0, z], [high_x, 0, z]]))], fill=_GRID)


def _draw_body(
    draw: ImageDraw.ImageDraw,
    camera: _Camera,
    joints: np.ndarray,
    bones: Sequence[tuple[int, int]],
    colours: Sequence[tuple[int, int, int]],
    width: int = 4,
    shadow: bool = True,
) -> None:
    if shadow:
        flat = camera(joints * [1, 0, 1])
        for parent, joint in bones:
            draw.line([tuple(flat[parent]), tuple(flat[joint])], fill=_SHADOW, width=width)
    points = camera(joints)
    for parent, joint in bones:
        draw.line([tuple(points[parent]), tuple(points[joint])], fill=colours[joint], width=width)
    radius = width * 0.6
    for joint in sorted({joint for bone in bones for joint in bone}):
        draw.ellipse([*(points[joint] - radius), *(points[joint] + radius)], fill=colours[joint])


def _draw_smpl(draw: ImageDraw.ImageDraw, camera: _Camera, joints: np.ndarray) -> None:
    """SMPL's 24 joints or the first 22 of them."""
    _draw_body(draw, camera, joints, _bones(PARENTS[: len(joints)]), [_colour(name) for name in JOINTS])
    head = JOINTS.index("head")
    tip = joints[head] + 0.5 * (joints[head] - joints[JOINTS.index("neck")])
    (x, y), radius = camera(tip[None])[0], 0.1 * CELL / _VIEW_METRES
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=_MIDDLE, width=3)


def _draw_kit(draw: ImageDraw.ImageDraw, camera: _Camera, joints: np.ndarray) -> None:
    _draw_body(draw, camera, joints, kit.BONES, [_MIDDLE] * kit.NUM_JOINTS)


def _places(motion: Any) -> np.ndarray:
    """(frames, joints, 3) metres at 15 frames a second."""
    if isinstance(motion, Motion):
        return motion.resampled(FRAME_RATE).joints()
    joints = motion.places() * kit.METRES_SHOWN if isinstance(motion, kit.KitFeatures) else motion.joints()
    return resampled_joints(joints, motion.fps, FRAME_RATE)


def draw_motions(motions: Sequence[Any], titles: Sequence[str] = ()) -> list[Image.Image]:
    """Frames at 15 a second in which up to eight motions play side by side; shorter ones wait in their last pose.

    ``titles`` stand above the motions, one each.
    """
    bodies = [_places(motion) for motion in motions[:NUM_SHOWN]]
    draw_body = _draw_kit if isinstance(motions[0], kit.KitFeatures) else _draw_smpl
    count = min(max(len(body) for body in bodies), int(SECONDS_SHOWN * FRAME_RATE))
    columns = min(COLUMNS, len(bodies))
    rows = -(-len(bodies) // columns)
    frames = []
    for frame in range(count):
        image = Image.new("RGB", (columns * CELL, rows * CELL), _BACKGROUND)
        for index, joints in enumerate(bodies):
            cell = Image.new("RGB", (CELL, CELL), _BACKGROUND)
            draw = ImageDraw.Draw(cell)
            now = joints[min(frame, len(joints) - 1)]
            camera = _Camera(now[0, [0, 2]])
            _draw_floor(draw, camera)
            draw_body(draw, camera, now)
            if index < len(titles):
                draw.multiline_text((6, 4), "\n".join(wrap(titles[index], TITLE_WIDTH)), fill=_MIDDLE)
            image.paste(cell, ((index % columns) * CELL, (index // columns) * CELL))
        frames.append(image)
    return frames


def write_gif(path: Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames as an animation that loops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = frames[0].quantize(64)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_DURATIONS[number % len(_DURATIONS)] for number in range(len(frames))]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    return path


def render(samples: Sequence[Any], directory: Path) -> list[Path]:
    """Write ``motions.gif`` of the first eight motions, and every motion as ``motion-000.npz`` that AMASS tools open;
    features as ``motion-000.npy``, laid out as HumanML3D's ``new_joint_vecs``.
    """
    if not samples:
        return []
    directory.mkdir(parents=True, exist_ok=True)
    written = [write_gif(directory / "motions.gif", draw_motions(samples))]
    for index, motion in enumerate(samples):
        path = directory / f"motion-{index:03d}.npz"
        if isinstance(motion, Motion):
            written.append(write_amass(path, motion))
        else:
            np.save(path.with_suffix(".npy"), motion.values)
            written.append(path.with_suffix(".npy"))
    return written


def overlay(source: SourceMotion, alignment: Alignment, path: Path, num_shown: int = 8) -> Path:
    """Draw the joints of a capture (green) over the joints they are mapped to (left red, right blue).

    A PNG shows ``num_shown`` moments side by side; a path that ends in ``.gif`` gets an animation.
    Where the mapping is right each bone lies along its counterpart; lengths are those of two different bodies.
    """
    positions, smpl = alignment.positions(source), alignment.apply(source).joints()
    animated = path.suffix.lower() == ".gif"
    step = source.fps / FRAME_RATE
    moments = np.arange(0, len(smpl), step) if animated else np.linspace(0, len(smpl) - 1, num_shown)
    images = [_overlaid(positions[moment], source.parents, smpl[moment]) for moment in moments.round().astype(int)]
    if animated:
        return write_gif(path, images[: int(SECONDS_SHOWN * FRAME_RATE)])
    columns = min(COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * CELL, -(-len(images) // columns) * CELL), _BACKGROUND)
    for index, image in enumerate(images):
        sheet.paste(image, ((index % columns) * CELL, (index // columns) * CELL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _overlaid(source: np.ndarray, parents: Sequence[int], smpl: np.ndarray) -> Image.Image:
    image = Image.new("RGB", (CELL, CELL), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    camera = _Camera(smpl[0, [0, 2]])
    _draw_floor(draw, camera)
    _draw_smpl(draw, camera, smpl)
    # A dummy root that stays on the floor while the hips move is no part of the body.
    dummy = sum(parent == 0 for parent in parents) == 1
    bones = [bone for bone in _bones(parents) if not (dummy and bone[0] == 0)]
    _draw_body(draw, camera, source, bones, [_SOURCE] * len(source), width=2, shadow=False)
    return image
