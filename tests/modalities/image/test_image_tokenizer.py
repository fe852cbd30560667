"""Images to latents and back: pixels, and a small AutoencoderKL in diffusers' own format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_checkpoints import save_vae

from layersync import InputError, load, load_recipe, train
from layersync.modalities.image.render import render_images
from layersync.modalities.image.tokenizer import (
    Pixels,
    PixelsConfig,
    Vae,
    VaeConfig,
    centre_crop,
    to_bytes,
    with_channels,
)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL of 4 latent channels and reduction 2, saved as diffusers saves it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return folder


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_pixels_come_back_as_they_were() -> None:
    tokenizer = Pixels(PixelsConfig(image_size=16))
    images = [photo(16, 16, seed) for seed in range(3)]
    latents = torch.stack(tokenizer.encode(images))
    assert latents.shape == (3, 3, 16, 16)
    assert latents.min() >= -1
    assert latents.max() <= 1
    for image, back in zip(images, tokenizer.decode(latents), strict=True):
        assert (image == back).all()


def test_rounding_follows_the_two_published_ways() -> None:
    """SiT: clamp(127.5 x + 128); REPA: 255 (x + 1) / 2, both cut to bytes."""
    x = torch.tensor([-1.2, -1.0, -0.5, 0.0, 0.003, 0.999, 1.5]).reshape(1, 1, 1, 7)
    assert to_bytes(x, "nearest").ravel().tolist() == [0, 0, 64, 128, 128, 255, 255]
    assert to_bytes(x, "truncate").ravel().tolist() == [0, 0, 63, 127, 127, 254, 255]


def test_pixels_that_are_not_finite_are_no_image() -> None:
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 0, 1] = float("nan")
    with pytest.raises(InputError, match="1 of 3 images hold values that are not finite numbers"):
        to_bytes(images, "nearest")


def test_crop_takes_the_centre_at_the_shorter_side() -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 200
    found = centre_crop(wide, 32)
    assert found.shape == (32, 32, 3)
    assert (found == 200).all()
    assert centre_crop(photo(100, 70), 16).shape == (16, 16, 3)


def test_crop_halves_by_boxes_before_it_interpolates() -> None:
    """From 64 to 16 pixels ADM's crop is two exact box averages."""
    image = photo(64, 64)
    boxes = np.asarray(
        Image.fromarray(image).resize((32, 32), Image.Resampling.BOX).resize((16, 16), Image.Resampling.BOX)
    )
    assert (centre_crop(image, 16) == boxes).all()


def adm_crop(image: np.ndarray, size: int) -> np.ndarray:
    """ADM's preparation of ImageNet, from its description in guided-diffusion's ``image_datasets.py``."""
    picture = Image.fromarray(image)
    while min(*picture.size) >= 2 * size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), resample=Image.Resampling.BOX)
    scale = size / min(*picture.size)
    picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    array = np.array(picture)
    down, right = ((side - size) // 2 for side in array.shape[:2])
    return array[down : down + size, right : right + size]


@pytest.mark.parametrize(("height", "width"), [(45, 131), (150, 37), (21, 50), (41, 19)])
def test_crop_is_adms_of_wide_and_of_tall_pictures(height: int, width: int) -> None:
    """Odd sizes with and without halving; two of the last size a side, which are enlarged at first."""
    y, x, c = np.ogrid[:height, :width, :3]
    slopes = ((5 * y + 3 * x + 40 * c + x * y // 7) % 256).astype(np.uint8)
    for image in (slopes, photo(height, width)):
        assert np.array_equal(centre_crop(image, 16), adm_crop(image, 16))
        assert np.array_equal(centre_crop(image[..., :1], 24)[..., 0], adm_crop(image[..., 0], 24))


@pytest.mark.parametrize(("colour", "share"), [(0, 0.299), (1, 0.587), (2, 0.114)])
def test_grey_is_the_luma_of_itu_r_601(colour: int, share: float) -> None:
    pure = np.zeros((2, 3, 3), dtype=np.uint8)
    pure[..., colour] = 255
    found = with_channels(pure, 1)
    assert found.shape == (2, 3, 1) and (found == round(255 * share)).all()


def test_channels_are_converted() -> None:
    grey = photo(4, 4)[..., :1]
    assert (with_channels(grey, 3) == grey).all()
    assert with_channels(photo(4, 4), 1).shape == (4, 4, 1)


def test_vae_stores_moments_and_draws_from_them(vae_folder: Path) -> None:
    from diffusers import AutoencoderKL

    tokenizer = Vae(VaeConfig(path=str(vae_folder), image_size=16))
    assert tokenizer.latent.shape == (4, 8, 8)
    assert tokenizer.stochastic, "a step gives it noise to draw with"
    image = photo(16, 16)
    stored = tokenizer.encode([image])[0]
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
    assert torch.allclose(stored, torch.cat([posterior.mean, posterior.std], 1)[0], atol=1e-5)
    noise = torch.randn(1, 4, 8, 8)
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    assert torch.allclose(tokenizer.latents(stored[None], noise), expected, atol=1e-5)
    with torch.no_grad():
        decoded = vae.decode(expected / 0.18215).sample
    assert (tokenizer.decode(expected)[0] == to_bytes(decoded, "nearest")[0]).all()


@torch.no_grad()
def test_a_vae_rounds_as_the_recipe_says(vae_folder: Path) -> None:
    tokenizer = Vae(VaeConfig(path=str(vae_folder), image_size=16, rounding="truncate"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoded = tokenizer.vae.decode(latents / 0.18215).sample
    found = np.stack(tokenizer.decode(latents))
    assert (found == to_bytes(decoded, "truncate")).all() and (found != to_bytes(decoded, "nearest")).mean() > 0.3


@torch.no_grad()
def test_a_shift_is_taken_off_before_the_scale_and_added_again(tmp_path: Path) -> None:
    tokenizer = Vae(VaeConfig(path=str(save_vae(tmp_path, shift_factor=0.1)), image_size=16))
    stored, noise = torch.stack(tokenizer.encode([photo(16, 16)])), torch.randn(1, 4, 8, 8)
    mean, deviation = stored.chunk(2, dim=1)
    latents = tokenizer.latents(stored)
    torch.testing.assert_close(latents, (mean - 0.1) * 0.18215)
    torch.testing.assert_close(tokenizer.latents(stored, noise), (mean + deviation * noise - 0.1) * 0.18215)
    back = to_bytes(tokenizer.vae.decode(mean).sample, "nearest")[0].astype(int)
    assert np.abs(tokenizer.decode(latents)[0] - back).max() <= 1  # a float32's last digit may turn a byte
    assert {name: float(value) for name, value in tokenizer.state().items()} == pytest.approx(
        {"scaling_factor": 0.18215, "shift_factor": 0.1}
    )


@torch.no_grad()
def test_channels_are_freed_of_their_own_mean_and_deviation(tmp_path: Path) -> None:
    """Where the VAE's config has both, as Playground v2.5's: in the order of diffusers' SDXL pipeline."""
    mean, std = [0.5, -1.0, 2.0, 0.0], [2.0, 4.0, 0.5, 1.0]
    tokenizer = Vae(VaeConfig(path=str(save_vae(tmp_path, latents_mean=mean, latents_std=std)), image_size=16))
    stored = torch.stack(tokenizer.encode([photo(16, 16)]))
    raw, _ = stored.chunk(2, dim=1)
    latents = tokenizer.latents(stored)
    by_channel = [(raw[:, c] - mean[c]) * 0.18215 / std[c] for c in range(4)]
    torch.testing.assert_close(latents, torch.stack(by_channel, 1))
    back = to_bytes(tokenizer.vae.decode(raw).sample, "nearest")[0].astype(int)
    assert np.abs(tokenizer.decode(latents)[0] - back).max() <= 1
    plain = Vae(VaeConfig(path=str(save_vae(tmp_path / "plain")), image_size=16))
    tokenizer.check_state(tokenizer.state())
    with pytest.raises(InputError, match=r"has latents_mean 0\.5, -1, 2, 0, the run's latents were made with none"):
        tokenizer.check_state(plain.state())
    with pytest.raises(InputError, match="has no latents_mean, the run's VAE had"):
        plain.check_state(tokenizer.state())
    with pytest.raises(InputError, match="are no 4 numbers each"):
        Vae(VaeConfig(path=str(save_vae(tmp_path / "few", latents_mean=[0.0], latents_std=[1.0])), image_size=16))


def test_the_vae_of_a_whole_pipeline_lies_in_a_folder_of_its_own(vae_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vae_folder, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"of a whole pipeline say tokenizer\.subfolder=vae"):
        Vae(VaeConfig(path=str(tmp_path), image_size=16))
    config = VaeConfig(path=str(tmp_path), subfolder="vae", image_size=16)
    assert Vae(config).fingerprint == Vae(VaeConfig(path=str(vae_folder), image_size=16)).fingerprint
    assert config.latent_spec() == Vae(config).latent


def test_vae_fingerprint_follows_its_weights(vae_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    other = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path)
    prints = {Vae(VaeConfig(path=str(path), image_size=16)).fingerprint for path in (vae_folder, tmp_path)}
    assert len(prints) == 2


def test_a_vae_that_is_not_there_or_does_not_fit_is_one_line(vae_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no VAE can be loaded"):
        Vae(VaeConfig(path=str(tmp_path), image_size=16))
    with pytest.raises(InputError, match=r"image_size: 15 is no multiple"):
        Vae(VaeConfig(path=str(vae_folder), image_size=15))


@pytest.mark.parametrize("channels", [(8,), (8, 8, 8), (16, 16)])
def test_weights_of_another_vae_are_refused(channels: tuple[int, ...], vae_folder: Path, tmp_path: Path) -> None:
    """More, fewer or wider layers than config.json says."""
    config = json.loads((vae_folder / "config.json").read_text())
    down, up = ([f"{name}Block2D"] * len(channels) for name in ("DownEncoder", "UpDecoder"))
    config |= {"block_out_channels": channels, "down_block_types": down, "up_block_types": up}
    shutil.copytree(vae_folder, tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tokenizer\.path: .*vae") as refused:
        Vae(VaeConfig(path=str(tmp_path / "vae"), image_size=16))
    assert "\n" not in str(refused.value)


def test_a_vae_saved_again_has_the_same_fingerprint(vae_folder: Path, tmp_path: Path) -> None:
    """Hubs hold files that leave defaults out; whoever saves them again, or has a newer diffusers, states more."""
    config = json.loads((vae_folder / "config.json").read_text())
    shutil.copytree(vae_folder, tmp_path / "short")
    left_out = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "act_fn")
    short = {key: value for key, value in config.items() if key not in left_out}
    (tmp_path / "short" / "config.json").write_text(json.dumps(short))
    assert len(short) == len(config) - len(left_out)
    prints = {Vae(VaeConfig(path=str(path), image_size=16)).fingerprint for path in (vae_folder, tmp_path / "short")}
    assert len(prints) == 1


def test_many_images_are_encoded_a_few_at_a_time(vae_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Vae(VaeConfig(path=str(vae_folder), image_size=16))
    sizes, encode = [], tokenizer.vae.encode
    monkeypatch.setattr(tokenizer.vae, "encode", lambda part: (sizes.append(len(part)), encode(part))[1])
    images = list(np.random.default_rng(0).integers(0, 256, (19, 16, 16, 3), dtype=np.uint8))
    stored = tokenizer.encode(images)
    assert sizes == [8, 8, 3] and torch.allclose(stored[17], tokenizer.encode(images[17:18])[0], atol=1e-5)


def test_latents_of_a_vae_train_and_sample(vae_folder: Path, tmp_path: Path) -> None:
    recipe = {
        "modality": "image",
        "data": {"name": "digits", "flip": True},
        "tokenizer": {"name": "vae", "path": str(vae_folder), "image_size": 16},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 2},
        "regularizer": {"name": "layersync"},
        "train": {"steps": 2, "batch_size": 8},
        "sample": {"solver": "euler", "steps": 2, "guidance": 2.0, "guidance_channels": 3},
    }
    run = train(load_recipe(recipe), tmp_path / "run")
    samples = load(run.path).sample(3)
    assert [sample.shape for sample in samples] == [(16, 16, 3)] * 3


def test_a_grid_and_single_pictures_are_written(tmp_path: Path) -> None:
    samples = [photo(8, 8, seed) for seed in range(5)]
    files = render_images(samples, tmp_path)
    assert [file.name for file in files] == ["grid.png", *(f"{n:03d}.png" for n in range(5))]
    assert (np.asarray(Image.open(tmp_path / "003.png")) == samples[3]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns", "rows"), [(5, 3, 2), (64, 8, 8), (65, 8, 8)])
def test_a_contact_sheet_holds_the_first_64_samples_in_rows(
    count: int, columns: int, rows: int, channels: int, tmp_path: Path
) -> None:
    """Of 8x8 pixels, each of which becomes 8x8; 2 white pixels around every cell."""
    samples = [photo(8, 8, seed)[..., :channels] for seed in range(count)]
    sheet = np.asarray(Image.open(render_images(samples, tmp_path)[0]))
    assert sheet.shape == (rows * 66 + 2, columns * 66 + 2, 3)
    white = np.ones(sheet.shape[:2], dtype=bool)
    for number, sample in enumerate(samples[:64]):
        top, left = 2 + number // columns * 66, 2 + number % columns * 66
        wanted = np.broadcast_to(sample, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        assert np.array_equal(sheet[top : top + 64, left : left + 64], wanted), number
        white[top : top + 64, left : left + 64] = False
    assert (sheet[white] == 255).all()
    assert len(list(tmp_path.glob("[0-9]*.png"))) == count


def test_a_vae_is_the_same_wherever_it_lies(vae_folder: Path, tmp_path: Path) -> None:
    """A moved folder, or a hub id instead of one, must not encode a data set anew."""
    shutil.copytree(vae_folder, tmp_path / "moved")
    here, there = (Vae(VaeConfig(path=str(path), image_size=16)) for path in (vae_folder, tmp_path / "moved"))
    assert here.fingerprint == there.fingerprint


def test_the_recipe_can_name_the_scale(vae_folder: Path) -> None:
    own = Vae(VaeConfig(path=str(vae_folder), image_size=16))
    named, other = (Vae(VaeConfig(path=str(vae_folder), image_size=16, scaling_factor=s)) for s in (0.18215, 0.3643))
    stored = torch.stack(own.encode([photo(16, 16)]))
    assert torch.equal(own.latents(stored), named.latents(stored)) and own.fingerprint == other.fingerprint
    assert torch.allclose(other.latents(stored), 2 * own.latents(stored))
    decoded = (tokenizer.decode(tokenizer.latents(stored))[0] for tokenizer in (own, other))
    assert np.array_equal(*decoded)
