"""``clap``: LAION's contrastive language-audio model, 512 features a window, of sound and of text alike.

Windows, quantisation and mel spectrogram are fadtk's and LAION-AI/CLAP's own; network and text through transformers'
port. LAION's makers say (LAION-AI/CLAP issue 123) that the default repository is their ``630k-audioset-best.pt``.

Legend: W windows of 10 s, S samples, T frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, HubWeights, Rows, Streams
from layersync.core.pretrained import load_pretrained, read_config
from layersync.modalities.audio.backend import torchaudio_part
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.features.waveform import Waveform, clip_of, published_waveform

WEIGHTS = HubWeights(owner="extractor clap", repository="laion/clap-htsat-unfused")

SAMPLE_RATE = 48000
WINDOW_SECONDS = 10
WINDOW = WINDOW_SECONDS * SAMPLE_RATE
"""fadtk's windows: 10 s, one each second (``model_loader.py``)."""
N_FFT, HOP, MELS, F_MIN, F_MAX = 1024, 480, 64, 50.0, 14000.0
"""LAION's ``model_configs/HTSAT-tiny.json``, and ``HTSAT-base.json`` alike."""
PEAK_DB = -1.0
"""Stability-AI/stable-audio-metrics, ``clap_score.py``: how loud a sound is made for a CLAP score."""
TEXT_TOKENS = 77

_WINDOWS_AT_ONCE = 8


class CLAP(FeatureExtractor):
    """LAION-CLAP without feature fusion. ``weights`` is a folder or hub id, such as ``laion/larger_clap_music``.

    ``features`` are fadtk's windows, for FAD. ``whole`` is the sound as LAION's own interface reads it, for a CLAP
    score against ``text``.
    """

    name = "clap"
    published_weights = True
    streams = ("features", "whole", "text")
    text_streams = ("text",)
    preprocessing = (
        "mono, 48 kHz, 16 bits; 64 log-mel bands of 50-14000 Hz in dB; features: Kaiser sinc, windows of 10 s each "
        "second, zeros behind the end (fadtk); whole: SoX, peak at -1 dB, repeated up to 10 s (stable-audio-metrics); "
        "text: 77 tokens at most"
    )

    def __init__(self, weights: str | None = None) -> None:
        from transformers import ClapModel

        from layersync.core.device import default_device

        self._folder, self.checksum = WEIGHTS.locate(weights)
        audio = read_config(self._folder, f"extractor {self.name}").get("audio_config") or {}
        if audio.get("enable_fusion"):
            raise InputError(
                f"extractor {self.name}: {self._folder} holds a model with feature fusion, which reads random crops; "
                f"one without is wanted, such as {WEIGHTS.repository}"
            )
        self._device = default_device()
        self._model = load_pretrained(ClapModel, "clap", self._folder, f"extractor {self.name}").to(self._device)

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """Rows (windows, 512) of ``features`` and ``whole``, and (1, 512) of ``text`` where every example has one."""
        clips = [clip_of(example, self.name) for example in examples]
        swept = [fadtk_windows(published_waveform(example, SAMPLE_RATE, self.name)) for example in examples]
        streams = {"features": self._embed(swept), "whole": self._embed([whole_windows(clip) for clip in clips])}
        texts = [str(example.condition["text"]) for example in examples if "text" in example.condition]
        if len(texts) == len(examples):
            streams["text"] = self._embed_texts(texts)
        return streams

    def _embed(self, windows_of: Sequence[Tensor]) -> list[Rows]:
        windows = [window for windows_WS in windows_of for window in windows_WS]  # views: overlaps are not copied
        rows = []
        for start in range(0, len(windows), _WINDOWS_AT_ONCE):
            mel_WTM = log_mel(torch.stack(windows[start : start + _WINDOWS_AT_ONCE]).to(self._device))
            pooled = self._model.audio_model(input_features=mel_WTM[:, None]).pooler_output
            rows.append(nn.functional.normalize(self._model.audio_projection(pooled), dim=-1).cpu())
        return [part.numpy() for part in torch.cat(rows).split([len(windows_WS) for windows_WS in windows_of])]

    def _embed_texts(self, texts: Sequence[str]) -> list[Rows]:
        tokens = _tokenizer(self._folder)(
            list(texts), padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        )
        tokens = {key: tokens[key].to(self._device) for key in ("input_ids", "attention_mask")}
        pooled = self._model.text_model(**tokens).pooler_output
        rows = nn.functional.normalize(self._model.text_projection(pooled), dim=-1).cpu()
        return [row[None].numpy() for row in rows]


def fadtk_windows(waveform: Waveform) -> Tensor:
    """(samples,) at 48 kHz to (W, 480000): one window from each second on, filled with zeros behind the end."""
    quantised = quantise(waveform)
    starts = range(0, len(quantised), SAMPLE_RATE)
    padded = torch.from_numpy(np.pad(quantised, (0, starts[-1] + WINDOW - len(quantised))))
    return padded.unfold(0, WINDOW, SAMPLE_RATE)


def whole_windows(clip: Clip) -> Tensor:
    """A clip as LAION's interface reads it for a CLAP score: (W, 480000), its peak at -1 dB of full scale.

    A shorter sound is repeated as often as it fits into 10 s, and the rest is zeros. Of a longer one, LAION takes 10 s
    at random; here it is all of it, in windows end to end, the last one moved back to the end.
    """
    from librosa import resample

    waveform: Waveform = resample(clip.waveform, orig_sr=clip.sample_rate, target_sr=SAMPLE_RATE)
    peak = float(np.abs(waveform).max())
    gain = 10 ** (PEAK_DB / 20) / peak if peak > 0 else 1.0
    quantised = quantise(waveform.astype(np.float64) * gain)
    if len(quantised) < WINDOW:
        repeated = np.tile(quantised, WINDOW // len(quantised))
        return torch.from_numpy(np.pad(repeated, (0, WINDOW - len(repeated))))[None]
    starts = [*range(0, len(quantised) - WINDOW, WINDOW), len(quantised) - WINDOW]
    return torch.from_numpy(np.stack([quantised[start : start + WINDOW] for start in starts]))


def quantise(waveform: NDArray[np.floating]) -> Waveform:
    """LAION's and fadtk's 16 bits: cut towards zero at multiples of 1 / 32767, clipped to full scale."""
    cut = (np.clip(waveform.astype(np.float64), -1, 1) * 32767).astype(np.int16)
    return (cut / 32767).astype(np.float32)


def log_mel(windows_WS: Tensor) -> Tensor:
    """(W, S) at 48 kHz to (W, T, M): decibels of mel powers, no less than -100, a frame each 10 ms."""
    spectrogram, decibels = _spectrogram()
    return decibels(spectrogram.to(windows_WS.device)(windows_WS)).transpose(1, 2)


@cache
def _spectrogram() -> tuple[nn.Module, nn.Module]:
    mel = torchaudio_part("transforms", "MelSpectrogram")(
        SAMPLE_RATE, N_FFT, hop_length=HOP, f_min=F_MIN, f_max=F_MAX, n_mels=MELS, norm="slaney", mel_scale="slaney"
    )
    return mel, torchaudio_part("transforms", "AmplitudeToDB")("power", top_db=None)


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise OSError  # transformers would make one that knows no word
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise InputError(f"extractor clap: {folder} holds no tokenizer, which texts need") from None
