"""The text-motion evaluator on made-up weights in the published file, against the published code.

Golden numbers: ``tests/golden/motion_text_motion.npz`` holds, for two motions and captions, what the published code
gives a network (``Text2MotionDatasetV2`` of github.com/GuyTevet/motion-diffusion-model, commit d4fd88c,
``data_loaders/humanml/data/dataset.py``; ``EvaluatorModelWrapper`` and ``WordVectorizer`` of
github.com/EricGuo5513/text-to-motion, commit 72df96e), what it makes of a model's normalised output
(``CompMDMGeneratedDataset``, ``motion_loaders/comp_v6_model_dataset.py``), and what its networks make of it with
:func:`evaluator_files.evaluator_weights`; run with the versions in ``source``.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluator_files import (
    GOLDEN,
    LAYOUT,
    evaluator_statistics,
    evaluator_weights,
    model_statistics,
    write_evaluator,
    write_words,
)

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.modalities.motion.adapter import MotionAdapter
from layersync.modalities.motion.features.text_motion import TextMotion
from layersync.modalities.motion.features.words import Words, tokens_of
from layersync.modalities.motion.humanml3d import HumanML3DFeatures, joints_to_humanml3d
from layersync.modalities.motion.sample import JointMotion


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "motion_text_motion.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluator(tmp_path_factory.mktemp("evaluator"))


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> TextMotion:
    return TextMotion(str(folder))


@pytest.fixture(scope="module")
def examples(golden: dict[str, np.ndarray]) -> list[Example]:
    """The two motions: 44 and 28 rows."""
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        features = stored["features"]
    return [
        Example(HumanML3DFeatures(part), {"text": f"a caption#{tokens}#0.0#0.0"}, f"{number}.npy")
        for number, (part, tokens) in enumerate(zip((features[:44], features[8:36]), golden["tokens"], strict=True))
    ]


def test_what_enters_the_network_is_what_the_published_code_gives_it(evaluator, examples, golden):
    motions, lengths = evaluator.motions(examples)
    assert motions.shape == (2, 196, 259)
    assert lengths.tolist() == [44, 28]
    np.testing.assert_allclose(motions[:, :44].numpy(), golden["network_input"], atol=1e-3)
    assert not motions[:, 44:].any()
    assert not motions[1, 28:].any()
    words, classes, places = evaluator.captions(examples)
    np.testing.assert_allclose(words[..., ::10].numpy(), golden["words"], atol=1e-6)
    np.testing.assert_array_equal(classes.numpy(), golden["classes"])
    np.testing.assert_array_equal(places.numpy(), golden["places"])


def test_embeddings_are_those_of_the_published_networks(evaluator, examples, golden):
    streams = evaluator(examples)
    assert set(streams) == {"features", "text"}
    assert [rows.shape for rows in streams["features"] + streams["text"]] == [(1, 512)] * 4
    np.testing.assert_allclose(np.concatenate(streams["features"]), golden["motion_embedding"], atol=2e-4)
    np.testing.assert_allclose(np.concatenate(streams["text"]), golden["text_embedding"], atol=2e-4)
    assert np.std(golden["motion_embedding"], axis=0).mean() > 0.05


def test_a_models_output_comes_in_by_its_own_statistics_as_published(evaluator, examples, golden):
    """MDM's renormalisation, and what skipping it would do: root and contacts would count 25 times less."""
    mean, std = model_statistics()
    output = [(example.sample.values.astype(np.float64) - mean) / std for example in examples]
    for row, number in ((output[0], 0), (output[1], 1)):
        with pytest.raises(InputError, match="look normalised"):
            HumanML3DFeatures(row)
        sample = HumanML3DFeatures.from_normalised(row, mean, std)
        motions, lengths = evaluator.motions([Example(sample, {}, "generated")])
        published = golden["renormalised_model_output"][[slice(0, 44), slice(44, 72)][number]]
        np.testing.assert_allclose(motions[0, : lengths[0], ::4].numpy(), published, rtol=2e-3, atol=5e-3)
        root = motions[0, : lengths[0], :4].numpy() / row[:, :4]
        assert np.median(np.abs(root[np.abs(row[:, :4]) > 0.3])) == pytest.approx(25, rel=0.1)


def test_joints_are_described_first_and_brought_to_20_frames(evaluator, make_motion, folder):
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        joints = stored["joints"]
    plain = Example(HumanML3DFeatures(joints_to_humanml3d(joints)), {}, "features")
    motions, lengths = evaluator.motions([plain, Example(JointMotion(joints), {}, "joints")])
    assert lengths.tolist() == [96, 96]
    np.testing.assert_allclose(motions[0].numpy(), motions[1].numpy(), atol=1e-6)
    motion = make_motion(frames=91, fps=30.0)
    _, lengths = evaluator.motions([Example(motion, {}, "30 a second")])
    assert lengths.tolist() == [60]


def test_lengths_are_multiples_of_4_up_to_196(evaluator, make_motion):
    frames = (6, 40, 41, 44, 197, 198, 260)
    long = make_motion(frames=300, fps=20.0)
    _, lengths = evaluator.motions([Example(long.cut(0, each), {}, "") for each in frames])
    assert lengths.tolist() == [4, 36, 40, 40, 196, 196, 196]
    with pytest.raises(InputError, match=r"short\.npy has 3 rows.*at least 4"):
        evaluator.motions([Example(long.cut(0, 4), {}, "short.npy")])


def test_embeddings_do_not_depend_on_the_batch_or_the_order(evaluator, examples, make_motion):
    more = [
        Example(make_motion(frames=frames, seed=frames, fps=20.0), {"text": "x#walk/VERB#0.0#0.0"}, f"{frames}")
        for frames in (45, 220, 9)
    ]
    whole = [*examples, *more]
    together = evaluator(whole)
    alone = [evaluator([example]) for example in whole]
    backwards = evaluator(whole[::-1])
    for stream in ("features", "text"):
        np.testing.assert_allclose(together[stream], [each[stream][0] for each in alone], atol=2e-5)
        np.testing.assert_allclose(together[stream], backwards[stream][::-1], atol=2e-5)


def test_plain_captions_give_no_text_and_say_why(evaluator, examples, caplog):
    plain = [Example(example.sample, {"text": "a person walks"}, example.source) for example in examples]
    with caplog.at_level(logging.WARNING):
        assert set(evaluator(plain)) == {"features"}
        evaluator(plain)
    assert sum("spaCy" in record.message for record in caplog.records) == 1
    assert set(evaluator([Example(examples[0].sample, {}, "no text")])) == {"features"}
    with pytest.raises(InputError, match=r"the caption of 1\.npy has no tokens"):
        evaluator([examples[0], plain[1]])
    for text in ("walks#walk#0.0#0.0", "walks##0.0#0.0", "walks#a/DET/DET#0#0"):
        with pytest.raises(InputError, match="word/POS"):
            evaluator([Example(examples[0].sample, {"text": text}, "odd.npy")])
    assert tokens_of("a person walks") is None


def test_checkpoints_of_old_versions_of_torch_are_read(evaluator, examples, tmp_path):
    old = TextMotion(str(write_evaluator(tmp_path, legacy=True)))
    assert old.checksum != evaluator.checksum
    np.testing.assert_array_equal(old(examples)["features"], evaluator(examples)["features"])


def test_samples_of_another_kind_are_refused(evaluator, examples):
    for sample in (examples[0].sample.values, np.zeros((40, 22, 3)), "walk"):
        with pytest.raises(InputError, match=r"odd.*no motion"):
            evaluator([Example(sample, {}, "odd")])
    with pytest.raises(InputError, match=r"padded.*coincide"):
        evaluator([Example(JointMotion(np.zeros((40, 22, 3), np.float32)), {}, "padded")])


def test_a_skeleton_in_the_folder_is_used_and_said(folder, examples, make_motion, tmp_path, caplog):
    motion = make_motion(frames=60, fps=20.0)
    other = copied(folder, tmp_path)
    skeleton = make_motion(frames=2).joints()[:, :22] * 1.3
    np.save(other / "000021.npy", skeleton)
    on_it, plain = TextMotion(str(other)), TextMotion(str(folder))
    assert "000021.npy" in on_it.preprocessing
    assert on_it.preprocessing != plain.preprocessing
    with caplog.at_level(logging.WARNING):
        motions, _ = on_it.motions([Example(motion, {}, "")])
        assert not caplog.records
        off, _ = plain.motions([Example(motion, {}, "")])
    assert "skeleton of their own" in caplog.text
    assert (motions - off).abs().max() > 0.5
    same = [each.motions([examples[0]])[0] for each in (on_it, plain)]
    assert torch.equal(*same)
    np.save(other / "000021.npy", skeleton[0])
    with pytest.raises(InputError, match=r"000021\.npy: not HumanML3D's"):
        TextMotion(str(other))


def copied(folder: Path, target: Path, leave_out: str = "") -> Path:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != leave_out:
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).hardlink_to(path)
    return target


def test_missing_files_are_named(folder, tmp_path):
    make = MotionAdapter().features()["text-motion"]
    with pytest.raises(InputError, match=r"finest\.tar.*mean\.npy.*our_vab_data\.npy.*--extractor text-motion=FOLDER"):
        make(None)
    with pytest.raises(InputError, match=r"nowhere is no folder.*finest\.tar"):
        make(str(tmp_path / "nowhere"))
    for number, name in enumerate(("finest.tar", "t2m_mean.npy", "t2m_std.npy")):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(InputError, match=name):
            make(str(copied(folder, tmp_path / str(number), name)))


def test_without_glove_files_there_is_no_text(folder, examples, tmp_path, caplog):
    part = TextMotion(str(copied(folder, tmp_path, "our_vab_idx.pkl")))
    with caplog.at_level(logging.WARNING):
        assert set(part(examples)) == {"features"}
    assert "our_vab_idx.pkl" in caplog.text


def test_blanks_in_captions_do_not_hide_their_tokens(folder, examples, tmp_path):
    """What is sampled is written with single blanks, HumanML3D's captions have double and trailing ones."""
    texts = copied(folder, tmp_path / "t2m") / "texts"
    texts.mkdir()
    lines = "a person  walks #a/DET person/NOUN walk/VERB#0.0#0.0", "a person waves#a/DET wave/VERB#0#0"
    (texts / "0.txt").write_text("\n".join(lines))
    extractor = TextMotion(str(tmp_path / "t2m"))
    captions = ["a person walks", "a person  walks ", "a  person waves", "a person waves"]
    words, *_ = extractor.captions([Example(examples[0].sample, {"text": text}, text) for text in captions])
    assert torch.equal(words[0], words[1]) and torch.equal(words[2], words[3]) and not torch.equal(words[0], words[2])


def test_the_checksum_and_statistics_name_the_extractor(folder, evaluator, tmp_path):
    assert TextMotion(f"{folder}#sha256={evaluator.checksum[:12]}").checksum == evaluator.checksum
    with pytest.raises(InputError, match="checksum"):
        TextMotion(f"{folder}#sha256=00000000")
    other = copied(folder, tmp_path, "t2m_mean.npy")
    np.save(other / "t2m_mean.npy", evaluator_statistics()[0] + 1e-3)
    assert TextMotion(str(other)).preprocessing != evaluator.preprocessing


def test_the_models_statistics_are_not_taken_for_the_evaluators(folder, tmp_path):
    other = copied(folder, tmp_path, "t2m_std.npy")
    np.save(other / "t2m_std.npy", model_statistics()[1])
    with pytest.raises(InputError, match=r"t2m_std\.npy.*not the evaluator's"):
        TextMotion(str(other))
    for wrong in (np.ones(251), np.full(263, np.nan)):
        np.save(other / "t2m_std.npy", wrong)
        with pytest.raises(InputError, match="263 finite numbers"):
            TextMotion(str(other))


def test_checkpoints_of_another_layout_are_refused(folder, tmp_path):
    other = copied(folder, tmp_path, "finest.tar")
    path = other / "finest.tar"
    weights = evaluator_weights()
    cases = {
        "out_net": {**weights, "movement_encoder": {**weights["movement_encoder"], "out_net.bias": torch.zeros(3)}},
        "motion_encoder": {part: weights[part] for part in LAYOUT if part != "motion_encoder"},
        "tensors alone": {**weights, "epoch": Evil()},
    }
    for said, content in cases.items():
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"finest\.tar is no checkpoint.*{said}"):
            TextMotion(str(other))
    for content in (b"not a checkpoint", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"finest\.tar is no checkpoint"):
            TextMotion(str(other))
    assert not RAN


RAN: list[str] = []


class Evil:
    """Unpickling it would leave a trace."""

    def __reduce__(self):
        return RAN.append, ("ran",)


@pytest.mark.parametrize("name", ["our_vab_words.pkl", "our_vab_idx.pkl"])
def test_vocabularies_are_read_without_running_anything(tmp_path, name):
    write_words(tmp_path)
    stream = io.BytesIO()
    pickle.dump(["walk", Evil()], stream)
    hostile = b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(tmp_path / "ran")
    for content in (hostile, stream.getvalue(), pickle.dumps({1, 2}), b"", b"hello", pickle.dumps("word")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            words_of(tmp_path)
    assert not (tmp_path / "ran").exists()


def words_of(folder: Path) -> Words:
    return Words(*[folder / f"our_vab_{part}" for part in ("data.npy", "words.pkl", "idx.pkl")])


def test_vocabularies_must_fit_together(tmp_path):
    write_words(tmp_path)
    known = words_of(tmp_path)
    vectors, classes, used = known.encode(["left/VERB", "zebra/NOUN", "and/CCONJ", "walk/NOUN"])
    assert used == 6
    assert classes[:used].argmax(1).tolist() == [14, 9, 14, 14, 12, 14]
    np.testing.assert_array_equal(vectors[2], known.vectors[known.rows["unk"]])
    np.save(tmp_path / "our_vab_data.npy", np.zeros((3, 300), np.float32))
    with pytest.raises(InputError, match=r"no row of our_vab_data\.npy for 'a'"):
        words_of(tmp_path)
    np.save(tmp_path / "our_vab_data.npy", np.zeros((30, 200), np.float32))
    with pytest.raises(InputError, match="300"):
        words_of(tmp_path)
