"""The Oobleck tokenizer on a small autoencoder in diffusers' layout, with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from layersync import load_recipe
from layersync.core.errors import InputError
from layersync.modalities.audio.clip import Clip, read_clip
from layersync.modalities.audio.oobleck import Oobleck, OobleckConfig, chunks, decoder_reach, encoder_reach

Tone = Callable[[float, float, int], np.ndarray]
HOP = 8


def autoencoder(folder: Path, **changes: Any) -> Any:
    """Write ``folder/vae`` and return the library's own network."""
    from diffusers import AutoencoderOobleck

    settings = {
        "encoder_hidden_size": 8,
        "downsampling_ratios": [2, 4],
        "channel_multiples": [1, 2],
        "decoder_channels": 4,
        "decoder_input_channels": 4,
        "audio_channels": 2,
        "sampling_rate": 8000,
    }
    torch.manual_seed(0)
    network = AutoencoderOobleck(**{**settings, **changes}).eval()
    network.save_pretrained(folder / "vae")
    return network


@pytest.fixture(scope="module")
def stored_at(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("oobleck")
    return folder, autoencoder(folder)


@pytest.fixture(scope="module")
def tokenizer(stored_at: tuple[Path, Any]) -> Oobleck:
    return OobleckConfig(path=str(stored_at[0]), num_frames=32).build()


@pytest.fixture
def stereo(harmonic: Tone) -> Clip:
    return Clip.of_channels(np.stack([harmonic(200, 0.5, 8000), harmonic(330, 0.5, 8000)]), 8000)


def test_sizes_come_from_the_autoencoder(tokenizer: Oobleck) -> None:
    assert (tokenizer.latent.channels, tokenizer.latent.grid, tokenizer.latent.sequence) == (4, (32,), True)
    assert (tokenizer.hop_length, tokenizer.sample_rate) == (HOP, 8000)


def test_the_autoencoder_is_that_of_the_subfolder(stored_at: tuple[Path, Any], tmp_path: Path, stereo: Clip) -> None:
    autoencoder(tmp_path, encoder_hidden_size=12, decoder_input_channels=6)
    shutil.copytree(stored_at[0] / "vae", tmp_path / "other")
    found = {
        subfolder: OobleckConfig(path=str(tmp_path / top), subfolder=subfolder, num_frames=32)
        for top, subfolder in (("", "vae"), ("", "other"), ("other", ""))
    }
    assert [config.latent_spec().channels for config in found.values()] == [6, 4, 4]
    stored = {subfolder: config.build().encode([stereo])[0] for subfolder, config in found.items()}
    assert stored["vae"].shape == (500, 12) and torch.equal(stored["other"], stored[""])
    assert OobleckConfig(path=str(tmp_path)).subfolder == "vae"


def test_shapes_are_known_without_weights(tokenizer: Oobleck, tmp_path: Path) -> None:
    assert tokenizer.config.latent_spec() == tokenizer.latent
    assert tokenizer.config.stored_channels() == 2 * tokenizer.latent.channels
    published = OobleckConfig().latent_spec()
    assert published is not None and (published.shape, OobleckConfig().stored_channels()) == ((256, 64), 128)
    assert OobleckConfig(path="somebody/else").latent_spec() is None
    with pytest.raises(InputError, match=r"tokenizer.path: .*config.json is missing"):
        OobleckConfig(path=str(tmp_path)).latent_spec()


def test_a_clip_is_encoded_as_the_library_encodes_all_of_it_at_once(
    tokenizer: Oobleck, stored_at: tuple[Path, Any], stereo: Clip
) -> None:
    """4,000 samples are 500 latents: two chunks here, one pass there."""
    with torch.no_grad():
        posterior = stored_at[1].encode(torch.from_numpy(stereo.channels(2))[None]).latent_dist
    moments = tokenizer.encode([stereo])[0]
    assert moments.shape == (500, 8)
    torch.testing.assert_close(moments[:, :4], posterior.mean[0].T, rtol=0, atol=1e-5)
    torch.testing.assert_close(moments[:, 4:], posterior.std[0].T, rtol=0, atol=1e-5)


def test_latents_are_decoded_as_the_library_decodes_all_of_them_at_once(
    tokenizer: Oobleck, stored_at: tuple[Path, Any]
) -> None:
    latents = torch.randn(2, 600, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stored_at[1].decode(latents.transpose(1, 2)).sample
    for clip, sound in zip(tokenizer.decode(latents), expected, strict=True):
        peak = max(1.0, float(sound.abs().max()))
        assert clip.sample_rate == 8000 and len(clip.waveform) == 600 * HOP
        np.testing.assert_allclose(clip.channels(2), sound.numpy() / peak, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratios", [(2, 4), (2, 2, 4), (8, 2)])
def test_the_reach_is_what_chunks_need_and_hardly_more(ratios: tuple[int, ...], tmp_path: Path) -> None:
    """Latents beyond the reach of encoder and decoder have no influence; some of those that are inside have."""
    hop, middle = int(np.prod(ratios)), 60
    network = autoencoder(tmp_path, downsampling_ratios=list(ratios), channel_multiples=[1] * len(ratios)).double()
    sound = torch.zeros(1, 2, 2 * middle * hop + hop, dtype=torch.float64, requires_grad=True)
    network.encode(sound + 0.1).latent_dist.mean[..., middle].sum().backward()
    seen = (sound.grad[0].abs().sum(dim=0).reshape(-1, hop).sum(dim=1) > 0).nonzero().flatten() - middle
    assert encoder_reach(ratios) - 1 <= seen.abs().max() <= encoder_reach(ratios)
    latents = torch.zeros(1, 4, 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    network.decode(latents + 0.1).sample[..., middle * hop : (middle + 1) * hop].sum().backward()
    seen = (latents.grad[0].abs().sum(dim=0) > 0).nonzero().flatten() - middle
    assert decoder_reach(ratios) - 2 <= seen.abs().max() <= decoder_reach(ratios)


def test_reach_of_the_published_autoencoder() -> None:
    assert (encoder_reach((2, 4, 4, 8, 8)), decoder_reach((2, 4, 4, 8, 8))) == (8, 10)


def test_chunks_cover_each_frame_once() -> None:
    found = chunks(1000, 9)
    assert [frame for first, last, _, _ in found for frame in range(first, last)] == list(range(1000))
    assert all(start == max(first - 9, 0) and stop == min(last + 9, 1000) for first, last, start, stop in found)


def test_latents_are_drawn_from_the_posterior_and_scaled(stored_at: tuple[Path, Any], stereo: Clip) -> None:
    tokenizer = OobleckConfig(path=str(stored_at[0]), num_frames=32, scale=2.0).build()
    stored = tokenizer.encode([stereo])[0][None, :32]
    assert tokenizer.stochastic, "a step gives it noise to draw with"
    noise = torch.randn(1, 32, 4)
    torch.testing.assert_close(tokenizer.latents(stored), stored[..., :4] / 2)
    torch.testing.assert_close(tokenizer.latents(stored, noise), (stored[..., :4] + stored[..., 4:] * noise) / 2)
    unscaled = OobleckConfig(path=str(stored_at[0]), num_frames=32).build()
    assert unscaled.fingerprint == tokenizer.fingerprint
    first, second = unscaled.decode(unscaled.latents(stored))[0], tokenizer.decode(tokenizer.latents(stored))[0]
    np.testing.assert_allclose(first.waveform, second.waveform, rtol=0, atol=1e-6)


def test_only_real_frames_are_heard(tokenizer: Oobleck) -> None:
    latents = torch.randn(3, 32, 4)
    mask = torch.arange(32) < torch.tensor([[32], [20], [0]])
    first = tokenizer.decode(latents, mask)
    second = tokenizer.decode(torch.where(mask[..., None], latents, 9.0), mask)
    assert [len(clip.waveform) for clip in first] == [32 * HOP, 20 * HOP, 0]
    assert all(np.array_equal(a.channels(2), b.channels(2)) for a, b in zip(first, second, strict=True))


def test_a_mono_clip_is_doubled_and_a_stereo_one_mixed(tokenizer: Oobleck, stereo: Clip, tmp_path: Path) -> None:
    mono = Clip(stereo.waveform, 8000)
    both = Clip.of_channels(np.stack([stereo.waveform, stereo.waveform]), 8000)
    alike, apart = tokenizer.encode([mono, both]), tokenizer.encode([stereo])[0]
    assert torch.equal(alike[0], alike[1])
    assert (alike[0] - apart).abs().max() > 1e-3
    autoencoder(tmp_path, audio_channels=1)
    single = OobleckConfig(path=str(tmp_path), num_frames=32).build()
    assert torch.equal(*single.encode([mono, stereo]))
    assert single.decode(torch.randn(1, 32, 4))[0].side is None
    assert single.window(stereo, 0.5).side is None


@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
def test_a_window_is_the_excerpt_that_the_stored_window_covers(
    position: float, stored_at: tuple[Path, Any], stereo: Clip
) -> None:
    tokenizer = OobleckConfig(path=str(stored_at[0]), num_frames=100).build()
    stored, excerpt = tokenizer.encode([stereo])[0], tokenizer.window(stereo, position)
    assert excerpt.channels(2).shape == (2, 100 * HOP)
    first = min(int(position * 401), 400)
    reach = encoder_reach(tokenizer.ratios)
    inside = tokenizer.encode([excerpt])[0][reach:-reach]
    torch.testing.assert_close(inside, stored[first + reach : first + 100 - reach], rtol=0, atol=1e-5)


def test_short_clips_and_other_rates_are_whole_frames(tokenizer: Oobleck, harmonic: Tone) -> None:
    clip = Clip(harmonic(300, 0.0125, 16000), 16000)  # 100 samples at 8 kHz
    assert tokenizer.encode([clip])[0].shape == (13, 8)
    assert len(tokenizer.window(clip, 0.7).waveform) == 13 * HOP


class TestStereo:
    def test_files_keep_their_sides_and_mono_mix(self, harmonic: Tone, tmp_path: Path) -> None:
        both = np.stack([harmonic(200, 0.2, 8000), harmonic(330, 0.2, 8000)])
        soundfile.write(tmp_path / "both.wav", both.T, 8000, subtype="FLOAT")
        clip = read_clip(tmp_path / "both.wav", "both")
        np.testing.assert_allclose(clip.channels(2), both, atol=1e-6)
        np.testing.assert_allclose(clip.waveform, both.mean(axis=0), atol=1e-6)
        assert np.array_equal(clip.channels(1)[0], clip.waveform)

    def test_alike_channels_are_mono(self, write_audio: Callable[..., Path]) -> None:
        assert read_clip(write_audio("double.wav", channels=2), "double").side is None

    def test_stereo_is_rendered_as_such(self, stereo: Clip, tmp_path: Path) -> None:
        from layersync.modalities.audio.render import render

        render([stereo, Clip(stereo.waveform, 8000)], tmp_path)
        assert [soundfile.info(tmp_path / f"00{number}.wav").channels for number in (0, 1)] == [2, 1]
        written = soundfile.read(tmp_path / "000.wav")[0].T
        np.testing.assert_allclose(written, stereo.channels(2), atol=1e-4)


class TestWrongFiles:
    def refused(self, path: Path | str, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            OobleckConfig(path=str(path)).build()
        assert "\n" not in str(error.value) and str(error.value).startswith("tokenizer.path: ")

    def test_no_connection(self) -> None:
        self.refused("stabilityai/stable-audio-open-1.0", "no AutoencoderOobleck can be loaded .* local folder")

    def test_truncated(self, tmp_path: Path) -> None:
        autoencoder(tmp_path)
        file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(tmp_path, "no AutoencoderOobleck can be loaded")

    def test_missing_tensors(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        autoencoder(tmp_path)
        file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        del tensors["decoder.conv2.weight_v"]
        save_file(tensors, file, metadata={"format": "pt"})
        self.refused(tmp_path, "1 tensors are missing or misshapen, such as decoder.conv2.weight_v")

    def test_another_network(self, tmp_path: Path) -> None:
        autoencoder(tmp_path)
        config = tmp_path / "vae" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "decoder_channels": 6}))
        self.refused(tmp_path, "expected shape")

    def test_odd_ratios(self, tmp_path: Path) -> None:
        autoencoder(tmp_path, downsampling_ratios=[2, 3])
        self.refused(tmp_path, r"downsampling_ratios \[3\]; only even ones")


def test_patches_with_bands_are_refused_for_latents_without(
    stored_at: tuple[Path, Any], command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    oobleck = f"tokenizer={{name: oobleck, path: {stored_at[0]}, num_frames: 32}}"
    recipe = load_recipe("audio/quick", [oobleck, "data.num_pitches=2"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    status, _, error = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert status == 2 and "backbone.patch_size: [16, 16] has 2 axes" in error and not (tmp_path / "run").exists()
