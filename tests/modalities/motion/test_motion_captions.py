"""Texts of motions: from rules on file names, or from text files beside them."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from bvh_files import BANDAI_NAMCO

from layersync import InputError, load, load_recipe, train
from layersync.core.evaluation import conditions_of_split, draw
from layersync.core.parallel import Processes
from layersync.core.session import dry_run
from layersync.modalities.motion.captions import read_rules
from layersync.modalities.motion.data import AmassConfig
from layersync.modalities.motion.io.amass import write_amass

RULES: dict[str, Any] = {
    "pattern": r"^(?P<content>[a-z-]+)_(?P<style>[a-z]+)_\d+",
    "templates": ["{subject} {action}", "a person {action}, {manner}"],
    "words": {
        "content": {"wave-left": {"action": ["waves with the left hand", "waves"]}, "walk": {"action": ["walks"]}},
        "style": {"old": {"subject": ["an old person"], "manner": ["slowly"]}, "normal": {"subject": ["someone"]}},
    },
}
NAMES = ("wave-left_old_1", "wave-left_normal_1", "walk_old_1", "walk_old_2", "walk_normal_1")


@pytest.fixture
def tree(make_motion: Any, tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_amass(tmp_path / f"{name}.npz", make_motion(frames=41, seed=seed, fps=20.0))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    return tmp_path


def texts(config: AmassConfig) -> dict[str, Any]:
    found = {}
    for split in ("train", "test"):
        data = config.build(split)
        found |= {example.source: example.captions for example in (data[index] for index in range(len(data)))}
    return found


def test_every_phrase_of_every_template_and_no_slot_left_open(tree: Path) -> None:
    found = texts(AmassConfig(path=str(tree), captions=str(tree / "rules.yaml")))
    assert found["wave-left_old_1.npz"] == (
        "an old person waves with the left hand",
        "an old person waves",
        "a person waves with the left hand, slowly",
        "a person waves, slowly",
    )
    assert found["walk_normal_1.npz"] == ("someone walks",)


def test_lines_of_a_text_file_beside_a_motion(tree: Path) -> None:
    (tree / "walk_old_1.txt").write_text("an old man walks\n\nsomebody shuffles along\n")
    found = texts(AmassConfig(path=str(tree)))
    assert found.pop("walk_old_1.npz") == ("an old man walks", "somebody shuffles along")
    assert set(found.values()) == {()}


def test_texts_that_name_a_side_are_not_mirrored(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = str(tree / "rules.yaml")
    assert AmassConfig(path=str(tree)).build("train").variants == ("original", "mirror")
    with caplog.at_level(logging.INFO):
        assert AmassConfig(path=str(tree), captions=rules).build("train").variants == ("original",)
    assert "waves with the left hand, slowly' names a side" in caplog.text
    with pytest.raises(InputError, match=r"data\.mirror.*left hand"):
        AmassConfig(path=str(tree), captions=rules, mirror=True).build("train")


def test_other_words_are_other_data(tree: Path) -> None:
    config = AmassConfig(path=str(tree), captions=str(tree / "rules.yaml"))
    before = config.build("train").fingerprint
    assert config.build("train").fingerprint == before != AmassConfig(path=str(tree)).build("train").fingerprint
    changed = {**RULES, "templates": ["{subject} {action}"]}
    (tree / "rules.yaml").write_text(yaml.safe_dump(changed))
    assert config.build("train").fingerprint != before


def test_a_pattern_on_names_holds_files_out(tree: Path) -> None:
    config = AmassConfig(path=str(tree), test_files="_old_")
    names = {
        split: {config.build(split)[i].source for i in range(len(config.build(split)))} for split in ("train", "test")
    }
    assert names["test"] == {f"{name}.npz" for name in NAMES if "_old_" in name}
    assert names["train"] == {f"{name}.npz" for name in NAMES if "_old_" not in name}
    with pytest.warns(UserWarning, match=r"data\.test_files: '_new_' is in no file name: nothing is held out"):
        assert len(AmassConfig(path=str(tree), test_files="_new_").build("train")) == len(NAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "[a-z]+"}, "no named group"),
        ({"pattern": "^(?P<content>q+)"}, "does not match the file name"),
        ({"words": {**RULES["words"], "content": {"walk": {"action": ["walks"]}}}}, "content 'wave-left'"),
        ({"templates": ["{subject} {mood}"]}, "no words have a slot 'mood'"),
        ({"templates": ["{manner} {action}"]}, "no template fits"),
        ({"templates": ["{} {action}"]}, "slots are names in braces"),
        ({"templates": ["{action"]}, "is no template"),
        ({"templates": ["{action:d}"]}, "slots are names in braces"),
        ({"words": 3}, "words"),
    ],
)
def test_rules_that_make_no_sense(tree: Path, change: dict[str, Any], said: str) -> None:
    (tree / "rules.yaml").write_text(yaml.safe_dump({**RULES, **change}))
    with pytest.raises(InputError, match=r"data\.captions") as raised:
        AmassConfig(path=str(tree), captions=str(tree / "rules.yaml")).build("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_rules_that_are_not_there(tree: Path) -> None:
    (tree / "broken.yaml").write_text("pattern: [")
    (tree / "bytes.yaml").write_bytes(bytes(range(256)))
    (tree / "list.yaml").write_text("[1, 2]")
    (tree / "date.yaml").write_text("pattern: 2020-99-99")
    bad = {"broken.yaml": "no valid YAML", "bytes.yaml": "cannot be read as text", "list.yaml": "rules are a mapping"}
    bad |= {"date.yaml": "no valid YAML"}
    for source, said in (("bandai", "bandai-namco"), *((str(tree / name), said) for name, said in bad.items())):
        with pytest.raises(InputError, match=said):
            AmassConfig(path=str(tree), captions=source).build("train")


def test_the_shipped_rules_know_the_published_names() -> None:
    rules = read_rules("bandai-namco")
    texts = rules.captions("dataset-2_wave-left-hand_elderly_004.bvh")
    assert "an old person waves with the left hand" in texts and len(set(texts)) == len(texts) == 18
    assert not any(re.search("[{}]", text) for text in texts)
    assert "someone walks" in rules.captions("dataset-1_walk_normal_001.bvh")


def test_the_shipped_recipe_takes_a_step_on_files_of_its_kind(
    make_motion: Any, write_body_bvh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "motion-bvh"
    folder.mkdir()
    for seed, name in enumerate(("1_walk_old_001", "1_run_normal_001", "2_wave-left-hand_elderly_001")):
        write_body_bvh(folder / f"dataset-{name}.bvh", make_motion(frames=40, seed=seed), names=BANDAI_NAMCO)
    monkeypatch.setenv("LAYERSYNC_DATA", str(tmp_path))
    tiny = ["backbone.hidden_size=32", "train.batch_size=4", "tokenizer.num_frames=16", "data.min_clips=1"]
    needs = dry_run(load_recipe("motion/text", tiny))
    assert needs.parameters > 0


def test_scores_are_asked_for_on_the_split_that_the_recipe_names(
    tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Published text-to-motion scores take texts and lengths of the test set."""
    recipe = {
        "modality": "motion",
        "data": {"name": "amass", "path": str(tree), "captions": str(tree / "rules.yaml"), "test_files": "_old_"},
        "tokenizer": {"name": "smpl6d", "num_frames": 16},
        "backbone": {"name": "transformer", "depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        "condition": {"text_encoder": "minilm", "max_tokens": 12},
        "train": {"steps": 1, "batch_size": 4, "precision": "float32"},
        "sample": {"solver": "euler", "steps": 1},
    }
    asked, runs = {}, tmp_path_factory.mktemp("runs")
    for split in ("train", "test"):
        run = train(load_recipe({**recipe, "evaluate": {"conditions": split}}), runs / split)
        model = load(run.path)
        examples = draw(model, 24, 0, Processes(), known=conditions_of_split(model))
        asked[split] = {example.captions[0] for example in examples.values()}
    assert asked["train"] <= {"someone waves with the left hand", "someone waves", "someone walks"}
    assert asked["test"] and all("old" in text or "slowly" in text for text in asked["test"])
