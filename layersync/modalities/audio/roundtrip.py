"""What the mel tokenizer alone loses: clips encoded, decoded and compared with themselves.

Run it on any data section of a recipe::

    python -m layersync.modalities.audio.roundtrip '{name: gm-notes, split: test}' --num 200
    python -m layersync.modalities.audio.roundtrip '{name: folder, path: DIR}' --tokenizer '{n_mels: 128}'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import yaml
from torch import Tensor

from layersync.core.adapter import DataConfig
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.mel import LogMel
from layersync.modalities.audio.tokenizer import MelConfig, MelTokenizer

_FLOOR_DB = -80.0
_NUM_CEPSTRA = 13


@dataclass(frozen=True)
class RoundTripLoss:
    """Means over clips; 0 is lossless in each.

    ``log_spectral_distance`` (dB): root mean square over the frequencies of the difference of log magnitudes, meaned
    over frames; both spectra cut at 80 dB below the original's loudest point.
    ``spectral_convergence``: norm of the difference of magnitudes over the norm of the original's.
    ``mel_distance`` (dB): mean absolute difference of the tokenizer's own mel magnitudes, cut likewise.
    ``mel_cepstral_distortion`` (dB): ``10 / ln 10 * sqrt(2 * sum of squares)`` over cepstra 1 to 13 of the same mels.
    """

    num_clips: int
    log_spectral_distance: float
    spectral_convergence: float
    mel_distance: float
    mel_cepstral_distortion: float


def roundtrip_loss(tokenizer: MelTokenizer, clips: Sequence[Clip]) -> RoundTripLoss:
    """Encode, normalise, decode and compare each of ``clips``, cut to the window of one latent."""
    rows = []
    for clip in clips:
        original = tokenizer.window(clip, 0.0)
        latent = tokenizer.latents(tokenizer.encode([original])[0][None, ..., : tokenizer.config.num_frames])
        decoded = tokenizer.decode(latent)[0]
        num_samples = min(len(original.waveform), len(decoded.waveform))
        pair_2S = torch.from_numpy(np.stack([original.waveform[:num_samples], decoded.waveform[:num_samples]]))
        rows.append(_losses(tokenizer.log_mel, pair_2S))
    means = torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
    return RoundTripLoss(len(rows), *means)


def _losses(log_mel: LogMel, pair_2S: Tensor) -> tuple[float, float, float, float]:
    from scipy.fft import dct

    magnitudes_2FT = log_mel.magnitudes(pair_2S.double())
    bins_2FT = _decibels(magnitudes_2FT)
    mels_2MT = _decibels(log_mel.mel_magnitudes(log_mel(pair_2S.double())))
    # natural logarithms of amplitude as c_0 + sum of c_k * cos(...): c_k is twice a mean, and so is scipy's sum
    difference_MT = (mels_2MT[0] - mels_2MT[1]).numpy() * np.log(10) / 20
    cepstra_KT = dct(difference_MT, type=2, axis=0)[1 : _NUM_CEPSTRA + 1] / len(difference_MT)
    return (
        float((bins_2FT[0] - bins_2FT[1]).square().mean(dim=0).sqrt().mean()),
        float((magnitudes_2FT[0] - magnitudes_2FT[1]).norm() / magnitudes_2FT[0].norm()),
        float((mels_2MT[0] - mels_2MT[1]).abs().mean()),
        float((10 / np.log(10) * np.sqrt(2 * (cepstra_KT**2).sum(axis=0))).mean()),
    )


def _decibels(magnitudes_2: Tensor) -> Tensor:
    """Decibels below the loudest point of the first of the pair, cut at -80."""
    return (20 * (magnitudes_2 / magnitudes_2[0].max()).clamp(min=1e-12).log10()).clamp(min=_FLOOR_DB)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the loss on evenly chosen clips of a data set as one JSON object."""
    parser = argparse.ArgumentParser(description="What the mel tokenizer alone loses.")
    parser.add_argument("data", help="a recipe's data section, as YAML")
    parser.add_argument("--tokenizer", default="{}", help="a recipe's tokenizer section, as YAML")
    parser.add_argument("--num", type=int, default=200, help="how many clips")
    given = parser.parse_args(arguments)
    section = yaml.safe_load(given.data)
    adapter = AudioAdapter()
    config = adapter.sections["data"][section["name"]].model_validate(section)
    if not isinstance(config, DataConfig):
        raise TypeError(f"{type(config).__name__} configures no data")
    dataset = adapter.dataset(config, config.split)
    tokenizer = MelTokenizer(MelConfig.model_validate(yaml.safe_load(given.tokenizer) or {}))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(given.num, len(dataset))).astype(int))
    loss = roundtrip_loss(tokenizer, [dataset[int(index)].sample for index in chosen])
    sys.stdout.write(json.dumps(asdict(loss)) + "\n")


if __name__ == "__main__":
    main()
