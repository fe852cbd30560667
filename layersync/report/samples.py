"""Rendered samples as the page shows them: side by side by file name, within a limit of bytes."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import numpy as np

from layersync.core.results import duration

NUM_SHOWN = 6
"""Files of a kind (picture, animation, sound) that a domain shows of each variant."""
DOMAIN_BYTES = 5 * 2**20
"""Bytes of samples that a domain puts on the page: rows after the first that exceed it are left out, and said so."""
PICTURE_BYTES, PICTURE_SIDE = 2**20, 1600
"""A picture above either is made smaller."""
ANIMATION_BYTES = 2 * 2**20
"""An animation above it loses every second frame and half of its width and height, until it is below."""
SMALL_SIDE = 300
"""Pictures up to this size are enlarged without smoothing."""
GRID, SPECTROGRAMS = "grid.png", "spectrograms.png"
"""The adapters' overviews: the first stands for all pictures beside it; the second is drawn again, sound by sound."""
SPECTROGRAM_SIZE = (360, 96)
RANGE_DB = 80.0
WINDOW_SECONDS = 0.032

Kind = Literal["picture", "animation", "sound"]
KINDS: Mapping[str, Kind] = {".png": "picture", ".gif": "animation", ".wav": "sound"}


@dataclass(frozen=True)
class Sample:
    """A file on the page. ``uri`` holds it; ``about`` says its size or length; ``spectrogram`` is a sound's picture."""

    kind: Kind
    uri: str
    about: str
    small: bool = False
    spectrogram: str = ""

    @property
    def size(self) -> int:
        """Bytes on the page."""
        return len(self.uri) + len(self.spectrogram)


@dataclass(frozen=True)
class Row:
    """Files of one name, by variant; a text says why there is none."""

    name: str
    cells: dict[str, Sample | str]


@dataclass(frozen=True)
class Samples:
    """What a domain shows. ``notes`` say what is missing and what was left out."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def with_sounds(self) -> bool:
        """Whether any of them is to be listened to."""
        return any(
            isinstance(cell, Sample) and cell.kind == "sound" for row in self.rows for cell in row.cells.values()
        )


def inside(directory: Path, relative: str) -> Path | None:
    """``directory / relative`` unless that leads out of it, by name or by a link."""
    path = PurePath(relative)
    if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative:
        return None
    found = directory / path
    return found if found.resolve().is_relative_to(directory.resolve()) else None


def collect(directory: Path, folders: Mapping[str, str]) -> Samples:
    """Samples of each variant, from its folder relative to ``directory``; a missing folder is noted, no error."""
    found: dict[str, dict[str, Path]] = {}
    notes = []
    for variant, relative in folders.items():
        folder = inside(directory, relative)
        if folder is None or not os.path.isdir(folder):  # noqa: PTH112, a name too long for a file is no error here
            notes.append(f"No samples of {variant}: {f'{relative} is not there' if relative else 'none were drawn'}.")
            continue
        found[variant] = {
            file.name: file
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in KINDS and not file.name.startswith(".") and inside(folder, file.name)
        }
        if not found[variant]:
            notes.append(f"No samples of {variant}: {relative} holds no {', '.join(KINDS)}.")
    names = _shown({name for files in found.values() for name in files})
    rows: list[Row] = []
    used = 0
    for name in names:
        row = Row(name, {variant: _read(files[name]) if name in files else "none" for variant, files in found.items()})
        size = sum(cell.size for cell in row.cells.values() if isinstance(cell, Sample))
        if rows and used + size > DOMAIN_BYTES:
            break
        rows.append(row)
        used += size
    everything = {name for files in found.values() for name in files} - {SPECTROGRAMS}
    if GRID in everything:
        everything = {name for name in everything if KINDS[PurePath(name).suffix.lower()] != "picture"} | {GRID}
    if len(rows) < len(everything):
        notes.append(f"{len(rows)} of {len(everything)} files of each variant are shown; the others lie in its folder.")
    return Samples(tuple(rows), tuple(notes))


def _shown(names: set[str]) -> list[str]:
    """Overviews first, then the first few of each kind; pictures that an overview shows are left out."""
    chosen: list[str] = []
    for suffix in KINDS:
        same = sorted((name for name in names if name.lower().endswith(suffix)), key=_natural)
        if suffix == ".png":
            same = [GRID] if GRID in same else same
            if any(name.lower().endswith(".wav") for name in names):
                same = [name for name in same if name != SPECTROGRAMS]
        chosen += same[:NUM_SHOWN]
    return chosen


def _natural(name: str) -> list[tuple[int, str]]:
    """``9.png`` before ``10.png``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read(file: Path) -> Sample | str:
    import soundfile
    from PIL import Image

    kind = KINDS[file.suffix.lower()]
    try:
        if kind == "sound":
            return _sound(file.read_bytes())
        return _picture(file.read_bytes()) if kind == "picture" else _animation(file.read_bytes())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, soundfile.SoundFileError) as error:
        return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(content: bytes) -> Sample:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.load()
        width, height = picture.size
        if len(content) > PICTURE_BYTES or max(picture.size) > PICTURE_SIDE:
            smaller = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
            side = PICTURE_SIDE
            while True:
                smaller = smaller.copy()
                smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                smaller.save(stream, "PNG", optimize=True)
                content = stream.getvalue()
                if len(content) <= PICTURE_BYTES:
                    break
                side = side * 3 // 4
    return Sample("picture", data_uri(content, "image/png"), f"{width}×{height}", max(width, height) <= SMALL_SIDE)


def _animation(content: bytes) -> Sample:
    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(content), formats=["GIF"]) as first:
        width, height = first.size
        seconds = sum(frame.info.get("duration", 0) for frame in ImageSequence.Iterator(first)) / 1000
    while len(content) > ANIMATION_BYTES:
        with Image.open(io.BytesIO(content), formats=["GIF"]) as larger:
            frames: list[Image.Image] = []
            waits: list[int] = []
            for index, frame in enumerate(ImageSequence.Iterator(larger)):
                if index % 2:
                    waits[-1] += frame.info.get("duration", 0)
                    continue
                frames.append(frame.convert("RGB").resize((max(1, frame.width // 2), max(1, frame.height // 2))))
                waits.append(frame.info.get("duration", 0))
        stream = io.BytesIO()
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=waits, loop=0)
        content = stream.getvalue()
    return Sample("animation", data_uri(content, "image/gif"), f"{width}×{height}, {duration(seconds)}")


def _sound(content: bytes) -> Sample:
    import soundfile

    waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    about = f"{duration(len(waveform) / rate)}, {rate / 1000:g} kHz"
    picture = data_uri(_spectrogram(waveform.mean(axis=1), rate), "image/png")
    return Sample("sound", data_uri(content, "audio/wav"), about, spectrogram=picture)


def _spectrogram(waveform: np.ndarray, rate: int) -> bytes:
    """A PNG: time across, frequency upwards to half the rate, 80 dB below the loudest point."""
    from matplotlib import colormaps
    from PIL import Image
    from scipy.signal import stft

    window = max(16, round(WINDOW_SECONDS * rate))
    padded = np.pad(waveform, (0, max(0, window - len(waveform))))
    hop = max(1, min(window // 4, math.ceil(len(padded) / SPECTROGRAM_SIZE[0])))
    magnitudes = np.abs(stft(padded, rate, nperseg=window, noverlap=window - hop)[2])
    decibels = 20 * np.log10(np.maximum(magnitudes / max(float(magnitudes.max()), 1e-12), 1e-12))
    levels = np.clip(255 * (1 + decibels / RANGE_DB), 0, 255).astype(np.uint8)[::-1]
    picture = Image.fromarray(np.ascontiguousarray(levels)).resize(SPECTROGRAM_SIZE, Image.Resampling.BOX)
    picture.putpalette((colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
