"""Images to latents and back: pixels as they are, or a VAE's latents."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from layersync.core.adapter import LatentSpec, Section, Tokenizer
from layersync.core.device import default_device
from layersync.core.errors import InputError
from layersync.core.pretrained import first_line, network_digest

Rounding = Literal["nearest", "truncate"]
VAE_BATCH = 8
"""Images at once: of 512x512 the activations of one are a gigabyte."""
ROUNDING = "How pixels become bytes. nearest: as SiT, DiT and EDM; truncate: as ADM and REPA, half a grey level darker."


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (height, width, channels) to (size, size, channels), as ADM prepares ImageNet.

    Halved by box averages while twice the size fits, then bicubic to the shorter side, then the centre
    (guided-diffusion ``image_datasets.py``). Images that have the size already are returned as they are.
    """
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), resample=Image.Resampling.BICUBIC
    )
    array = np.asarray(picture)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    array = array[top : top + size, left : left + size]
    return array[..., None] if array.ndim == 2 else array


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey to colour by repetition, colour to grey by luma (ITU-R 601-2, as Pillow does)."""
    if image.shape[2] == channels:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return np.repeat(image, 3, axis=2)


def to_bytes(images: Tensor, rounding: Rounding) -> np.ndarray:
    """(batch, channels, height, width) in [-1, 1] to uint8 (batch, height, width, channels).

    ``nearest``: clamp(127.5 x + 128) truncated, as SiT, LayerSync, DiT and EDM sample. ``truncate``: 255 (x + 1) / 2
    truncated, as ADM and REPA do: half a grey level darker. Raises :class:`InputError` for pixels that are not finite.
    """
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise InputError(f"decoding: {bad} of {len(images)} images hold values that are not finite numbers")
    scaled = 127.5 * images + 128 if rounding == "nearest" else 127.5 * (images + 1)
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _to_unit(samples: Sequence[np.ndarray], size: int, channels: int) -> Tensor:
    arrays = [with_channels(centre_crop(sample, size), channels) for sample in samples]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


class PixelsConfig(Section):
    """Pixels in [-1, 1] as latents."""

    name: Literal["pixels"] = "pixels"
    image_size: int = Field(32, ge=1, description="Images are cropped and scaled to this many pixels a side.")
    channels: Literal[1, 3] = 3
    rounding: Rounding = Field("nearest", description=ROUNDING)

    def latent_spec(self) -> LatentSpec:
        """The pixels."""
        return LatentSpec(self.channels, (self.image_size, self.image_size))


class Pixels(Tokenizer):
    """Latents are the pixels."""

    round_trip_tolerance = 0.02
    """Exact by rounding to the nearest byte; 0.01 where bytes are cut, one level of 255."""

    def __init__(self, config: PixelsConfig):
        self.config = config
        self.latent = config.latent_spec()
        self.fingerprint = f"pixels-{config.image_size}-{config.channels}"

    def encode(self, samples: Sequence[np.ndarray]) -> list[Tensor]:  # noqa: D102
        return list(_to_unit(samples, self.config.image_size, self.config.channels))

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[np.ndarray]:  # noqa: D102
        return list(to_bytes(latents, self.config.rounding))

    def window(self, sample: np.ndarray, position: float) -> np.ndarray:
        """The image at the tokenizer's size."""
        return with_channels(centre_crop(sample, self.config.image_size), self.config.channels)


class VaeConfig(Section):
    """A diffusers ``AutoencoderKL``; Stable Diffusion's is scaled by 0.18215, which its own config says."""

    name: Literal["vae"] = "vae"
    path: str = Field("stabilityai/sd-vae-ft-ema", description="Hub id, or a local folder in diffusers' layout.")
    subfolder: str = Field("", description="Where in it the VAE lies: vae in a whole pipeline; empty: at its top.")
    image_size: int = Field(256, ge=8)
    scaling_factor: float | None = Field(None, gt=0, description="Latents are multiplied by it; null: the VAE's own.")
    rounding: Rounding = Field("nearest", description=ROUNDING)

    def latent_spec(self) -> LatentSpec | None:
        """From the VAE's ``config.json`` where it is on this machine, else as published; its weights are not needed."""
        shape = _shape_on_disk(self.path, self.subfolder) or (None if self.subfolder else PUBLISHED.get(self.path))
        if shape is None:
            return None
        channels, reduction = shape
        return LatentSpec(channels, (_side(self.image_size, reduction),) * 2)

    def stored_channels(self) -> int | None:
        """Mean and deviation of each channel."""
        latent = self.latent_spec()
        return None if latent is None else 2 * latent.channels


PUBLISHED = {"stabilityai/sd-vae-ft-ema": (4, 8), "stabilityai/sd-vae-ft-mse": (4, 8)}
"""Latent channels and pixels a latent of published VAEs (their ``config.json``: latent_channels 4, 4 resolutions)."""


def _shape_on_disk(path: str, subfolder: str) -> tuple[int, int] | None:
    """Latent channels and reduction of a local folder, or of a hub id that is in the hub's cache already."""
    file = Path(_expanded(path)) / subfolder / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(path, f"{subfolder}/config.json" if subfolder else "config.json")
        except HFValidationError:  # a path, and nothing is there
            return None
        if not isinstance(found, str):
            return None
        file = Path(found)
    try:
        settings = json.loads(file.read_text())
        return int(settings["latent_channels"]), 2 ** (len(settings["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"tokenizer.path: {file} is no config of an AutoencoderKL ({error})") from None


def _side(image_size: int, reduction: int) -> int:
    if image_size % reduction:
        raise InputError(f"tokenizer.image_size: {image_size} is no multiple of the VAE's {reduction}")
    return image_size // reduction


def _expanded(path: str) -> str:
    return os.path.expandvars(str(Path(path).expanduser()) if path.startswith("~") else path)


class Vae(Tokenizer):
    """Moments of the VAE's posterior are stored; latents are drawn from them anew at every step.

    latents = (mean + deviation * noise - shift_factor) * scaling_factor, both factors from the VAE's config unless the
    recipe gives the scale; where the config has ``latents_mean`` and ``latents_std``, each channel is freed of them
    before it is scaled, as diffusers' pipelines do.
    """

    stochastic = True
    round_trip_tolerance = None

    def __init__(self, config: VaeConfig):
        self.config = config
        self.vae = _load_vae(config.path, config.subfolder)
        self.device = default_device()
        self.vae.to(self.device).eval().requires_grad_(False)
        settings = self.vae.config
        reduction = 2 ** (len(settings.block_out_channels) - 1)
        side = _side(config.image_size, reduction)
        self.latent = LatentSpec(settings.latent_channels, (side, side))
        self.scale = config.scaling_factor or float(settings.scaling_factor)
        self.shift = float(getattr(settings, "shift_factor", None) or 0.0)
        self.mean: Tensor | None
        self.std: Tensor | None
        self.mean, self.std = _channel_statistics(settings)
        self.fingerprint = f"vae-{config.image_size}-{network_digest(self.vae)}"

    def state(self) -> dict[str, Tensor]:
        """Scale and shift, so that another VAE's cannot stand in for them unnoticed."""
        channels = {} if self.mean is None or self.std is None else {"latents_mean": self.mean, "latents_std": self.std}
        return {**scale_state(self.scale, self.shift), **channels}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over, the VAE holds scale and shift itself: they have to agree."""
        self.check_state(state)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Refuse a VAE of another scale or shift than the run's."""
        own = self.state()
        for name in own if state else ():
            theirs = state.get(name)
            if theirs is None or theirs.shape != own[name].shape or not torch.allclose(theirs, own[name], rtol=1e-4):
                raise InputError(
                    f"tokenizer.path: {self.config.path!r} has {name} {_listed(own[name])}, the run's latents were "
                    f"made with {_listed(theirs)}: another VAE than the run's"
                )
        if "latents_mean" in state and self.mean is None:
            raise InputError(f"tokenizer.path: {self.config.path!r} has no latents_mean, the run's VAE had")

    @torch.no_grad()
    def encode(self, samples: Sequence[np.ndarray]) -> list[Tensor]:
        """(2 channels, height, width) each: means, then deviations."""
        stored: list[Tensor] = []
        for part in _to_unit(samples, self.config.image_size, self.vae.config.in_channels).split(VAE_BATCH):
            posterior = self.vae.encode(part.to(self.device)).latent_dist
            stored += torch.cat([posterior.mean, posterior.std], dim=1).float().cpu()
        return stored

    def latents(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw from the posterior with ``noise``, its mean without."""
        mean, deviation = stored.chunk(2, dim=1)
        drawn = mean if noise is None else mean + deviation * noise
        if self.mean is not None and self.std is not None:
            drawn = (drawn - self.mean.to(drawn)) / self.std.to(drawn)
        return (drawn - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, mask: Tensor | None = None) -> list[np.ndarray]:  # noqa: D102
        images: list[np.ndarray] = []
        for part in latents.split(VAE_BATCH):
            unscaled = part.to(self.device, dtype=torch.float32) / self.scale + self.shift
            if self.mean is not None and self.std is not None:
                unscaled = unscaled * self.std.to(unscaled) + self.mean.to(unscaled)
            images += list(to_bytes(self.vae.decode(unscaled).sample, self.config.rounding))
        return images

    def window(self, sample: np.ndarray, position: float) -> np.ndarray:
        """The image at the tokenizer's size."""
        return with_channels(centre_crop(sample, self.config.image_size), self.vae.config.in_channels)


def scale_state(scale: float, shift: float) -> dict[str, Tensor]:
    """What a run keeps of its VAE: latents = (raw - shift_factor) * scaling_factor."""
    return {"scaling_factor": torch.tensor(scale), "shift_factor": torch.tensor(shift)}


def _channel_statistics(settings: Any) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """``latents_mean`` and ``latents_std`` (channels, 1, 1) of a VAE's config, where it has both."""
    found = [getattr(settings, name, None) for name in ("latents_mean", "latents_std")]
    if found[0] is None or found[1] is None:
        return None, None
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in found)
    if not len(mean) == len(std) == settings.latent_channels or not (std > 0).all():
        raise InputError(
            f"tokenizer.path: latents_mean and latents_std of the VAE's config.json are no {settings.latent_channels} "
            f"numbers each, the latter above 0"
        )
    return mean, std


def _listed(values: Tensor | None) -> str:
    return "none" if values is None else ", ".join(f"{value:g}" for value in values.flatten().tolist())


def _load_vae(path: str, subfolder: str) -> Any:
    """The network, every weight of it from safetensors. Raises :class:`InputError` for anything else."""
    from diffusers import AutoencoderKL

    try:
        model, info = AutoencoderKL.from_pretrained(
            _expanded(path), subfolder=subfolder or None, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # noqa: BLE001 - also of HTTP clients below the library, others in each version
        raise InputError(
            f"tokenizer.path: no VAE can be loaded from {path!r}{f', subfolder {subfolder!r}' if subfolder else ''} "
            f"({first_line(error)}); give a hub id with a connection, or a local folder with config.json and "
            f"diffusion_pytorch_model.safetensors (of a whole pipeline say tokenizer.subfolder=vae)"
        ) from None
    wrong = {*info["missing_keys"], *info["unexpected_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])}
    if wrong:
        raise InputError(
            f"tokenizer.path: the weights in {path!r} are of another network: {len(wrong)} tensors are missing, "
            f"misshapen or beyond its config.json, such as {min(wrong)}"
        )
    return model
