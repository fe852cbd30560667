"""Networks that make sound of log-mel spectrograms, and the spectrograms that each was trained on.

Legend: B clips, M mel bands, T frames, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
import yaml
from torch import Tensor

from layersync.core.archive import opened_npz
from layersync.core.device import default_device
from layersync.core.errors import InputError
from layersync.core.features import HubWeights
from layersync.core.pretrained import fill, load_pretrained, read_config, read_tensors

if TYPE_CHECKING:
    from vocos import Vocos

OWNER = "tokenizer.vocoder_path"
GRIFFIN_LIM = "griffin-lim"
VocoderName = Literal["griffin-lim", "speecht5-hifigan", "fastspeech2-conformer-hifigan", "vocos"]
PresetName = Literal["speecht5", "fastspeech2-conformer", "vocos"]

_CLIPS_AT_ONCE = 8
_HIFIGAN_TYPES = ("hifigan", "speecht5_hifigan", "fastspeech2_conformer_hifigan")

PRESETS: Mapping[PresetName, Mapping[str, int | float | str]] = {
    # transformers, models/speecht5/feature_extraction_speecht5.py: the defaults of SpeechT5FeatureExtractor
    "speecht5": {
        "sample_rate": 16000,
        "n_fft": 1024,
        "hop_length": 256,
        "n_mels": 80,
        "f_min": 80.0,
        "f_max": 7600.0,
        "floor": 1e-10,
        "magnitude_floor": 0.0,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "log": "log10",
    },
    # ESPnet, espnet2/tts/feats_extract/log_mel_fbank.py (powers are cut at 1e-10) and espnet2/layers/log_mel.py;
    # LJSpeech's 22,050 Hz
    "fastspeech2-conformer": {
        "sample_rate": 22050,
        "n_fft": 1024,
        "hop_length": 256,
        "n_mels": 80,
        "f_min": 80.0,
        "f_max": 7600.0,
        "floor": 1e-10,
        "magnitude_floor": 1e-5,
        "mel_scale": "slaney",
        "mel_norm": "slaney",
        "log": "log10",
    },
    # vocos 0.1.0, feature_extractors.py (MelSpectrogramFeatures, torchaudio's defaults) and modules.py (safe_log)
    "vocos": {
        "sample_rate": 24000,
        "n_fft": 1024,
        "hop_length": 256,
        "n_mels": 100,
        "f_min": 0.0,
        "f_max": 12000.0,
        "floor": 1e-7,
        "magnitude_floor": 0.0,
        "mel_scale": "htk",
        "mel_norm": "none",
        "log": "natural",
    },
}
"""What a vocoder of each family was trained on, as keys of the tokenizer ``mel``."""

VOCODER_PRESETS: Mapping[VocoderName, PresetName] = {
    "speecht5-hifigan": "speecht5",
    "fastspeech2-conformer-hifigan": "fastspeech2-conformer",
    "vocos": "vocos",
}
REPOSITORIES: Mapping[VocoderName, str] = {
    "speecht5-hifigan": "microsoft/speecht5_hifigan",
    "fastspeech2-conformer-hifigan": "espnet/fastspeech2_conformer_hifigan",
    "vocos": "charactr/vocos-mel-24khz",
}


class Vocoder(Protocol):
    """(B, M, T) log-mel spectrograms of its preset to (B, ``T * hop_length``) waveforms; ``digest`` of its weights."""

    digest: str

    def __call__(self, log_mel_BMT: Tensor) -> Tensor:
        """Waveforms on the CPU, without gradients."""
        ...


def load_vocoder(name: VocoderName, path: str | None, statistics: Path | None) -> Vocoder:
    """The network ``name`` with the weights of ``path`` (a folder or hub id), else of its published repository.

    ``statistics`` is an ESPnet ``feats_stats.npz``; see :class:`HifiGan`. Raises :class:`InputError` for weights that
    are missing, cannot be read, or are of another network.
    """
    folder, digest = HubWeights(OWNER, REPOSITORIES[name]).locate(path)
    if name == "vocos":
        return VocosVocoder(folder, digest)
    return HifiGan(name, folder, digest, statistics)


class HifiGan:
    """HiFi-GAN as transformers has it, for SpeechT5 or for FastSpeech2Conformer.

    SpeechT5's normalises its input by statistics that lie beside its weights. FastSpeech2Conformer's does not
    (``normalize_before: false``), but was trained by ESPnet on features normalised by the mean and deviation of
    LJSpeech, which the published repository lacks: they come from ``statistics``, the ``feats_stats.npz`` (``count``,
    ``sum``, ``sum_square``) of the ESPnet recipe.
    """

    def __init__(self, name: VocoderName, folder: Path, digest: str, statistics: Path | None) -> None:
        import transformers

        self.digest = digest
        _check_hifigan(name, folder)
        speecht5 = name == "speecht5-hifigan"
        kind = transformers.SpeechT5HifiGan if speecht5 else transformers.FastSpeech2ConformerHifiGan
        self.model = load_pretrained(kind, read_config(folder, OWNER)["model_type"], folder, OWNER)
        self._mean_M, self._std_M = torch.zeros(()), torch.ones(())
        if not speecht5 and not self.model.config.normalize_before:
            if statistics is None:
                raise InputError(
                    f"tokenizer.vocoder_statistics: is missing; the weights of {folder} play features normalised by "
                    f"the statistics of their training data, which are not among them: give that recipe's "
                    f"feats_stats.npz of ESPnet"
                )
            self._mean_M, self._std_M = read_statistics(statistics, int(self.model.config.model_in_dim))

    @torch.no_grad()
    def __call__(self, log_mel_BMT: Tensor) -> Tensor:
        """(B, M, T) to (B, ``T * hop_length``)."""
        device = self.model.device
        normalised_BTM = (log_mel_BMT.transpose(1, 2) - self._mean_M) / self._std_M
        return torch.cat([self.model(part.to(device)).cpu() for part in normalised_BTM.split(_CLIPS_AT_ONCE)])


class VocosVocoder:
    """Vocos for mel spectrograms: ``config.yaml`` and ``pytorch_model.bin`` of its published repository.

    The inverse Fourier transform is a hop short of ``T * hop_length`` samples: the last frame is held for one more.
    The classes that the configuration names are never imported from it; the published three are all that is taken.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.digest = digest
        self.model = _empty_vocos(folder)
        weights = folder / "pytorch_model.bin"
        if not weights.is_file():
            raise InputError(f"{OWNER}: {folder} holds no pytorch_model.bin")
        fill(self.model, read_tensors(weights, OWNER), weights, OWNER)
        self.model.eval().requires_grad_(False).to(default_device())

    @torch.no_grad()
    def __call__(self, log_mel_BMT: Tensor) -> Tensor:
        """(B, M, T) to (B, ``T * hop_length``)."""
        device = next(self.model.parameters()).device
        held_BMT = torch.cat([log_mel_BMT, log_mel_BMT[..., -1:]], dim=-1)
        return torch.cat([self.model.decode(part.to(device)).cpu() for part in held_BMT.split(_CLIPS_AT_ONCE)])


def read_statistics(file: Path, n_mels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (n_mels,) of an ESPnet ``feats_stats.npz``. Raises :class:`InputError` for anything else."""
    try:
        with opened_npz(file) as stored:
            count, total, squares = (np.asarray(stored[key], np.float64) for key in ("count", "sum", "sum_square"))
    except InputError as error:
        raise InputError(f"tokenizer.vocoder_statistics: no feats_stats.npz of ESPnet ({error})") from None
    fits = count.size == 1 and total.shape == squares.shape == (n_mels,)
    variance = squares / count.item() - (total / count.item()) ** 2 if fits and count.item() > 0 else np.zeros(1)
    if not np.isfinite(variance).all() or not (variance > 0).all():
        raise InputError(f"tokenizer.vocoder_statistics: {file} holds no mean and deviation of {n_mels} mel bands")
    return torch.from_numpy(total / count.item()).float(), torch.from_numpy(np.sqrt(variance)).float()


def _check_hifigan(name: VocoderName, folder: Path) -> None:
    """Raise :class:`InputError` where ``config.json`` is not of a network that plays the vocoder's preset."""
    config = read_config(folder, OWNER)
    if config.get("model_type") not in _HIFIGAN_TYPES:
        raise InputError(f"{OWNER}: {folder} holds a model of type {config.get('model_type')!r}, not a HiFi-GAN")
    wanted = PRESETS[VOCODER_PRESETS[name]]
    rates = config.get("upsample_rates")
    found = {
        "sample_rate": config.get("sampling_rate", wanted["sample_rate"]),  # older configurations do not state it
        "n_mels": config.get("model_in_dim"),
        "hop_length": math.prod(rates) if isinstance(rates, list) else rates,
    }
    _require_equal(name, folder, found)


def _require_equal(name: VocoderName, folder: Path, found: Mapping[str, Any]) -> None:
    wanted = PRESETS[VOCODER_PRESETS[name]]
    wrong = [f"{key} {value!r}, not {wanted[key]!r}" for key, value in found.items() if value != wanted[key]]
    if wrong:
        raise InputError(f"{OWNER}: {folder} is no {name}: its configuration says {'; '.join(wrong)}")


@dataclass(frozen=True)
class _Part:
    """A section of a vocos ``config.yaml``: its published class, and the keys that it has to have."""

    kind: str
    keys: tuple[str, ...]


_VOCOS_PARTS = {
    "feature_extractor": _Part("MelSpectrogramFeatures", ("sample_rate", "n_fft", "hop_length", "n_mels", "padding")),
    "backbone": _Part("VocosBackbone", ("input_channels", "dim", "intermediate_dim", "num_layers")),
    "head": _Part("ISTFTHead", ("dim", "n_fft", "hop_length", "padding")),
}


def _empty_vocos(folder: Path) -> Vocos:
    """The network that ``config.yaml`` describes, its weights still random."""
    try:
        from vocos import Vocos
        from vocos.feature_extractors import MelSpectrogramFeatures
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone
    except ImportError:
        raise InputError("tokenizer.vocoder: vocos is not installed; pip install 'layersync[vocos]'") from None
    settings = _vocos_settings(folder)
    mel, backbone, head = (settings[part] for part in _VOCOS_PARTS)
    _require_equal("vocos", folder, {key: mel[key] for key in ("sample_rate", "n_fft", "hop_length", "n_mels")})
    _require_equal("vocos", folder, {"n_mels": backbone["input_channels"], "hop_length": head["hop_length"]})
    if {mel["padding"], head["padding"]} != {"center"}:
        raise InputError(f"{OWNER}: {folder} is no vocos of centred frames: padding is {mel['padding']!r}")
    try:
        return Vocos(MelSpectrogramFeatures(**mel), VocosBackbone(**backbone), ISTFTHead(**head))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{OWNER}: {folder / 'config.yaml'} describes no network ({error})") from None


def _vocos_settings(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{OWNER}: {file} is missing or no YAML") from None
    settings = {}
    for name, part in _VOCOS_PARTS.items():
        section = config.get(name) if isinstance(config, dict) else None
        stated = section.get("class_path") if isinstance(section, dict) else None
        if not isinstance(section, dict) or str(stated).rpartition(".")[2] != part.kind:
            raise InputError(f"{OWNER}: {file} has no {name} of class {part.kind}, it says {stated!r}")
        arguments = section.get("init_args")
        missing = [key for key in part.keys if not isinstance(arguments, dict) or key not in arguments]
        if missing:
            raise InputError(f"{OWNER}: {file} lacks {', '.join(f'{name}.init_args.{key}' for key in missing)}")
        settings[name] = dict(arguments or {})
    return settings
