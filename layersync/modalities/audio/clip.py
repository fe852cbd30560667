"""What an audio sample is, and how one comes out of a file."""

from __future__ import annotations

import io
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layersync.core.errors import InputError

SILENCE = 1e-4
"""Peak below which a clip counts as silent: -80 dB of full scale, three steps of 16-bit audio."""


@dataclass(frozen=True)
class Clip:
    """A recording: ``waveform`` (samples,) float32 in [-1, 1], the mono mix; ``sample_rate`` in Hz.

    Of a stereo recording, ``side`` (samples,) is half the difference of left and right, so that left is
    ``waveform + side`` and right ``waveform - side``; ``None`` for mono. Whoever hears mono reads ``waveform`` alone.
    """

    waveform: NDArray[np.float32]
    sample_rate: int
    side: NDArray[np.float32] | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.waveform) / self.sample_rate

    def channels(self, count: int) -> NDArray[np.float32]:
        """(count, samples): the mono mix for 1, left and right for 2, which are alike in a mono recording."""
        if count == 1:
            return self.waveform[None]
        side = np.float32(0) if self.side is None else self.side
        return np.stack([self.waveform + side, self.waveform - side])

    @classmethod
    def of_channels(cls, channels: NDArray[np.float32], sample_rate: int) -> Clip:
        """A clip of (1 or 2, samples)."""
        if len(channels) == 1:
            return cls(channels[0], sample_rate)
        left, right = channels
        return cls((left + right) / 2, sample_rate, (left - right) / 2)

    def resampled(self, sample_rate: int) -> Clip:
        """The same sound at another rate in Hz."""
        side = None if self.side is None else resample(self.side, self.sample_rate, sample_rate)
        return Clip(resample(self.waveform, self.sample_rate, sample_rate), sample_rate, side)


def read_clip(source: Path | bytes, name: str, middle: float | None = None, *, silence: bool = False) -> Clip:
    """Decode a WAV, FLAC, MP3, OGG or other file that libsndfile knows, given as a path or as its bytes.

    Channels are averaged; those of a stereo file that differ stay apart in ``side`` as well. ``middle`` reads only so
    many seconds around the middle. A float file whose mono mix goes beyond full scale is scaled down to a peak of 1.
    Raises :class:`InputError` that starts with ``name`` for what cannot be decoded, is empty, holds numbers that are
    not finite, or, unless ``silence`` is fine, is silent once mixed to mono.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fsencode(source)) as file:
            sample_rate, expected = int(file.samplerate), int(file.frames)
            wanted = -1  # all
            if middle is not None and round(middle * sample_rate) < expected:
                wanted = round(middle * sample_rate)
                file.seek((expected - wanted) // 2)
                expected = wanted
            samples = file.read(wanted, dtype="float32", always_2d=True)
            exact = file.format != "MP3"  # an MP3 without an index only estimates its length
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{name}: cannot be read as audio ({_reason(error)})") from None
    if exact and len(samples) < expected:
        raise InputError(f"{name}: is cut short, {len(samples)} of {expected} samples can be read")
    waveform = samples.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise InputError(f"{name}: holds samples that are not finite numbers")
    peak = float(np.abs(waveform).max(initial=0.0))
    if len(waveform) == 0:
        raise InputError(f"{name}: holds no samples")
    if peak < SILENCE and not silence:
        raise InputError(f"{name}: is silent once mixed to mono (peak {peak:.1e}, at least {SILENCE:.0e} is wanted)")
    scale = np.float32(max(peak, 1.0))
    stereo = samples.shape[1] == 2 and not np.array_equal(samples[:, 0], samples[:, 1])
    side = (samples[:, 0] - samples[:, 1]) / (2 * scale) if stereo else None
    return Clip(waveform / scale, sample_rate, side)


def check_header(file: Path) -> None:
    """Raise :class:`InputError` for a file that is empty or no audio, without decoding it."""
    import soundfile

    try:
        num_samples = soundfile.info(os.fsencode(file)).frames
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{file}: cannot be read as audio ({_reason(error)})") from None
    if num_samples == 0:
        raise InputError(f"{file}: holds no samples")


def resample(waveform: NDArray[np.float32], from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """(samples,) at ``from_rate`` Hz to ``to_rate`` Hz, band-limited, by the SoX resampler at its high quality.

    torchaudio's resampler builds a filter bank as large as the rates' least common multiple, which a rate such as
    44,099 Hz blows up to gigabytes; SoX takes any pair of rates.
    """
    if from_rate == to_rate:
        return waveform
    import soxr

    return np.asarray(soxr.resample(waveform, from_rate, to_rate, quality="HQ"), dtype=np.float32)


def by_length(lengths: Sequence[Hashable], at_once: int) -> list[list[int]]:
    """Indices grouped by equal length (or length and rate), at most ``at_once`` to a group."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[length].append(index)
    return [group[start : start + at_once] for group in groups.values() for start in range(0, len(group), at_once)]


def window_frames(num_frames: int, window: int, position: float) -> tuple[int, int]:
    """First frame and number of frames of the excerpt of ``window`` frames at ``position`` in [0, 1] of the room."""
    room = max(num_frames - window, 0)
    return min(math.floor(position * (room + 1)), room), min(num_frames, window)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", "") or error)
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
