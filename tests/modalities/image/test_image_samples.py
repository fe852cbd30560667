"""Anybody's image samples in and out: folders, ADM's .npz, .npy; how pixels become bytes."""

from __future__ import annotations

import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layersync import InputError
from layersync.modalities.image.adapter import ImageAdapter
from layersync.modalities.image.render import render_images
from layersync.modalities.image.samples import open_image_samples, write_adm_samples
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig


def stack(count: int, size: tuple[int, int] = (6, 5), channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    (picture if mode is None else picture.convert(mode)).save(path)


def refused(path: Path) -> str:
    """The message of the one-line error that ``path`` gets."""
    with pytest.raises(InputError) as caught:
        open_image_samples(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_a_folder_is_read_at_any_depth_in_the_order_of_names_with_its_captions(tmp_path: Path) -> None:
    images = stack(4)
    for image, name in zip(images, ["b/2.png", "a.png", "b/10.png", "b/c/0.bmp"], strict=True):
        save(tmp_path / name, image)
    save(tmp_path / "b" / "5.png", images[0][..., :1])
    save(tmp_path / ".hidden" / "x.png", stack(1, (3, 3))[0])
    (tmp_path / "b" / "10.txt").write_text("\nein Käfer \na beetle\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no image has this name")
    found = ImageAdapter().open_samples(tmp_path)
    assert [Path(found[i].source).relative_to(tmp_path).as_posix() for i in range(len(found))] == [
        "a.png",
        "b/10.png",
        "b/2.png",
        "b/5.png",
        "b/c/0.bmp",
    ]
    for index, image in zip([0, 1, 2, 4], images[[1, 2, 0, 3]], strict=True):
        assert (found[index].sample == image).all()
    assert found[3].sample.shape == (6, 5, 1)
    assert [dict(found[i].condition) for i in range(5)] == [{}, {"text": "ein Käfer"}, {}, {}, {}]


def test_linked_folders_are_read_as_others_are(tmp_path: Path) -> None:
    images = stack(2)
    save(tmp_path / "joint" / "a.png", images[0])
    save(tmp_path / "elsewhere" / "b.png", images[1])
    (tmp_path / "joint" / "more").symlink_to(tmp_path / "elsewhere")
    found = open_image_samples(tmp_path / "joint")
    assert len(found) == 2 and (found[1].sample == images[1]).all()


def test_what_layersync_sample_writes_is_read_without_its_contact_sheet(tmp_path: Path) -> None:
    images = stack(3, (8, 8))
    render_images(list(images), tmp_path)
    found = open_image_samples(tmp_path)
    assert [(found[i].sample == images[i]).all() for i in range(len(found))] == [True] * 3
    (tmp_path / "000.png").unlink()
    assert "one size" in refused(tmp_path)  # a picture of that name in another folder is a sample like any other


def test_transparency_is_dropped_with_one_warning_that_counts(tmp_path: Path) -> None:
    rgba = stack(2, channels=4)
    save(tmp_path / "a.png", rgba[0])
    save(tmp_path / "b.png", rgba[1])
    save(tmp_path / "c.png", rgba[0][..., :3])
    with pytest.warns(UserWarning, match=r"2 of 3 images are transparent, the first a\.png") as caught:
        found = open_image_samples(tmp_path)
    assert len(caught) == 1
    assert (found[1].sample == rgba[1][..., :3]).all()
    np.save(tmp_path / "all.npy", rgba)
    with pytest.warns(UserWarning, match="four channels") as caught:
        found = open_image_samples(tmp_path / "all.npy")
    assert len(caught) == 1
    assert (found[1].sample == rgba[1][..., :3]).all()


def test_a_palette_without_transparency_becomes_its_colours_silently(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[:2] = [51, 204, 0]  # of the web palette, steps of 51
    save(tmp_path / "a.png", image, mode="P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = open_image_samples(tmp_path)
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert (found[0].sample == image).all()


def test_images_of_differing_sizes_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a.png", stack(1)[0])
    save(tmp_path / "b.png", stack(1)[0])
    save(tmp_path / "c.png", stack(1, (6, 9))[0])
    message = refused(tmp_path)
    assert f"{tmp_path / 'a.png'} is 5x6" in message
    assert f"{tmp_path / 'c.png'} is 9x6" in message


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", stack(1, (64, 64))[0])
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(b"no image at all")
    assert str(tmp_path / "b.png") in refused(tmp_path)
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    found = open_image_samples(tmp_path)  # its header is whole
    with pytest.raises(InputError, match=r"b\.png: is corrupt"):
        found[1]
    (tmp_path / "b.png").write_bytes(whole)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe caption")
    with pytest.raises(InputError, match=r"b\.txt: cannot be read as captions in UTF-8"):
        open_image_samples(tmp_path)
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"b\.txt: holds no caption"):
        open_image_samples(tmp_path)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refused(tmp_path)


def test_paths_that_hold_no_samples_are_refused(tmp_path: Path) -> None:
    assert "no image in it" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "gone")
    save(tmp_path / "one.png", stack(1)[0])
    assert "a folder of images" in refused(tmp_path / "one.png")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_adm_samples_and_labels_are_read(tmp_path: Path, write: object) -> None:
    images, path = stack(5), tmp_path / "samples.npz"
    write(path, images, np.array([2, 0, 1, 2, 2]))  # type: ignore[operator]
    found = open_image_samples(path)
    assert found.classes == ("0", "1", "2")
    for index in range(5):
        assert (found[index].sample == images[index]).all()
        assert found[index].condition == {"label": [2, 0, 1, 2, 2][index]}
        assert found[index].source == f"{path}:arr_0[{index}]"
    write(path, images, np.linspace(0, 1, 5))  # type: ignore[operator]
    assert open_image_samples(path)[0].condition == {}


def test_a_reference_file_of_images_and_statistics_gives_its_images(tmp_path: Path) -> None:
    """Laid out as ADM's VIRTUAL_imagenet256_labeled.npz."""
    images, moments = stack(4), {"mu": np.zeros(8), "sigma": np.eye(8), "mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "both.npz", images, np.arange(4), **moments)
    found = open_image_samples(tmp_path / "both.npz")
    assert len(found) == 4 and (found[3].sample == images[3]).all()
    np.savez(tmp_path / "statistics.npz", **moments)
    assert "holds statistics (mu, sigma, mu_s, sigma_s) and no samples" in refused(tmp_path / "statistics.npz")
    np.savez(tmp_path / "other.npz", images=images)
    assert "has no arr_0, where ADM keeps samples; it has: images" in refused(tmp_path / "other.npz")


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_stored_arrays_are_not_loaded_before_they_are_asked_for(tmp_path: Path, suffix: str) -> None:
    """30 MB of images: opening them and reading one allocates less than 2 MB."""
    images = stack(100, (320, 320))
    path = tmp_path / f"samples.{suffix}"
    if suffix == "npz":
        np.savez(path, images)
    else:
        np.save(path, images)
    tracemalloc.start()
    found = open_image_samples(path)
    last = found[99].sample.copy()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (last == images[99]).all()
    assert peak < 2e6


def test_arrays_in_column_order_and_of_newer_headers_are_read(tmp_path: Path) -> None:
    images = stack(3)
    np.savez(tmp_path / "f.npz", np.asfortranarray(images))
    assert (open_image_samples(tmp_path / "f.npz")[1].sample == images[1]).all()
    with zipfile.ZipFile(tmp_path / "v3.npz", "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array(member, images, version=(3, 0))
    assert (open_image_samples(tmp_path / "v3.npz")[1].sample == images[1]).all()


def test_grey_stacks_are_read(tmp_path: Path) -> None:
    images = stack(3, channels=1)
    for name, array in (("a.npy", images), ("b.npy", images[..., 0])):
        np.save(tmp_path / name, array)
        assert (open_image_samples(tmp_path / name)[2].sample == images[2]).all()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (stack(2).astype(np.float32) / 127.5 - 1, "float32; images are uint8 from 0 to 255; from [-1, 1] that is"),
        (stack(2).astype(np.int64), "int64; images are uint8"),
        (stack(2).transpose(0, 3, 1, 2), "channels come last: array.transpose(0, 2, 3, 1)"),
        (stack(2, channels=2), "an image has 1 or 3 channels"),
        (stack(1)[0], "a single image"),
        (stack(0), "no image in it"),
        (np.uint8(3), "images are (n, height, width)"),
        (np.array([{}]), "pickled"),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_other_arrays_are_refused_with_what_would_be_right(
    tmp_path: Path, array: np.ndarray, says: str, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez(path, array)
    else:
        np.save(path, array, allow_pickle=True)
    assert says in refused(path)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_files_cut_short_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez_compressed(path, stack(20))
    else:
        np.save(path, stack(20))
    content = path.read_bytes()
    for length in (0, 20, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("labels", [np.arange(3), np.array([0, 1, -1, 0]), np.full(4, 10**9), np.zeros((4, 1), int)])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", stack(4), labels)
    assert "arr_1" in refused(tmp_path / "x.npz")


def test_fingerprints_follow_pixels_captions_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number, image in enumerate(stack(2)):
        save(folder / f"{number}.png", image)
    first = open_image_samples(folder).fingerprint
    (folder / "other.txt").write_text("belongs to no image")
    assert open_image_samples(folder).fingerprint == first
    (folder / "1.txt").write_text("a caption")
    second = open_image_samples(folder).fingerprint
    (folder / "1.txt").write_text("another caption")
    third = open_image_samples(folder).fingerprint
    save(folder / "0.png", stack(1, seed=1)[0])
    assert len({first, second, third, open_image_samples(folder).fingerprint}) == 4
    np.savez(tmp_path / "x.npz", stack(2))
    before = open_image_samples(tmp_path / "x.npz").fingerprint
    np.savez(tmp_path / "x.npz", stack(2, seed=1))
    assert open_image_samples(tmp_path / "x.npz").fingerprint != before


@pytest.mark.parametrize("channels", [1, 3])
def test_written_samples_are_what_adms_evaluator_reads(tmp_path: Path, channels: int) -> None:
    images, path = stack(4, channels=channels), tmp_path / "samples.npz"
    write_adm_samples(path, images, labels=[3, 0, 0, 1])
    with np.load(path) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        assert stored["arr_0"].dtype == np.uint8 and stored["arr_0"].shape == (4, 6, 5, 3)
        assert (stored["arr_0"] == images).all()
        assert stored["arr_1"].tolist() == [3, 0, 0, 1]
    found = open_image_samples(path)
    assert (found[2].sample == images[2]).all() and found[2].condition == {"label": 0}
    write_adm_samples(path, list(images))
    assert open_image_samples(path)[0].condition == {}


def test_samples_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(InputError, match="sample 1 is uint8"):
        write_adm_samples(path, [stack(1)[0], stack(1, (4, 4))[0]])
    with pytest.raises(InputError, match="sample 0 is float64"):
        write_adm_samples(path, [stack(1)[0] / 255])
    with pytest.raises(InputError, match="2 labels for 3"):
        write_adm_samples(path, stack(3), labels=[0, 1])
    with pytest.raises(InputError, match="no samples"):
        write_adm_samples(path, [])
    with pytest.raises(InputError, match="does not exist"):
        write_adm_samples(tmp_path / "gone" / "samples.npz", stack(3))
    with pytest.raises(InputError, match=r"are an \.npz"):
        write_adm_samples(tmp_path / "samples.npy", stack(3))
    assert not list(tmp_path.iterdir())


def test_rounding_changes_decoded_bytes_by_half_a_level_and_no_latent(tmp_path: Path) -> None:
    """255 (x + 1) / 2 is cut by REPA and ADM, rounded by SiT: one level apart where its fraction is at least 1/2."""
    latents = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    by_name = {name: Pixels(PixelsConfig(rounding=name)) for name in ("nearest", "truncate")}
    decoded = {name: np.stack(tokenizer.decode(latents)).astype(int) for name, tokenizer in by_name.items()}
    level = 127.5 * (latents.permute(0, 2, 3, 1).numpy() + 1)
    assert (decoded["truncate"] == np.floor(level)).all()
    assert (decoded["nearest"] - decoded["truncate"] == (level % 1 >= 0.5)).all()
    assert (decoded["nearest"] == np.stack(Pixels(PixelsConfig()).decode(latents))).all()
    assert by_name["nearest"].fingerprint == by_name["truncate"].fingerprint


def test_the_classifier_reads_many_large_images_a_part_at_a_time() -> None:
    """Each as it is read alone; the whole set, four times as large in float32, is never in memory at once."""
    images = list(stack(600, (96, 128)))
    tracemalloc.start()
    found, _ = ImageAdapter().classifier_input(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (600, 3, 64, 64) and peak < sum(image.nbytes for image in images) * 0.6
    alone = torch.cat([ImageAdapter().classifier_input([images[number]])[0] for number in (0, 255, 256, 599)])
    assert torch.equal(found[[0, 255, 256, 599]], alone)
