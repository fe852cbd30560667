"""``encodec``: 128 continuous latents, 75 a second, before EnCodec quantises them.

What fadtk calls ``encodec-emb`` (``model_loader.py``), through transformers' port of facebookresearch/encodec.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, HubWeights, Rows, Streams
from layersync.core.pretrained import load_pretrained, read_config
from layersync.modalities.audio.features.waveform import equal_lengths, published_waveform

WEIGHTS = HubWeights(owner="extractor encodec", repository="facebook/encodec_24khz")

SAMPLE_RATE = 24000
LONGEST_SECONDS = 180
"""fadtk reads no more than 3 minutes of a file."""
_SAMPLES_AT_ONCE = 60 * SAMPLE_RATE


class Encodec(FeatureExtractor):
    """EnCodec's encoder at 24 kHz. ``weights`` is a folder or hub id of a mono model at that rate."""

    name = "encodec"
    published_weights = True
    preprocessing = (
        "mono, Kaiser sinc to 24 kHz, 16 bits, at most 3 minutes; a row for each frame of 320 samples, before "
        "quantisation (fadtk)"
    )

    def __init__(self, weights: str | None = None) -> None:
        from transformers import EncodecModel

        from layersync.core.device import default_device

        folder, self.checksum = WEIGHTS.locate(weights)
        config = read_config(folder, f"extractor {self.name}")
        rate, channels = config.get("sampling_rate", SAMPLE_RATE), config.get("audio_channels", 1)
        if rate != SAMPLE_RATE or channels != 1:
            raise InputError(
                f"extractor {self.name}: {folder} holds a model of {channels} channels at {rate} Hz; "
                f"1 channel at {SAMPLE_RATE} Hz is wanted"
            )
        self._device = default_device()
        self._model = load_pretrained(EncodecModel, "encodec", folder, f"extractor {self.name}").to(self._device)

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Rows (frames, 128) of each sample."""
        longest = LONGEST_SECONDS * SAMPLE_RATE
        waveforms = [published_waveform(example, SAMPLE_RATE, self.name)[:longest] for example in examples]
        rows: dict[int, Rows] = {}
        for group in equal_lengths(waveforms, _SAMPLES_AT_ONCE):
            batch_B1S = torch.from_numpy(np.stack([waveforms[index] for index in group]))[:, None]
            latents_BDT = self._model.encoder(batch_B1S.to(self._device)).cpu()
            rows.update(zip(group, latents_BDT.transpose(1, 2).numpy(), strict=True))
        return {"features": [rows[index] for index in range(len(waveforms))]}
