"""HumanML3D and KIT-ML folders through reader, tokenizer, cache, training, samples, scores; files made here."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluator_files import write_evaluator
from humanml3d_files import TEXTS, write_clip, write_folder, write_humanml3d

from layersync import load_recipe
from layersync.core.adapter import ConditionSpec, load_adapter
from layersync.core.errors import InputError
from layersync.core.run import differing_keys
from layersync.modalities.motion import joints_to_humanml3d
from layersync.modalities.motion.humanml3d import HumanML3DFeatures
from layersync.modalities.motion.humanml3d_data import HumanML3DConfig, KitConfig, read_captions
from layersync.modalities.motion.humanml3d_tokenizer import (
    HumanML3DTokenizer,
    HumanML3DTokenizerConfig,
    KitTokenizerConfig,
    feature_groups,
)
from layersync.modalities.motion.kit import KitFeatures
from layersync.modalities.motion.sample import JointMotion

KINDS = {"humanml3d": HumanML3DConfig, "kit-ml": KitConfig}


def features(frames: int, channels: int = 263, seed: int = 0) -> np.ndarray:
    """Numbers that look like features that are not normalised: bodies above the floor, columns of length 1."""
    joints = (channels + 1) // 12
    source = np.random.default_rng(seed)
    values = source.normal(0, 0.01, (frames, channels)).astype(np.float32)
    values[:, 3] = 0.9
    values[:, 4 : 1 + 3 * joints].reshape(frames, -1, 3)[..., 1] = 0.8
    values[:, 1 + 3 * joints : 9 * joints - 5].reshape(frames, -1, 3)[..., 0] = 1.0
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Motions at both ends of the lengths that count, whole captions and parts, and what is left out."""
    nan = features(60)
    nan[5, 7] = np.nan
    lengths = {"short": 39, "first": 40, "last": 199, "long": 200, "parts": 100, "only": 100, "silent": 50}
    motions = {name: features(length, seed=length) for name, length in lengths.items()} | {"broken": nan}
    texts = {name: (TEXTS["walk"], TEXTS["again"]) for name in motions if name not in ("parts", "only", "silent")}
    texts |= {"parts": (TEXTS["walk"], TEXTS["part"], TEXTS["short"]), "only": (TEXTS["part"],)}
    lists = {"train": [*motions, "missing"], "test": ["first"], "val": ["last", "first"]}
    return write_folder(tmp_path / "HumanML3D", motions, texts, lists)


def read(folder: Path, split: Any = "train", **keys: Any) -> dict[str, Any]:
    dataset = KINDS[keys.pop("name", "humanml3d")](path=str(folder), **keys).build(split)
    return {example.source: example for example in (dataset[index] for index in range(len(dataset)))}


def test_lengths_captions_and_parts_are_those_of_the_published_loader(folder, caplog):
    with caplog.at_level(logging.WARNING):
        found = read(folder)
    assert list(found) == ["first[0:40]", "last[0:199]", "parts[0:100]", "parts[10:60]", "only[10:60]"]
    assert found["first[0:40]"].captions == ("a person walks forward", "someone is walking")  # nan is 0
    assert found["parts[0:100]"].captions == ("a person walks forward",)
    assert found["parts[10:60]"].captions == found["only[10:60]"].captions == ("a man raises his arm",)
    whole, part = (found[name].sample for name in ("parts[0:100]", "parts[10:60]"))
    assert isinstance(part, HumanML3DFeatures)
    np.testing.assert_array_equal(part.values, whole.values[10:60])
    assert "1 without a file, 1 with values that are not finite, 1 without texts" in caplog.text


def test_lists_are_splits_and_every_change_has_its_fingerprint(folder):
    assert list(read(folder, "test")) == ["first[0:40]"]
    assert list(read(folder, "test", test_split="val")) == ["last[0:199]", "first[0:40]"]
    seen = [HumanML3DConfig(path=str(folder)).build("train").fingerprint]
    (folder / "texts" / "first.txt").write_text(TEXTS["walk"])
    seen.append(HumanML3DConfig(path=str(folder)).build("train").fingerprint)
    np.save(folder / "new_joint_vecs" / "first.npy", features(40, seed=9))
    seen.append(HumanML3DConfig(path=str(folder)).build("train").fingerprint)
    (folder / "train.txt").write_text("last\nfirst\n")
    seen.append(HumanML3DConfig(path=str(folder)).build("train").fingerprint)
    assert len(set(seen)) == 4
    assert HumanML3DConfig(path=str(folder)).build("train").fingerprint == seen[-1]


def test_kit_ml_has_251_numbers_at_its_rate_and_parts_by_20(tmp_path):
    motions = {name: features(length, 251, seed=length) for name, length in {"a": 23, "b": 24, "c": 90}.items()}
    texts = dict.fromkeys(motions, (TEXTS["walk"], TEXTS["part"]))
    root = write_folder(tmp_path / "KIT-ML", motions, texts, {"train": list(motions), "test": ["c"]})
    found = read(root, name="kit-ml")
    assert list(found) == ["b[0:24]", "c[0:90]", "c[10:60]"]
    sample = found["c[0:90]"].sample
    assert isinstance(sample, KitFeatures) and sample.fps == 12.5
    assert sample.places().shape == (90, 21, 3)
    np.testing.assert_allclose(sample.places()[0, 1], sample.values[0, 4:7], atol=1e-6)
    written = load_adapter("motion").render([sample], tmp_path / "out")
    assert [path.name for path in written] == ["motions.gif", "motion-000.npy"]
    tokenizer = HumanML3DTokenizer(KitTokenizerConfig(num_frames=24, statistics=str(root)))
    assert tokenizer.encode([sample])[0].shape == (90, 251)
    with pytest.raises(InputError, match="cannot read KitFeatures; it goes with data humanml3d"):
        HumanML3DTokenizer(HumanML3DTokenizerConfig()).encode([sample])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "texts").rename(root / "text"), "no folder texts"),
        (lambda root: (root / "new_joint_vecs").rename(root / "vecs"), "no folder new_joint_vecs"),
        (lambda root: (root / "train.txt").unlink(), "no train.txt"),
        (lambda root: (root / "train.txt").write_text("short\nlong\n"), "none of 40 to 199 frames"),
        (lambda root: (root / "train.txt").write_text(""), "names 0 motions"),
        (
            lambda root: np.save(root / "new_joint_vecs" / "first.npy", features(50, 251)),
            r"humanml3d is \(frames, 263\)",
        ),
        (lambda root: (root / "new_joint_vecs" / "first.npy").write_bytes(b"torn"), "first.npy: no readable array"),
        (lambda root: (root / "texts" / "first.txt").write_text("just words\n"), "first.txt: 'just words' is not"),
        (lambda root: (root / "texts" / "first.txt").write_bytes(b"\xff\xfe"), "first.txt: no readable text"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder, damage, said):
    damage(folder)
    with pytest.raises(InputError, match=said) as raised:
        HumanML3DConfig(path=str(folder)).build("train")
    assert "\n" not in str(raised.value)


def test_times_of_captions_are_read_as_they_stand(tmp_path):
    (tmp_path / "x.txt").write_text("\ufeffa#a/DET#nan#2.5\n\nb#b/X#0.0#0.0\n")
    assert [(line.text, line.start, line.stop) for line in read_captions(tmp_path / "x.txt")] == [
        ("a", 0.0, 2.5),
        ("b", 0.0, 0.0),
    ]


def test_published_statistics_normalise_and_stay_in_the_run(folder):
    config = HumanML3DTokenizerConfig(num_frames=64, statistics=str(folder))
    tokenizer = HumanML3DTokenizer(config)
    values = features(50, seed=3)
    stored = tokenizer.encode([HumanML3DFeatures(values)])
    tokenizer.fit(stored)
    mean, std = np.load(folder / "Mean.npy"), np.load(folder / "Std.npy")
    window = torch.nn.functional.pad(stored[0], (0, 0, 0, 14))[None]
    latents = tokenizer.latents(window)
    np.testing.assert_allclose(latents[0, :50], (values - mean) / std, rtol=1e-4, atol=1e-4)
    assert not latents[0, 50:].any()
    (folder / "Mean.npy").unlink()
    other = HumanML3DTokenizer(config)
    other.load_state(tokenizer.state())
    mask = torch.arange(64)[None] < 50
    (back,) = other.decode(latents, mask)
    np.testing.assert_allclose(back.values, values, atol=1e-5)
    wild = other.decode(torch.randn(1, 64, 263) * 9)[0]  # what an untrained network gives is still a sample
    assert wild.cut(0, 8).values.shape == (8, 263)
    with pytest.raises(InputError, match="without its statistics"):
        HumanML3DTokenizer(config).encode([HumanML3DFeatures(values)])
    with pytest.raises(InputError, match="mean must have 263"):
        other.load_state({"mean": torch.zeros(3)})


def test_statistics_of_the_data_average_deviations_over_groups(folder):
    tokenizer = HumanML3DTokenizer(HumanML3DTokenizerConfig(num_frames=40))
    clips = [torch.from_numpy(features(frames, seed=frames)) for frames in (40, 70)]
    tokenizer.fit(clips)
    rows = torch.cat(clips).double()
    torch.testing.assert_close(tokenizer.mean, rows.mean(0).float())
    own = rows.std(0, unbiased=False)
    for group in feature_groups(263):
        torch.testing.assert_close(tokenizer.deviation[group], own[group].mean().float().expand_as(own[group]))
    assert [group.stop for group in feature_groups(263)] == [1, 3, 4, 67, 193, 259, 263]
    assert [group.stop for group in feature_groups(251)] == [1, 3, 4, 64, 184, 247, 251]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("Std.npy", None, "without its statistics"),
        ("Mean.npy", np.zeros(251), r"Mean.npy: expected 263 finite numbers, found shape \(251,\)"),
        ("Std.npy", np.zeros(263), "not above 0"),
        ("Std.npy", np.full(263, 0.014), "the evaluator's statistics"),
        ("Mean.npy", np.array([{}]), "no readable array"),
    ],
)
def test_other_statistics_are_refused_before_anything_is_encoded(folder, name, content, said):
    (folder / name).unlink()
    if content is not None:
        np.save(folder / name, content)
    tokenizer = HumanML3DTokenizer(HumanML3DTokenizerConfig(statistics=str(folder)))
    with pytest.raises(InputError, match=said):
        tokenizer.encode([])


def test_windows_of_samples_are_those_of_the_cache_and_motions_are_described(make_motion):
    tokenizer = HumanML3DTokenizer(HumanML3DTokenizerConfig(num_frames=20))
    motion = make_motion(frames=46, fps=20.0)
    expected = joints_to_humanml3d(motion.joints(), 20.0)
    np.testing.assert_array_equal(tokenizer.encode([motion])[0], expected)
    for position, start in ((0.0, 0), (0.5, 13), (0.999, 25)):
        np.testing.assert_array_equal(tokenizer.window(motion, position).values, expected[start : start + 20])
    assert len(tokenizer.window(JointMotion(motion.joints()[:9], 20.0), 0.5)) == 8
    smpl6d = load_adapter("motion").tokenizer(load_adapter("motion").sections["tokenizer"]["smpl6d"]())
    with pytest.raises(InputError, match="HumanML3DFeatures goes with tokenizer humanml3d"):
        smpl6d.encode([HumanML3DFeatures(features(9))])


def test_archives_of_features_are_read_again(make_motion, tmp_path):
    adapter = load_adapter("motion")
    motions = [make_motion(frames=frames, seed=frames, fps=20.0) for frames in (30, 41)]
    samples = [HumanML3DFeatures(joints_to_humanml3d(motion.joints(), 20.0)) for motion in motions]
    adapter.archive(samples, [1, 0], tmp_path / "samples.npz")
    back = adapter.open_samples(tmp_path / "samples.npz")
    assert [len(back[index].sample) for index in range(2)] == [29, 40]
    np.testing.assert_array_equal(back[1].sample.values, samples[1].values)
    drawn = adapter.render(samples, tmp_path / "drawn")
    assert [path.name for path in drawn] == ["motions.gif", "motion-000.npy", "motion-001.npy"]
    np.testing.assert_array_equal(adapter.open_samples(tmp_path / "drawn")[0].sample.values, samples[0].values)


SHRUNK = (
    "backbone.hidden_size=32", "backbone.depth=3", "train.steps=3", "train.batch_size=4", "train.log_every=1",
    "sample.steps=3",
)  # fmt: skip
RECIPES = ("mdm", "mdm-baseline", "flow", "flow-baseline")


def linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def parameters(name: str) -> int:
    """Of frames of 263 values and texts of 512: MDM's encoder of 8 layers of 512, ours of 12 of 256."""
    if name.startswith("mdm"):
        d = 512
        layer = linear(d, 3 * d) + linear(d, d) + linear(d, 2 * d) + linear(2 * d, d) + 2 * 2 * d  # two norms
        return linear(263, d) + 2 * linear(d, d) + linear(512, d) + 8 * layer + linear(d, 263)
    d = 256
    attention = linear(d, 3 * d) + linear(d, d)
    of_text = linear(d, d) + linear(d, 2 * d) + linear(d, d)
    block = attention + of_text + linear(d, 4 * d) + linear(4 * d, d) + linear(d, 6 * d)
    ends = linear(263, d) + linear(256, d) + linear(d, d) + linear(512, d) + d  # d: of no text
    return ends + 12 * block + linear(d, 2 * d) + linear(d, 263)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_build_at_full_size_with_18_million_parameters(name):
    recipe = load_recipe(f"motion/humanml3d-{name}")
    assert recipe.regularizer.name == ("none" if "baseline" in name else "layersync")
    with torch.device("meta"):
        latent = recipe.adapter.tokenizer(recipe.tokenizer).latent
        network = recipe.adapter.backbone(recipe.backbone, latent, ConditionSpec(0, 512))
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == parameters(name)
    assert parameters(name) == pytest.approx(17.9e6, rel=0.002)
    twin = load_recipe(f"motion/humanml3d-{name.removesuffix('-baseline')}").to_mapping()
    assert differing_keys(recipe.to_mapping() | {"regularizer": 0}, twin | {"regularizer": 0}) == []


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.mark.parametrize("name", ["mdm", "flow"])
def test_a_shipped_recipe_goes_from_files_to_scores(command, make_motion, tmp_path, monkeypatch, clip, name):
    root = write_humanml3d(tmp_path / "data", make_motion)
    monkeypatch.setenv("HUMANML3D", str(root))
    overrides = [part for each in (*SHRUNK, f"condition.text_encoder={clip}") for part in ("--set", each)]
    run = tmp_path / "run"
    status, _, err = command("train", f"motion/humanml3d-{name}", *overrides, "--out", run)
    assert status == 0, err
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert first["flow_loss"] > 0 and any(key.startswith("similarity") for key in first)
    evaluator = write_evaluator(tmp_path / "evaluator")
    shutil.copytree(root / "texts", evaluator / "texts")
    root.rename(tmp_path / "away")  # samples need no data
    status, _, err = command("sample", run, "--prompt", "a person waves", "--num", 2, "--frames", 44, "--npz")
    assert status == 0, err
    drawn = run / "samples" / "step-00000003"
    assert np.load(drawn / "motion-001.npy").shape == (44, 263)
    assert (drawn / "captions.txt").read_text() == "a person waves\n" * 2
    with np.load(drawn / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["features"][1], np.load(drawn / "motion-001.npy"))
    scored = ("--modality", "motion", "--generated", drawn, "--extractor", f"text-motion={evaluator}")
    status, out, err = command("score", *scored, "--metrics", "multimodality", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"]["multimodality"]["details"]["samples_a_text"] == 2
    (tmp_path / "away").rename(root)
    status, out, err = command("evaluate", run, "--metrics", "fd-kinetic,foot-skating", "--num-samples", 4, "--json")
    assert status == 0, err
    scores = json.loads(out)["metrics"]
    assert scores["fd-kinetic"]["value"] > 0 and scores["fd-kinetic"]["reference"]["split"] == "test"
    assert 0 <= scores["foot-skating"]["value"] <= 1
    given = ("--num-samples", 32, "--reference", root / "test.txt", "--extractor", f"text-motion={evaluator}")
    metrics = "motion-fid,r-precision-3,matching,diversity"
    status, out, err = command("evaluate", run, "--metrics", metrics, *given, "--json")
    assert status == 0, err
    scores = json.loads(out)["metrics"]
    assert set(scores) == set(metrics.split(","))
    assert scores["motion-fid"]["value"] > 0 and 0 <= scores["r-precision-3"]["value"] <= 1


def test_a_recipe_without_its_statistics_stops_before_anything_is_written(command, make_motion, tmp_path, monkeypatch):
    root = write_humanml3d(tmp_path / "data", make_motion, count=2)
    monkeypatch.setenv("HUMANML3D", str(root))
    (root / "Std.npy").unlink()
    none = ("--set", "condition.text_encoder=null", "--set", "sample.guidance=1")
    status, _, err = command("train", "motion/humanml3d-mdm", *none, "--out", tmp_path / "run")
    assert status == 2 and "humanml3d without its statistics" in err and "no Std.npy" in err
    assert not (tmp_path / "run").exists()
