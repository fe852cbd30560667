"""Feature extractors for images: what enters the networks, what leaves them, and weights that are not theirs.

Golden inputs and features under ``tests/golden`` were made by published code from the images that :func:`picture`
draws; each file's ``source`` names code, commit and versions. No network here has published weights: they are random,
in the published layout and file format.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from torch import Tensor, nn

from layersync import InputError, score_samples
from layersync.core.adapter import Example
from layersync.core.features import FeatureExtractor, HubWeights, UrlWeights
from layersync.core.metric import parse_metric
from layersync.core.packaged import file_digest
from layersync.metrics import precision_recall
from layersync.modalities.image.adapter import ImageAdapter
from layersync.modalities.image.features import inception

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL, LARGE = (32, 32), (330, 403)
FACTORIES = ImageAdapter().features()


def picture(height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3), the same whatever the versions: ramps, a product of them, an edge."""
    y, x, c = np.ogrid[:height, :width, :3]
    image = (7 * y + 13 * x + 29 * c + x * y // 5) % 256
    image = np.where((x > width // 3) & (y > height // 2), 255 - image // 4, image)
    return image.astype(np.uint8)


def examples(*images: np.ndarray, texts: tuple[str, ...] = ()) -> list[Example]:
    conditions = [{"text": text} for text in texts] + [{}] * (len(images) - len(texts))
    return [
        Example(image, condition, f"sample {number}")
        for number, (image, condition) in enumerate(zip(images, conditions, strict=True))
    ]


@contextmanager
def entering(module: nn.Module) -> Iterator[list[Tensor]]:
    """The tensors that ``module`` is given."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: found.append((*args, *kwargs.values())[0].clone()), with_kwargs=True
    )
    yield found
    handle.remove()


def check_golden_input(extractor: FeatureExtractor, first: nn.Module, name: str, tolerance: float) -> None:
    """What enters the first layer is the golden tensor, for one image below the network's size and one above it."""
    with np.load(GOLDEN / f"image_{name}.npz") as golden:
        rows, columns = golden["stride"]
        for size in (SMALL, LARGE):
            with entering(first) as found:
                extractor(examples(picture(*size)))
            expected = golden[f"input_{size[0]}x{size[1]}"]
            assert tuple(golden[f"shape_{size[0]}x{size[1]}"]) == tuple(found[0].shape[1:])
            assert np.abs(found[0][0, :, ::rows, ::columns].numpy() - expected).max() <= tolerance


def refused(make: Callable[[], object]) -> str:
    """The message of the one-line error."""
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def column(streams: dict[str, list[np.ndarray]], name: str) -> np.ndarray:
    assert all(rows.shape[0] == 1 and rows.dtype == np.float32 for rows in streams[name])
    return np.concatenate(streams[name])


# --- inception-v3 ---


def torch_fidelitys(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3(
        "reference", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout: a dict without ``num_batches_tracked`` (its converter).

    torch-fidelity's class cannot be made without weights, so for once its loading is left out.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = torch_fidelitys(folder / "none.pth")
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            state[name] = drawn * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 1 + 0.1 * drawn.abs() if name.endswith(("bn.weight", "running_var")) else 0.1 * drawn
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def known(path: Path) -> str:
    """How a file that is not the published one is given knowingly."""
    return f"{path}#sha256={file_digest(path)}"


@pytest.fixture(scope="module")
def fid_inception(inception_file: Path) -> FeatureExtractor:
    return FACTORIES["inception-v3"](known(inception_file))


def test_what_enters_the_inception_is_what_its_tensorflow_graph_makes(fid_inception: Any) -> None:
    """Golden: TensorFlow's own ResizeBilinear, Sub 128 and Mul 0.0078125, see ``source`` in image_inception.npz."""
    check_golden_input(fid_inception, fid_inception.network.Conv2d_1a_3x3, "inception", 1e-6)


def test_inception_streams_are_torch_fidelitys_and_adms(fid_inception: Any, inception_file: Path) -> None:
    """``spatial`` from the reference's own block: the 1x1 branch is first in what Mixed_6d puts together.

    ADM flattens TensorFlow's (rows, columns, channels), so its mu_s and sigma_s are in that order.
    """
    images = [picture(64, 48), np.ascontiguousarray(picture(64, 48)[::-1])]
    reference = torch_fidelitys(inception_file)
    blocks: list[Tensor] = []
    reference.Mixed_6d.register_forward_hook(lambda _, __, out: blocks.append(out))
    pool, logits = reference(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    streams = fid_inception(examples(*images))
    assert list(streams) == list(fid_inception.streams)
    assert column(streams, "pool").shape == (2, 2048) and column(streams, "logits").shape == (2, 1008)
    assert np.allclose(column(streams, "pool"), pool, rtol=1e-5, atol=1e-5)
    assert np.allclose(column(streams, "logits"), logits, rtol=1e-5, atol=1e-5)
    spatial = column(streams, "spatial").reshape(2, 17, 17, 7)
    assert np.allclose(spatial, blocks[0][:, :7].permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    assert spatial.min() == 0 and np.ptp(spatial[0] - spatial[1]) > 0.1  # rectified, and of the image


def test_inception_features_do_not_depend_on_the_batch_and_grey_is_repeated(fid_inception: Any) -> None:
    grey = picture(40, 30)[..., :1]
    images = [picture(64, 48), grey, np.repeat(grey, 3, axis=2), picture(40, 30)]
    together = column(fid_inception(examples(*images)), "pool")
    for number, image in enumerate(images):
        alone = column(fid_inception(examples(image)), "pool")[0]
        assert np.allclose(alone, together[number], rtol=1e-4, atol=1e-5)
    assert np.allclose(together[1], together[2], rtol=1e-5, atol=1e-5)
    assert np.abs(together[1] - together[3]).max() > 0.01


def test_the_checksum_of_inception_weights_is_theirs(fid_inception: Any, inception_file: Path) -> None:
    assert fid_inception.checksum == file_digest(inception_file)
    assert inception.WEIGHTS.sha256.startswith(inception.WEIGHTS.file.removesuffix(".pth")[-8:])
    message = refused(lambda: FACTORIES["inception-v3"](str(inception_file)))
    assert "is not what its checksum says" in message and "6726825d" in message


class Surprise:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_inception_weights_that_are_none_are_one_line_and_nothing_is_unpickled(
    inception_file: Path, tmp_path: Path
) -> None:
    whole = inception_file.read_bytes()
    files = {name: tmp_path / f"{name}.pth" for name in ("short", "empty", "pickled", "objects", "numbers", "other")}
    files["short"].write_bytes(whole[: len(whole) // 2])
    files["empty"].write_bytes(b"")
    files["pickled"].write_bytes(pickle.dumps(Surprise(tmp_path / "run")))
    torch.save({"x": Surprise(tmp_path / "run")}, files["objects"])
    torch.save({"epoch": 3}, files["numbers"])
    torch.save(nn.Linear(3, 3).state_dict(), files["other"])
    says = {name: refused(lambda path=path: FACTORIES["inception-v3"](known(path))) for name, path in files.items()}
    assert not (tmp_path / "run").exists()
    assert all(str(files[name]) in message for name, message in says.items())
    assert all("cannot be read as a file of tensors" in says[name] for name in ("short", "empty", "pickled", "objects"))
    assert all("another network" in says[name] for name in ("numbers", "other"))


def test_missing_inception_weights_are_said_with_the_file_and_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection: the address leads nowhere."""
    nowhere = UrlWeights(
        "inception-v3", "http://127.0.0.1:9/none.pth", inception.WEIGHTS.file, inception.WEIGHTS.sha256
    )
    monkeypatch.setattr(inception, "WEIGHTS", nowhere)
    message = refused(lambda: FACTORIES["inception-v3"](None))
    assert inception.WEIGHTS.file in message and str(nowhere.path) in message


@pytest.mark.parametrize("content", [b"the first half of", b"a page that asks to log in", b""])
def test_a_download_of_something_else_is_refused_and_fetched_again(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))
    published = tmp_path / "published.pth"
    published.write_bytes(b"the first half of the weights, and the second")
    digest = file_digest(published)
    weights = UrlWeights("extractor small", published.as_uri(), "small.pth", digest[:8])
    published.write_bytes(content)
    message = refused(weights.locate)
    assert published.as_uri() in message and str(weights.path) in message
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []
    published.write_bytes(b"the first half of the weights, and the second")
    assert weights.locate() == (weights.path, digest) and weights.path.read_bytes() == published.read_bytes()


def test_whatever_a_hubs_client_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfItsOwn(Exception):
        """As httpx and hf_xet have: no OSError, no ValueError."""

    def download(*_: object, **__: object) -> str:
        raise OfItsOwn("connection reset\nby peer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = refused(HubWeights("extractor clip", "openai/none").locate)
    assert "openai/none on the Hugging Face hub, are not on this machine and could not be fetched" in message


# --- dinov2 ---

DINO_CHANNELS, DINO_DEPTH = 32, 2


def dino_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of DINOv2's own state dict (models/vision_transformer.py), narrow and two blocks deep."""
    d = DINO_CHANNELS
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + 37 * 37, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, 14, 14),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for block in range(DINO_DEPTH):
        for name, shape in (
            ("attn.qkv", (3 * d, d)),
            ("attn.proj", (d, d)),
            ("mlp.fc1", (4 * d, d)),
            ("mlp.fc2", (d, 4 * d)),
        ):
            shapes[f"blocks.{block}.{name}.weight"], shapes[f"blocks.{block}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (d,)
    return shapes


def dino_weights() -> dict[str, Tensor]:
    """Weights for those names, without a random generator: the maker of the golden features fills them alike."""
    weights = {}
    for number, (name, shape) in enumerate(sorted(dino_shapes().items())):
        waves = np.sin(np.arange(1, np.prod(shape) + 1, dtype=np.float64) * (number + 1.618) * 1.7)
        fan_in = np.prod(shape[1:]) if len(shape) in (2, 4) and name.endswith("weight") else 4
        size = 3 if "attn" in name or "gamma" in name else 1  # so that the class token takes notice of the patches
        weights[name] = torch.from_numpy((size * waves / np.sqrt(fan_in)).reshape(shape)).float()
    row, column, channel = np.ogrid[:37, :37, :DINO_CHANNELS]  # positions are smooth over the grid
    positions = np.sin(0.11 * row * (channel % 5) + 0.17 * column * (channel % 3) + channel)
    weights["pos_embed"][0, 1:] = torch.from_numpy(positions.reshape(-1, DINO_CHANNELS)).float()
    return weights


def as_transformers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names to those of ``facebook/dinov2-large`` on the hub."""
    renamed = {}
    for name, value in weights.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rpartition(".")[2]
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = chunk.clone()
            continue
        for ours, theirs in (
            ("cls_token", "embeddings.cls_token"),
            ("mask_token", "embeddings.mask_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
        ):
            name = name.replace(ours, theirs)
        renamed[f"layernorm.{name.rpartition('.')[2]}" if name.startswith("norm.") else name] = value
    return renamed


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub repository's files: configuration, preprocessing, safetensors."""
    from transformers import Dinov2Config

    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Config(
        hidden_size=DINO_CHANNELS,
        num_hidden_layers=DINO_DEPTH,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
        architectures=["Dinov2Model"],
    ).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "BitImageProcessor"}))
    save_file(as_transformers_names(dino_weights()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def dino(dino_folder: Path) -> FeatureExtractor:
    return FACTORIES["dinov2"](str(dino_folder))


def test_what_enters_dinov2_is_what_dgm_eval_makes(dino: Any) -> None:
    """Golden: ``DINOv2Encoder.transform`` of layer6ai-labs/dgm-eval, see ``source`` in image_dinov2.npz."""
    check_golden_input(dino, dino.network.embeddings.patch_embeddings, "dinov2", 1e-6)


def test_dinov2_features_are_those_of_its_own_code(dino: Any) -> None:
    """Golden: facebookresearch/dinov2's network on the same weights, positions resampled its own way."""
    features = column(dino(examples(picture(*SMALL), picture(*LARGE))), "features")
    with np.load(GOLDEN / "image_dinov2.npz") as golden:
        assert np.abs(features - golden["features"]).max() < 2e-5
        # what transformers' own resampling of positions would give is further off than any rounding
        assert np.abs(golden["features_without_offset"] - golden["features"]).max() > 5e-4


def test_dinov2_weights_that_are_none_are_one_line(dino_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file in dino_folder.iterdir():
            (made / file.name).write_bytes(file.read_bytes())
        return made

    assert "holds a model of type 'clip', not 'dinov2'" in refused(lambda: FACTORIES["dinov2"](str(clip_folder)))
    short = folder("short")
    content = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert str(short) in refused(lambda: FACTORIES["dinov2"](str(short)))
    pickled = folder("pickled")
    state = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    assert "model.safetensors, pytorch_model.bin" in refused(lambda: FACTORIES["dinov2"](str(pickled)))
    torch.save({**state, "x": Surprise(tmp_path / "run")}, pickled / "pytorch_model.bin")
    assert str(pickled) in refused(lambda: FACTORIES["dinov2"](str(pickled))) and not (tmp_path / "run").exists()
    torch.save(state, pickled / "pytorch_model.bin")
    ours, theirs = (FACTORIES["dinov2"](str(path))(examples(picture(*SMALL))) for path in (pickled, dino_folder))
    assert np.array_equal(column(ours, "features"), column(theirs, "features"))
    lacking = folder("lacking")
    state = load_file(lacking / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, lacking / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors are missing or misshapen, such as layernorm.weight" in refused(
        lambda: FACTORIES["dinov2"](str(lacking))
    )
    wide = folder("wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert str(wide) in refused(lambda: FACTORIES["dinov2"](str(wide)))
    (wide / "config.json").write_text("{")
    assert "config.json is missing or no JSON" in refused(lambda: FACTORIES["dinov2"](str(wide)))
    stated = f"{dino_folder}#sha256={'0' * 16}"
    assert "are not what their checksum says" in refused(lambda: FACTORIES["dinov2"](stated))


# --- clip ---

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub repository's files, narrow: letters for a vocabulary, the end token last as in OpenAI's."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    pairs = [("a", "t</w>"), ("c", "at</w>"), ("d", "o")]
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *("".join(pair) for pair in pairs)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    special = {
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**narrow, "vocab_size": len(vocabulary), "eos_token_id": 2}  # 2, whatever the vocabulary: as on the hub
    config = CLIPConfig(
        text_config=text, vision_config={**narrow, "image_size": 224, "patch_size": 32}, projection_dim=24
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # the published file still has these
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def clip(clip_folder: Path) -> FeatureExtractor:
    return FACTORIES["clip"](str(clip_folder))


def test_what_enters_clip_is_what_openais_transform_makes(clip: Any) -> None:
    """Golden: ``_transform(224)`` of openai/CLIP, see ``source`` in image_clip.npz."""
    check_golden_input(clip, clip.network.vision_model.embeddings, "clip", 1e-6)


def test_clip_streams_have_the_cosines_of_the_whole_model(clip: Any, clip_folder: Path) -> None:
    """Against transformers' own forward pass with its own tokenizer, padding and mask."""
    from transformers import AutoTokenizer, CLIPModel

    images, texts = [picture(*SMALL), picture(*LARGE), picture(224, 300)], ("a cat", "dog on a mat, at 9!", "do")
    with entering(clip.network.vision_model.embeddings) as found:
        streams = clip(examples(*images, texts=texts))
    tokens = AutoTokenizer.from_pretrained(clip_folder)(list(texts), padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        whole = model(pixel_values=found[0], **tokens)
    for name, expected in (("features", whole.image_embeds), ("text", whole.text_embeds)):
        mine = column(streams, name)
        assert mine.shape == (3, 24)
        assert np.allclose(mine / np.linalg.norm(mine, axis=1, keepdims=True), expected, atol=1e-5)
    assert np.ptp(column(streams, "text"), axis=0).max() > 1e-3


def test_clip_gives_text_only_where_every_example_has_one(clip: Any) -> None:
    images = [picture(*SMALL)] * 2
    assert list(clip(examples(*images, texts=("a cat", "a dog")))) == ["features", "text"]
    assert list(clip(examples(*images, texts=("a cat",)))) == ["features"]
    assert list(clip(examples(*images))) == ["features"]


def test_long_texts_are_cut_to_77_tokens_with_one_warning_that_counts(clip: Any) -> None:
    image, words = picture(*SMALL), [f"{letter} " for letter in LETTERS[:26]] * 4
    long, fits, cut = "".join(words), "".join(words[:75]), "".join(words[:74])
    with pytest.warns(UserWarning, match="2 of 3 texts were cut to 77 tokens") as caught:
        streams = clip(examples(image, image, image, texts=(long, fits, long + "z")))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = clip(examples(image, image, texts=(long, cut)))
    assert clip.texts_cut == 3
    text = column(streams, "text")
    assert np.allclose(text[0], text[1], atol=1e-6) and np.allclose(text[0], text[2], atol=1e-6)
    assert np.allclose(text[0], column(other, "text")[0], atol=1e-6)
    assert np.abs(text[0] - column(other, "text")[1]).max() > 1e-4


def test_a_clip_folder_without_its_tokenizer_is_one_line(clip_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    message = refused(lambda: FACTORIES["clip"](str(tmp_path)))
    assert str(tmp_path) in message and "tokenizer" in message


# --- all of them ---


@pytest.mark.parametrize("name", ["inception-v3", "dinov2", "clip"])
def test_a_sample_that_is_no_image_is_refused_by_its_source(name: str, request: pytest.FixtureRequest) -> None:
    fixture = {"inception-v3": "fid_inception", "dinov2": "dino", "clip": "clip"}[name]
    extractor = request.getfixturevalue(fixture)
    for wrong in (picture(8, 8) / 255, picture(8, 8)[..., :2], picture(8, 8)[..., 0], picture(8, 8)[:0]):
        message = refused(lambda wrong=wrong: extractor([*examples(picture(8, 8)), Example(wrong, {}, "bad.png")]))
        assert name in message and "bad.png" in message


NAMES = {
    "fid": ("fd", "inception-v3", "pool", "lower"),
    "sfid": ("fd", "inception-v3", "spatial", "lower"),
    "is": ("is", "inception-v3", "logits", "higher"),
    "kid": ("kd", "inception-v3", "pool", "lower"),
    "precision": ("precision", "inception-v3", "pool", "higher"),
    "recall": ("recall", "inception-v3", "pool", "higher"),
    "density": ("density", "inception-v3", "pool", "higher"),
    "coverage": ("coverage", "inception-v3", "pool", "higher"),
    "clip-score": ("similarity", "clip", None, "higher"),
}


def test_the_fields_names_are_these_scores_and_improve_this_way() -> None:
    assert set(ImageAdapter().aliases()) == set(NAMES)
    for name, expected in NAMES.items():
        found = parse_metric("image", name)
        assert (found.kind, found.extractor, found.stream, found.better) == expected
        assert found.stream is None or found.stream in FACTORIES[found.extractor].streams


# --- through the command line ---


class Few(FeatureExtractor):
    """Stands in for the Inception: streams of its names, 4 numbers each."""

    name, preprocessing, streams = "inception-v3", "means of rows and columns", inception.InceptionV3.streams

    def __init__(self, weights: str | None = None) -> None: ...

    def __call__(self, examples: Any) -> dict[str, list[np.ndarray]]:
        images = np.stack([example.sample for example in examples]).astype(np.float32) / 255
        rows, columns = images.mean((2, 3)), images.mean((1, 3))
        found = {"pool": rows[:, ::2], "spatial": columns[:, ::2], "logits": rows[:, 1::2]}
        return {name: list(values[:, None]) for name, values in found.items()}


def test_of_adms_file_each_score_takes_its_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FID ``mu`` and ``sigma``, sFID ``mu_s`` and ``sigma_s``, precision the images."""
    monkeypatch.setattr(ImageAdapter, "features", lambda _: {"inception-v3": Few})
    random = np.random.default_rng(0)
    generated, real = (random.integers(low, 256, (40, 8, 8, 3), dtype=np.uint8) for low in (0, 8))
    made = {name: random.normal(size=(4, 4)) for name in ("sigma", "sigma_s")}
    given = {name: 0.01 * (root @ root.T) for name, root in made.items()}
    given |= {"mu": np.linspace(0.3, 0.5, 4), "mu_s": np.linspace(0.9, 0.6, 4)}
    np.save(tmp_path / "generated.npy", generated)
    np.savez(tmp_path / "adm.npz", arr_0=real, **given)
    names = ["fid", "sfid", "precision"]
    found = score_samples("image", [tmp_path / "generated.npy"], names, real=tmp_path / "adm.npz").metrics
    mine, theirs = (Few()(examples(*images)) for images in (generated, real))
    for name, stream, suffix in (("fid", "pool", ""), ("sfid", "spatial", "_s")):
        x, mean, covariance = column(mine, stream), given[f"mu{suffix}"], given[f"sigma{suffix}"]
        own = np.cov(x, rowvar=False)
        expected = ((x.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * sqrtm(own @ covariance).real)
        assert found[name].value == pytest.approx(expected, rel=1e-5)
        assert found[name].reference.split == "statistics"
    precision = precision_recall(column(mine, "pool"), column(theirs, "pool")).precision
    assert found["precision"].value == pytest.approx(precision) and 0 < precision < 1


def test_a_run_is_scored_under_the_fields_names(
    inception_file: Path, trained: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "real.npy", random.integers(0, 256, (12, 8, 8), dtype=np.uint8))
    names = ["fid", "sfid", "is", "precision", "recall"]
    status, out, err = command(
        "evaluate", trained.path, "--metrics", ",".join(names), "--num-samples", "12",
        "--extractor", f"inception-v3={known(inception_file)}", "--reference", tmp_path / "real.npy", "--json",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)["metrics"]
    assert list(found) == names
    assert found["fid"]["details"]["features"] == 2048 and found["sfid"]["details"]["features"] == 2023
    assert found["is"]["value"] >= 1 and found["is"]["reference"] is None
    for name in names:
        assert found[name]["extractor"] == "inception-v3" and found[name]["num_samples"] == 12
        assert found[name]["checksum"] == file_digest(inception_file)
    assert "299x299" in found["fid"]["preprocessing"] and found["fid"]["reference"]["count"] == 12
    assert "12 samples in 10 splits for 1008 classes" in err and "12 generated rows of 2048 features" in err
