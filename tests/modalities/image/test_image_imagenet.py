"""The paper's image data and recipes: ImageNet's layout, streamed sources, and recipes that step at a small size."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from layersync import InputError, Recipe, load_recipe
from layersync.core.latents import LatentCache
from layersync.core.paths import fingerprint_files
from layersync.core.recipe_reading import shipped_recipes
from layersync.core.session import train
from layersync.core.trainer import FlowMatching
from layersync.modalities.image.data import Folder
from layersync.modalities.image.hub import HuggingFace
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig, centre_crop

PAPER = sorted(name for name in shipped_recipes() if name.startswith("image/imagenet"))
SYNSETS = ("n01440764", "n01443537", "n02979186")
PIXELS = Pixels(PixelsConfig(image_size=8, channels=3))


def quietly(source: Any, *overrides: str) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_recipe(source, overrides)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few JPEGs of differing sizes in ImageNet's layout; one grey, one in CMYK, as the real set has them."""
    root = tmp_path_factory.mktemp("imagenet")
    source = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for synset in SYNSETS:
            (root / split / synset).mkdir(parents=True)
            for index in range(count):
                shape = (int(source.integers(34, 90)), int(source.integers(34, 90)), 3)
                picture = Image.fromarray(source.integers(0, 256, shape, dtype=np.uint8))
                picture = picture.convert(("RGB", "L", "CMYK")[index % 3])
                stem = f"{synset}_{index}" if split == "train" else f"ILSVRC2012_val_{index:08d}"
                picture.save(root / split / synset / f"{stem}.JPEG")
    return root


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AutoencoderKL with the depth, reduction and latent channels of Stable Diffusion's, but narrow."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    made = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    folder = tmp_path_factory.mktemp("vae")
    made.save_pretrained(folder)
    return folder


def test_imagenets_layout(imagenet: Path) -> None:
    config = Folder(name="folder", path=str(imagenet), num_classes=3, num_examples=15)
    training, held_out = config.build("train"), config.build("test")
    assert (len(training), len(held_out)) == (15, 6)
    assert training.classes == held_out.classes == SYNSETS
    for dataset in (training, held_out):
        for index in range(len(dataset)):
            example = dataset[index]
            assert SYNSETS[example.label] in example.source and example.sample.dtype == np.uint8
            assert centre_crop(example.sample, 32).shape[:2] == (32, 32)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_classes": 1000}, r"data\.num_classes: 1000, .* has 3"),
        ({"num_examples": 1281167}, r"data\.num_examples: 1281167, .* has 15 to train on"),
    ],
)
def test_another_set_than_the_recipe_says_is_refused(imagenet: Path, keys: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Folder(name="folder", path=str(imagenet), **keys).build("train")


def test_the_command_refuses_it_in_one_line(imagenet: Path, command: Any, tmp_path: Path) -> None:
    override = ["--set", f"data.path={imagenet}", "--out", tmp_path / "run"]
    status, _, said = command("train", "image/imagenet256-sit-s2", *override)
    assert status == 2 and said.startswith("error: data.num_classes: 1000,") and not (tmp_path / "run").exists()


def test_fingerprints_of_large_trees_notice_a_changed_file(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((imagenet / "train").rglob("*.JPEG"))
    before = {how: fingerprint_files(imagenet, files, None, how) for how in ("content", "stat", "auto")}
    assert before["auto"] == before["content"] != before["stat"]
    found = files[3].stat()
    os.utime(files[3], ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert fingerprint_files(imagenet, files, None, "content") == before["content"]
    assert fingerprint_files(imagenet, files, None, "stat") != before["stat"]
    os.utime(files[3], ns=(found.st_atime_ns, found.st_mtime_ns))
    assert fingerprint_files(imagenet, files, None, "stat") == before["stat"]
    monkeypatch.setattr("layersync.core.paths.CONTENT_LIMIT", 1000)
    assert fingerprint_files(imagenet, files, None, "auto") == before["stat"]
    assert fingerprint_files(imagenet, files[1:], None, "stat") != before["stat"]


PAIRS = {"s2": ([[4, 7]], 0.3), "b2": ([[4, 7]], 0.3), "l2": ([[7, 14]], 0.2), "xl2": ([[8, 16]], 0.2)}


def test_the_papers_recipes_and_their_baselines_differ_in_the_regularizer_alone() -> None:
    assert len(PAPER) == 10
    for name in PAPER:
        if name.endswith("-baseline"):
            continue
        ours, baseline = quietly(name).to_mapping(), quietly(f"{name}-baseline").to_mapping()
        regularizer = ours.pop("regularizer")
        assert baseline.pop("regularizer") == {"name": "none"} and ours == baseline
        assert (regularizer["pairs"], regularizer["weight"]) == PAIRS[name.rsplit("-", 1)[1]]
        assert ours["train"]["batch_size"] == 256 and ours["train"]["ema_ramp"] is False


@pytest.mark.parametrize("name", PAPER)
def test_every_line_of_the_papers_recipes_names_its_source(name: str) -> None:
    """Each section but the modality is followed by a comment, on its own line or the next."""
    lines = shipped_recipes()[name].splitlines()
    sections = {key for key in yaml.safe_load("\n".join(lines)) if key not in ("modality", "train")}
    for number, line in enumerate(lines):
        key = line.split(":")[0]
        if key in sections and "name: none" not in line:
            following = next(later for later in lines[number + 1 :] if not later.startswith("  "))
            assert following.startswith("# "), line
        if line.startswith("  ") and key.strip().replace("_", "").isalpha():
            assert "#" in line or "{" in line or "guidance" in line, line


@pytest.mark.parametrize("name", ["image/imagenet256-sit-xl2", "image/imagenet512-sit-xl2"])
def test_the_papers_recipe_trains_small_on_generated_data(
    name: str, imagenet: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything of the recipe but its sizes: reader, crop, VAE, cache, both flips, TF32 in the step and only there."""
    seen, whole = set(), FlowMatching.forward

    def forward(model: FlowMatching, *arguments: Any) -> Any:
        seen.add(torch.backends.cuda.matmul.allow_tf32)
        return whole(model, *arguments)

    monkeypatch.setattr(FlowMatching, "forward", forward)
    size = 32 if "256" in name else 64
    recipe = quietly(
        name, f"data.path={imagenet}", "data.num_classes=3", "data.num_examples=15", f"tokenizer.path={vae}",
        f"tokenizer.image_size={size}", "backbone.hidden_size=16", "backbone.num_heads=2", "train.batch_size=4",
        "train.steps=2", "train.log_every=1",
    )  # fmt: skip
    run = train(recipe, tmp_path / "run")
    assert run.data.latent.shape == (4, size // 8, size // 8) and run.data.classes == SYNSETS
    assert '"8-16"' in (run.path / "metrics.jsonl").read_text()
    assert seen == {True} and torch.backends.cuda.matmul.allow_tf32 is False
    dataset = recipe.data.build("train")
    cache = LatentCache.open(dataset, recipe.adapter.tokenizer(recipe.tokenizer))
    assert cache.num_variants == 2 and len(cache) == 15 and cache.row_shape == (8, size // 8, size // 8)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 small images in three Parquet files as ``datasets`` lays them out, and a split of 7 for testing."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    def table(count: int, first: int) -> Any:
        rows: dict[str, list[Any]] = {"image": [], "label": []}
        for index in range(first, first + count):
            content = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(content, "PNG")
            rows["image"].append({"bytes": content.getvalue(), "path": None})
            rows["label"].append(index % 3)
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=list("abc"))})
        return Dataset.from_dict(rows, features=features)

    root = tmp_path_factory.mktemp("parquet")
    (root / "own" / "data").mkdir(parents=True)
    whole = table(47, 0)
    for index in range(3):
        whole.shard(3, index, contiguous=True).to_parquet(root / "own" / "data" / f"train-{index:05d}-of-00003.parquet")
    table(7, 100).to_parquet(root / "own" / "data" / "test-00000-of-00001.parquet")
    whole.to_parquet(root / "alone.parquet")
    return root


@pytest.mark.parametrize("path", ["own", "alone.parquet"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_streamed_source_is_what_the_cached_one_is(parquet: Path, path: str, split: Any, tmp_path: Path) -> None:
    keys = {"name": "hf", "path": str(parquet / path), "flip": True}
    cached, streamed = (HuggingFace(**keys, streaming=streaming).build(split) for streaming in (False, True))
    assert len(streamed) == len(cached) and streamed.classes == cached.classes == ("a", "b", "c")
    order = [0, 1, len(cached) - 1, 2, 2, 0]  # forward, back, the same again
    for index in order:
        assert np.array_equal(streamed[index].sample, cached[index].sample)
        assert streamed[index].label == cached[index].label
    caches = [
        LatentCache.open(dataset, PIXELS, directory=tmp_path / str(number))
        for number, dataset in enumerate((cached, streamed))
    ]
    assert all(torch.equal(a, b) for a, b in zip(caches[0].clips(), caches[1].clips(), strict=True))
    assert [cache.num_variants for cache in caches] == [2, 2], "as they are, and flipped"
    assert np.array_equal(caches[0].labels, caches[1].labels)


@pytest.mark.parametrize("streaming", [False, True])
def test_another_split_can_be_held_out(parquet: Path, streaming: bool, tmp_path: Path) -> None:
    """As ImageNet on the hub needs it, whose ``test`` has no labels."""
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    for name, split in (("train-00000", "train"), ("test-00000", "validation"), ("train-00001", "test")):
        rows = next((parquet / "own" / "data").glob(f"{name}*"))
        (source / "data" / f"{split}-00000-of-00001.parquet").write_bytes(rows.read_bytes())
    keys = {"name": "hf", "path": str(source), "streaming": streaming}
    usual = HuggingFace(**keys).build("test")
    assert len(usual) == 16
    chosen = HuggingFace(**keys, test_split="validation").build("test")
    assert len(chosen) == 7 and int(chosen[0].sample[0, 0, 0]) == 100
    caches = [LatentCache.open(dataset, PIXELS, directory=tmp_path / "caches") for dataset in (usual, chosen)]
    assert [len(cache.labels) for cache in caches] == [16, 7]
    same = HuggingFace(**keys, test_split="test").build("test")
    assert same.fingerprint == usual.fingerprint
    assert streaming or usual.fingerprint.count("-") == 1  # as of earlier versions, whose caches stay
    (source / "data" / "test-00000-of-00001.parquet").unlink()
    (source / "data" / "validation-00000-of-00001.parquet").rename(source / "data" / "extra-00000-of-00001.parquet")
    held_out, whole = (HuggingFace(**keys, test_split=name).build("train") for name in (None, "extra"))
    assert len(held_out) < len(whole) and held_out.fingerprint != whole.fingerprint
    with pytest.raises(InputError, match=r"data\.test_split: 'val' is no split of the source; it has train"):
        HuggingFace(**keys, test_split="val").build("train")
    (source / "data" / "train-00000-of-00001.parquet").rename(source / "data" / "test-00000-of-00001.parquet")
    parts = [
        HuggingFace(**keys, test_split=name).build(split) for name in ("extra", "test") for split in ("train", "test")
    ]
    assert [len(part) for part in parts] == [16, 7, 7, 16], "a source without train"
    assert parts[0].fingerprint != parts[3].fingerprint and parts[1].fingerprint != parts[2].fingerprint
    (source / "data" / "extra-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"data\.test_split: 'test' is the source's only split"):
        HuggingFace(**keys, test_split="test").build("train")


def test_a_stream_is_walked_once(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import IterableDataset

    opened, whole = [], IterableDataset.__iter__

    def counted(stream: IterableDataset) -> Any:
        opened.append(1)
        return whole(stream)

    dataset = HuggingFace(name="hf", path=str(parquet / "own"), streaming=True).build("train")
    monkeypatch.setattr(IterableDataset, "__iter__", counted)
    LatentCache.open(dataset, PIXELS, directory=tmp_path)
    assert len(opened) == 1


def test_a_stream_that_breaks_off_says_where(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HTTP clients do; it is no sample that may be skipped."""
    from datasets import IterableDataset

    dataset = HuggingFace(name="hf", path=str(parquet / "own"), streaming=True, on_error="skip").build("train")
    whole = IterableDataset.__iter__

    def broken(stream: Any) -> Iterator[Any]:
        yield from itertools.islice(whole(stream), 3)
        raise RuntimeError("peer closed the connection\nwhile reading")

    monkeypatch.setattr(IterableDataset, "__iter__", broken)
    with pytest.raises(OSError, match=r"own: the stream broke off at row 3 \(peer closed the connection\); run"):
        [dataset[index] for index in range(10)]


def test_a_stream_that_is_shorter_than_said_or_of_another_size(parquet: Path) -> None:
    from layersync.core.huggingface import Stream, open_stream

    stream, _ = open_stream(str(parquet / "own"), "train", None)
    short = Stream(stream._rows, 60, None, "own")
    with pytest.raises(InputError, match=r"data\.num_examples: 'own' ends before row 51"):
        short[50]
    with pytest.raises(InputError, match=r"data\.num_examples: 48, .* has 47 to train on"):
        HuggingFace(name="hf", path=str(parquet / "own"), streaming=True, num_examples=48).build("train")
    with pytest.raises(InputError, match="no data set that can be loaded"):
        HuggingFace(name="hf", path=str(parquet / "nothing"), streaming=True).build("train")
