"""Log-mel spectrograms, and waveforms back from them by Griffin-Lim.

Legend: B clips, S samples, F frequency bins, M mel bands, T frames.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from layersync.core.errors import InputError
from layersync.modalities.audio.backend import torchaudio_part

_UPDATES = 10  # of the inversion; more cost time and bring the spectrum hardly closer
_LIFT = 1e-3
_CLIPS_AT_ONCE = 4  # what the processor's cache holds; larger batches are slower
_SMALLEST = 1e-12
_BINS_AT_ONCE = 2**22
"""Values of a Fourier transform that are in memory together where a recording may be long."""


MelScale = Literal["slaney", "htk"]
MelNorm = Literal["slaney", "none"]
Logarithm = Literal["log10", "natural"]


class LogMel:
    """(B, S) waveforms to (B, M, T) logarithms of mel-band magnitudes, no less than the logarithm of ``floor``.

    Magnitudes (not powers) of a centred short-time Fourier transform with a periodic Hann window and reflected ends,
    none below ``magnitude_floor``, summed in bands. With the defaults, bands of Slaney's mel scale and of equal area,
    and decadic logarithms: the features of transformers' ``SpeechT5FeatureExtractor``.
    A clip of S samples has ``1 + S // hop_length`` frames; frame ``k`` is centred on sample ``k * hop_length``.

    Raises :class:`InputError` for settings under which a band would hold no frequency bin.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        floor: float,
        magnitude_floor: float = 0.0,
        mel_scale: MelScale = "slaney",
        mel_norm: MelNorm = "slaney",
        log: Logarithm = "log10",
    ) -> None:
        melscale_fbanks = torchaudio_part("functional", "melscale_fbanks")

        self.n_fft = n_fft
        self.hop_length = hop_length
        self.floor = floor
        self.magnitude_floor = magnitude_floor
        self.log = log
        norm = None if mel_norm == "none" else mel_norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # empty bands, which are refused below
            self.filters_FM: Tensor = melscale_fbanks(
                n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, norm=norm, mel_scale=mel_scale
            )
        empty = (self.filters_FM.amax(dim=0) == 0).nonzero().flatten()
        if len(empty):
            raise InputError(
                f"mel: {len(empty)} of {n_mels} bands hold no frequency bin at n_fft {n_fft} and {sample_rate} Hz; "
                "fewer n_mels or a longer n_fft would do"
            )
        self._window = torch.hann_window(n_fft, dtype=torch.float64)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of ``num_samples``."""
        return 1 + num_samples // self.hop_length

    def magnitudes(self, waveform_BS: Tensor) -> Tensor:
        """(B, S) to (B, F, T) magnitudes of the Fourier transform. A clip too short to be reflected is padded."""
        return self._transformed(self._reflected(waveform_BS))[..., : self.num_frames(waveform_BS.shape[-1])]

    def _reflected(self, waveform_BS: Tensor) -> Tensor:
        missing = self.n_fft // 2 + 1 - waveform_BS.shape[-1]
        if missing > 0:
            waveform_BS = torch.nn.functional.pad(waveform_BS, (0, missing))
        return torch.nn.functional.pad(waveform_BS, (self.n_fft // 2, self.n_fft // 2), mode="reflect")

    def _transformed(self, padded_BS: Tensor) -> Tensor:
        window = self._window.to(padded_BS)
        return torch.stft(
            padded_BS, self.n_fft, self.hop_length, window=window, center=False, return_complex=True
        ).abs()

    def __call__(self, waveform_BS: Tensor) -> Tensor:
        """(B, S) to (B, M, T), computed in the precision of ``waveform_BS``.

        Float64 keeps bands that lie 120 dB below the loudest exact; float32 is twice as fast.
        """
        return self._logarithms(self.magnitudes(waveform_BS))

    def in_blocks(self, waveform_BS: Tensor) -> Tensor:
        """(B, S) float32 to (B, M, T) float32, computed in float64, as many frames at a time as memory is kept for."""
        hop, padded_BS = self.hop_length, self._reflected(waveform_BS)
        num_frames = self.num_frames(waveform_BS.shape[-1])
        step = max(1, _BINS_AT_ONCE // (len(waveform_BS) * len(self.filters_FM)))
        blocks = []
        for first in range(0, num_frames, step):
            end = (min(first + step, num_frames) - 1) * hop + self.n_fft
            magnitudes_BFT = self._transformed(padded_BS[:, first * hop : end].double())
            blocks.append(self._logarithms(magnitudes_BFT).float())
        return torch.cat(blocks, dim=-1)

    def _logarithms(self, magnitudes_BFT: Tensor) -> Tensor:
        magnitudes_BFT = magnitudes_BFT.clamp(min=self.magnitude_floor)
        mel_BMT = (self.filters_FM.T.to(magnitudes_BFT) @ magnitudes_BFT).clamp(min=self.floor)
        return mel_BMT.log10() if self.log == "log10" else mel_BMT.log()

    def mel_magnitudes(self, log_mel_BMT: Tensor) -> Tensor:
        """The magnitudes whose logarithms these are, in any shape."""
        return torch.pow(10.0, log_mel_BMT) if self.log == "log10" else log_mel_BMT.exp()

    def invert(self, log_mel_BMT: Tensor) -> Tensor:
        """(B, M, T) to (B, F, T): the magnitudes, none negative, whose mel bands come closest in least squares.

        The pseudo-inverse, without its negative values, is the start; multiplicative updates (Lee and Seung, 2001)
        then mend what the cut broke. Bins below the lowest band and above the highest stay 0.
        """
        mel_BMT = self.mel_magnitudes(log_mel_BMT)
        filters_MF = self.filters_FM.T
        bins_BFT = (torch.linalg.pinv(filters_MF) @ mel_BMT).clamp(min=0)
        wanted_BFT = self.filters_FM @ mel_BMT
        weight_F1 = self.filters_FM.square().sum(dim=1, keepdim=True).clamp(min=_SMALLEST)
        bins_BFT = bins_BFT + _LIFT * wanted_BFT / weight_F1  # a bin at 0 would stay there
        for _ in range(_UPDATES):
            bins_BFT = bins_BFT * wanted_BFT / (self.filters_FM @ (filters_MF @ bins_BFT)).clamp(min=_SMALLEST)
        return bins_BFT


class GriffinLim:
    """(B, F, T) magnitudes to (B, S) waveforms of ``T * hop_length`` samples.

    Phases start at 0 and are found by the fast Griffin-Lim algorithm (Perraudin et al., 2013; momentum 0.99), so the
    same magnitudes always give the same waveform.
    """

    def __init__(self, *, n_fft: int, hop_length: int, iterations: int) -> None:
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.iterations = iterations

    def __call__(self, magnitudes_BFT: Tensor) -> Tensor:
        """(B, F, T) to (B, ``T * hop_length``), without gradients."""
        griffin_lim = torchaudio_part("transforms", "GriffinLim")
        num_samples = magnitudes_BFT.shape[-1] * self.hop_length
        # transforms are of waveforms longer than half a window, which silence after the last frame makes of any
        num_frames = max(magnitudes_BFT.shape[-1], -(-(self.n_fft // 2 + 2) // self.hop_length))
        magnitudes_BFT = torch.nn.functional.pad(magnitudes_BFT, (0, num_frames - magnitudes_BFT.shape[-1]))
        # the longest waveform of T frames is a sample short of T hops; that sample is added as a zero
        length = num_frames * self.hop_length - 1
        phases = griffin_lim(
            self.n_fft, self.iterations, hop_length=self.hop_length, power=1.0, length=length, rand_init=False
        )
        with torch.no_grad():
            waveforms = [phases(part) for part in magnitudes_BFT.split(_CLIPS_AT_ONCE)]
        return torch.nn.functional.pad(torch.cat(waveforms), (0, 1))[:, :num_samples]
