"""Clips to normalised log-mel spectrograms, and back through Griffin-Lim."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync.core.errors import InputError
from layersync.modalities.audio.clip import Clip, resample
from layersync.modalities.audio.mel import GriffinLim, LogMel

_CLIPS_AT_ONCE = 64
_LEAST_RELATIVE_DEVIATION = 0.1


class MelConfig(Section):
    """The log-mel spectrogram; the defaults are the features that transformers' SpeechT5 vocoder plays.

    ``sample_rate``, ``f_min``, ``f_max`` in Hz, ``n_fft`` and ``hop_length`` in samples. Magnitudes below ``floor``
    (full scale: 1) count as ``floor``. ``num_frames`` is the length of the window that the backbone sees: 64 frames
    of 256 samples are 1.02 s at 16 kHz. ``griffin_lim_iterations`` trades time for phase when decoding.
    """

    name: Literal["mel"] = "mel"
    sample_rate: int = Field(default=16000, ge=1000, le=192000)
    n_fft: int = Field(default=1024, ge=16, le=65536)
    hop_length: int = Field(default=256, ge=1)
    n_mels: int = Field(default=80, ge=1, le=1024)
    f_min: float = Field(default=80.0, ge=0)
    f_max: float = Field(default=7600.0, gt=0)
    floor: float = Field(default=1e-10, gt=0, lt=1)
    num_frames: int = Field(default=64, ge=1)
    griffin_lim_iterations: int = Field(default=32, ge=1, le=10000)

    @model_validator(mode="after")
    def _fits_together(self) -> MelConfig:
        if self.f_max > self.sample_rate / 2:
            raise ValueError(f"f_max {self.f_max:g} is above half the sample_rate {self.sample_rate}")
        if self.f_min >= self.f_max:
            raise ValueError(f"f_min {self.f_min:g} is not below f_max {self.f_max:g}")
        if self.n_fft % 2 or self.hop_length > self.n_fft // 2:
            raise ValueError(f"n_fft {self.n_fft} must be even and at least twice the hop_length {self.hop_length}")
        return self


class MelTokenizer(Tokenizer):
    """Stored: (1, n_mels, frames) float32, decadic logarithms of mel magnitudes. Latents: the same, normalised.

    Each mel band has its own mean and standard deviation, taken over the frames of the training data. Music and speech
    fall by several powers of ten from the low bands to the high: one common pair would leave that tilt in the latents,
    where the backbone would have to learn it at every noise level. A deviation counts as at least a tenth of the
    bands' common one, so that a band that the data leave empty (8 kHz recordings above 4 kHz) is not blown up.
    """

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        self.latent = LatentSpec(channels=1, grid=(config.n_mels, config.num_frames), variable=True)
        settings = config.model_dump(exclude={"num_frames", "griffin_lim_iterations"})
        self.fingerprint = "mel-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.log_mel = LogMel(**config.model_dump(exclude={"name", "num_frames", "griffin_lim_iterations"}))
        self._phases = GriffinLim(
            n_fft=config.n_fft, hop_length=config.hop_length, iterations=config.griffin_lim_iterations
        )
        self._mean_M = torch.zeros(config.n_mels)
        self._std_M = torch.ones(config.n_mels)

    def encode(self, samples: Sequence[Clip]) -> list[Tensor]:
        """(1, n_mels, ``1 + samples // hop_length``) of each clip, resampled to ``sample_rate`` first."""
        waveforms = [self._waveform(clip) for clip in samples]
        stored: dict[int, Tensor] = {}
        for indices in _by_length([len(waveform) for waveform in waveforms]):
            batch_BS = torch.from_numpy(np.stack([waveforms[index] for index in indices])).double()
            stored.update(zip(indices, self.log_mel(batch_BS).float()[:, None].unbind(), strict=True))
        return [stored[index] for index in range(len(waveforms))]

    def fit(self, stored: Iterable[Tensor]) -> None:
        """Mean and deviation of each mel band over all frames of ``stored``, each (1, n_mels, frames)."""
        count = 0
        sums_M = torch.zeros(self.config.n_mels, dtype=torch.float64)
        squares_M = torch.zeros_like(sums_M)
        for clip in stored:
            values_MT = clip[0].double()
            count += values_MT.shape[-1]
            sums_M += values_MT.sum(dim=-1)
            squares_M += values_MT.square().sum(dim=-1)
        if count == 0:
            raise InputError("tokenizer mel: there are no frames to take statistics of")
        mean_M = sums_M / count
        variance_M = (squares_M / count - mean_M.square()).clamp(min=0)
        least = _LEAST_RELATIVE_DEVIATION * math.sqrt(float(variance_M.mean())) or 1.0
        self._mean_M = mean_M.float()
        self._std_M = variance_M.sqrt().clamp(min=least).float()

    def state(self) -> dict[str, Tensor]:
        """``mean`` and ``std``, each (n_mels,)."""
        return {"mean": self._mean_M, "std": self._std_M}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take ``mean`` and ``std``, each (n_mels,), the latter positive."""
        wanted = (self.config.n_mels,)
        for key in ("mean", "std"):
            if key not in state or state[key].shape != wanted or not state[key].isfinite().all():
                raise InputError(
                    f"tokenizer mel: the saved statistics hold no finite {key!r} for {wanted[0]} mel bands"
                )
        if not (state["std"] > 0).all():
            raise InputError("tokenizer mel: the saved deviations are not all positive")
        self._mean_M, self._std_M = state["mean"].float().cpu(), state["std"].float().cpu()

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 1, n_mels, T) stored to latents of mean 0 and deviation 1 in each band."""
        return (stored - self._mean_M[:, None].to(stored)) / self._std_M[:, None].to(stored)

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Clip]:
        """(B, 1, n_mels, T) to clips of ``hop_length`` samples a real frame, scaled down where they pass full scale.

        ``mask`` (B, T) is True on real frames, which come first. Clips of one length are decoded together; a clip does
        not depend on the others, nor on what its latent holds outside the mask.
        """
        log_mel_BMT = latents.detach().float().cpu()[:, 0] * self._std_M[:, None] + self._mean_M[:, None]
        num_frames = latents.shape[-1]
        lengths = [num_frames] * len(latents) if mask is None else mask.sum(dim=-1).tolist()
        clips: dict[int, Clip] = {}
        for indices in _by_length(lengths):
            real_BMT = log_mel_BMT[indices][..., : lengths[indices[0]]].contiguous()
            for index, waveform_S in zip(indices, self._play(real_BMT), strict=True):
                clips[index] = Clip(waveform_S.numpy(), self.config.sample_rate)
        return [clips[index] for index in range(len(latents))]

    def window(self, sample: Clip, position: float) -> Clip:
        """The ``num_frames * hop_length`` samples at ``sample_rate`` that one latent covers, or all of a shorter clip.

        As :meth:`decode` returns whole frames, so does this: the last frame is filled with zeros to its end.
        """
        hop = self.config.hop_length
        waveform = self._waveform(sample)
        num_frames = self.log_mel.num_frames(len(waveform))
        room = max(num_frames - self.config.num_frames, 0)
        first = min(math.floor(position * (room + 1)), room)
        num_kept = min(num_frames, self.config.num_frames)
        excerpt = waveform[first * hop : (first + num_kept) * hop]
        return Clip(np.pad(excerpt, (0, num_kept * hop - len(excerpt))), self.config.sample_rate)

    def _waveform(self, clip: Clip) -> NDArray[np.float32]:
        waveform = resample(clip.waveform, clip.sample_rate, self.config.sample_rate)
        return np.ascontiguousarray(waveform, dtype=np.float32)

    def _play(self, log_mel_BMT: Tensor) -> Tensor:
        if log_mel_BMT.shape[-1] == 0:
            return torch.zeros(len(log_mel_BMT), 0)
        waveform_BS = self._phases(self.log_mel.invert(log_mel_BMT))
        return waveform_BS / waveform_BS.abs().amax(dim=-1, keepdim=True).clamp(min=1)


def _by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices grouped by equal length, a limited number to a group."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        groups[int(length)].append(index)
    return [
        group[start : start + _CLIPS_AT_ONCE]
        for group in groups.values()
        for start in range(0, len(group), _CLIPS_AT_ONCE)
    ]
