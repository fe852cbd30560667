"""The adapter: what the core finds, what the classifier reads, what a person gets to hear and see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from layersync.core.adapter import ConditionSpec, LatentSpec, ModalityAdapter, load_adapter
from layersync.modalities.audio import roundtrip
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.audio.backbone import SpectrogramSiTConfig
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.gm_notes import GmNotes
from layersync.modalities.audio.tokenizer import MelConfig, MelTokenizer

Tone = Callable[[float, float, int], np.ndarray]


def test_the_adapter_is_found_by_its_entry_point() -> None:
    adapter = load_adapter("audio")
    assert isinstance(adapter, AudioAdapter) and isinstance(adapter, ModalityAdapter)
    for names in adapter.sections.values():
        for name, config in names.items():
            assert config.model_fields["name"].default == name


def test_the_backbone_takes_the_latents_of_the_tokenizer() -> None:
    latent = MelTokenizer(MelConfig()).latent
    assert latent == LatentSpec(channels=1, grid=(80, 64), variable=True)
    config = SpectrogramSiTConfig(depth=3, hidden_size=32, num_heads=2)
    backbone = AudioAdapter().backbone(config, latent, ConditionSpec(num_classes=16))
    x, mask = torch.randn(2, *latent.shape), torch.arange(64) < torch.tensor([[64], [10]])
    output = backbone(x, torch.tensor([0.3, 0.6]), {"label": torch.tensor([0, 16])}, taps=(2,), mask=mask)
    assert output.prediction.shape == x.shape
    assert output.features[2].shape == (2, 5 * 16, 32)
    assert output.token_mask.sum(dim=1).tolist() == [80, 5 * 3]


def test_the_classifier_reads_clips_of_any_rate_padded_and_masked(harmonic: Tone) -> None:
    clips = [Clip(harmonic(300, seconds, rate), rate) for seconds, rate in ((1.0, 16000), (0.5, 44100), (0.5, 8000))]
    inputs, mask = AudioAdapter().classifier_input(clips)
    assert inputs.shape == (3, 1, 64, 63) and inputs.dtype == torch.float32
    assert mask.sum(dim=1).tolist() == [63, 32, 32]
    assert not inputs[1, :, :, 32:].any()
    assert 0.3 < inputs[mask[:, None, None].expand_as(inputs)].std() < 3
    alone, _ = AudioAdapter().classifier_input(clips[1:2])
    torch.testing.assert_close(alone[0], inputs[1, ..., :32], rtol=0, atol=1e-4)


def test_the_nearest_note_by_the_classifiers_input_is_mostly_of_the_same_family(few_notes: GmNotes) -> None:
    """The families can be told apart: a neighbour in plain pixels already finds them far above chance (1 in 16)."""
    samples = [few_notes[index] for index in range(len(few_notes))]
    inputs, _ = AudioAdapter().classifier_input([example.sample for example in samples])
    labels = torch.tensor([example.condition["label"] for example in samples])
    distances = torch.cdist(inputs.flatten(1), inputs.flatten(1)).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).float().mean() > 0.4


def test_rendering_writes_each_clip_as_16_bits_and_one_picture(harmonic: Tone, tmp_path: Path) -> None:
    clips = [Clip(harmonic(200 + 50 * n, 0.2 + 0.05 * n, 16000), 16000) for n in range(10)]
    files = AudioAdapter().render(clips, tmp_path / "out")
    assert [file.name for file in files] == [f"{n:03d}.wav" for n in range(10)] + ["spectrograms.png"]
    for clip, file in zip(clips, files, strict=False):
        waveform, rate = soundfile.read(file)
        assert rate == 16000 and soundfile.info(file).subtype == "PCM_16"
        np.testing.assert_allclose(waveform, clip.waveform, atol=2 / 32768)
    picture = np.asarray(Image.open(files[-1]).convert("RGB"))
    assert picture.std() > 20 and picture.shape[1] > picture.shape[0]


def test_rendering_nothing_writes_nothing(tmp_path: Path) -> None:
    assert AudioAdapter().render([], tmp_path / "out") == [] and not (tmp_path / "out").exists()


def test_more_bands_lose_less(few_notes: GmNotes, note_clips: list[Clip]) -> None:
    few, many = (
        roundtrip.roundtrip_loss(MelTokenizer(MelConfig(n_mels=n_mels)), note_clips[:8]) for n_mels in (20, 128)
    )
    assert few.num_clips == 8
    assert many.spectral_convergence < few.spectral_convergence
    assert many.log_spectral_distance < few.log_spectral_distance


def test_mel_losses_of_one_clip_by_hand(harmonic: Tone) -> None:
    """Decibels below the original's loudest band, cut at 80; cepstra as sums of cosines, without the first."""
    tokenizer = MelTokenizer(MelConfig(n_mels=20))
    clip = Clip(harmonic(330, 0.5, 16000), 16000)
    heard = tokenizer.window(clip, 0.0)
    latent = tokenizer.latents(tokenizer.encode([heard])[0][None, ..., : tokenizer.config.num_frames])
    decoded = tokenizer.decode(latent)[0].waveform
    levels = []
    for waveform in (heard.waveform[: len(decoded)], decoded[: len(heard.waveform)]):
        magnitudes = np.abs(tokenizer.log_mel.magnitudes(torch.from_numpy(waveform).double()[None])[0].numpy())
        levels.append(np.maximum(tokenizer.log_mel.filters_FM.double().numpy().T @ magnitudes, tokenizer.log_mel.floor))
    loudest = levels[0].max()
    original, lossy = (np.maximum(20 * np.log10(level / loudest), -80) for level in levels)
    nepers = (original - lossy) / 20 * np.log(10)
    squares = np.zeros(nepers.shape[1])
    for k in range(1, 14):
        wave = np.cos(np.pi * k * (np.arange(20) + 0.5) / 20)
        squares += (2 / 20 * (wave[:, None] * nepers).sum(axis=0)) ** 2
    found = roundtrip.roundtrip_loss(tokenizer, [clip])
    assert found.mel_distance == pytest.approx(np.abs(original - lossy).mean(), rel=1e-6) and found.mel_distance > 0.1
    assert found.mel_cepstral_distortion == pytest.approx((10 / np.log(10) * np.sqrt(2 * squares)).mean(), rel=1e-6)


def test_the_loss_of_the_tokenizer_is_printed_for_any_data(
    write_audio: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_audio(f"{number}.wav", 300 + number, seconds=1.2)
    roundtrip.main([f"{{name: folder, path: {tmp_path}}}", "--num", "2"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_clips"] == 2 and 0 < printed["log_spectral_distance"] < 15


def test_importing_the_adapter_loads_nothing_heavy() -> None:
    heavy = {"torchaudio", "librosa", "matplotlib", "datasets", "transformers", "tinysoundfont", "soundfile"}
    code = f"import sys, layersync.modalities.audio.adapter; sys.exit(len({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
