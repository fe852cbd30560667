"""Latents of the Oobleck autoencoder, the one of Stable Audio, as diffusers has it.

Legend: B clips, C channels of a latent, T frames of latents, A audio channels, S samples.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync.core.device import default_device
from layersync.core.errors import InputError
from layersync.core.pretrained import first_line, network_digest, read_config
from layersync.modalities.audio.clip import Clip, by_length, window_frames

_CLIPS_AT_ONCE = 8
_CHUNK_FRAMES = 256
_REACH_OF_UNIT = 3 * (1 + 3 + 9)  # samples to either side that three residual units see: kernels of 7, dilated


PUBLISHED_CHANNELS = {"stabilityai/stable-audio-open-1.0": 64}
"""Of latents, by hub id (stable-audio-tools, configs/model_configs/txt2audio/stable_audio_2_0.json)."""


class OobleckConfig(Section):
    """A diffusers ``AutoencoderOobleck``; sample rate, channels and compression are its own.

    Stable Audio Open's gives 64 channels at 21.5 frames a second (44.1 kHz, 2,048 samples a frame), from stereo.
    """

    name: Literal["oobleck"] = "oobleck"
    path: str = Field(
        "stabilityai/stable-audio-open-1.0", description="Hub id, or a local folder in diffusers' layout."
    )
    subfolder: str = Field("vae", description="Where in it the autoencoder lies; empty: at its top.")
    num_frames: int = Field(256, ge=1, description="Length of the window that the backbone sees, in latents.")
    scale: float = Field(
        1.0, gt=0, description="Latents are divided by it, as by stable-audio-tools' pretransform.scale."
    )

    def latent_spec(self) -> LatentSpec | None:
        """From ``config.json`` where ``path`` is a folder, else as published; the weights are not needed."""
        channels = _channels_on_disk(self) or PUBLISHED_CHANNELS.get(self.path)
        return None if channels is None else LatentSpec(channels, (self.num_frames,), sequence=True, variable=True)

    def stored_channels(self) -> int | None:
        """Mean and deviation of each channel."""
        latent = self.latent_spec()
        return None if latent is None else 2 * latent.channels

    def build(self) -> Oobleck:
        """The tokenizer with its weights."""
        return Oobleck(self)


class Oobleck(Tokenizer):
    """Stored: (frames, 2 C), mean and deviation of the posterior. Latents: (frames, C), drawn anew at every step.

    latents = (mean + deviation * noise) / scale. Diffusers' pipeline neither scales nor normalises (scale 1). Mono
    clips are doubled for a stereo autoencoder, stereo ones mixed for a mono one.

    Clips are minutes long: they are encoded and decoded in chunks of 256 frames, each with as many frames to either
    side as the convolutions reach, so that the result is what the whole clip at once would give, up to rounding.
    """

    stochastic = True
    round_trip_tolerance = None

    def __init__(self, config: OobleckConfig) -> None:
        self.config = config
        self.vae = _load_autoencoder(config)
        self.device = default_device()
        self.vae.to(self.device).eval().requires_grad_(False)
        settings = self.vae.config
        self.sample_rate, self.audio_channels = int(settings.sampling_rate), int(settings.audio_channels)
        self.ratios = tuple(int(ratio) for ratio in settings.downsampling_ratios)
        self.hop_length = math.prod(self.ratios)
        self.latent = LatentSpec(
            int(settings.decoder_input_channels), (config.num_frames,), sequence=True, variable=True
        )
        self.fingerprint = f"oobleck-{network_digest(self.vae)}"

    @torch.no_grad()
    def encode(self, samples: Sequence[Clip]) -> list[Tensor]:
        """(ceil(samples / hop), 2 C) of each clip, filled with zeros to whole frames: means, then deviations."""
        return [self._encode(clip.resampled(self.sample_rate)) for clip in samples]

    def _encode(self, clip: Clip) -> Tensor:
        num_frames = self._num_frames(clip)
        missing = num_frames * self.hop_length - len(clip.waveform)
        channels_AS = torch.from_numpy(np.pad(clip.channels(self.audio_channels), ((0, 0), (0, missing))))
        parts = []
        for first, last, start, stop in chunks(num_frames, encoder_reach(self.ratios)):
            excerpt = channels_AS[:, start * self.hop_length : stop * self.hop_length]
            posterior = self.vae.encode(excerpt[None].to(self.device)).latent_dist
            moments_TC = torch.cat([posterior.mean, posterior.std], dim=1)[0].T
            parts.append(moments_TC[first - start : last - start].float().cpu())
        return torch.cat(parts)

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, T, 2 C) to a draw (B, T, C) from the posterior with ``noise``, to its mean without."""
        mean, deviation = stored.chunk(2, dim=-1)
        return (mean if noise is None else mean + deviation * noise) / self.config.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[Clip]:
        """(B, T, C) to clips of ``hop_length`` samples a real frame, scaled down where they pass full scale.

        ``mask`` (B, T) is True on real frames, which come first; a clip depends on nothing outside of it.
        """
        lengths = [latents.shape[1]] * len(latents) if mask is None else mask.sum(dim=-1).tolist()
        clips: dict[int, Clip] = {}
        for indices in by_length(lengths, _CLIPS_AT_ONCE):
            num_frames = int(lengths[indices[0]])
            unscaled_BCT = (latents[indices, :num_frames].detach().float() * self.config.scale).transpose(1, 2)
            for index, channels_AS in zip(indices, self._decode(unscaled_BCT), strict=True):
                clips[index] = Clip.of_channels(channels_AS.numpy(), self.sample_rate)
        return [clips[index] for index in range(len(latents))]

    def _decode(self, latents_BCT: Tensor) -> Tensor:
        num_frames = latents_BCT.shape[-1]
        parts = [torch.zeros(len(latents_BCT), self.audio_channels, 0)]
        for first, last, start, stop in chunks(num_frames, decoder_reach(self.ratios)):
            decoded_BAS = self.vae.decode(latents_BCT[..., start:stop].to(self.device)).sample
            kept = slice((first - start) * self.hop_length, (last - start) * self.hop_length)
            parts.append(decoded_BAS[..., kept].float().cpu())
        sound_BAS = torch.cat(parts, dim=-1)
        return sound_BAS / sound_BAS.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1) if num_frames else sound_BAS

    def window(self, sample: Clip, position: float) -> Clip:
        """The ``num_frames * hop_length`` samples that one latent covers, or all of a shorter clip, in whole frames."""
        hop, clip = self.hop_length, sample.resampled(self.sample_rate)
        first, num_kept = window_frames(self._num_frames(clip), self.config.num_frames, position)

        def cut(samples: np.ndarray) -> np.ndarray:
            excerpt = samples[first * hop : (first + num_kept) * hop]
            return np.pad(excerpt, (0, num_kept * hop - len(excerpt)))

        side = None if clip.side is None or self.audio_channels == 1 else cut(clip.side)
        return Clip(cut(clip.waveform), self.sample_rate, side)

    def _num_frames(self, clip: Clip) -> int:
        return -(-len(clip.waveform) // self.hop_length)


def chunks(num_frames: int, reach: int) -> list[tuple[int, int, int, int]]:
    """``num_frames`` in parts of 256: first and last frame of each, and of what has to be seen for it."""
    size = _CHUNK_FRAMES
    return [
        (first, min(first + size, num_frames), max(first - reach, 0), min(first + size + reach, num_frames))
        for first in range(0, num_frames, size)
    ]


def encoder_reach(ratios: Sequence[int]) -> int:
    """Frames to either side of a latent that the encoder sees, rounded up; 8 for Stable Audio Open's."""
    samples, rate = 3, 1  # the first convolution, with a kernel of 7
    for ratio in ratios:
        samples += rate * (_REACH_OF_UNIT + ratio)
        rate *= ratio
    return math.ceil((samples + rate) / rate)


def decoder_reach(ratios: Sequence[int]) -> int:
    """Latents to either side of a frame's samples that the decoder sees, rounded up; 10 for Stable Audio Open's."""
    rate = math.prod(ratios)
    frames, samples = rate, 3 * rate + 3  # first and last convolution, with kernels of 7
    for ratio in reversed(ratios):
        samples += rate
        rate //= ratio
        samples += rate * _REACH_OF_UNIT
    return math.ceil(samples / frames)


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _channels_on_disk(config: OobleckConfig) -> int | None:
    folder = _expanded(config.path)
    if not folder.is_dir():
        return None
    settings = read_config(folder / config.subfolder, "tokenizer.path")
    channels = settings.get("decoder_input_channels")
    if not isinstance(channels, int):
        raise InputError(f"tokenizer.path: {folder / config.subfolder} holds no config of an AutoencoderOobleck")
    return channels


def _load_autoencoder(config: OobleckConfig) -> Any:
    """The network, every weight of it from safetensors. Raises :class:`InputError` for anything else."""
    from diffusers import AutoencoderOobleck

    try:
        path = str(_expanded(config.path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers makes its layers by an older weight_norm
            model, info = AutoencoderOobleck.from_pretrained(
                path, subfolder=config.subfolder or None, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # noqa: BLE001 - also of HTTP clients below the library, others in each version
        raise InputError(
            f"tokenizer.path: no AutoencoderOobleck can be loaded from {config.path!r}, subfolder "
            f"{config.subfolder!r} ({first_line(error)}); give a hub id with a connection (Stable Audio Open's asks to "
            f"accept its licence and log in), or a local folder with config.json and "
            f"diffusion_pytorch_model.safetensors"
        ) from None
    wrong = sorted({*info["missing_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])})
    if wrong:
        raise InputError(
            f"tokenizer.path: the weights in {config.path!r} are of another network: {len(wrong)} tensors are missing "
            f"or misshapen, such as {wrong[0]}"
        )
    odd = [ratio for ratio in model.config.downsampling_ratios if ratio % 2]
    if odd:
        raise InputError(f"tokenizer.path: {config.path!r} has downsampling_ratios {odd}; only even ones keep lengths")
    return model
