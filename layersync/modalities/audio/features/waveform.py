"""From a clip to the waveform that a network is fed, as published Fréchet audio distances make it.

The resampling and the 16 bits are fadtk's (microsoft/fadtk, ``fad.py``), so that scores agree with its own.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.modalities.audio.backend import torchaudio_part
from layersync.modalities.audio.clip import Clip, resample

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

Waveform = NDArray[np.float32]

KAISER_ZEROS = 64
KAISER_ROLLOFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
"""fadtk's windowed sinc (``fad.py``): zero crossings, cut-off as a share of the lower Nyquist frequency, window."""

COMMON_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
_MOST_TAPS = 2**24  # of a filter bank: 64 MB, and as much again several times while it is made


def clip_of(example: Example, extractor: str) -> Clip:
    """The example's clip. Raises :class:`InputError` where it holds nothing, or numbers that are not finite."""
    clip: Clip = example.sample
    if len(clip.waveform) == 0:
        raise InputError(f"extractor {extractor}: {example.source} holds no samples")
    if not np.isfinite(clip.waveform).all():
        raise InputError(f"extractor {extractor}: {example.source} holds samples that are not finite numbers")
    return clip


def sixteen_bits(waveform: Waveform, sample_rate: int) -> Waveform:
    """What a 16-bit WAV file keeps of (samples,): multiples of 1 / 32768, clipped to full scale.

    Written and read by libsndfile, as torchaudio's ``save`` of PCM_S does through its soundfile backend.
    """
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, waveform, sample_rate, format="WAV", subtype="PCM_16")
    file.seek(0)
    return soundfile.read(file, dtype="int16")[0].astype(np.float32) / np.float32(32768)


def published_waveform(example: Example, sample_rate: int, extractor: str) -> Waveform:
    """(samples,) of the example at ``sample_rate`` Hz, resampled and rounded to 16 bits as fadtk does.

    A rate that shares hardly a divisor with ``sample_rate``, such as 44,099 Hz, would need a filter bank of gigabytes:
    it is first brought to the next common rate by SoX, and a warning says so once.
    """
    clip = clip_of(example, extractor)
    waveform, rate = clip.waveform, clip.sample_rate
    step = _intermediate(rate, sample_rate)
    if step is not None:
        waveform, rate = resample(waveform, rate, step), step
    if rate != sample_rate:
        waveform = _resampler(rate, sample_rate)(torch.from_numpy(np.ascontiguousarray(waveform))).numpy()
    return sixteen_bits(waveform, sample_rate)


def equal_lengths(waveforms: Sequence[Waveform], most_samples: int) -> list[list[int]]:
    """Indices of waveforms of one length, in groups that hold no more than ``most_samples`` together (or are single).

    Networks that look at a whole sound are fed such groups, so that a score does not depend on padding.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, waveform in enumerate(waveforms):
        by_length[len(waveform)].append(index)
    groups = []
    for length, indices in by_length.items():
        size = max(1, most_samples // length)
        groups += [indices[start : start + size] for start in range(0, len(indices), size)]
    return groups


def _taps(from_rate: int, to_rate: int) -> int:
    """Size of torchaudio's filter bank: one filter for each output sample until the two rates meet again."""
    divisor = math.gcd(from_rate, to_rate)
    before, after = from_rate // divisor, to_rate // divisor
    width = math.ceil(KAISER_ZEROS * before / (min(before, after) * KAISER_ROLLOFF))
    return after * (before + 2 * width)


@lru_cache(maxsize=64)
def _intermediate(from_rate: int, to_rate: int) -> int | None:
    """The rate to go through where the direct way is too costly. Cached, so that each pair is warned of once."""
    if _taps(from_rate, to_rate) <= _MOST_TAPS:
        return None
    step = next((rate for rate in COMMON_RATES if rate >= from_rate), COMMON_RATES[-1])
    warnings.warn(
        f"audio at {from_rate} Hz: the published resampling to {to_rate} Hz would need a filter bank of "
        f"{_taps(from_rate, to_rate) / 1e6:.0f} million values; resampled to {step} Hz by SoX first",
        stacklevel=3,
    )
    return step


@lru_cache(maxsize=8)
def _resampler(from_rate: int, to_rate: int) -> Resample:
    # the transform, not the function: it computes its filters in float64, and is what fadtk calls
    found: Resample = torchaudio_part("transforms", "Resample")(
        from_rate,
        to_rate,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=KAISER_ZEROS,
        rolloff=KAISER_ROLLOFF,
        beta=KAISER_BETA,
    )
    return found
