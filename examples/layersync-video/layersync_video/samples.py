"""Anybody's clips, in and out: a folder of animations or of frames, or one ``.npz`` of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from layersync.core.archive import padded, read_samples, write_arrays
from layersync.core.errors import InputError
from layersync.core.listed import ListedExamples
from layersync.core.paths import fingerprint_files
from layersync_video.clip import Clip
from layersync_video.data import MOVING_FPS, files_as_clips, find_clips


def open_clips(path: Path) -> ListedExamples:
    """All clips of a folder, folders of pictures at 8 frames a second, or of an ``.npz`` or ``.npy``, in order.

    The ``.npz`` holds ``videos`` uint8 (n, frames, height, width, 1 or 3) and may hold ``fps``, ``lengths`` (n,) in
    frames and ``labels`` (n,). Raises :class:`InputError` for anything else.
    """
    if path.is_dir():
        return files_as_clips(path, find_clips(path, "samples"), MOVING_FPS)
    found = read_samples(
        path, "videos", ("frames", "height", "width", "1 or 3"), np.uint8, ("fps", "lengths", "labels")
    )
    if found.samples.shape[4] not in (1, 3):
        raise InputError(f"{path}: videos have {found.samples.shape[4]} channels; 1 or 3 are wanted")
    fps = found.positive("fps", MOVING_FPS)
    clips = [Clip(video[:length], fps) for video, length in zip(found.samples, found.lengths(), strict=True)]
    fingerprint = f"videos-{fingerprint_files(path.parent, [path], None)}"
    return ListedExamples(clips, found.sources, found.labels(), fingerprint=fingerprint)


def write_clips(path: Path, clips: Sequence[Clip], labels: Sequence[int] | None) -> None:
    """Write what :func:`open_clips` reads; behind a clip's end are zeros. InputError for clips that differ in more."""
    if len({(*clip.frames.shape[1:], clip.fps) for clip in clips}) != 1:
        raise InputError(f"{path}: clips of several sizes or rates do not fit one array; take the GIF files")
    videos, lengths = padded([clip.frames for clip in clips])
    write_arrays(path, videos=videos, fps=clips[0].fps, lengths=lengths, labels=labels)
