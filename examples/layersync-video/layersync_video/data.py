"""Where clips come from: digits that move, made on the spot, and a tree of real clips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from pydantic import Field
from scipy.ndimage import shift

from layersync.core.adapter import DataConfig, DataFacts, Split
from layersync.core.errors import InputError
from layersync.core.listed import ListedExamples
from layersync.core.paths import HELD_OUT_NAMES, TEST_FRACTION, expand, fingerprint_files, held_out_rows
from layersync_video.clip import Clip

MOTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
"""Directions, 45 degrees apart."""
SPEEDS = (1.0, 2.0)
"""Pixels a frame, slowest and fastest."""
MOVING_FPS = 8.0
ANIMATIONS = (".gif", ".webp")
PICTURES = (".png", ".jpg", ".jpeg")
FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm")
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class MovingDigits(DataConfig):
    """Handwritten digits that move straight through a frame whose edges are joined; the label says which way.

    After Moving MNIST (Srivastava et al., ICML 2015), with the 8x8 digits of scikit-learn, of which every fifth moves
    in the held-out split only. Which digit it is, where it starts and its speed are drawn anew for each clip. So a
    frame is distributed alike under every label, whichever of the clip it is: a model that knows frames and no motion
    cannot tell the labels apart.
    """

    packaged: ClassVar[str] = (
        "handwritten digits moving in 8 directions, made on the spot (scikit-learn; UCI CC BY 4.0)"
    )
    name: Literal["moving-digits"] = "moving-digits"
    num_examples: int = Field(2400, ge=len(MOTIONS), description="Clips to train on; a fifth as many are held out.")
    image_size: int = Field(16, ge=12, description="Height and width of a frame in pixels; a digit has 8.")
    num_frames: int = Field(16, ge=2, description="Frames of a clip, at 8 a second.")

    def facts(self) -> DataFacts:  # noqa: D102
        return DataFacts(self.num_examples, len(MOTIONS))

    def build(self, split: Split) -> ListedExamples:  # noqa: D102
        count = self.num_examples if split == "train" else max(len(MOTIONS), self.num_examples // 5)
        return ListedExamples(
            partial(moving_digit, split, image_size=self.image_size, num_frames=self.num_frames),
            [f"moving-digits {split}[{index}]" for index in range(count)],
            [index % len(MOTIONS) for index in range(count)],
            MOTIONS,
            f"moving-digits-1-{split}-{count}-{self.image_size}-{self.num_frames}",
        )


@cache
def _digits(split: Split) -> NDArray[np.float64]:
    from sklearn.datasets import load_digits

    found = load_digits()
    digits: NDArray[np.float64] = found.images[held_out_rows(found.target, split)] * (255 / 16)
    return digits


def moving_digit(split: Split, index: int, image_size: int, num_frames: int) -> Clip:
    """Clip ``index`` of a split: a function of its arguments alone. It moves as ``MOTIONS[index % 8]`` says."""
    draw = np.random.default_rng([("train", "test").index(split), index])
    digits = _digits(split)
    digit, start, speed = digits[draw.integers(len(digits))], draw.uniform(0, image_size, 2), draw.uniform(*SPEEDS)
    angle = 2 * np.pi * (index % len(MOTIONS)) / len(MOTIONS)
    step = speed * np.array([np.sin(angle), np.cos(angle)])  # rows grow downwards
    canvas = np.zeros((image_size, image_size))
    canvas[: digit.shape[0], : digit.shape[1]] = digit
    frames = [shift(canvas, start + number * step, order=1, mode="grid-wrap") for number in range(num_frames)]
    return Clip(np.round(np.stack(frames)).astype(np.uint8)[..., None], MOVING_FPS)


class Folder(DataConfig):
    """Any tree of clips: animated GIF or WebP files, or folders of pictures, a frame each, in the order of their names.

    The folder that holds a clip is its label; ``train/`` and ``test/`` (or ``val/``) are splits, else every tenth clip
    of a label is held out.
    """

    name: Literal["folder"] = "folder"
    path: str
    fps: float = Field(8.0, gt=0, description="Frames a second of folders of pictures; animations say it themselves.")

    def build(self, split: Split) -> ListedExamples:  # noqa: D102
        root = expand(self.path, "data.path")
        held_out = next((name for name in HELD_OUT_NAMES if (root / name).is_dir()), None)
        bases = [root / "train", root / held_out] if held_out and (root / "train").is_dir() else [root]
        found = [(base, clip) for base in bases for clip in find_clips(base, "data.path")]
        names = [clip.parent.name if clip.parent != base and clip != base else "" for base, clip in found]
        classes = sorted(set(names) - {""})
        labels = np.array([classes.index(name) if name else -1 for name in names])
        if len(bases) == 2:
            wanted = bases[0] if split == "train" else bases[1]
            rows = np.flatnonzero([base == wanted for base, _ in found])
        else:
            rows = held_out_rows(labels, split, TEST_FRACTION)
        clips = [found[row][1] for row in rows]
        return files_as_clips(root, clips, self.fps, labels[rows].tolist() if classes else None, classes)


def find_clips(base: Path, key: str) -> list[Path]:
    """Animations and folders of pictures below ``base``, by path; nothing hidden.

    A folder that holds an animation or a single picture is no clip: the picture is a contact sheet or a title.
    Raises :class:`InputError` naming ``key`` where there is none.
    """
    if not base.is_dir():
        raise InputError(f"{key}: {str(base)!r} {'is a file, not a folder' if base.exists() else 'does not exist'}")
    files = [f for f in base.rglob("*") if not any(p.startswith(".") for p in f.relative_to(base).parts)]
    clips = [file for file in files if file.suffix.lower() in ANIMATIONS]
    with_animations = {file.parent for file in clips}
    clips += [f for f in (base, *files) if f.is_dir() and f not in with_animations and len(pictures(f)) > 1]
    if not clips:
        films = sorted(file for file in files if file.suffix.lower() in FILMS)
        hint = f"; {films[0].name} is no animation: ffmpeg -i FILE -vf fps=8 FOLDER/%05d.png makes one" if films else ""
        wanted = f"{', '.join(ANIMATIONS)} or folders of {', '.join(PICTURES)}"
        raise InputError(f"{key}: no clip in {str(base)!r}; looked for {wanted}{hint}")
    return sorted(clips)


def pictures(folder: Path) -> list[Path]:
    """The frames of a folder in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES and file.name[0] != ".")


def files_as_clips(
    root: Path, clips: Sequence[Path], fps: float, labels: Sequence[int] | None = None, classes: Sequence[str] = ()
) -> ListedExamples:
    """Animations and folders of pictures as a data set, keyed by their content."""
    files = [file for clip in clips for file in (pictures(clip) if clip.is_dir() else [clip])]
    told = f"clips-{fps:g}-{list(classes)}-{labels}-{fingerprint_files(root, files, None, 'auto')}"
    return ListedExamples(partial(_read_nth, clips, fps), [str(clip) for clip in clips], labels, classes, told)


def _read_nth(clips: Sequence[Path], fps: float, index: int) -> Clip:
    return read_clip(clips[index], fps)


def read_clip(path: Path, fps: float) -> Clip:
    """An animation, or a folder of pictures at ``fps``, as RGB. InputError for what is damaged or of several sizes.

    Frames of an animation may last differently; it is read at the rate of the shortest.
    """
    try:
        if path.is_dir():
            frames = [np.asarray(Image.open(file).convert("RGB")) for file in pictures(path)]
            durations = np.full(len(frames), 1000 / fps)
        else:
            with Image.open(path) as image:
                shown = [
                    (np.asarray(f.convert("RGB")), f.info.get("duration", 0)) for f in ImageSequence.Iterator(image)
                ]
            frames = [frame for frame, _ in shown]
            durations = np.array([duration or 1000 / fps for _, duration in shown], dtype=float)
    except UNREADABLE as error:
        raise InputError(f"{path}: is damaged or no clip ({error})") from None
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{path}: its frames are of several sizes; those of a clip are of one")
    ends, shortest = durations.cumsum(), durations.min()
    moments = np.arange(round(ends[-1] / shortest)) * shortest
    return Clip(np.stack(frames)[np.searchsorted(ends, moments + 1e-6, side="right")], 1000 / shortest)
