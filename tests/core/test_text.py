"""Text as a condition: encoders, embeddings on disk, training on captions, sampling from prompts."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

import layersync
from layersync import InputError, Run, evaluate, load_recipe, train
from layersync.core import evaluation
from layersync.core.adapter import load_adapter
from layersync.core.draws import step_draws
from layersync.core.evaluation import draw
from layersync.core.features import FeatureExtractor
from layersync.core.generation import GenerativeModel, KnownConditions
from layersync.core.latents import LatentCache
from layersync.core.packaged import cache_directory
from layersync.core.parallel import Processes
from layersync.core.text import TextEncoder, TextTable
from layersync.core.trainer import Trainer, build_parts

Command = Callable[..., tuple[int, str, str]]
TEXTS = ("a person walks", "an old person waves with the left hand", "walk")
RECIPE: dict[str, Any] = {
    "modality": "motion",
    "data": {"name": "mocap-clips"},
    "tokenizer": {"name": "smpl6d", "num_frames": 16},
    "backbone": {"name": "transformer", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
    "condition": {"text_encoder": "minilm", "max_tokens": 12},
    "regularizer": {"name": "layersync", "pairs": [[1, 2]], "weight": 0.3},
    "optimizer": {"lr": 3.0e-3},
    "train": {"steps": 30, "batch_size": 16, "ema_decay": 0.9, "precision": "float32", "checkpoint_every": 15},
    "sample": {"solver": "euler", "steps": 2},
    "evaluate": {"num_samples": 32},
}


def small_tokenizer(folder: Path) -> None:
    """A word tokenizer with begin and end of text, as a real ``tokenizer.json``."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {
        word: 3 + n for n, word in enumerate(sorted({w for t in TEXTS for w in t.split()}))
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's text half with random weights, in transformers' layout."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    small_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5's encoder with random weights, in transformers' layout."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    small_tokenizer(folder)
    return folder


def alone(kind: Any, folder: Path, text: str) -> Any:
    """What the library itself makes of one text, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([text], return_tensors="pt")
    with torch.inference_mode():
        return kind.from_pretrained(folder).eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_embeddings_are_the_librarys_whatever_the_batch(clip: Path, t5: Path) -> None:
    for folder, kind in ((clip, transformers.CLIPTextModelWithProjection), (t5, transformers.T5EncoderModel)):
        encoder = TextEncoder(str(folder), "tokens", 16)
        for text, found in zip(TEXTS, encoder(TEXTS), strict=True):
            wanted = alone(kind, folder, text).last_hidden_state[0]
            assert found.shape == wanted.shape and encoder.channels == wanted.shape[1]
            assert torch.allclose(found, wanted, atol=1e-5)


def test_one_vector_a_text_is_clips_projection_or_the_mean(clip: Path, t5: Path) -> None:
    encoder = TextEncoder(str(clip), "pooled", 16)
    assert (encoder.channels, encoder.length) == (12, 1)
    for text, found in zip(TEXTS, encoder(TEXTS), strict=True):
        wanted = alone(transformers.CLIPTextModelWithProjection, clip, text).text_embeds
        assert torch.allclose(found, wanted, atol=1e-5)
    for text, found in zip(TEXTS, TextEncoder(str(t5), "pooled", 16)(TEXTS), strict=True):
        wanted = alone(transformers.T5EncoderModel, t5, text).last_hidden_state.mean(1)
        assert torch.allclose(found, wanted, atol=1e-5)


SMALL = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BART = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (
    ("layers", 1), ("attention_heads", 2), ("ffn_dim", 16),
)}  # fmt: skip


def roberta(positions: int = 34) -> Any:
    """As published: without the pooler that its class has. Positions begin behind the padding's."""
    config = transformers.RobertaConfig(**SMALL, max_position_embeddings=positions, pad_token_id=2)
    return transformers.RobertaModel(config, add_pooling_layer=False)


OTHERS: dict[str, Callable[[], Any]] = {
    "roberta": roberta,
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=20, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    ),
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)),
    "mt5": lambda: transformers.MT5Model(
        transformers.MT5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
    "bart": lambda: transformers.BartModel(transformers.BartConfig(vocab_size=20, d_model=16, **BART)),
    "clip without a projection": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL)),
}
"""Encoders that a folder may hold, each of 16 channels."""


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    small_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_states_are_those_of_the_encoder_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    """Of models with a decoder those of the encoder alone; what it computes nothing with may be missing."""
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    encoder = TextEncoder(str(saved(model, tmp_path)), "tokens", 16)
    encoder.check()
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path)([TEXTS[1]], return_tensors="pt")
    with torch.inference_mode():
        wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[0]
    assert encoder.channels == 16 and torch.allclose(encoder(TEXTS)[1], wanted, atol=1e-5)


def test_what_embeddings_are_made_with_may_not_be_missing(tmp_path: Path) -> None:
    folder = saved(OTHERS["clip without a projection"](), tmp_path)
    with pytest.raises(InputError, match=r"missing or misshapen, such as text_projection\.weight"):
        TextEncoder(str(folder), "pooled", 16).check()


def test_models_of_sounds_are_no_text_encoders(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "d_model": 16, "max_source_positions": 4, "max_target_positions": 4, "pad_token_id": 1}
    folder = saved(transformers.WhisperModel(transformers.WhisperConfig(**sizes, **BART)), tmp_path)
    with pytest.raises(InputError, match="holds a whisper, which reads no text"):
        TextEncoder(str(folder), "tokens", 8).check()


def test_more_tokens_than_there_are_places_for_are_found_at_the_start(tmp_path: Path) -> None:
    """Of RoBERTa, ``max_position_embeddings`` counts those up to the padding's, which no token gets."""
    folder = saved(roberta(19), tmp_path)
    TextEncoder(str(folder), "tokens", 16).check()
    with pytest.raises(InputError, match=r"condition\.max_tokens: 17, and .* take fewer") as raised:
        TextEncoder(str(folder), "tokens", 17).check()
    assert "\n" not in str(raised.value)


def test_a_vocabulary_of_sentence_pieces_says_what_reads_it(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        shutil.copy(t5 / name, tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"pieces")
    monkeypatch.setattr("layersync.core.text.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"has spiece\.model and no tokenizer\.json; pip install sentencepiece"):
        TextEncoder(str(tmp_path), "tokens", 16)


@pytest.mark.parametrize(
    ("file", "changes", "same"),
    [
        ("config.json", {"num_layers": 1}, False),
        ("config.json", {"transformers_version": "4.0", "dtype": "float16", "_name_or_path": "t5"}, True),
        ("special_tokens_map.json", {"eos_token": "<unk>"}, False),
    ],
)
def test_what_changes_embeddings_is_another_encoder(
    t5: Path, tmp_path: Path, file: str, changes: dict[str, Any], same: bool
) -> None:
    """And what changes none is not."""
    other = shutil.copytree(t5, tmp_path / "other") / file
    other.write_text(json.dumps((json.loads(other.read_text()) if other.exists() else {}) | changes))
    ours, theirs = TextEncoder(str(t5), "tokens", 16), TextEncoder(str(other.parent), "tokens", 16)
    assert (ours.fingerprint == theirs.fingerprint) == same
    if same:
        assert torch.equal(ours(TEXTS)[1], theirs(TEXTS)[1])


def test_weights_in_several_files(t5: Path, tmp_path: Path) -> None:
    transformers.T5EncoderModel.from_pretrained(t5).save_pretrained(tmp_path, max_shard_size="4KB")
    small_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    whole, split = (TextEncoder(str(folder), "tokens", 16) for folder in (t5, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(whole(TEXTS), split(TEXTS), strict=True))
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json or a file that it names cannot be read"):
        TextEncoder(str(tmp_path), "tokens", 16)


def test_a_tokenizer_that_knows_no_padding_pads_with_its_end_of_text(t5: Path, tmp_path: Path) -> None:
    """As those of language models have it; one without that either is refused in a line."""
    for name, lacking in (("end", {"pad_token"}), ("neither", {"pad_token", "eos_token"})):
        shutil.copytree(t5, tmp_path / name)
        settings = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        kept = {key: value for key, value in settings.items() if key not in lacking}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(kept))
    whole, without = (TextEncoder(str(folder), "tokens", 16) for folder in (t5, tmp_path / "end"))
    assert all(torch.equal(a, b) for a, b in zip(whole(TEXTS), without(TEXTS), strict=True))
    with pytest.raises(InputError, match="its tokenizer has no token to fill short texts up with"):
        TextEncoder(str(tmp_path / "neither"), "tokens", 16)(TEXTS)


def test_a_folder_without_words_is_no_text_encoder(t5: Path, tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of it, to which every word is unknown."""
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        shutil.copy(t5 / name, tmp_path)
    with pytest.raises(InputError, match="no vocabulary"):
        TextEncoder(str(tmp_path), "tokens", 16)


def test_other_words_are_another_encoder(t5: Path, tmp_path: Path) -> None:
    shutil.copytree(t5, tmp_path / "other")
    words = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(words.replace('"walk"', '"run"'))
    one, other = (TextEncoder(str(folder), "tokens", 16).fingerprint for folder in (t5, tmp_path / "other"))
    assert one != other


def test_models_of_text_and_pictures_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**small, "vocab_size": 20}, vision_config={**small, "image_size": 8, "patch_size": 4}
    )
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    small_tokenizer(tmp_path)
    with pytest.raises(InputError, match="siglip, which reads more than text"):
        TextEncoder(str(tmp_path), "tokens", 8)


def test_a_damaged_table_is_made_anew() -> None:
    encoder = TextEncoder("minilm", "tokens", 11)
    wanted = TextTable.of(encoder, TEXTS).read(TEXTS)["text"]
    newest = max((cache_directory() / "texts").glob("*/rows.bin"), key=lambda path: path.stat().st_mtime_ns)
    for damage in (lambda: newest.write_bytes(newest.read_bytes()[:100]), (newest.parent / "index.json").unlink):
        damage()
        assert torch.equal(TextTable.of(encoder, TEXTS).read(TEXTS)["text"], wanted)


def test_minilm_hears_meaning_without_a_hub() -> None:
    encoder = TextEncoder("minilm", "pooled", 32)
    old, elderly, piano = torch.nn.functional.normalize(
        torch.cat(encoder(["an old person walks slowly", "grandma strolls", "a cat plays the piano"])), dim=1
    )
    assert encoder.channels == 384 and float(old @ elderly) > float(old @ piano) + 0.1


def test_long_texts_are_cut_counted_and_said() -> None:
    encoder = TextEncoder("minilm", "tokens", 6)
    with pytest.warns(UserWarning, match=r"1 of 3 texts are longer than condition\.max_tokens, 6, .*old person waves"):
        found = encoder(TEXTS)
    assert [len(rows) for rows in found] == [5, 6, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(rows) for rows in TextEncoder("minilm", "tokens", 12)(TEXTS)] == [5, 10, 3]


def test_a_table_is_encoded_once_and_read_by_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    first = TextTable.of(TextEncoder("minilm", "tokens", 12), [*TEXTS, ""])
    monkeypatch.setattr(TextEncoder, "__call__", lambda *_: pytest.fail("was encoded again"))
    again = TextTable.of(TextEncoder("minilm", "tokens", 12), TEXTS[::-1])
    for table in (first, again):
        batch = table.read([TEXTS[1], "", TEXTS[0]])
        assert batch["text"].shape == (3, 12, 384)
        assert batch["text_mask"].sum(1).tolist() == [10, 0, 5]
        assert not batch["text"][~batch["text_mask"]].any()
    assert torch.equal(first.read(TEXTS)["text"], again.read(TEXTS)["text"])
    with pytest.raises(KeyError):
        first.read(["a caption that nobody gave"])


@pytest.mark.parametrize(
    ("encoder", "tokens", "words"),
    [
        ("no/such-encoder", 8, ["condition.text_encoder", "no/such-encoder", "FOLDER"]),
        ("CLIP", 17, ["condition.max_tokens", "17", "16"]),
        ("EMPTY", 8, ["condition.text_encoder", "model.safetensors"]),
    ],
)
def test_encoders_that_cannot_be_had(clip: Path, tmp_path: Path, encoder: str, tokens: int, words: list[str]) -> None:
    given = {"CLIP": str(clip), "EMPTY": str(tmp_path)}.get(encoder, encoder)
    with pytest.raises(InputError) as raised:
        TextEncoder(given, "tokens", tokens)
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(load_recipe(RECIPE), tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def model(run: Run) -> GenerativeModel:
    return layersync.load(run.path)


def drawn(model: GenerativeModel, prompts: list[str], **settings: Any) -> Tensor:
    conditions = model.conditions(len(prompts), prompts=prompts, frames=16)
    noise = torch.randn(1, *model.latent.shape, generator=torch.Generator().manual_seed(0)).expand(len(prompts), -1, -1)
    return model.sample_latents(conditions, noise=noise, settings=model.settings(**settings))[0]


def test_a_run_is_sampled_with_the_encoder_it_was_trained_with(run: Run, tmp_path: Path, command: Command) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "text_pooling: tokens" in recipe
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.replace("max_tokens: 12", "max_tokens: 13"))
    status, _, err = command("sample", tmp_path / "run", "--prompt", "a walk")
    assert status == 2 and "is not what the run was trained with" in err and err.count("\n") == 1


def test_a_training_goes_on_with_the_encoder_it_began_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(run.path, tmp_path / "run") / "data.json"
    data.write_text(data.read_text().replace('"text_encoder": "text-', '"text_encoder": "another-'))
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    with pytest.raises(InputError, match="'minilm' is not what the run was trained with"):
        train(load_recipe(RECIPE, ["train.steps=31"]), tmp_path / "run", resume=True)


def test_an_encoder_that_cannot_run_is_found_before_anything_is_tokenized(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(t5, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    monkeypatch.setattr(LatentCache, "open", lambda *_, **__: pytest.fail("was tokenized"))
    with pytest.raises(InputError, match=r"condition\.text_encoder"):
        train(load_recipe(RECIPE, [f"condition.text_encoder={tmp_path / 'cut'}"]), tmp_path / "run")


@pytest.mark.parametrize("wordless", ["a", "b"])
def test_a_class_without_texts_is_counted_wherever_it_comes(tmp_path: Path, wordless: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.effect_noise((8, 8), 60).save(tmp_path / name / f"{number}.png")
            if name != wordless:
                (tmp_path / name / f"{number}.txt").write_text("noise")
    recipe = {
        "modality": "image",
        "data": {"name": "folder", "path": str(tmp_path)},
        "tokenizer": {"name": "pixels", "image_size": 8, "channels": 1},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        "condition": {"text_encoder": "minilm", "max_tokens": 8},
    }
    with pytest.warns(UserWarning, match="18 of 36 examples of data folder have no text"):
        parts = build_parts(load_recipe(recipe))
    assert sum(map(bool, parts.cache.captions)) == 18


def test_data_that_skips_what_it_cannot_read_does_so_with_texts_too(tmp_path: Path, command: Command) -> None:
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.effect_noise((8, 8), 60).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("noise")
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    recipe = {
        "modality": "image",
        "data": {"name": "folder", "path": str(tmp_path / "images"), "on_error": "skip"},
        "tokenizer": {"name": "pixels", "image_size": 8, "channels": 1},
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        "condition": {"text_encoder": "minilm", "max_tokens": 8},
        "train": {"steps": 1, "batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    status, _, err = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert status == 0, err


def test_each_example_of_another_split_is_asked_for_once_by_one_of_its_texts(model: GenerativeModel) -> None:
    """As published protocols go through a test set."""
    texts = [[f"{number} {word}" for word in ("walks", "runs", "hops")] for number in range(40)]
    known = KnownConditions(torch.zeros(40).long(), torch.full((40,), 16), texts)
    asked = model.conditions(40, known=known).captions
    assert len({text.split()[0] for text in asked}) == 40 and len({text.split()[1] for text in asked}) == 3
    assert asked != model.conditions(40, known=known, seed=1).captions
    assert len(model.conditions(100, known=known)) == 100


def test_what_is_said_changes_what_is_drawn(model: GenerativeModel) -> None:
    walk, dance, none, walk_again = drawn(model, ["a person walks", "a person dances", "", "a person walks"])
    assert torch.allclose(walk, walk_again, atol=1e-5)
    assert not torch.allclose(walk, dance, atol=1e-3) and not torch.allclose(walk, none, atol=1e-3)
    in_parts = drawn(model, ["a person walks", "a person dances", "", "a person walks"], batch_size=3)
    assert torch.allclose(torch.stack([walk, dance, none, walk_again]), torch.stack(list(in_parts)), atol=1e-5)


def test_a_blank_prompt_is_no_text(model: GenerativeModel) -> None:
    assert model.conditions(3, prompts=["", " \n", " a walk "]).captions == ("", "", "a walk")


def test_guidance_moves_away_from_no_text(model: GenerativeModel) -> None:
    """One Euler step: guided = none + w (text - none), exactly."""
    prompts = ["a person walks", ""]
    text, none = drawn(model, prompts, steps=1)
    guided, still_none = drawn(model, prompts, steps=1, guidance=3.0)
    assert torch.allclose(guided, none + 3.0 * (text - none), atol=1e-4)
    assert torch.allclose(still_none, none, atol=1e-5)


def test_labels_are_left_to_scores_where_text_is_read(model: GenerativeModel) -> None:
    assert model.condition.num_classes == 0 and model.condition.text_channels == 384 and len(model.classes) > 5
    by_chance = model.conditions(50)
    assert set(by_chance.captions) > {by_chance.captions[0]} and bool((by_chance.label >= 0).all())


@pytest.mark.parametrize("dropout", [0.5, 1.0])
def test_texts_and_labels_are_dropped_together(dropout: float, seen: list[Any]) -> None:
    recipe = load_recipe(RECIPE, ["condition.labels=required", f"train.condition_dropout={dropout}"])
    parts = build_parts(recipe)
    Trainer(recipe, parts).train_step(0)
    ((_, _, condition),) = seen
    dropped = step_draws(0, 0, 16, slice(0, 16), len(parts.cache), parts.data.latent).drop < dropout
    assert bool(dropped.all()) if dropout == 1 else 0 < int(dropped.sum()) < 16
    assert torch.equal(condition["label"] == len(parts.data.classes), dropped)
    assert torch.equal(~condition["text_mask"].any(1), dropped)


@pytest.mark.filterwarnings("ignore:.* longer than condition.max_tokens")
def test_pooling_and_length_of_texts_are_the_recipes(clip: Path) -> None:
    """The projection of this CLIP has half as many channels as its tokens."""
    for settings, shape in (
        (["condition.text_pooling=tokens", "condition.max_tokens=7"], (7, 24)),
        (["condition.text_pooling=pooled"], (1, 12)),
    ):
        parts = build_parts(load_recipe(RECIPE, [f"condition.text_encoder={clip}", *settings]))
        caption = parts.cache.captions[0][0]
        assert parts.texts is not None and parts.texts.read([caption])["text"].shape == (1, *shape)
        assert parts.data.text_channels == shape[1]


def test_texts_and_labels_together(tmp_path: Path) -> None:
    """They are dropped together, so that one without the other is nothing the network has seen."""
    recipe = load_recipe(RECIPE, ["condition.labels=required", "train.steps=1"])
    both = layersync.load(train(recipe, tmp_path / "run").path)
    assert both.condition.num_classes == len(both.classes) and both.condition.text_channels == 384
    with pytest.raises(InputError, match="give both --labels and --prompt"):
        both.conditions(1, prompts=["a person walks"])
    assert both.conditions(1, prompts=["a person walks"], labels=[2]).label.tolist() == [2]


def test_resumed_equals_straight(run: Run, tmp_path: Path, tensors_of: Any, identical: Any) -> None:
    half = train(load_recipe(RECIPE, ["train.steps=15"]), tmp_path / "run")
    train(load_recipe(RECIPE), half.path, resume=True)
    assert identical(tensors_of(half), tensors_of(run))


def test_sample_by_prompt(run: Run, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "said"
    prompts = ["a person walks", "an old  person\nwaves"]
    status, printed, _ = command(
        "sample", run.path, "--prompt", prompts[0], "--prompt", prompts[1], "--frames", 12, "--out", out
    )
    assert status == 0 and printed.strip() == str(out)
    assert (out / "captions.txt").read_text().splitlines() == ["a person walks", "an old person waves"]
    assert len(list(out.glob("*.npz"))) == 2


def texts_of(modality: str, path: Path) -> list[tuple[str, ...]]:
    """As ``layersync score`` reads them."""
    samples = load_adapter(modality).open_samples(path)
    return [samples[row].captions for row in range(len(samples))]


def test_motions_open_with_the_texts_they_were_asked_for(run: Run, tmp_path: Path, command: Command) -> None:
    asked = [part for text in ("a person walks", "", "an old\nman") for part in ("--prompt", text)]
    assert command("sample", run.path, *asked, "--npz", "--out", tmp_path / "some")[0] == 0
    assert texts_of("motion", tmp_path / "some") == [("a person walks",), (), ("an old man",)]
    assert texts_of("motion", tmp_path / "some" / "samples.npz") == [(), (), ()]
    assert command("sample", run.path, *asked[:2], "--num", 2, "--npz", "--out", tmp_path / "all")[0] == 0
    for path in (tmp_path / "all", tmp_path / "all" / "samples.npz"):
        assert texts_of("motion", path) == [("a person walks",)] * 2


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_images_and_sounds_open_with_the_texts_they_were_asked_for(
    modality: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(12):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 8000).astype(np.float32)
        if modality == "image":
            Image.fromarray((255 * np.abs(noise[:64])).astype(np.uint8).reshape(8, 8)).save(
                tmp_path / "data" / f"{number}.png"
            )
        else:
            soundfile.write(tmp_path / "data" / f"{number}.wav", noise, 16000)
        (tmp_path / "data" / f"{number}.txt").write_text("noise\n")
    tokenizer = {
        "image": {"name": "pixels", "image_size": 8, "channels": 1},
        "audio": {"name": "mel", "num_frames": 16, "floor": 1e-5},
    }[modality]
    recipe = {
        "modality": modality,
        "data": {"name": "folder", "path": str(tmp_path / "data")},
        "tokenizer": tokenizer,
        "backbone": {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        "condition": {"text_encoder": "minilm", "max_tokens": 8},
        "train": {"steps": 1, "batch_size": 2},
        "sample": {"solver": "euler", "steps": 2},
    }
    run, out = train(load_recipe(recipe), tmp_path / "run").path, tmp_path / "said"
    status, _, err = command("sample", run, "--prompt", "a tone", "--prompt", "a noise", "--npz", "--out", out)
    assert status == 0, err
    assert texts_of(modality, out) == [("a tone",), ("a noise",)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "0", "--num", "1"], ["--labels", "not conditioned on labels"]),
        (["--prompt", "a walk", "--frames", "17"], ["--frames", "17", "16"]),
        (["--prompt", "\udcff"], ["--prompt", "no text in UTF-8"]),
    ],
)
def test_bad_wishes(run: Run, command: Command, arguments: list[str], words: list[str]) -> None:
    status, out, err = command("sample", run.path, *arguments)
    assert status == 2 and not out and all(word in err for word in words) and err.count("\n") == 1


def test_prompts_without_text(trained: Run, command: Command) -> None:
    for arguments, word in ((["--prompt", "a four"], "condition.text_encoder"), (["--frames", "4"], "no length")):
        status, _, err = command("sample", trained.path, *arguments)
        assert status == 2 and word in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("condition.max_tokens=2", ["condition.max_tokens", "greater than or equal to 3"]),
        ("condition.text_encoder=''", ["condition.text_encoder"]),
        ("condition.text_encoder=minilm", ["condition.text_encoder", "digits", "no captions"]),
        ("condition.max_tokens=1000", None),
    ],
)
def test_texts_that_data_does_not_have(
    tiny_file: Path, tmp_path: Path, command: Command, change: str, words: list[str] | None
) -> None:
    status, _, err = command("train", tiny_file, "--set", change, "--set", "train.steps=1", "--out", tmp_path / "run")
    if words is None:
        assert status == 0 and "condition.max_tokens: no effect without condition.text_encoder" in err
    else:
        assert status == 2 and all(word in err for word in words) and not (tmp_path / "run").exists()


def test_labels_required_where_there_are_none(tmp_path: Path, command: Command) -> None:
    recipe = {**RECIPE, "modality": "image", "data": {"name": "tiles", "path": str(tmp_path / "picture.png")}}
    recipe |= {"tokenizer": {"name": "pixels", "image_size": 8}, "condition": {"labels": "required"}}
    recipe["backbone"] = {"name": "sit", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    Image.effect_noise((200, 40), 60).convert("RGB").save(tmp_path / "picture.png")
    recipe["data"] |= {"tile_size": 8}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    status, _, err = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    assert status == 2 and "condition.labels: required" in err and "tiles" in err


def test_samples_to_be_scored_carry_the_texts_they_were_asked_for(model: GenerativeModel) -> None:
    examples = draw(model, 8, 0, Processes())
    captions = [examples[number].captions for number in range(8)]
    assert captions == [(text,) for text in model.conditions(8, seed=0).captions] and len(set(captions)) > 1


class Heard(FeatureExtractor):
    """Numbers of a sample and of its text."""

    name, streams, text_streams, preprocessing = "heard", ("features", "text"), ("text",), "none"

    def __call__(self, examples: Any) -> Any:
        rows = [np.full((1, 2), 1.0 + len(str(example.condition.get("text"))), np.float32) for example in examples]
        return {"features": rows, "text": rows}


def test_texts_are_compared_where_there_are_some(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some examples have none, samples are drawn for the others; where none has any, nothing is drawn."""
    adapter = type(load_adapter("motion"))
    monkeypatch.setattr(adapter, "features", lambda _: {"heard": lambda _: Heard()})
    file = shutil.copytree(run.path, tmp_path / "run") / "captions.json"
    captions = json.loads(file.read_text())
    file.write_text(json.dumps([texts if row % 3 == 0 else [] for row, texts in enumerate(captions)]))
    without = len(captions) - len(captions[::3])
    with pytest.warns(UserWarning, match=f"{without} of {len(captions)} examples have no text, which a metric needs"):
        found = evaluate(tmp_path / "run", ["similarity-heard"], num_samples=8)
    assert found.metrics["similarity-heard"].value == pytest.approx(1) and not found.failed
    assert found.beside_recipe == {"without_text": without}
    assert not evaluate(run.path, ["similarity-heard"], num_samples=8).beside_recipe
    file.write_text(json.dumps([[]] * len(captions)))
    monkeypatch.setattr(evaluation, "draw", lambda *_, **__: pytest.fail("was drawn"))
    with pytest.raises(InputError, match=f"none of the {len(captions)} examples that samples are drawn for has a text"):
        evaluate(tmp_path / "run", ["similarity-heard"], num_samples=8)


def test_one_set_cannot_be_scored_for_variety_within_a_text(run: Run, command: Command) -> None:
    status, _, err = command("evaluate", run.path, "--metrics", "multimodality-text-motion", "--num-samples", 4)
    assert status == 2 and "several samples of each text" in err
