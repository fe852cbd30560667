"""``ge2e``: how a voice sounds, 256 features an utterance. Its weights come with a wheel, so it needs no hub.

The speaker encoder of resemble-ai/Resemblyzer (Apache-2.0), trained by generalized end-to-end loss: three LSTM layers
over 40 mel bands, on windows of 1.6 s, averaged.

Legend: P windows ("partial utterances") of 1.6 s, T frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams, WheelWeights
from layersync.core.packaged import WheelData
from layersync.core.pretrained import fill, read_tensors
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.features.waveform import Waveform, clip_of

WEIGHTS = WheelWeights(
    owner="extractor ge2e",
    wheel=WheelData(
        name="ge2e",
        requirement="Resemblyzer==0.1.4",
        members=("resemblyzer/pretrained.pt",),
        licence="Resemblyzer's speaker encoder: Apache-2.0",
        digests=(("pretrained.pt", "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"),),
    ),
    file="pretrained.pt",
)

SAMPLE_RATE = 16000
WINDOW, HOP, MELS = 400, 160, 40
FRAMES = 160
TARGET_DBFS = -30.0
"""``hparams.py``: 25 ms windows every 10 ms, 40 bands, partial utterances of 160 frames, lowest loudness."""
RATE, MIN_COVERAGE = 1.3, 0.75
"""Defaults of ``embed_utterance``: partial utterances a second, and how much of the last one must be sound."""

_PARTIALS_AT_ONCE = 64


class GE2ENetwork(nn.Module):
    """(P, 160, 40) mel powers to (P, 256) non-negative features of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels_PTM: Tensor) -> Tensor:
        """From the last layer's state after the last frame."""
        _, (hidden, _) = self.lstm(mels_PTM)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


class GE2E(FeatureExtractor):
    """Resemblyzer's speaker encoder. ``weights`` is a path to its ``pretrained.pt``, kept elsewhere."""

    name = "ge2e"
    published_weights = True
    preprocessing = (
        "mono, SoX to 16 kHz, raised to -30 dBFS; 40 mel bands (powers), 25 ms every 10 ms; windows of 1.6 s, 1.3 a "
        "second; mean of length 1; silences are not trimmed (Resemblyzer)"
    )

    def __init__(self, weights: str | None = None) -> None:
        from layersync.core.device import default_device

        path, self.checksum = WEIGHTS.locate(weights)
        state = read_tensors(path, f"extractor {self.name}").get("model_state")
        if not isinstance(state, dict):
            raise InputError(f"extractor {self.name}: {path} holds no model_state")
        with torch.device("meta"):
            network = GE2ENetwork()
        used = {name: tensor for name, tensor in state.items() if not name.startswith("similarity_")}  # of the loss
        fill(network, used, path, f"extractor {self.name}")
        self._device = default_device()
        self._network = network.eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """One row (1, 256) of each sample, of length 1."""
        inputs = [partial_mels(loud_enough(clip_of(example, self.name))) for example in examples]
        batches = torch.cat(inputs).split(_PARTIALS_AT_ONCE)
        partials = torch.cat([self._network(batch.to(self._device)).cpu() for batch in batches])
        means = [part.mean(dim=0, keepdim=True) for part in partials.split([len(part) for part in inputs])]
        return {"features": [nn.functional.normalize(mean, dim=1).numpy() for mean in means]}


def loud_enough(clip: Clip) -> Waveform:
    """(samples,) at 16 kHz, brought up to -30 dBFS where it is fainter; silence stays silence."""
    from librosa import resample

    waveform: Waveform = resample(clip.waveform, orig_sr=clip.sample_rate, target_sr=SAMPLE_RATE)
    power = float(np.mean(np.square(waveform, dtype=np.float64)))
    if power == 0:
        return waveform
    gain = 10 ** (TARGET_DBFS / 20) / np.sqrt(power)
    return waveform * np.float32(max(gain, 1.0))


def partial_mels(waveform: Waveform) -> Tensor:
    """(samples,) at 16 kHz to (P, 160, 40) mel powers (not their logarithms) of its partial utterances."""
    from librosa.feature import melspectrogram

    starts = _partial_starts(len(waveform))
    missing = (starts[-1] + FRAMES) * HOP - len(waveform)
    waveform = np.pad(waveform, (0, max(0, missing)))
    mel_MT = melspectrogram(y=waveform, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS)
    mel_TM = torch.from_numpy(np.ascontiguousarray(mel_MT.T, dtype=np.float32))
    return torch.stack([mel_TM[start : start + FRAMES] for start in starts])


def _partial_starts(num_samples: int) -> list[int]:
    """First frame of each partial utterance: evenly spaced, the last dropped where too little of it is sound."""
    num_frames = -(-(num_samples + 1) // HOP)
    step = round(SAMPLE_RATE / RATE / HOP)
    starts = list(range(0, max(1, num_frames - FRAMES + step + 1), step))
    covered = (num_samples - starts[-1] * HOP) / (FRAMES * HOP)
    return starts[:-1] if covered < MIN_COVERAGE and len(starts) > 1 else starts
