"""Clips to normalised log-mel spectrograms, and back through Griffin-Lim or a neural vocoder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync.core.errors import InputError
from layersync.core.paths import expand
from layersync.modalities.audio.clip import Clip, by_length, resample, window_frames
from layersync.modalities.audio.mel import GriffinLim, Logarithm, LogMel, MelNorm, MelScale
from layersync.modalities.audio.vocoder import (
    GRIFFIN_LIM,
    PRESETS,
    VOCODER_PRESETS,
    PresetName,
    Vocoder,
    VocoderName,
    load_vocoder,
)

logger = logging.getLogger(__name__)

_CLIPS_AT_ONCE = 64
_LEAST_RELATIVE_DEVIATION = 0.1


class MelConfig(Section):
    """The log-mel spectrogram; the defaults are the features that transformers' SpeechT5 vocoder plays.

    ``sample_rate``, ``f_min``, ``f_max`` in Hz, ``n_fft`` and ``hop_length`` in samples. Fourier magnitudes below
    ``magnitude_floor`` and band magnitudes below ``floor`` (full scale: 1) count as these. ``num_frames`` is the
    length of the window that the backbone sees: 64 frames of 256 samples are 1.02 s at 16 kHz.

    ``preset`` sets everything up to ``log`` to what a vocoder was trained on, and refuses other values beside it.
    ``vocoder`` decodes; it is refused where one of these settings is not its own. ``griffin_lim_iterations`` trades
    time for phase in ``griffin-lim``; the others are networks, whose weights ``vocoder_path`` names (a folder or hub
    id; null: the published repository). ``vocoder_statistics`` is ESPnet's ``feats_stats.npz``, for
    ``fastspeech2-conformer-hifigan``.
    """

    name: Literal["mel"] = "mel"
    preset: PresetName | None = None
    sample_rate: int = Field(default=16000, ge=1000, le=192000)
    n_fft: int = Field(default=1024, ge=16, le=65536)
    hop_length: int = Field(default=256, ge=1)
    n_mels: int = Field(default=80, ge=1, le=1024)
    f_min: float = Field(default=80.0, ge=0)
    f_max: float = Field(default=7600.0, gt=0)
    floor: float = Field(default=1e-10, gt=0, lt=1)
    magnitude_floor: float = Field(default=0.0, ge=0, lt=1)
    mel_scale: MelScale = "slaney"
    mel_norm: MelNorm = "slaney"
    log: Logarithm = "log10"
    num_frames: int = Field(default=64, ge=1)
    vocoder: VocoderName = "griffin-lim"
    vocoder_path: str | None = Field(None, min_length=1)
    vocoder_statistics: str | None = None
    griffin_lim_iterations: int = Field(default=32, ge=1, le=10000)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, content: Any) -> Any:
        """Fill in the preset's settings where the recipe leaves them out."""
        presets: Mapping[Any, Mapping[str, Any]] = PRESETS
        chosen = content.get("preset") if isinstance(content, dict) else None
        return {**presets[chosen], **content} if isinstance(chosen, str) and chosen in presets else content

    @model_validator(mode="after")
    def _plays(self) -> MelConfig:
        """The settings are those of the preset and of the vocoder."""
        if self.preset is not None and (wrong := self._unlike(self.preset)):
            raise ValueError(f"preset {self.preset} has {wrong}: leave that out, or the preset")
        wanted = VOCODER_PRESETS.get(self.vocoder)
        if wanted is not None and (wrong := self._unlike(wanted)):
            raise ValueError(
                f"vocoder {self.vocoder} was trained on {wrong}; set tokenizer.preset: {wanted} and leave these keys "
                "out, or tokenizer.vocoder: griffin-lim, which plays any"
            )
        if self.vocoder == GRIFFIN_LIM and self.vocoder_path is not None:
            raise ValueError("vocoder griffin-lim has no weights: leave vocoder_path out, or choose another vocoder")
        if self.vocoder_statistics is not None and self.vocoder != "fastspeech2-conformer-hifigan":
            raise ValueError(f"vocoder_statistics are for fastspeech2-conformer-hifigan, not for {self.vocoder}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> MelConfig:
        if self.f_max > self.sample_rate / 2:
            raise ValueError(f"f_max {self.f_max:g} is above half the sample_rate {self.sample_rate}")
        if self.f_min >= self.f_max:
            raise ValueError(f"f_min {self.f_min:g} is not below f_max {self.f_max:g}")
        if self.n_fft % 2 or self.hop_length > self.n_fft // 2:
            raise ValueError(f"n_fft {self.n_fft} must be even and at least twice the hop_length {self.hop_length}")
        return self

    def _unlike(self, preset: PresetName) -> str:
        """The settings that differ from those of ``preset``: what it has, and what stands here."""
        wrong = {key: value for key, value in PRESETS[preset].items() if getattr(self, key) != value}
        return ", ".join(f"{key} {_plain(value)} (not {_plain(getattr(self, key))})" for key, value in wrong.items())

    def spectrogram(self) -> dict[str, Any]:
        """The settings that :class:`LogMel` takes, which alone change what is stored."""
        return {key: getattr(self, key) for key in PRESETS["speecht5"]}

    def latent_spec(self) -> LatentSpec:
        """One channel of ``n_mels`` rows."""
        return LatentSpec(channels=1, grid=(self.n_mels, self.num_frames), variable=True)

    def build(self) -> MelTokenizer:
        """The tokenizer, not fitted yet."""
        return MelTokenizer(self)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class MelTokenizer(Tokenizer):
    """Stored: (1, n_mels, frames) float32, logarithms of mel magnitudes. Latents: the same, normalised.

    Each mel band has its own mean and standard deviation, taken over the frames of the training data. Music and speech
    fall by several powers of ten from the low bands to the high: one common pair would leave that tilt in the latents,
    where the backbone would have to learn it at every noise level. A deviation counts as at least a tenth of the
    bands' common one, so that a band that the data leave empty (8 kHz recordings above 4 kHz) is not blown up.
    """

    round_trip_tolerance = 0.3
    """0.18 on notes by Griffin-Lim, whose phases are estimated."""

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        self.latent = config.latent_spec()
        settings = json.dumps({"name": "mel", **config.spectrogram()}, sort_keys=True)
        self.fingerprint = "mel-" + hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.log_mel = LogMel(**config.spectrogram())
        self._phases = GriffinLim(
            n_fft=config.n_fft, hop_length=config.hop_length, iterations=config.griffin_lim_iterations
        )
        self._vocoder: Vocoder | None = None
        self._mean_M = torch.zeros(config.n_mels)
        self._std_M = torch.ones(config.n_mels)

    def encode(self, samples: Sequence[Clip]) -> list[Tensor]:
        """(1, n_mels, ``1 + samples // hop_length``) of each clip, resampled to ``sample_rate`` first."""
        stored: dict[int, Tensor] = {}
        for indices in by_length([(len(clip.waveform), clip.sample_rate) for clip in samples], _CLIPS_AT_ONCE):
            batch_BS = torch.from_numpy(np.stack([self._waveform(samples[index]) for index in indices]))
            stored.update(zip(indices, self.log_mel.in_blocks(batch_BS)[:, None].unbind(), strict=True))
        return [stored[index] for index in range(len(samples))]

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
        for indices in by_length(lengths, _CLIPS_AT_ONCE):
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
        first, num_kept = window_frames(num_frames, self.config.num_frames, position)
        excerpt = waveform[first * hop : (first + num_kept) * hop]
        return Clip(np.pad(excerpt, (0, num_kept * hop - len(excerpt))), self.config.sample_rate)

    def _waveform(self, clip: Clip) -> NDArray[np.float32]:
        waveform = resample(clip.waveform, clip.sample_rate, self.config.sample_rate)
        return np.ascontiguousarray(waveform, dtype=np.float32)

    def prepare_decoding(self) -> None:
        """Load the vocoder's weights. Raises :class:`InputError` when they are missing or not the vocoder's."""
        if self.config.vocoder == GRIFFIN_LIM or self._vocoder is not None:
            return
        given = self.config.vocoder_statistics
        statistics = None if given is None else expand(given, "tokenizer.vocoder_statistics")
        path = None if self.config.vocoder_path is None else os.path.expandvars(self.config.vocoder_path)
        self._vocoder = load_vocoder(self.config.vocoder, path, statistics)
        logger.info("tokenizer: decoding by %s, weights %s", self.config.vocoder, self._vocoder.digest[:16])

    def _play(self, log_mel_BMT: Tensor) -> Tensor:
        if log_mel_BMT.shape[-1] == 0:
            return torch.zeros(len(log_mel_BMT), 0)
        self.prepare_decoding()
        if self._vocoder is None:
            waveform_BS = self._phases(self.log_mel.invert(log_mel_BMT))
        else:
            waveform_BS = self._vocoder(log_mel_BMT)
        return waveform_BS / waveform_BS.abs().amax(dim=-1, keepdim=True).clamp(min=1)
