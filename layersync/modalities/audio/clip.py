"""What an audio sample is, and how one comes out of a file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layersync.core.errors import InputError

SILENCE = 1e-4
"""Peak below which a clip counts as silent: -80 dB of full scale, three steps of 16-bit audio."""


@dataclass(frozen=True)
class Clip:
    """A mono recording: ``waveform`` (samples,) float32 in [-1, 1], ``sample_rate`` in Hz."""

    waveform: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.waveform) / self.sample_rate


def read_clip(source: Path | bytes, name: str) -> Clip:
    """Decode a WAV, FLAC, MP3, OGG or other file that libsndfile knows, given as a path or as its bytes.

    Channels are averaged. A float file beyond full scale is scaled down to a peak of 1. Raises :class:`InputError`
    that starts with ``name`` for what cannot be decoded, is empty, holds numbers that are not finite, or is silent.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            samples = file.read(dtype="float32", always_2d=True)
            sample_rate, expected = int(file.samplerate), int(file.frames)
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
    if peak < SILENCE:
        raise InputError(f"{name}: is silent once mixed to mono (peak {peak:.1e}, at least {SILENCE:.0e} is wanted)")
    return Clip(waveform / np.float32(peak) if peak > 1 else waveform, sample_rate)


def check_header(file: Path) -> None:
    """Raise :class:`InputError` for a file that is empty or no audio, without decoding it."""
    import soundfile

    try:
        num_samples = soundfile.info(file).frames
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


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", "") or error)
    return text.splitlines()[0].rstrip(". ") if text else type(error).__name__
