"""Where images come from: every source on real or generated files of its format."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pydantic import ValidationError
from sklearn.datasets import load_digits

from layersync import InputError, evaluate, load_recipe, train
from layersync.core import classifier
from layersync.core.adapter import ExampleDataset
from layersync.core.latents import LatentCache
from layersync.core.paths import fingerprint_files
from layersync.modalities.image.adapter import ImageAdapter
from layersync.modalities.image.data import SOURCES
from layersync.modalities.image.decoding import decode_image
from layersync.modalities.image.samples import open_image_samples
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

ADAPTER = ImageAdapter()


def dataset(split: str = "train", **section: object) -> ExampleDataset:
    config = SOURCES[str(section["name"])].model_validate(section)
    return ADAPTER.dataset(config, split)  # type: ignore[arg-type]


def noise_image(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve images in each of two folders."""
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for number in range(12):
            noise_image(number).save(tmp_path / label / f"{number:02d}.png")
    return tmp_path


def idx_bytes(array: np.ndarray) -> bytes:
    """An array in the IDX format, written from its description on the MNIST page."""
    head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize(("name", "size", "total"), [("digits", 8, 1797), ("mnist5k", 28, 5000)])
def test_packaged_digits_are_split_by_class_and_whole(name: str, size: int, total: int) -> None:
    parts = [dataset(split, name=name) for split in ("train", "test")]
    assert sum(len(part) for part in parts) == total
    assert parts[0].fingerprint != parts[1].fingerprint
    for part in parts:
        counts = np.bincount([part[i].condition["label"] for i in range(len(part))], minlength=10)
        assert counts.min() > 0.9 * counts.max() * (0.9 if name == "digits" else 1)
        assert part[0].sample.shape == (size, size, 1)
        assert part[0].sample.dtype == np.uint8


def test_digits_are_scikit_learns() -> None:
    found, source = dataset(name="digits"), load_digits()
    assert np.abs(found[0].sample[..., 0] / 255 * 16 - source.images[0]).max() < 0.04
    assert found[0].condition["label"] == source.target[0]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read(tmp_path: Path, zipped: bool) -> None:
    random = np.random.default_rng(0)
    for prefix, count in (("train", 9), ("t10k", 3)):
        images, labels = random.integers(0, 255, (count, 5, 4)), np.arange(count) % 3
        for stem, array in ((f"{prefix}-images-idx3", images), (f"{prefix}-labels-idx1", labels)):
            content = idx_bytes(array)
            path = tmp_path / f"{stem}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
        found = dataset("train" if prefix == "train" else "test", name="idx", path=str(tmp_path))
        assert len(found) == count
        assert (found[count - 1].sample[..., 0] == images[-1]).all()
        assert found.classes == ("0", "1", "2")


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"\x00\x00\x0b" + b[3:], lambda b: b[:2]])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(damage(idx_bytes(np.zeros((3, 4, 4)))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(3)))
    with pytest.raises(InputError, match="train-images"):
        dataset(name="idx", path=str(tmp_path))


def test_folders_are_labels(tree: Path) -> None:
    train_part, test_part = (dataset(split, name="folder", path=str(tree)) for split in ("train", "test"))
    assert train_part.classes == ("cats", "dogs")
    assert len(train_part) + len(test_part) == 24
    assert {Path(train_part[i].source).parent.name for i in range(len(train_part))} == {"cats", "dogs"}
    labels = [test_part[i].condition["label"] for i in range(len(test_part))]
    assert labels == [0, 1]


def test_split_folders_share_their_classes(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("splits")
    (root / "test").mkdir()
    (tree / "dogs").rename(root / "test" / "dogs")
    (root / "train").mkdir()
    (tree / "cats").rename(root / "train" / "cats")
    assert dataset("train", name="folder", path=str(root)).classes == ("cats", "dogs")
    assert {dataset("test", name="folder", path=str(root))[i].condition["label"] for i in range(12)} == {1}


def test_a_pattern_labels_by_name(tree: Path) -> None:
    found = dataset(name="folder", path=str(tree), labels=r"(?P<label>\d)\.png$")
    assert found.classes == tuple("0123456789")
    with pytest.raises(InputError, match="group named label"):
        dataset(name="folder", path=str(tree), labels=r"\d")


def test_fingerprints_follow_contents_and_labels(tree: Path) -> None:
    before = dataset(name="folder", path=str(tree)).fingerprint
    assert dataset(name="folder", path=str(tree)).fingerprint == before
    assert dataset(name="folder", path=str(tree), labels=r"^(?P<label>.)").fingerprint == before  # same partition
    noise_image(99).save(tree / "cats" / "00.png")
    assert dataset(name="folder", path=str(tree)).fingerprint != before


@pytest.mark.parametrize("streaming", [None, False, True])
def test_the_recipe_says_what_a_fingerprint_is_of(
    streaming: bool | None, tmp_path: Path, labelled_parquet: Callable[..., str]
) -> None:
    """A file that was touched is another one by ``stat`` alone."""
    file = Path(labelled_parquet("data.parquet", words=["a", "b", "c"]))
    section: dict[str, object] = {"name": "hf", "path": str(file), "streaming": streaming}
    if streaming is None:
        file = tmp_path / "images" / "a.png"
        file.parent.mkdir()
        noise_image(0).save(file)
        section = {"name": "folder", "path": str(file.parent)}
    before, after = {}, {}
    for prints in (before, after):
        for how in ("content", "stat", "auto"):
            prints[how] = dataset(**section, fingerprint=how).fingerprint
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    assert after["content"] == before["content"] == before["auto"]
    assert len({before["content"], before["stat"], after["stat"]}) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_hold_no_image_stop_or_are_skipped(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    content = io.BytesIO()
    noise_image(0).save(content, "PNG")
    rows = [{"bytes": found, "path": None} for found in (content.getvalue(), b"no image", content.getvalue())]
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(str(tmp_path / "data.parquet"))
    section: dict[str, object] = {"name": "hf", "path": str(tmp_path / "data.parquet"), "streaming": streaming}
    tokenizer = Pixels(PixelsConfig(image_size=8))
    with pytest.raises(InputError, match=r"data\.parquet\[1\]"):
        LatentCache.open(dataset(**section), tokenizer, directory=tmp_path / "stops")
    cache = LatentCache.open(dataset(**section, on_error="skip"), tokenizer, directory=tmp_path / "skips")
    assert len(cache) == 2 and cache.examples.tolist() == [0, 2]
    assert "1 of 3 samples could not be read and were skipped" in caplog.text


def test_a_folder_that_looks_like_an_image_is_left_alone(tree: Path) -> None:
    (tree / "odd.png").mkdir()
    (tree / "cats" / "._00.png").write_bytes(b"hidden")
    assert len(dataset(name="folder", path=str(tree))) + len(dataset("test", name="folder", path=str(tree))) == 24


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300], [40000, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    found = decode_image((tmp_path / "deep.png").read_bytes(), "deep.png")
    assert found[..., 0].tolist() == [[0, 1], [156, 255]]


def test_floating_point_pictures_are_refused(tree: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tree / "cats" / "000.tif")
    with pytest.raises(InputError, match=r"000\.tif: holds floating-point pixels; images are 8 or 16 bits a channel$"):
        dataset(name="folder", path=str(tree))[1]


def transparent_image(mode: str) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 5, 4), dtype=np.uint8))
    if mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = 0
    return image if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_dropped_transparency_of_a_folder_is_said_once(tree: Path, mode: str) -> None:
    for name in ("03", "05"):
        transparent_image(mode).save(tree / "cats" / f"{name}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dataset(name="folder", path=str(tree))
        assert found[0].sample.shape == (12, 10, 3)
    with pytest.warns(UserWarning) as caught:
        for index in range(len(found)):
            assert found[index].sample.shape[2] == 3
    assert len(caught) == 1
    assert "03.png is transparent, the first that is; alpha channels are dropped" in str(caught[0].message)


@pytest.mark.parametrize("streaming", [False, True])
def test_dropped_transparency_of_a_table_is_said_once(tmp_path: Path, streaming: bool) -> None:
    import datasets

    pictures = [noise_image(0), *[transparent_image("RGBA")] * 5]
    table = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(str(tmp_path / "data.parquet"))
    found = dataset(name="hf", path=str(tmp_path / "data.parquet"), streaming=streaming)
    with pytest.warns(UserWarning, match=r"data\.parquet\[1\] is transparent") as caught:
        for index in range(len(found)):
            assert found[index].sample.shape[2] == 3
    assert len(caught) == 1


def turned_jpeg(orientation: int) -> bytes:
    """Four bright and dark quarters, unlike in every orientation, with an EXIF tag that says how they were taken."""
    quarters = np.kron(np.array([[0, 80], [160, 240]], dtype=np.uint8), np.ones((16, 24), dtype=np.uint8))
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(quarters).save(stream, "JPEG", quality=100, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(10))
def test_images_are_turned_upright_as_exif_says(tmp_path: Path, orientation: int) -> None:
    import datasets

    content = turned_jpeg(orientation)
    (tmp_path / "a.jpg").write_bytes(content)
    rows = {"image": [{"bytes": content, "path": None}]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(str(tmp_path / "data.parquet"))
    with Image.open(io.BytesIO(content)) as opened:
        stored, upright = np.asarray(opened), np.asarray(ImageOps.exif_transpose(opened))
    prints = []
    for section in ({"name": "folder", "path": str(tmp_path)}, {"name": "hf", "path": str(tmp_path / "data.parquet")}):
        turned, as_stored = dataset(**section, orientation="exif"), dataset(**section)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert np.array_equal(turned[0].sample[..., 0], upright)
            assert not warned
            assert np.array_equal(as_stored[0].sample[..., 0], stored)
            assert len(as_stored[0].sample) == len(stored)
        said = ["data.orientation: exif turns such images upright" in str(warning.message) for warning in warned]
        assert said == ([True] if 2 <= orientation <= 8 else []), "once"
        prints += [turned.fingerprint, as_stored.fingerprint]
    assert len(set(prints)) == 4
    assert np.array_equal(open_image_samples(tmp_path)[0].sample[..., 0], stored)


def test_damaged_exif_turns_what_it_can_and_stops_nothing(tmp_path: Path) -> None:
    random, exif = np.random.default_rng(0), Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.ImageDescription] = 6, "a picture"
    whole = exif.tobytes()
    for number in range(200):
        damaged = bytearray(whole)
        for place in random.integers(6, len(whole), 4):
            damaged[place] = random.integers(256)
        noise_image(0).save(tmp_path / f"{number}.png", exif=bytes(damaged[: random.integers(8, len(whole) + 1)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of the damage
        found = dataset(name="folder", path=str(tmp_path), orientation="exif")
        shapes = {found[index].sample.shape for index in range(len(found))}
    assert shapes == {(12, 10, 3), (10, 12, 3)}


def test_tiles_cover_the_picture_and_hold_out_its_right(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 320, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "map.png")
    train_part, test_part = (
        dataset(split, name="tiles", path=str(tmp_path / "map.png"), tile_size=32) for split in ("train", "test")
    )
    assert (len(train_part), len(test_part)) == (2 * 9, 2 * 1)
    assert (train_part[1].sample == picture[:32, 32:64]).all()
    assert (test_part[0].sample == picture[:32, 288:]).all()
    assert len(dataset(name="tiles", path=str(tmp_path / "map.png"), tile_size=32, stride=16)) > len(train_part)


def test_tiles_are_labelled_by_the_band_that_their_middle_lies_in(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (96, 320, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "map.png")
    tiles: dict[str, object] = {"name": "tiles", "path": str(tmp_path / "map.png"), "tile_size": 32, "stride": 16}
    for split in ("train", "test"):
        found = dataset(split, **tiles, bands=3)
        assert found.classes == ("band 1 of 3", "band 2 of 3", "band 3 of 3")
        for tile in (found[index] for index in range(len(found))):
            top = int(tile.source.rpartition(",")[2])
            assert tile.condition["label"] == (top + 16) // 32, tile.source  # bands of 32 rows
    plain = dataset(**tiles)
    assert plain.classes == () and not plain[0].condition
    assert len({plain.fingerprint, dataset(**tiles, bands=2).fingerprint, dataset(**tiles, bands=3).fingerprint}) == 3
    with pytest.raises(InputError, match=r"data\.bands: 9, tiles of .*map\.png lie in 5 of them"):
        dataset(**tiles, bands=9)


def test_a_picture_that_changed_is_cut_anew(tmp_path: Path) -> None:
    file = tmp_path / "map.png"
    tiles: dict[str, object] = {"name": "tiles", "path": str(file), "tile_size": 8}
    prints = []
    for seed in range(3):
        noise_image(seed, (16, 24)).save(file)
        os.utime(file, ns=(0, 10**18 + seed))
        found = dataset(**tiles)
        assert np.array_equal(found[0].sample, np.asarray(noise_image(seed, (16, 24)))[:8, :8])
        prints.append(found.fingerprint)
    assert len(set(prints)) == 3 and dataset(**tiles).fingerprint == prints[-1]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` writes down beside the test's own files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def test_a_folder_of_images_is_read_as_datasets_reads_it(hub_cache: None, tmp_path: Path) -> None:
    """Classes by folder; the rows name files instead of holding them."""
    for split, count in (("train", 3), ("test", 1)):
        for label in ("cats", "dogs"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            for number in range(count):
                noise_image(number + 10 * (label == "dogs")).save(tmp_path / "set" / split / label / f"{number}.png")
    found, held_out = (dataset(split, name="hf", path=str(tmp_path / "set")) for split in ("train", "test"))
    assert found.classes == ("cats", "dogs") and (len(found), len(held_out)) == (6, 2)
    for index in range(6):
        example = found[index]
        assert example.condition["label"] == index // 3
        assert np.array_equal(example.sample, np.asarray(noise_image(index % 3 + 10 * (index // 3))))


def test_what_save_to_disk_wrote_is_said_to_be_no_source_of_images(hub_cache: None, tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"^data\.path: .*saved' is no data set that can be loaded") as refused:
        dataset(name="hf", path=str(tmp_path / "saved"))
    assert "\n" not in str(refused.value)


def test_a_row_may_name_a_file_but_no_device(hub_cache: None, tmp_path: Path) -> None:
    import datasets
    from pyarrow import Table, parquet

    noise_image(0).save(tmp_path / "0.png")
    rows = [{"bytes": None, "path": name} for name in (str(tmp_path / "0.png"), "/dev/null", "/dev/zero")]
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    parquet.write_table(Table.from_pylist([{"image": row} for row in rows], schema), tmp_path / "data.parquet")
    found = dataset(name="hf", path=str(tmp_path / "data.parquet"))
    assert np.array_equal(found[0].sample, np.asarray(noise_image(0)))
    for row, device in ((1, "null"), (2, "zero")):
        said = rf"^.*data\.parquet\[{row}\]: /dev/{device}: cannot be read \(no regular file\)$"
        with pytest.raises(InputError, match=said):
            found[row]


@pytest.mark.parametrize("name", ["set[1]", "set*"])
def test_a_name_that_datasets_takes_for_a_pattern_is_refused(name: str, labelled_parquet: Callable[..., str]) -> None:
    folder = Path(labelled_parquet(f"{name}/train.parquet", label=[0, 1])).parent
    for path in (folder, folder / "train.parquet"):
        with pytest.raises(InputError, match=r"^data\.path: .*set.*: datasets reads \*, \? and \[ in names") as refused:
            dataset(name="hf", path=str(path))
        assert "\n" not in str(refused.value)


def test_local_parquet_is_read_by_feature_type(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"photo": ImageFeature(), "kind": ClassLabel(names=["a", "b"])})
    rows = {"photo": [noise_image(number) for number in range(20)], "kind": [number % 2 for number in range(20)]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    for path in (tmp_path, tmp_path / "train.parquet"):
        found = dataset(name="hf", path=str(path))
        assert found.classes == ("a", "b")
        assert len(found) == 18
        assert (found[3].sample == np.asarray(noise_image(3))).all()
        assert found[3].condition["label"] == 1
    with pytest.raises(InputError, match="no data set that can be loaded"):
        dataset(name="hf", path=str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["digits", "mnist5k", "idx", "folder", "tiles"])
def test_flip_adds_a_variant_to_every_source(name: str, tmp_path: Path) -> None:
    noise_image(0).save(tmp_path / "0.png")
    for stem, array in (("images-idx3", np.zeros((3, 5, 4))), ("labels-idx1", np.zeros(3))):
        (tmp_path / f"train-{stem}-ubyte").write_bytes(idx_bytes(array))
    paths = {"idx": tmp_path, "folder": tmp_path, "tiles": tmp_path / "0.png"}
    section = {"name": name} | ({"path": str(paths[name])} if name in paths else {})
    section |= {"tile_size": 4} if name == "tiles" else {}
    assert dataset(**section).variants == ("original",)
    assert dataset(**section, flip=True).variants == ("original", "flip")
    facts = [SOURCES[name].model_validate(section | flip).facts() for flip in ({}, {"flip": True})]
    assert [of.num_variants for of in facts] == [1, 2]


def test_flip_is_a_variant_that_is_its_own_inverse() -> None:
    found = dataset(name="digits", flip=True)
    sample = found[0].sample
    assert found.variants == ("original", "flip")
    assert (found.variant(sample, "flip") == sample[:, ::-1]).all()
    assert (found.variant(found.variant(sample, "flip"), "flip") == sample).all()


def test_partly_labelled_images_train_and_are_scored(
    tree: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "STEPS", 10)
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        noise_image(50 + number).save(tree / f"loose-{number}.png")
    recipe = {
        "modality": "image",
        "data": {"name": "folder", "path": str(tree)},
        "tokenizer": {"name": "pixels", "image_size": 8},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 2},
        "train": {"steps": 2, "batch_size": 8},
        "sample": {"solver": "euler", "steps": 2},
        "evaluate": {"num_samples": 16, "metrics": ["fd-classifier", "label-agreement", "nearest-training"]},
    }
    run = train(load_recipe(recipe), tmp_path_factory.mktemp("runs") / "run")
    assert 0 <= evaluate(run.path).metrics["label-agreement"].value <= 1


def test_held_out_is_the_folder_that_holds_labelled_files(tmp_path: Path) -> None:
    """As a challenge is unpacked: ``test`` flat or empty, labels in ``val`` alone."""
    for place in ("train/cat/0", "train/cat/1", "train/dog/0", "val/cat/9", "val/dog/9"):
        file = tmp_path / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise_image(len(place)).save(file)
    (tmp_path / "test").mkdir()
    assert len(dataset("test", name="folder", path=str(tmp_path))) == 2
    (tmp_path / "val").rename(tmp_path / "later")
    alone = dataset(name="folder", path=str(tmp_path))
    assert (len(alone), alone.classes) == (3, ("cat", "dog")), "of train alone, labels by the folders in it"
    (tmp_path / "later").rename(tmp_path / "val")
    (tmp_path / "train").rename(tmp_path / "later")
    (tmp_path / "train").mkdir()
    assert len(dataset(name="folder", path=str(tmp_path))) == 0, "what is held out is never trained on"
    (tmp_path / "train").rmdir()
    (tmp_path / "later").rename(tmp_path / "train")
    for number in range(3):
        noise_image(number).save(tmp_path / "test" / f"{number}.png")
    with pytest.warns(UserWarning, match=r"val is held out, not .*test, which has no labels"):
        found = dataset("test", name="folder", path=str(tmp_path))
    assert [found[index].label for index in range(len(found))] == [0, 1]
    (tmp_path / "test" / "dog").mkdir()
    (tmp_path / "test" / "2.png").rename(tmp_path / "test" / "dog" / "2.png")
    assert len(dataset("test", name="folder", path=str(tmp_path))) == 3, "test where it has labels"


def test_folders_that_become_one_label_are_said(tmp_path: Path) -> None:
    for place in ("cat/images", "dog/images", "dog/more"):
        (tmp_path / place).mkdir(parents=True)
        noise_image(len(place)).save(tmp_path / place / "0.png")
    with pytest.warns(UserWarning, match="folders cat/images and dog/images become one label, 'images'"):
        assert dataset(name="folder", path=str(tmp_path)).classes == ("images", "more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = dataset(name="folder", path=str(tmp_path), labels=r"^(?P<label>[^/]+)/")
    assert named.classes == ("cat", "dog")


@pytest.mark.parametrize("source", ["folder", "hf", "stream"])
def test_the_share_that_is_held_out_may_be_none(
    source: str, tmp_path: Path, labelled_parquet: Callable[..., str]
) -> None:
    """Splits are apart and whole for each ``test_fraction``; 0.1, the default, holds every tenth of a label out."""
    section: dict[str, object] = {"name": "folder", "path": str(tmp_path)}
    if source == "folder":
        for number in range(40):
            noise_image(number).save(tmp_path / f"{number:02d}.png")
    else:
        path = labelled_parquet("data.parquet", label=[0] * 40)
        section = {"name": "hf", "path": path, "streaming": source == "stream", "num_classes": 1}

    def found(split: str, fraction: float) -> list[str]:
        data = dataset(split, test_fraction=fraction, **section)
        return [data[index].source for index in range(len(data))]

    whole = found("train", 0)
    assert len(whole) == 40 and found("test", 0) == []
    for fraction, count in ((0.1, 4), *(((0.25, 10), (0.5, 20)) if source != "stream" else ())):
        train, test = found("train", fraction), found("test", fraction)
        assert len(test) == count and len(train) == 40 - count
        if source == "folder":  # rows of a table are numbered in their split
            assert sorted(train + test) == whole and test == whole[int(1 / fraction) - 1 :: int(1 / fraction)]
    if source == "stream":
        with pytest.raises(InputError, match=r"data\.test_fraction: 0\.25; of a stream 0\.1 is held out, or 0"):
            found("train", 0.25)
    prints = {dataset("train", test_fraction=fraction, **section).fingerprint for fraction in (0, 0.1)}
    assert len(prints) == 2 and dataset("train", **section).fingerprint in prints
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        noise_image(1).save(tmp_path / split / "a" / "0.png")
    with pytest.warns(UserWarning, match=r"data\.test_fraction has no effect: .* has folders train and test"):
        dataset(name="folder", path=str(tmp_path), test_fraction=0)
    (tmp_path / "test" / "a" / "0.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(dataset(name="folder", path=str(tmp_path), test_fraction=0)) == 1, "of an empty folder nothing is"


def test_webdatasets_labels_are_found_and_make_other_data(labelled_parquet: Callable[..., str]) -> None:
    path = labelled_parquet("data.parquet", cls=[0, 1, 1])
    found, plain = dataset(name="hf", path=path), dataset(name="hf", path=labelled_parquet("plain.parquet", other=[1]))
    assert [found[index].label for index in range(len(found))] == [0, 1, 1] and plain.classes == ()
    assert found.fingerprint.endswith("-label:cls"), "it was without labels in versions that did not read the column"


def test_labels_that_look_like_none_are_said(tmp_path: Path) -> None:
    """Parts of a set, as FFHQ's folders; and a held-out split as Kaggle's ImageNet has it, beside one with folders."""
    for place in ("parts/00000", "parts/01000", "whole/train/cat", "whole/train/dog", "whole/val", "whole/test"):
        (tmp_path / place).mkdir(parents=True)
        noise_image(len(place)).save(tmp_path / place / "0.png")
    with pytest.warns(UserWarning, match=r"folders 00000 to 01000 become 2 labels; .* condition\.labels: ignored"):
        dataset(name="folder", path=str(tmp_path / "parts"))
    with pytest.warns(UserWarning, match=r"files in .*whole/test have no labels, others have; sort them into folders"):
        dataset(name="folder", path=str(tmp_path / "whole"))


def test_data_goes_to_processes_that_are_started_anew(tmp_path: Path, labelled_parquet: Callable[..., str]) -> None:
    noise_image(0, (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "picture.txt").write_text("noise")
    sections = (
        {"name": "folder", "path": str(tmp_path)},
        {"name": "tiles", "path": str(tmp_path / "picture.png"), "tile_size": 16},
        {"name": "hf", "path": labelled_parquet("data.parquet", label=[0, 1, 1])},
    )
    for section in sections:
        data = dataset(**section)
        again = pickle.loads(pickle.dumps(data))
        assert np.array_equal(again[0].sample, data[0].sample) and again[0].captions == data[0].captions
        assert (again[0].source, again.fingerprint, len(again)) == (data[0].source, data.fingerprint, len(data))


def test_a_picture_of_any_size_is_cut_into_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit is against files that were not asked for; in a folder it is said to be that."""
    noise_image(0, (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(dataset(name="tiles", path=str(tmp_path / "large.png"), tile_size=16)) == 12
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(InputError, match=r"large\.png: is too large a picture to be opened unasked"):
        dataset(name="folder", path=str(tmp_path))[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_subset_of_several_is_the_one_that_is_named(streaming: bool, labelled_parquet: Callable[..., str]) -> None:
    folder = Path(labelled_parquet("set/few.parquet", label=[0, 1])).parent
    labelled_parquet("set/many.parquet", label=[0, 1, 1, 0, 1])
    names = "".join(f"- {{config_name: {name}, data_files: {name}.parquet}}\n" for name in ("few", "many"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    section = {"name": "hf", "path": str(folder), "num_classes": 2, "streaming": streaming}
    found = {name: dataset(**section, subset=name) for name in ("few", "many")}
    assert {name: len(data) for name, data in found.items()} == {"few": 2, "many": 5}
    assert found["few"].fingerprint != found["many"].fingerprint
    with pytest.raises(InputError, match=r"^data\.subset: .* has several.*\['few', 'many'\]"):
        dataset(**section)


def test_small_pictures_train_without_a_held_out_part(tmp_path: Path) -> None:
    noise_image(0, (64, 64)).save(tmp_path / "small.png")
    recipe = {
        "modality": "image",
        "data": {"name": "tiles", "path": str(tmp_path / "small.png"), "tile_size": 8},
        "tokenizer": {"name": "pixels", "image_size": 8},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 2},
        "train": {"steps": 1, "batch_size": 8},
        "evaluate": {"metrics": ["nearest-training"]},
    }
    run = train(load_recipe(recipe), tmp_path / "run")
    assert run.records()[0]["held_out_split"] == "train"
    with pytest.raises(InputError, match="split test is empty"):
        evaluate(run.path)


def test_of_a_run_on_the_held_out_split_nothing_is_held_out(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    recipe = {
        "modality": "image",
        "data": {"name": "folder", "path": str(tree), "split": "test"},
        "tokenizer": {"name": "pixels", "image_size": 8},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 2},
        "train": {"steps": 1, "batch_size": 2},
    }
    found = [train(load_recipe(recipe, [f"data.split={split}"]), runs / split) for split in ("train", "test")]
    assert [run.data.num_examples for run in found] == [22, 2]
    assert [run.records()[0]["held_out_split"] for run in found] == ["test", "train"]


def test_text_files_beside_images_are_their_captions(tree: Path) -> None:
    before = dataset(name="folder", path=str(tree)).fingerprint
    (tree / "cats" / "00.txt").write_text("a cat\n\na cat of noise\n")
    (tree / "cats" / "notes.txt").write_text("beside no image")
    data = dataset(name="folder", path=str(tree))
    found = {example.source: example.captions for example in (data[index] for index in range(len(data)))}
    assert found.pop(str(tree / "cats" / "00.png")) == ("a cat", "a cat of noise")
    assert set(found.values()) == {()} and data.fingerprint != before
    (tree / "cats" / "00.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"00\.txt: cannot be read as captions"):
        dataset(name="folder", path=str(tree))


@pytest.fixture
def labelled_parquet(tmp_path: Path) -> Callable[..., str]:
    """Write one column beside images, to a file or to the splits of a folder."""
    import datasets

    def write(name: str, feature: object = None, **columns: list[object]) -> str:
        rows = {"image": [noise_image(n) for n in range(len(next(iter(columns.values()))))], **columns}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        for column in columns if feature is not None else ():
            table = table.cast_column(column, feature)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / name))
        return str(tmp_path / name)

    return write


def test_strings_named_label_are_labels_and_their_classes_those_of_all_splits(
    labelled_parquet: Callable[..., str],
) -> None:
    labelled_parquet("set/train-0.parquet", label=["dog", "cat"] * 3)
    folder = str(Path(labelled_parquet("set/test-0.parquet", label=["eel", "bee", "dog"])).parent)
    found = {split: dataset(split, name="hf", path=folder) for split in ("train", "test")}
    assert found["train"].classes == found["test"].classes == ("bee", "cat", "dog", "eel")
    labels = {split: [part[index].label for index in range(len(part))] for split, part in found.items()}
    assert labels == {"train": [2, 1] * 3, "test": [3, 0, 2]}
    with pytest.raises(InputError, match=r"data\.streaming: .* label, are strings.*set it to false, or .* ClassLabel"):
        dataset(name="hf", path=folder, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_another_column_is_the_label_where_it_is_named(labelled_parquet: Callable[..., str], streaming: bool) -> None:
    path = labelled_parquet("data.parquet", grade=[4, 0, 2] * 4)
    section: dict[str, object] = {"name": "hf", "path": path, "streaming": streaming, "num_classes": None}
    assert dataset(**section).classes == ()
    found = dataset(**{**section, "num_classes": 5}, label_column="grade")
    assert found.classes == tuple("01234") and [found[index].label for index in range(3)] == [4, 0, 2]
    assert found.fingerprint != dataset(**section).fingerprint
    with pytest.raises(InputError, match=r"data\.label_column: 'grades' is no column.*did you mean 'grade'"):
        dataset(**section, label_column="grades")
    with pytest.raises(InputError, match=r"'image' is no column of strings, integers or booleans.*holds Image$"):
        dataset(**section, label_column="image")


@pytest.mark.parametrize("streaming", [False, True])
def test_several_label_columns_are_refused_unless_one_is_named(
    labelled_parquet: Callable[..., str], streaming: bool
) -> None:
    from datasets import ClassLabel

    path = labelled_parquet("data.parquet", ClassLabel(names=["a", "b", "c"]), fine=[0, 1, 2] * 4, coarse=[1, 2, 0] * 4)
    with pytest.raises(InputError, match=r"several columns of labels; set data\.label_column to one of.*fine.*coarse"):
        dataset(name="hf", path=path, streaming=streaming)
    found = [dataset(name="hf", path=path, streaming=streaming, label_column=column) for column in ("fine", "coarse")]
    assert [part[0].label for part in found] == [0, 1] and found[0].fingerprint != found[1].fingerprint


def test_a_row_without_a_label_is_named(labelled_parquet: Callable[..., str]) -> None:
    found = dataset(name="hf", path=labelled_parquet("data.parquet", label=["a", None, "b"]))
    assert found[0].label == 0 and found[2].label == 1
    with pytest.raises(InputError, match=r"data\.parquet\[1\]: has no label"):
        found[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_texts_is_found_by_name_or_named(tmp_path: Path, streaming: bool) -> None:
    import datasets

    rows = {"image": [noise_image(n) for n in range(20)], "caption": [["one", " two "], [], [""], ["four"]] * 5}
    rows |= {"label": [0, 1] * 10, "words": [f"picture {n}" for n in range(20)]}
    features = datasets.Features(
        image=datasets.Image(),
        caption=datasets.List(datasets.Value("string")),
        label=datasets.ClassLabel(names=["a", "b"]),
        words=datasets.Value("string"),
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data.parquet"))
    section = {"name": "hf", "path": str(tmp_path / "data.parquet"), "streaming": streaming, "num_examples": None}
    lists, words = (dataset(**section, **more) for more in ({}, {"caption_column": "words"}))
    assert [lists[index].captions for index in range(4)] == [("one", "two"), (), (), ("four",)]
    assert [words[index].captions for index in range(2)] == [("picture 0",), ("picture 1",)]
    assert lists.fingerprint != words.fingerprint
    with pytest.raises(InputError, match=r"data\.caption_column: 'word' is no column of texts.*'words'"):
        dataset(**section, caption_column="word")
    with pytest.raises(InputError, match=r"data\.caption_column: 'label' is no column of texts"):
        dataset(**section, caption_column="label")


def labels_of(found: ExampleDataset) -> list[int]:
    return [found[index].label for index in range(len(found))]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([20190002, 20190000, 20190001], ("20190000", "20190001", "20190002")),
        ([-1, 1, -1], ("-1", "1")),
        ([True, False, True], ("False", "True")),
        ([True, True, True], ("False", "True")),
    ],
)
def test_different_values_are_the_classes(
    labelled_parquet: Callable[..., str], values: list[int], classes: tuple[str, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dataset(name="hf", path=labelled_parquet("data.parquet", label=values))
        others = dataset(name="hf", path=labelled_parquet("data.parquet", other=values))
    assert found.classes == classes and not others.classes
    assert [found.classes[label] for label in labels_of(found)] == [str(value) for value in values]


def test_integers_within_the_number_of_classes_are_class_numbers(labelled_parquet: Callable[..., str]) -> None:
    path = labelled_parquet("data.parquet", label=[4, 1, 1])
    own, given = dataset(name="hf", path=path), dataset(name="hf", path=path, num_classes=5)
    assert (own.classes, labels_of(own)) == (("1", "4"), [1, 0, 0])
    assert (given.classes, labels_of(given)) == (("0", "1", "2", "3", "4"), [4, 1, 1])
    assert own.fingerprint != given.fingerprint, "caches hold labels"
    with pytest.raises(InputError, match=r"data\.num_classes: 3, .* has 2"):
        dataset(name="hf", path=path, num_classes=3)


@pytest.mark.parametrize("streaming", [False, True])
def test_minus_one_is_unlabelled_in_class_labels_alone(labelled_parquet: Callable[..., str], streaming: bool) -> None:
    from datasets import ClassLabel

    path = labelled_parquet("named.parquet", ClassLabel(names=["a", "b"]), label=[-1, 0, 1])
    found = dataset(name="hf", path=path, streaming=streaming)
    assert (found.classes, labels_of(found)) == (("a", "b"), [-1, 0, 1])
    path = labelled_parquet("bare.parquet", label=[-1, 0, 1])
    if streaming:
        with pytest.raises(InputError, match=r"bare\.parquet\[0\]: its label -1 is none of the 2 classes"):
            labels_of(dataset(name="hf", path=path, streaming=True, num_classes=2))
        return
    with pytest.warns(UserWarning, match="-1 in label is a class like others"):
        found = dataset(name="hf", path=path)
    assert (found.classes, labels_of(found)) == (("-1", "0", "1"), [0, 1, 2])


def test_a_column_called_label_that_holds_none_is_said(labelled_parquet: Callable[..., str]) -> None:
    path = labelled_parquet("data.parquet", label=[0.0, 0.5, 1.0])
    with pytest.warns(UserWarning, match=r"label of .* holds float64, and no labels: those are strings, integers or"):
        assert dataset(name="hf", path=path).classes == ()
    with pytest.raises(
        InputError, match=r"'label' is no column of strings, .* in '.*data\.parquet'; it holds float64$"
    ):
        dataset(name="hf", path=path, label_column="label")


def sources_of(found: ExampleDataset) -> set[str]:
    return {Path(found[index].source).name for index in range(len(found))}


def test_linked_folders_are_read_once_and_loops_end(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = dataset(name="folder", path=str(tree))
    outside = tmp_path_factory.mktemp("outside")
    (tree / "dogs").rename(outside / "kept")
    (tree / "dogs").symlink_to(outside / "kept")
    (outside / "kept" / "00.txt").write_text("a dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dataset(name="folder", path=str(tree))
    assert found.classes == ("cats", "dogs") and len(found) == len(before)
    assert [found[index].captions for index in range(len(found))].count(("a dog",)) == 1
    (outside / "kept" / "up").symlink_to(tree)
    (tree / "self").symlink_to(tree / "self")
    (tree / "cats" / "gone.png").symlink_to(tree / "gone.png")
    (tree / "first").symlink_to(outside / "kept")
    with pytest.warns(UserWarning, match=r"links to folders .* are left out: .*dogs/up and 1 more$"):
        again = dataset(name="folder", path=str(tree))
    assert sorted(sources_of(again)) == sorted(sources_of(found))


UNREADABLE = Path("/proc/self/mem")  # by nobody, at its start


@pytest.mark.parametrize("how", ["content", "stat", "auto"])
def test_an_unreadable_image_is_named_or_skipped(tree: Path, how: str) -> None:
    section = {"name": "folder", "path": str(tree), "fingerprint": how}
    before = dataset(**section, on_error="skip").fingerprint
    (tree / "cats" / "03.png").unlink()
    (tree / "cats" / "03.png").symlink_to(UNREADABLE)
    with pytest.raises(InputError, match=r"03\.png: cannot be read \(Input/output error\)$"):
        found = dataset(**section)
        [found[index] for index in range(len(found))]
    found = dataset(**section, on_error="skip")
    assert found.fingerprint != before
    with pytest.raises(InputError, match=r"03\.png: cannot be read"):
        found[3]


def test_an_unreadable_folder_is_named_or_left_out(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(folder: Path) -> object:
        if Path(folder) == tree / "dogs":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"dogs: cannot be read \(Permission denied\)$"):
        dataset(name="folder", path=str(tree))
    with pytest.warns(UserWarning, match=r"data\.path: .*dogs cannot be read, and is left out"):
        assert dataset(name="folder", path=str(tree), on_error="skip").classes == ("cats",)


def test_names_that_are_no_utf8_are_read_and_become_text(tree: Path) -> None:
    (tree / "cats" / "00.png").rename(tree / "cats" / os.fsdecode(b"caf\xe9.png"))
    (tree / "dogs").rename(tree / os.fsdecode(b"caf\xe9"))
    found = dataset(name="folder", path=str(tree))
    assert found.classes == (r"caf\xe9", "cats") and r"caf\xe9.png" in sources_of(found)
    [(found.classes[found[index].label].encode(), found[index].source.encode()) for index in range(len(found))]
    assert dataset(name="folder", path=str(tree), labels="(?P<label>.+)/").classes == found.classes


def test_fingerprints_of_ordinary_names_stay(tmp_path: Path) -> None:
    """Caches and reference statistics are kept under them."""
    for name in ("a/ä.png", "b/日.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    files = [tmp_path / "a" / "ä.png", tmp_path / "b" / "日.png"]
    assert fingerprint_files(tmp_path, files, [0, 1]) == "7d88206be27fc5d44e0db192a485fc3e"


def test_a_byte_order_mark_is_no_part_of_a_caption(tree: Path) -> None:
    (tree / "cats" / "00.txt").write_bytes("\ufeffa cat\n".encode())
    assert dataset(name="folder", path=str(tree))[0].captions == ("a cat",)


def test_tiles_of_a_folder_are_refused(tree: Path) -> None:
    with pytest.raises(InputError, match=r"data\.path: .* is a folder; tiles are cut from one picture"):
        dataset(name="tiles", path=str(tree))


@pytest.mark.parametrize(("images", "labels"), [((0, 4, 4), (0,)), ((3, 4, 4), (3, 1)), ((3, 0, 4), (3,))])
def test_idx_files_of_other_shapes_are_refused(
    tmp_path: Path, images: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(labels)))
    with pytest.raises(InputError, match=r"train-images is \[.*\], train-labels \[.*\]; .* are wanted"):
        dataset(name="idx", path=str(tmp_path))


@pytest.mark.parametrize("name", ["folder", "hf", "idx", "tiles"])
def test_an_empty_path_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ValidationError, match="names nothing; a file or folder is wanted"):
        dataset(name=name, path=" ")
    monkeypatch.setenv("NOTHING", "")
    with pytest.raises(InputError, match=r"data\.path: '\$NOTHING' names nothing"):
        dataset(name=name, path="$NOTHING")
