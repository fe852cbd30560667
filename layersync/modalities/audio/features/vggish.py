"""``vggish``: 128 features for each 0.96 s, what most published FADs are taken on.

Network, weights and input are those of harritaylor/torchvggish, a conversion of Google's (tensorflow/models,
``audioset/vggish``); without the PCA and without the last ReLU, as fadtk has it (``model_loader.py``).

Legend: E examples of 0.96 s, T frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.adapter import Example
from layersync.core.features import FeatureExtractor, Streams, UrlWeights
from layersync.core.pretrained import fill, read_tensors
from layersync.modalities.audio.features.waveform import Waveform, published_waveform

WEIGHTS = UrlWeights(
    owner="extractor vggish",
    url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    file="vggish-10086976.pth",
    sha256="10086976",
)

SAMPLE_RATE = 16000
WINDOW, HOP, N_FFT = 400, 160, 512
MELS, F_MIN, F_MAX = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
FRAMES = 96
"""``vggish_params.py``: 25 ms windows every 10 ms, 64 bands, examples of 96 frames that do not overlap."""

_CHANNELS = ((1, 64), (64, 128), (128, 256, 256), (256, 512, 512))
_EXAMPLES_AT_ONCE = 32


class VGGishNetwork(nn.Module):
    """Six convolutions and three linear layers: (E, 1, 96, 64) to (E, 128). Names of weights are the published ones."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in _CHANNELS:
            for before, after in pairwise(block):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, examples_E1TM: Tensor) -> Tensor:
        """(E, 128), of either sign."""
        maps = self.features(examples_E1TM)
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order: channels last


class VGGish(FeatureExtractor):
    """Public VGGish. ``weights`` is a path to the published file, kept elsewhere."""

    name = "vggish"
    published_weights = True
    preprocessing = (
        "mono, Kaiser sinc to 16 kHz, 16 bits, zeros up to 1 s; 64 log-mel bands of 125-7500 Hz, 25 ms every 10 ms; "
        "examples of 0.96 s; no PCA, no last ReLU (fadtk)"
    )

    def __init__(self, weights: str | None = None) -> None:
        from layersync.core.device import default_device

        path, self.checksum = WEIGHTS.locate(weights)
        with torch.device("meta"):
            network = VGGishNetwork()
        fill(network, read_tensors(path, f"extractor {self.name}"), path, f"extractor {self.name}")
        self._device = default_device()
        self._network = network.eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Rows (E, 128) of each sample."""
        inputs = [log_mel_examples(published_waveform(example, SAMPLE_RATE, self.name)) for example in examples]
        batches = torch.cat(inputs)[:, None].split(_EXAMPLES_AT_ONCE)
        rows = torch.cat([self._network(batch.to(self._device)).cpu() for batch in batches])
        return {"features": [part.numpy() for part in rows.split([len(part) for part in inputs])]}


def log_mel_examples(waveform: Waveform) -> Tensor:
    """(samples,) at 16 kHz to (E, 96, 64): natural logarithms of mel magnitudes plus 0.01.

    A sound below 1 s is filled with zeros to it; what is left behind the last whole example is dropped.
    """
    filled = np.pad(waveform, (0, max(0, SAMPLE_RATE - len(waveform))))
    frames_TW = torch.from_numpy(filled).double().unfold(0, WINDOW, HOP)
    window_W = torch.hann_window(WINDOW, dtype=torch.float64)
    magnitudes_TF = torch.fft.rfft(frames_TW * window_W, n=N_FFT).abs()
    log_mel_TM = torch.log(magnitudes_TF @ _mel_filters() + LOG_OFFSET)
    whole = len(log_mel_TM) // FRAMES * FRAMES
    return log_mel_TM[:whole].reshape(-1, FRAMES, MELS).float()


@cache
def _mel_filters() -> Tensor:
    """Triangles on HTK's mel scale itself; librosa's and torchaudio's are triangles in Hz, and differ."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=MELS,
        min_frequency=F_MIN,
        max_frequency=F_MAX,
        sampling_rate=SAMPLE_RATE,
        norm=None,
        mel_scale="kaldi",  # the natural logarithm and 1127, as published; "htk" rounds its 2595 otherwise
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).double()
