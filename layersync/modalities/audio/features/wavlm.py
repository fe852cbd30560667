"""``wavlm``: the last layer of WavLM, 768 features, 50 a second.

What fadtk calls ``wavlm-base-plus`` (``model_loader.py``). Its repository there is a WavLM that was fine-tuned on 100
hours of read speech, not Microsoft's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, HubWeights, Rows, Streams
from layersync.core.pretrained import load_pretrained, read_config
from layersync.modalities.audio.features.waveform import Waveform, equal_lengths, published_waveform

WEIGHTS = HubWeights(owner="extractor wavlm", repository="patrickvonplaten/wavlm-libri-clean-100h-base-plus")

SAMPLE_RATE = 16000
LONGEST_SECONDS = 360
"""fadtk reads no more than 6 minutes of a file."""
_SAMPLES_AT_ONCE = 30 * SAMPLE_RATE


class WavLM(FeatureExtractor):
    """WavLM's last layer. ``weights`` is a folder or hub id, such as ``microsoft/wavlm-base-plus``."""

    name = "wavlm"
    published_weights = True

    def __init__(self, weights: str | None = None) -> None:
        from transformers import WavLMModel

        from layersync.core.device import default_device

        folder, self.checksum = WEIGHTS.locate(weights)
        self._processor = _processor(folder, self.name)
        self._device = default_device()
        self._model = load_pretrained(WavLMModel, "wavlm", folder, f"extractor {self.name}").to(self._device)
        self._fewest = _receptive_field(self._model.config.conv_kernel, self._model.config.conv_stride)
        scaled = "mean 0 and deviation 1" if self._processor.do_normalize else "as it is"
        self.preprocessing = (
            f"mono, Kaiser sinc to 16 kHz, 16 bits, at most 6 minutes, {scaled}; last layer, a row each 20 ms (fadtk)"
        )

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Rows (frames, width) of each sample. Raises :class:`InputError` for one too short to give a row."""
        waveforms = [self._waveform(example) for example in examples]
        rows: dict[int, Rows] = {}
        for group in equal_lengths(waveforms, _SAMPLES_AT_ONCE):
            batch = [waveforms[index] for index in group]
            inputs = self._processor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
            outputs_BTD = self._model(inputs.to(self._device)).last_hidden_state.cpu()
            rows.update(zip(group, outputs_BTD.numpy(), strict=True))
        return {"features": [rows[index] for index in range(len(waveforms))]}

    def _waveform(self, example: Example) -> Waveform:
        waveform = published_waveform(example, SAMPLE_RATE, self.name)[: LONGEST_SECONDS * SAMPLE_RATE]
        if len(waveform) < self._fewest:
            raise InputError(
                f"extractor {self.name}: {example.source} has {len(waveform)} samples at 16 kHz, "
                f"at least {self._fewest} are wanted"
            )
        return waveform


def _processor(folder: Path, extractor: str) -> Any:
    """transformers' reader of waveforms: whether they are normalised is in ``preprocessor_config.json``."""
    from transformers import Wav2Vec2FeatureExtractor

    settings = read_config(folder, f"extractor {extractor}", "preprocessor_config.json")
    if settings.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise InputError(f"extractor {extractor}: {folder} wants audio at {settings['sampling_rate']} Hz, not 16000 Hz")
    return Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that the convolutions need for one row: 400 in the published models."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field
