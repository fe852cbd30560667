"""Vocoders: their spectrograms as published, and their networks from files of the published layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from layersync import load_recipe
from layersync.core.errors import InputError
from layersync.core.packaged import file_digest
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.tokenizer import MelConfig, MelTokenizer
from layersync.modalities.audio.vocoder import PRESETS, REPOSITORIES, VOCODER_PRESETS

Tone = Callable[[float, float, int], np.ndarray]

NAMES = sorted(VOCODER_PRESETS)
HIFIGAN = {"upsample_initial_channel": 32, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}
VOCOS: dict[str, dict[str, Any]] = {
    "feature_extractor": {
        "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
        "init_args": {"sample_rate": 24000, "n_fft": 1024, "hop_length": 256, "n_mels": 100, "padding": "center"},
    },
    "backbone": {
        "class_path": "vocos.models.VocosBackbone",
        "init_args": {"input_channels": 100, "dim": 16, "intermediate_dim": 32, "num_layers": 2},
    },
    "head": {
        "class_path": "vocos.heads.ISTFTHead",
        "init_args": {"dim": 16, "n_fft": 1024, "hop_length": 256, "padding": "center"},
    },
}
"""The keys of charactr/vocos-mel-24khz's config.yaml, at a smaller width."""


def randomised(network: nn.Module, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def published(name: str, folder: Path) -> nn.Module:
    """Random weights in the files that the repository of ``name`` holds; returns the library's own network."""
    import transformers

    folder.mkdir(parents=True)
    if name == "vocos":
        from vocos import Vocos

        (folder / "config.yaml").write_text(yaml.safe_dump(VOCOS))
        network = randomised(Vocos.from_hparams(str(folder / "config.yaml")), 0.05)
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
        return network
    if name == "speecht5-hifigan":
        network = randomised(transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**HIFIGAN)))
        network.mean.uniform_(-3, -1)
        network.scale.uniform_(0.5, 2)
    else:
        settings = transformers.FastSpeech2ConformerHifiGanConfig(
            **HIFIGAN, normalize_before=False, sampling_rate=22050
        )
        network = randomised(transformers.FastSpeech2ConformerHifiGan(settings))
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "hifigan"}))  # as the repositories say
    return network


def statistics(folder: Path) -> Path:
    """An ESPnet ``feats_stats.npz`` of mean -2 and deviation 0.5 in each band, from 1,000 frames."""
    file = folder / "feats_stats.npz"
    total, squares = np.full(80, -2000.0), np.full(80, 1000 * (0.25 + 4.0))
    np.savez(file, count=np.array(1000), sum=total, sum_square=squares)
    return file


def settings(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    given = {"preset": VOCODER_PRESETS[name], "vocoder": name, "vocoder_path": str(folder), "num_frames": 24}
    if name == "fastspeech2-conformer-hifigan":
        given["vocoder_statistics"] = str(statistics(folder.parent))
    return {**given, **more}


def tokenizer_of(content: dict[str, Any]) -> MelTokenizer:
    return MelConfig.model_validate(content).build()


def tone_of(harmonic: Tone, rate: int) -> np.ndarray:
    quiet = np.zeros(rate // 4, np.float32)  # so that floors matter
    return np.concatenate([harmonic(300, 0.6, rate), quiet])


class TestPresets:
    def test_speecht5_is_transformers_extractor(self, harmonic: Tone) -> None:
        from transformers import SpeechT5FeatureExtractor

        waveform = tone_of(harmonic, 16000)
        expected = SpeechT5FeatureExtractor()(audio_target=waveform, sampling_rate=16000).input_values[0].T
        ours = tokenizer_of({"preset": "speecht5"}).encode([Clip(waveform, 16000)])[0][0]
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-4)

    def test_vocos_is_its_packages_extractor(self, harmonic: Tone) -> None:
        """torchaudio's bands as they are unless asked otherwise: ``mel_scale`` htk and ``mel_norm`` none."""
        from vocos.feature_extractors import MelSpectrogramFeatures

        waveform = tone_of(harmonic, 24000)
        expected = MelSpectrogramFeatures()(torch.from_numpy(waveform)[None])[0]
        ours = tokenizer_of({"preset": "vocos"}).encode([Clip(waveform, 24000)])[0][0]
        assert ours.min() == pytest.approx(np.log(1e-7))
        heard = expected > -9  # float32's own error is larger than the rest
        torch.testing.assert_close(ours[heard], expected[heard], rtol=0, atol=2e-3)
        assert (ours - expected)[heard].abs().median() < 1e-5

    def test_fastspeech2_conformer_is_what_espnet_computes(self, harmonic: Tone) -> None:
        """By librosa, along ESPnet's espnet2/tts/feats_extract/log_mel_fbank.py and espnet2/layers/log_mel.py.

        Its power is at least 1e-10: a ``magnitude_floor`` of 1e-5.
        """
        import librosa

        waveform = tone_of(harmonic, 22050)
        spectrum = librosa.stft(waveform.astype(np.float64), n_fft=1024, hop_length=256, pad_mode="reflect")
        amplitudes = np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-10))
        bands = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=80, fmax=7600)
        expected = np.log10(np.maximum(bands @ amplitudes, 1e-10))
        ours = tokenizer_of({"preset": "fastspeech2-conformer"}).encode([Clip(waveform, 22050)])[0][0]
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-4)

    def test_defaults_of_the_tokenizer_are_speecht5s(self) -> None:
        assert MelConfig().spectrogram() == dict(PRESETS["speecht5"])

    @pytest.mark.parametrize("preset", sorted(PRESETS))
    def test_griffin_lim_plays_every_preset(self, preset: str, harmonic: Tone) -> None:
        tokenizer = tokenizer_of({"preset": preset, "num_frames": 32})
        rate = tokenizer.config.sample_rate
        stored = tokenizer.encode([Clip(harmonic(300, 1.0, rate), rate)])[0][None, ..., 4:36]
        again = tokenizer.encode(tokenizer.decode(stored))[0][None, ..., :32]
        loud = stored > np.log(1e-2) * (1 if tokenizer.config.log == "natural" else 1 / np.log(10))
        decades = (stored - again)[loud].abs().mean() / (np.log(10) if tokenizer.config.log == "natural" else 1)
        assert loud.sum() > 100 and 20 * decades < 3

    @pytest.mark.parametrize("num_frames", [1, 2, 3, 4])
    def test_griffin_lim_plays_the_shortest_sounds(self, num_frames: int) -> None:
        """Shorter than half a window, which is what transforms are padded by."""
        (clip,) = MelTokenizer(MelConfig(griffin_lim_iterations=2)).decode(torch.zeros(1, 1, 80, num_frames))
        assert len(clip.waveform) == num_frames * 256 and np.isfinite(clip.waveform).all()

    def test_a_preset_survives_the_written_recipe_and_refuses_other_values(self) -> None:
        config = MelConfig.model_validate({"preset": "vocos"})
        assert MelConfig.model_validate(config.model_dump(mode="json")) == config
        with pytest.raises(InputError, match=r"tokenizer: preset vocos has n_mels 100 \(not 80\), log natural"):
            load_recipe("audio/quick", ["tokenizer={name: mel, preset: vocos, n_mels: 80, log: log10}"])


@pytest.mark.parametrize("name", NAMES)
class TestNetworks:
    def test_sound_is_what_the_librarys_network_makes_of_the_mel(self, name: str, tmp_path: Path) -> None:
        network = published(name, tmp_path / "weights")
        tokenizer = tokenizer_of(settings(name, tmp_path / "weights"))
        bands = tokenizer.config.n_mels
        tokenizer.load_state({"mean": torch.linspace(-4, -1, bands), "std": torch.linspace(0.5, 1.5, bands)})
        latents = torch.randn(3, 1, bands, 24, generator=torch.Generator().manual_seed(1))
        log_mel = latents[:, 0] * tokenizer.state()["std"][:, None] + tokenizer.state()["mean"][:, None]
        decoded = tokenizer.decode(latents)
        assert [len(clip.waveform) for clip in decoded] == [24 * 256] * 3
        for clip, mel in zip(decoded, log_mel, strict=True):
            wanted = self.library(name, network, mel)
            assert clip.sample_rate == tokenizer.config.sample_rate
            assert np.isfinite(clip.waveform).all() and np.abs(clip.waveform).max() > 1e-3
            np.testing.assert_allclose(clip.waveform, wanted / max(1.0, np.abs(wanted).max()), rtol=0, atol=2e-5)

    @staticmethod
    def library(name: str, network: nn.Module, mel: Tensor) -> np.ndarray:
        with torch.no_grad():
            if name == "vocos":
                return network.decode(torch.cat([mel, mel[:, -1:]], dim=1)[None])[0].numpy()
            if name == "fastspeech2-conformer-hifigan":
                mel = (mel + 2.0) / 0.5
            return network(mel.T).numpy()

    def test_only_real_frames_are_heard(self, name: str, tmp_path: Path) -> None:
        published(name, tmp_path / "weights")
        tokenizer = tokenizer_of(settings(name, tmp_path / "weights"))
        latents = torch.randn(2, 1, tokenizer.config.n_mels, 24)
        mask = torch.arange(24) < torch.tensor([[24], [9]])
        first = tokenizer.decode(latents, mask)
        second = tokenizer.decode(torch.where(mask[:, None, None], latents, 50.0), mask)
        assert [len(clip.waveform) for clip in first] == [24 * 256, 9 * 256]
        assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(first, second, strict=True))

    def test_the_vocoder_changes_no_cache_and_is_not_needed_to_encode(self, name: str, harmonic: Tone) -> None:
        preset = VOCODER_PRESETS[name]
        plain, played = tokenizer_of({"preset": preset}), tokenizer_of({"preset": preset, "vocoder": name})
        assert plain.fingerprint == played.fingerprint
        assert played.encode([Clip(harmonic(300, 0.5, 16000), 16000)])[0].isfinite().all()
        with pytest.raises(InputError, match=f"tokenizer.vocoder_path.*{REPOSITORIES[name]}.*could not be fetched"):
            played.decode(torch.zeros(1, *played.latent.shape))

    def test_truncated_weights_are_one_line(self, name: str, tmp_path: Path) -> None:
        published(name, tmp_path / "weights")
        file = next(f for f in (tmp_path / "weights").iterdir() if f.suffix in (".bin", ".safetensors"))
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(InputError, match=r"^tokenizer.vocoder_path: .*cannot be (read|loaded)") as error:
            tokenizer_of(settings(name, tmp_path / "weights")).prepare_decoding()
        assert "\n" not in str(error.value)

    def test_another_vocoders_weights_are_refused(self, name: str, tmp_path: Path) -> None:
        other = NAMES[NAMES.index(name) - 1]
        published(other, tmp_path / "weights")
        with pytest.raises(InputError, match=r"^tokenizer.vocoder_path: ") as error:
            tokenizer_of(settings(name, tmp_path / "weights")).prepare_decoding()
        assert "\n" not in str(error.value)


def test_foreign_classes_in_a_vocos_configuration_are_not_imported(tmp_path: Path) -> None:
    published("vocos", tmp_path / "weights")
    evil = {**VOCOS, "head": {"class_path": "os.system", "init_args": {"command": "touch evil"}}}
    (tmp_path / "weights" / "config.yaml").write_text(yaml.safe_dump(evil))
    with pytest.raises(InputError, match=r"config.yaml has no head of class ISTFTHead, it says 'os.system'"):
        tokenizer_of(settings("vocos", tmp_path / "weights")).prepare_decoding()


def test_weights_that_hold_code_are_refused(tmp_path: Path) -> None:
    published("vocos", tmp_path / "weights")
    torch.save({"head.out.weight": Path("x")}, tmp_path / "weights" / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read as a file of tensors"):
        tokenizer_of(settings("vocos", tmp_path / "weights")).prepare_decoding()


def test_missing_tensors_are_counted(tmp_path: Path) -> None:
    network = published("vocos", tmp_path / "weights")
    state = network.state_dict()
    del state["head.out.weight"]
    torch.save(state, tmp_path / "weights" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"1 of \d+ tensors do not fit, such as head.out.weight \(missing"):
        tokenizer_of(settings("vocos", tmp_path / "weights")).prepare_decoding()


class TestStatistics:
    NAME = "fastspeech2-conformer-hifigan"

    def test_weights_that_need_them_say_so(self, tmp_path: Path) -> None:
        published(self.NAME, tmp_path / "weights")
        with pytest.raises(InputError, match=r"^tokenizer.vocoder_statistics: is missing.*feats_stats.npz"):
            tokenizer_of(settings(self.NAME, tmp_path / "weights", vocoder_statistics=None)).prepare_decoding()

    @pytest.mark.parametrize(
        "stored",
        [
            {"mean": np.zeros(80)},
            {"count": np.array(10), "sum": np.zeros(40), "sum_square": np.ones(40)},
            {"count": np.array(0), "sum": np.zeros(80), "sum_square": np.ones(80)},
            {"count": np.array(10), "sum": np.full(80, 10.0), "sum_square": np.zeros(80)},
        ],
        ids=["keys", "bands", "empty", "negative"],
    )
    def test_wrong_statistics_are_refused(self, stored: dict[str, np.ndarray], tmp_path: Path) -> None:
        published(self.NAME, tmp_path / "weights")
        content = settings(self.NAME, tmp_path / "weights")
        np.savez(content["vocoder_statistics"], **stored)
        with pytest.raises(InputError, match=r"^tokenizer.vocoder_statistics: .*feats_stats.npz"):
            tokenizer_of(content).prepare_decoding()


class TestRecipes:
    @pytest.mark.parametrize("name", NAMES)
    def test_settings_that_a_vocoder_was_not_trained_on_are_refused(self, name: str) -> None:
        preset = VOCODER_PRESETS[name]
        with pytest.raises(
            InputError, match=rf"tokenizer: vocoder {name} was trained on .*tokenizer.preset: {preset} "
        ) as error:
            load_recipe("audio/quick", [f"tokenizer.vocoder={name}"])
        assert f"floor {PRESETS[preset]['floor']:g} (not 1e-05)" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("key", sorted(PRESETS["vocos"]))
    def test_each_setting_counts(self, key: str) -> None:
        changed = {"mel_scale": "slaney", "mel_norm": "slaney", "log": "log10", "floor": 1e-6, "f_min": 1.0}
        value = changed.get(key, {"f_max": 11000.0, "magnitude_floor": 0.1}.get(key, PRESETS["vocos"][key]))
        if value == PRESETS["vocos"][key]:
            value = 2 * int(value)
        content = {**PRESETS["vocos"], key: value, "vocoder": "vocos"}
        with pytest.raises(ValueError, match=f"trained on {key} "):
            MelConfig.model_validate(content)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("tokenizer.vocoder_path=somewhere", "griffin-lim has no weights"),
            ("tokenizer.vocoder_statistics=stats.npz", "are for fastspeech2-conformer-hifigan"),
            ("tokenizer.vocoder=wavenet", "griffin-lim"),
            ("tokenizer.preset=bigvgan", "speecht5"),
        ],
    )
    def test_options_without_effect_or_meaning_are_refused(self, override: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_recipe("audio/quick", [override])

    def test_a_missing_vocoder_is_found_before_sampling(
        self, command: Callable[..., tuple[int, str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A run that says vocos trains without its weights, does not sample without them, and samples with them."""
        weights, run = tmp_path / "weights", tmp_path / "run"
        tiny = [
            "data.num_pitches=2", "tokenizer={name: mel, preset: vocos, vocoder: vocos, num_frames: 16}",
            f"tokenizer.vocoder_path={weights}", "backbone={name: sit, depth: 3, hidden_size: 32, num_heads: 2}",
            "backbone.patch_size=[25, 8]", "train.steps=2", "train.batch_size=4", "sample.steps=2",
        ]  # fmt: skip
        sets = [part for override in tiny for part in ("--set", override)]
        assert command("train", "audio/quick", "--out", run, *sets)[0] == 0
        status, _, error = command("sample", run, "--num", 2)
        assert status == 2 and "tokenizer.vocoder_path" in error and not (run / "samples").exists()
        published("vocos", weights)
        assert command("sample", run, "--num", 2)[0] == 0
        assert f"decoding by vocos, weights {file_digest(weights / 'pytorch_model.bin')[:16]}" in caplog.text
        assert sorted(file.suffix for file in (run / "samples").rglob("*.wav")) == [".wav", ".wav"]
