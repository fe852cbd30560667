"""The mel tokenizer: SpeechT5's features, windows, statistics, and the way back."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from layersync.core.errors import InputError
from layersync.modalities.audio import mel as mel_module
from layersync.modalities.audio.backend import torchaudio_part
from layersync.modalities.audio.clip import Clip, resample
from layersync.modalities.audio.tokenizer import MelConfig, MelTokenizer
from layersync.modalities.audio.vocoder import PRESETS

Tone = Callable[[float, float, int], np.ndarray]

CUT = -4.0  # decades; what lies more than 80 dB below full scale is not heard and not compared


@pytest.fixture(scope="module")
def tokenizer(note_clips: list[Clip]) -> MelTokenizer:
    made = MelTokenizer(MelConfig())
    made.fit(made.encode(note_clips))
    return made


def latents_of(tokenizer: MelTokenizer, clips: list[Clip]) -> torch.Tensor:
    stored = [mel[..., : tokenizer.config.num_frames] for mel in tokenizer.encode(clips)]
    return tokenizer.latents(torch.stack(stored))


def test_stored_mels_are_those_of_the_speecht5_feature_extractor(note_clips: list[Clip], harmonic: Tone) -> None:
    from transformers import SpeechT5FeatureExtractor

    extractor = SpeechT5FeatureExtractor()
    tokenizer = MelTokenizer(MelConfig())
    for clip in [*note_clips, Clip(harmonic(220, 1.37, 16000), 16000)]:
        expected = extractor(audio_target=clip.waveform, sampling_rate=16000).input_values[0].T
        stored = tokenizer.encode([clip])[0]
        assert stored.shape == (1, *expected.shape)
        np.testing.assert_allclose(stored[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44099, 48000])
def test_resampling_keeps_the_pitch_and_the_length(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    heard = resample(tone, rate, 16000)
    assert abs(len(heard) - 16000) <= 1
    spectrum = np.abs(np.fft.rfft(heard[:16000] * np.hanning(len(heard[:16000]))))
    assert abs(int(spectrum.argmax()) - 440) <= 1


def test_clips_of_any_rate_give_the_mel_of_the_same_sound(harmonic: Tone) -> None:
    tokenizer = MelTokenizer(MelConfig())
    low, high = (tokenizer.encode([Clip(harmonic(330, 0.8, rate) * 0.9, rate)])[0] for rate in (16000, 48000))
    loud = (low > -1.5) & (high > -1.5)
    assert loud.sum() > 300
    assert (low - high)[loud].abs().median() < 0.03


def test_a_clip_shorter_than_the_transform_is_encoded(harmonic: Tone) -> None:
    mel = MelTokenizer(MelConfig()).encode([Clip(harmonic(440, 0.02, 16000), 16000)])[0]
    assert mel.shape == (1, 80, 1 + 320 // 256)
    assert mel.isfinite().all()


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_long_recordings_are_encoded_in_blocks_of_frames_as_if_whole(
    preset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MelConfig(preset=preset) if preset else MelConfig(n_fft=512, hop_length=100)
    tokenizer, bins, generator = MelTokenizer(config), config.n_fft // 2 + 1, np.random.default_rng(0)
    lengths = [config.hop_length * frames + more for frames, more in ((64, -1), (64, 0), (69, 7), (1, -1))]
    clips = [Clip(generator.normal(0, 0.2, length).astype(np.float32), config.sample_rate) for length in lengths]
    clips += [clips[2], Clip(generator.normal(0, 0.2, 9000).astype(np.float32), 8000)]
    whole, largest = tokenizer.encode(clips), []
    for clip, stored in zip(clips[:5], whole, strict=False):
        expected = tokenizer.log_mel(torch.from_numpy(clip.waveform)[None].double()).float()
        assert torch.equal(stored, expected)
    transform = torch.stft

    def measured(waveform: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        spectrum = transform(waveform, *arguments, **options)
        largest.append(spectrum.numel())
        return spectrum

    monkeypatch.setattr(torch, "stft", measured)
    monkeypatch.setattr(mel_module, "_BINS_AT_ONCE", 32 * bins)
    assert all(map(torch.equal, tokenizer.encode(clips), whole))
    assert max(largest) == 32 * bins


def test_encoding_does_not_depend_on_the_batch(note_clips: list[Clip], harmonic: Tone) -> None:
    tokenizer = MelTokenizer(MelConfig())
    mixed = [*note_clips[:3], Clip(harmonic(300, 0.5, 8000), 8000), *note_clips[3:]]
    together = tokenizer.encode(mixed)
    for clip, mel in zip(mixed, together, strict=True):
        torch.testing.assert_close(tokenizer.encode([clip])[0], mel, rtol=0, atol=1e-5)


def test_statistics_normalise_each_band_and_survive_saving(note_clips: list[Clip]) -> None:
    tokenizer = MelTokenizer(MelConfig())
    stored = tokenizer.encode(note_clips)
    tokenizer.fit(iter(stored))
    latents = tokenizer.latents(torch.stack(stored))
    torch.testing.assert_close(latents.mean(dim=(0, 1, 3)), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 1, 3), correction=0), torch.ones(80), atol=1e-3, rtol=0)
    again = MelTokenizer(MelConfig())
    again.load_state(tokenizer.state())
    assert torch.equal(again.latents(torch.stack(stored)), latents)


def test_a_band_that_the_data_leave_empty_is_not_blown_up() -> None:
    tokenizer = MelTokenizer(MelConfig())
    stored = torch.randn(1, 80, 200)
    stored[:, 60:] = -10.0
    tokenizer.fit([stored])
    assert tokenizer.state()["std"][60:].min() > 0.05
    assert tokenizer.latents(stored[None]).abs().max() < 20


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"mean": torch.zeros(80)},
        {"mean": torch.zeros(40), "std": torch.ones(40)},
        {"mean": torch.zeros(80), "std": torch.zeros(80)},
    ],
)
def test_statistics_that_do_not_fit_are_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="tokenizer mel"):
        MelTokenizer(MelConfig()).load_state(state)


def test_decoded_clips_have_the_mel_that_was_decoded(tokenizer: MelTokenizer, note_clips: list[Clip]) -> None:
    """Mean absolute difference below 3 dB: what phases by Griffin-Lim and the inversion of the bands cost together."""
    latents = latents_of(tokenizer, note_clips)
    again = latents_of(tokenizer, tokenizer.decode(latents))
    mean, std = (tokenizer.state()[key][:, None] for key in ("mean", "std"))
    wanted, got = ((x * std + mean).clamp(min=CUT) for x in (latents, again))
    decibels = 20 * (wanted - got).abs().mean(dim=(1, 2, 3))
    assert decibels.mean() < 2.0
    assert decibels.max() < 5.0


def test_decoding_does_not_depend_on_the_batch_and_repeats_itself(
    tokenizer: MelTokenizer, note_clips: list[Clip]
) -> None:
    latents = latents_of(tokenizer, note_clips[:5])
    together = tokenizer.decode(latents)
    alone = [tokenizer.decode(latent[None])[0] for latent in latents]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first.waveform, second.waveform, rtol=0, atol=1e-4)
    for first, second in zip(together, tokenizer.decode(latents), strict=True):
        assert np.array_equal(first.waveform, second.waveform)


def test_only_real_frames_are_heard(tokenizer: MelTokenizer, note_clips: list[Clip]) -> None:
    latents = latents_of(tokenizer, note_clips[:3])
    lengths = torch.tensor([64, 20, 7])
    mask = torch.arange(64) < lengths[:, None]
    disturbed = torch.where(mask[:, None, None], latents, torch.full_like(latents, 50.0))
    decoded, other = tokenizer.decode(latents, mask), tokenizer.decode(disturbed, mask)
    assert [len(clip.waveform) for clip in decoded] == [256 * length for length in lengths.tolist()]
    for first, second in zip(decoded, other, strict=True):
        assert np.array_equal(first.waveform, second.waveform)


def test_decoded_clips_stay_within_full_scale(tokenizer: MelTokenizer, note_clips: list[Clip]) -> None:
    loud = latents_of(tokenizer, note_clips[:2]) + 2.0
    assert all(np.abs(clip.waveform).max() <= 1 for clip in tokenizer.decode(loud))


@pytest.mark.parametrize("position", [0.0, 0.37, 0.999, 1.0])
def test_a_window_is_the_excerpt_that_the_stored_window_covers(position: float, harmonic: Tone) -> None:
    tokenizer = MelTokenizer(MelConfig(num_frames=32))
    clip = Clip(harmonic(260, 2.3, 22050), 22050)
    stored = tokenizer.encode([clip])[0]
    excerpt = tokenizer.window(clip, position)
    assert (len(excerpt.waveform), excerpt.sample_rate) == (32 * 256, 16000)
    room = stored.shape[-1] - 32
    first = min(int(position * (room + 1)), room)
    inside = slice(3, -4)  # a frame reaches two hops to either side, where the excerpt has been cut
    ours = tokenizer.encode([excerpt])[0][..., :32][..., inside]
    torch.testing.assert_close(ours, stored[..., first : first + 32][..., inside], rtol=0, atol=1e-3)


def test_the_window_of_a_short_clip_is_all_of_it_in_whole_frames(harmonic: Tone) -> None:
    tokenizer = MelTokenizer(MelConfig())
    clip = Clip(harmonic(260, 0.3, 16000), 16000)
    excerpt = tokenizer.window(clip, 0.8).waveform
    assert len(excerpt) == 256 * (1 + 4800 // 256)
    assert np.array_equal(excerpt[:4800], clip.waveform)
    assert not excerpt[4800:].any()


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 22050},
        {"n_fft": 2048},
        {"hop_length": 200},
        {"n_mels": 40},
        {"f_min": 20.0},
        {"f_max": 5000.0},
        {"floor": 1e-2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_of_the_mel_changes_it_and_the_fingerprint(change: dict[str, float], harmonic: Tone) -> None:
    clip = Clip(harmonic(500, 0.5, 44100), 44100)
    plain, other = MelTokenizer(MelConfig()), MelTokenizer(MelConfig.model_validate(change))
    first, second = plain.encode([clip])[0], other.encode([clip])[0]
    assert first.shape != second.shape or (first - second).abs().max() > 1e-3
    assert plain.fingerprint != other.fingerprint


def test_settings_of_window_and_decoder_change_those_but_not_the_cache(note_clips: list[Clip]) -> None:
    plain, long = MelTokenizer(MelConfig()), MelTokenizer(MelConfig(num_frames=16, griffin_lim_iterations=3))
    assert plain.fingerprint == long.fingerprint
    assert long.latent.grid == (80, 16)
    stored = plain.encode(note_clips[:1])[0][None]
    assert not np.array_equal(plain.decode(stored)[0].waveform, long.decode(stored)[0].waveform)


@pytest.mark.parametrize("wrong", [{"f_max": 9000.0}, {"f_min": 7700.0}, {"hop_length": 1024}, {"n_fft": 1023}])
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MelConfig.model_validate(wrong)


def test_bands_too_narrow_for_the_transform_are_refused() -> None:
    with pytest.raises(InputError, match="fewer n_mels"):
        MelTokenizer(MelConfig(n_fft=512, n_mels=300))


@pytest.mark.parametrize("error", [OSError("undefined symbol: torch_library_impl"), RuntimeError("CUDA 12 and 13")])
def test_a_torchaudio_of_another_torch_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it, which adds the newest to any torch that is there."""

    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(InputError, match=rf"^torchaudio \S+ does not work with torch \S+ \({error}\)"):
        torchaudio_part("functional", "melscale_fbanks")
