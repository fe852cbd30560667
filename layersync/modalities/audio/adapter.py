"""The audio modality as the core sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from layersync.core.adapter import Backbone, ConditionSpec, DataConfig, ExampleDataset, LatentSpec, Section, Split
from layersync.core.features import FeatureExtractorFactory, Metric
from layersync.modalities.audio.backbone import SpectrogramSiTConfig
from layersync.modalities.audio.clip import Clip, resample
from layersync.modalities.audio.data import FolderConfig
from layersync.modalities.audio.features.clap import CLAP
from layersync.modalities.audio.features.encodec import Encodec
from layersync.modalities.audio.features.ge2e import GE2E
from layersync.modalities.audio.features.vggish import VGGish
from layersync.modalities.audio.features.wavlm import WavLM
from layersync.modalities.audio.gm_notes import GmNotesConfig
from layersync.modalities.audio.hub import HubConfig
from layersync.modalities.audio.jamendo import MtgJamendoConfig
from layersync.modalities.audio.mel import LogMel
from layersync.modalities.audio.oobleck import Oobleck, OobleckConfig
from layersync.modalities.audio.samples import open_audio_samples, write_waveforms
from layersync.modalities.audio.tokenizer import MelConfig, MelTokenizer

CLASSIFIER_RATE = 16000
CLASSIFIER_MELS = 64
CLASSIFIER_HOP = 256

_EXTRACTORS: Mapping[str, FeatureExtractorFactory] = {kind.name: kind for kind in (VGGish, CLAP, Encodec, WavLM, GE2E)}
_CLASSIFIER_BAND = (80.0, 7600.0)
_CLASSIFIER_FLOOR = 1e-3
_CLASSIFIER_MEAN, _CLASSIFIER_DEVIATION = -1.5, 0.8
_CLIPS_AT_ONCE = 32


class AudioAdapter:
    """Clips of any rate and length, as log-mel spectrograms or as latents of an autoencoder."""

    api = 1
    name = "audio"
    sections: ClassVar[Mapping[str, Mapping[str, type[Section]]]] = {
        "data": {"gm-notes": GmNotesConfig, "folder": FolderConfig, "hf": HubConfig, "mtg-jamendo": MtgJamendoConfig},
        "tokenizer": {"mel": MelConfig, "oobleck": OobleckConfig},
        "backbone": {"sit": SpectrogramSiTConfig},
    }

    def dataset(self, data: DataConfig, split: Split) -> ExampleDataset:
        """The clips of ``split``."""
        return data.build(split)

    def tokenizer(self, config: MelConfig | OobleckConfig) -> MelTokenizer | Oobleck:
        """The tokenizer of that section, not yet fitted."""
        return config.build()

    def backbone(self, config: SpectrogramSiTConfig, latent: LatentSpec, condition: ConditionSpec) -> Backbone:
        """The transformer for latents of that shape."""
        return config.build(latent, condition)

    def features(self) -> Mapping[str, FeatureExtractorFactory]:
        """The networks that fadtk takes its distances on, and a speaker encoder whose weights need no hub."""
        return dict(_EXTRACTORS)

    def metrics(self) -> Mapping[str, Metric]:
        """None: audio is scored by features alone."""
        return {}

    def aliases(self) -> Mapping[str, str]:
        """Fréchet audio distances by their usual names (``fad`` is VGGish's), and the CLAP score."""
        distances = {f"fad{kind}-{name}": f"fd{kind}-{name}" for kind in ("", "-inf", "-each") for name in _EXTRACTORS}
        return {"fad": "fd-vggish", "fad-inf": "fd-inf-vggish", "clap-score": "similarity-clap.whole", **distances}

    def open_samples(self, path: Path) -> ExampleDataset:
        """Anybody's audio: a folder of files, with captions beside them, or an ``.npz`` of waveforms."""
        return open_audio_samples(path)

    def archive(self, samples: Sequence[Clip], labels: Sequence[int] | None, path: Path) -> None:
        """``waveforms`` (n, samples) and ``sample_rate``; labels have no place in it."""
        write_waveforms(path, samples)

    def classifier_input(self, samples: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Log-mel spectrograms (batch, 1, 64, frames) at 16 kHz with 16 ms frames, and the mask (batch, frames).

        The settings are fixed, so that classifiers and scores do not depend on a recipe's tokenizer: 64 Slaney bands
        from 80 to 7,600 Hz, magnitudes from 1e-3, shifted and scaled to order 1; 0 where a clip has ended. What lies
        outside of the bands or is fainter is what no mel decoder gives back, and would tell the decoder from the sound.
        """
        log_mel = LogMel(
            sample_rate=CLASSIFIER_RATE,
            n_fft=1024,
            hop_length=CLASSIFIER_HOP,
            n_mels=CLASSIFIER_MELS,
            f_min=_CLASSIFIER_BAND[0],
            f_max=_CLASSIFIER_BAND[1],
            floor=_CLASSIFIER_FLOOR,
        )
        waveforms = [resample(clip.waveform, clip.sample_rate, CLASSIFIER_RATE) for clip in samples]
        lengths = [log_mel.num_frames(len(waveform)) for waveform in waveforms]
        inputs = torch.zeros(len(samples), 1, CLASSIFIER_MELS, max(lengths, default=0))
        by_length = sorted(range(len(samples)), key=lambda index: len(waveforms[index]))
        start = 0
        while start < len(by_length):
            length = len(waveforms[by_length[start]])
            batch = [index for index in by_length[start : start + _CLIPS_AT_ONCE] if len(waveforms[index]) == length]
            spectrograms = log_mel(torch.from_numpy(np.stack([waveforms[index] for index in batch])))
            inputs[batch, 0, :, : spectrograms.shape[-1]] = (spectrograms - _CLASSIFIER_MEAN) / _CLASSIFIER_DEVIATION
            start += len(batch)
        mask = torch.arange(inputs.shape[-1]) < torch.tensor(lengths)[:, None]
        return inputs, mask

    def render(self, samples: Sequence[Clip], directory: Path) -> list[Path]:
        """A WAV file for each clip and one picture of their spectrograms."""
        from layersync.modalities.audio.render import render

        return render(samples, directory)
