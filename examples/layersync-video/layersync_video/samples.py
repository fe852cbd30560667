"""Anybody's clips, in and out: a folder of animations or of frames, or one ``.npz`` of pixels."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layersync.core.errors import InputError
from layersync.core.paths import fingerprint_files
from layersync.core.run import atomic_write
from layersync_video.clip import Clip
from layersync_video.data import MOVING_FPS, Clips, files_as_clips, find_clips


def open_clips(path: Path) -> Clips:
    """All clips of a folder, folders of pictures at 8 frames a second, or of an ``.npz``, in the order of their names.

    The ``.npz`` holds ``videos`` uint8 (n, frames, height, width, 1 or 3) and may hold ``fps``, ``lengths`` (n,) in
    frames and ``labels`` (n,). Raises :class:`InputError` for anything else.
    """
    if path.is_dir():
        return files_as_clips(path, find_clips(path, "samples"), MOVING_FPS)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("videos", "fps", "lengths", "labels") if name in stored.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is neither a folder of clips nor an .npz ({error})") from None
    videos = arrays.get("videos", np.zeros(0))
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[4] not in (1, 3) or not videos.size:
        raise InputError(
            f"{path}: videos is {videos.dtype} {list(videos.shape)}; uint8 [n, frames, height, width, 1 or 3] is wanted"
        )
    lengths, fps = arrays.get("lengths", np.full(len(videos), videos.shape[1])), float(arrays.get("fps", MOVING_FPS))
    labels = arrays.get("labels")
    if lengths.shape != (len(videos),) or lengths.min() < 1 or lengths.max() > videos.shape[1] or not fps > 0:
        raise InputError(
            f"{path}: lengths has to be 1 to {videos.shape[1]} for each of {len(videos)} clips, fps above 0"
        )
    if labels is not None and (labels.shape != (len(videos),) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise InputError(f"{path}: labels has to be a class number, from 0, for each of {len(videos)} clips")
    return Clips(
        partial(_row, videos, lengths, fps),
        [f"{path}[{index}]" for index in range(len(videos))],
        f"videos-{fingerprint_files(path.parent, [path], None)}",
        None if labels is None else labels.tolist(),
        () if labels is None else [str(number) for number in range(int(labels.max()) + 1)],
    )


def _row(videos: NDArray[np.uint8], lengths: NDArray[np.int64], fps: float, index: int) -> Clip:
    return Clip(videos[index, : lengths[index]], fps)


def write_clips(path: Path, clips: Sequence[Clip], labels: Sequence[int] | None) -> None:
    """Write what :func:`open_clips` reads; behind a clip's end are zeros. InputError for clips that differ in more."""
    if len({(*clip.frames.shape[1:], clip.fps) for clip in clips}) != 1:
        raise InputError(f"{path}: clips of several sizes or rates do not fit one array; take the GIF files")
    videos = np.zeros((len(clips), max(map(len, clips)), *clips[0].frames.shape[1:]), dtype=np.uint8)
    for row, clip in enumerate(clips):
        videos[row, : len(clip)] = clip.frames
    arrays: dict[str, Any] = {"videos": videos, "fps": clips[0].fps, "lengths": [len(clip) for clip in clips]}
    if labels is not None:
        arrays["labels"] = np.asarray(labels, dtype=np.int64)
    with atomic_write(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
