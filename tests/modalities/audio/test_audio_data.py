"""Folders and Hugging Face sources: what is read, how it is labelled and split, and what bad input gets."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from layersync.core.errors import InputError
from layersync.modalities.audio.data import FolderClips, FolderConfig
from layersync.modalities.audio.hub import HubClips, HubConfig

Write = Callable[..., Path]


def sources(dataset: FolderClips) -> set[str]:
    return {Path(dataset[index].source).name for index in range(len(dataset))}


@pytest.fixture
def tree(write_audio: Write, tmp_path: Path) -> Path:
    """Three folders of five files each, in several formats, rates and channel counts."""
    for number in range(5):
        write_audio(f"bell/b{number}.wav", frequency=400 + 10 * number, rate=44100, channels=2)
        write_audio(f"horn/h{number}.flac", frequency=200 + 10 * number, rate=8000)
        write_audio(f"reed/r{number}.ogg", frequency=300 + 10 * number, rate=22050, seconds=0.2 + 0.1 * number)
    return tmp_path


@pytest.mark.parametrize(
    ("ending", "rate", "channels"), [("wav", 8000, 1), ("flac", 48000, 2), ("ogg", 44100, 1), ("mp3", 22050, 2)]
)
def test_every_format_rate_and_channel_count_is_read_as_mono(
    write_audio: Write, tmp_path: Path, ending: str, rate: int, channels: int
) -> None:
    write_audio(f"tone.{ending}", frequency=440, seconds=0.5, rate=rate, channels=channels)
    clip = FolderConfig(path=str(tmp_path)).build("train")[0].sample
    assert clip.waveform.ndim == 1 and clip.waveform.dtype == np.float32 and clip.sample_rate == rate
    assert abs(clip.seconds - 0.5) < 0.1
    spectrum = np.abs(np.fft.rfft(clip.waveform))
    assert abs(spectrum.argmax() * rate / len(clip.waveform) - 440) < 5


def test_labels_are_the_folders(tree: Path) -> None:
    train, test = (FolderConfig(path=str(tree), test_fraction=0.2).build(split) for split in ("train", "test"))
    assert train.classes == test.classes == ("bell", "horn", "reed")
    assert (len(train), len(test)) == (12, 3)
    assert sources(train).isdisjoint(sources(test))
    for index in range(len(train)):
        example = train[index]
        assert train.classes[example.condition["label"]] == Path(example.source).parent.name


def test_one_folder_has_no_labels(write_audio: Write, tmp_path: Path) -> None:
    for number in range(3):
        write_audio(f"{number}.wav", frequency=300 + number)
    data = FolderConfig(path=str(tmp_path)).build("train")
    assert data.classes == () and data[0].condition == {}


def test_labels_come_from_a_regular_expression_on_the_file_name(tree: Path) -> None:
    data = FolderConfig(path=str(tree), labels=r"(?P<label>\d)\.").build("train")
    assert data.classes == ("0", "1", "2", "3", "4")


def test_own_split_folders_are_used_and_share_their_classes(write_audio: Write, tmp_path: Path) -> None:
    for name in ("train/a/1.wav", "train/b/2.wav", "test/b/3.wav"):
        write_audio(name, frequency=300 + int(name[-5]))
    train, test = (FolderConfig(path=str(tmp_path)).build(split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b")
    assert (sources(train), sources(test)) == ({"1.wav", "2.wav"}, {"3.wav"})
    assert test[0].condition["label"] == 1


@pytest.mark.parametrize(("present", "held_out"), [(("test", "val"), "test"), (("val",), "val")])
def test_files_outside_of_the_two_split_folders_are_left_out(
    write_audio: Write, tmp_path: Path, present: tuple[str, ...], held_out: str
) -> None:
    for number, folder in enumerate(("train", *present)):
        write_audio(f"{folder}/cat/{folder}-cat.wav", frequency=300 + 20 * number)
        write_audio(f"{folder}/dog/{folder}-dog.wav", frequency=310 + 20 * number)
    write_audio("extra/cow/other.wav")
    write_audio("loose.wav")
    train, test = (FolderConfig(path=str(tmp_path)).build(split) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog")
    assert (sources(train), sources(test)) == (
        {"train-cat.wav", "train-dog.wav"},
        {f"{held_out}-cat.wav", f"{held_out}-dog.wav"},
    )
    named = FolderConfig(path=str(tmp_path), labels=r"-(?P<label>[a-z]+)").build("train")
    assert named.classes == ("cat", "dog")


def test_files_directly_in_split_folders_have_no_label(write_audio: Write, tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        write_audio(f"{folder}/{folder}.wav")
    train, test = (FolderConfig(path=str(tmp_path)).build(split) for split in ("train", "test"))
    assert train.classes == () and train[0].condition == {}
    assert (sources(train), sources(test)) == ({"train.wav"}, {"test.wav"})


def test_split_folders_come_before_test_files_which_is_said(write_audio: Write, tmp_path: Path) -> None:
    for name in ("train/a/1.wav", "train/b/2.wav", "val/b/3.wav"):
        write_audio(name, frequency=300 + int(name[-5]))
    with pytest.warns(UserWarning, match=r"data\.test_files has no effect: .* folders train and val"):
        train = FolderConfig(path=str(tmp_path), test_files="1").build("train")
    assert sources(train) == {"1.wav", "2.wav"}


def test_test_files_choose_the_test_split(tree: Path) -> None:
    test = FolderConfig(path=str(tree), test_files=r"[01]\.[a-z]+$").build("test")
    assert sources(test) == {"b0.wav", "b1.wav", "h0.flac", "h1.flac", "r0.ogg", "r1.ogg"}


def test_extensions_choose_the_files(tree: Path) -> None:
    assert len(FolderConfig(path=str(tree), extensions=("FLAC",), test_fraction=0).build("train")) == 5


def test_the_fingerprint_follows_samples_labels_and_names(tree: Path, write_audio: Write) -> None:
    config = FolderConfig(path=str(tree), test_fraction=0)
    seen = [config.build("train").fingerprint]
    assert config.build("train").fingerprint == seen[0]
    write_audio("bell/b0.wav", frequency=400, rate=44100, channels=2, seed=1)
    seen.append(config.build("train").fingerprint)
    (tree / "bell" / "b1.wav").rename(tree / "horn" / "b1.wav")
    seen.append(config.build("train").fingerprint)
    (tree / "reed").rename(tree / "oboe")
    seen.append(config.build("train").fingerprint)
    assert len(set(seen)) == 4


def test_a_fingerprint_is_of_contents_or_of_sizes_and_times(tree: Path) -> None:
    """A file that was touched is another one by ``stat`` alone."""
    before, after = (
        {
            how: FolderConfig(path=str(tree), fingerprint=how).build("train").fingerprint
            for how in ("content", "stat", "auto")
        }
        for _ in touched(tree)
    )
    assert after["content"] == before["content"] == before["auto"]
    assert len({before["content"], before["stat"], after["stat"]}) == 3


def touched(tree: Path) -> Iterator[None]:
    """Once as they are, and once with every file changed a second later."""
    yield
    for file in tree.rglob("*.*"):
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    yield


def test_a_silent_file_is_named_when_read(write_audio: Write, tmp_path: Path) -> None:
    write_audio("a.wav")
    soundfile.write(tmp_path / "quiet.wav", np.zeros(4000, dtype=np.float32), 16000)
    data = FolderConfig(path=str(tmp_path), test_fraction=0).build("train")
    assert data.on_error == "stop"
    with pytest.raises(InputError, match=r"quiet\.wav: is silent"):
        data[1]


def test_opposite_channels_are_silent_once_mixed(tmp_path: Path, harmonic: Callable[..., np.ndarray]) -> None:
    tone = harmonic(300, 0.3, 16000)
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], axis=1), 16000)
    with pytest.raises(InputError, match="mixed to mono"):
        FolderConfig(path=str(tmp_path)).build("train")[0]


def test_a_float_file_beyond_full_scale_is_scaled_down(tmp_path: Path, harmonic: Callable[..., np.ndarray]) -> None:
    soundfile.write(tmp_path / "hot.wav", 8 * harmonic(300, 0.3, 16000), 16000, subtype="FLOAT")
    assert np.abs(FolderConfig(path=str(tmp_path)).build("train")[0].sample.waveform).max() == pytest.approx(1)


@pytest.mark.parametrize("contents", [b"", b"RIFF\x00\x00 this is no sound", b"\x00" * 500])
def test_an_unreadable_file_is_named_before_anything_is_read(
    write_audio: Write, tmp_path: Path, contents: bytes
) -> None:
    write_audio("a.wav")
    (tmp_path / "broken.wav").write_bytes(contents)
    with pytest.raises(InputError, match=r"broken\.wav"):
        FolderConfig(path=str(tmp_path), test_fraction=0).build("train")


def test_a_flac_cut_short_is_named(write_audio: Write, tmp_path: Path) -> None:
    file = write_audio("long.flac", seconds=3.0)
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(InputError, match=r"long\.flac"):
        FolderConfig(path=str(tmp_path)).build("train")[0]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.full(1000, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"nan\.wav: holds samples that are not finite"):
        FolderConfig(path=str(tmp_path)).build("train")[0]


def test_skipping_is_left_to_the_reader(write_audio: Write, tmp_path: Path) -> None:
    """The cache skips what raises; building must not stop, and each bad sample must be an InputError."""
    write_audio("a.wav")
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    data = FolderConfig(path=str(tmp_path), test_fraction=0, on_error="skip").build("train")
    assert data.on_error == "skip" and len(data) == 2
    assert data[0].sample.seconds > 0
    with pytest.raises(InputError, match=r"broken\.wav: cannot be read"):
        data[1]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_name_without_label_is_named(tree: Path, on_error: str) -> None:
    config = FolderConfig.model_validate(
        {"path": str(tree), "labels": r"b(?P<label>\d)", "on_error": on_error, "test_fraction": 0}
    )
    with pytest.raises(InputError, match=r"h0\.flac: data\.labels"):
        data = config.build("train")
        [data[index] for index in range(len(data))]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": r"(\d)"}, "no group named label"),
        ({"labels": "("}, "no regular expression"),
        ({"test_files": "["}, "no regular expression"),
        ({"extension": ".wav"}, "extension"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FolderConfig.model_validate({"path": "x", **wrong})


def test_missing_and_empty_folders_and_splits_are_named(write_audio: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        FolderConfig(path=str(tmp_path / "nowhere")).build("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no audio file \(.flac, .mp3, .ogg, .wav\)"):
        FolderConfig(path=str(tmp_path / "empty")).build("train")
    file = write_audio("only.wav")
    with pytest.raises(InputError, match="is a file"):
        FolderConfig(path=str(file)).build("train")
    assert len(FolderConfig(path=str(tmp_path)).build("train")) == 1
    assert len(FolderConfig(path=str(tmp_path)).build("test")) == 0


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` writes down beside the test's own files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def sounds(write_audio: Write, hub_cache: None) -> list[dict[str, Any]]:
    """Three rows of a column of audio."""
    files = [write_audio(f"src/{n}.wav", 200 + 30 * n, rate=8000) for n in range(3)]
    return [{"bytes": file.read_bytes(), "path": file.name} for file in files]


@pytest.fixture
def parquet(write_audio: Write, hub_cache: None, tmp_path: Path) -> Callable[..., Path]:
    """Write rows of audio bytes, with integer labels of named classes or with words, to a Parquet file."""
    import datasets

    def write(name: str, num_rows: int = 6, words: bool = False, first: int = 0) -> Path:
        files = [write_audio(f"src/{n}.wav", 200 + 30 * n, rate=8000) for n in range(first, first + num_rows)]
        rows = {"sound": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
        rows |= (
            {"kind": [n % 2 for n in range(num_rows)]} if not words else {"label": ["high", "low"] * (num_rows // 2)}
        )
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio())
        if not words:
            table = table.cast_column("kind", datasets.ClassLabel(names=["low", "high"]))
        table.to_parquet(str(target))
        return target

    return write


def test_parquet_columns_are_found_by_their_type(parquet: Callable[..., Path]) -> None:
    config = HubConfig(path=str(parquet("data.parquet")), test_fraction=0.3)
    train, test = config.build("train"), config.build("test")
    assert train.classes == ("low", "high") and (len(train), len(test)) == (4, 2)
    example = train[1]
    assert example.sample.sample_rate == 8000 and abs(example.sample.seconds - 0.4) < 1e-6
    assert {train[i].condition["label"] for i in range(len(train))} <= {0, 1}
    assert {train[i].source for i in range(4)}.isdisjoint({test[i].source for i in range(2)})


def test_words_become_classes_and_the_sources_own_splits_are_used(parquet: Callable[..., Path]) -> None:
    parquet("folder/train-0.parquet", words=True)
    folder = parquet("folder/test-0.parquet", num_rows=2, words=True, first=10).parent
    train, test = (HubConfig(path=str(folder)).build(split) for split in ("train", "test"))
    assert train.classes == ("high", "low") and (len(train), len(test)) == (6, 2)
    assert [train[i].condition["label"] for i in range(6)] == [0, 1] * 3
    assert train.fingerprint != test.fingerprint


def test_another_split_can_be_held_out(parquet: Callable[..., Path]) -> None:
    folder = parquet("folder/train-0.parquet").parent
    parquet("folder/test-0.parquet", num_rows=2, first=10)
    parquet("folder/validation-0.parquet", num_rows=3, first=20)
    sizes = {
        name: [len(HubConfig(path=str(folder), test_split=name).build(split)) for split in ("train", "test")]
        for name in (None, "test", "validation", "train")
    }
    assert sizes == {None: [6, 2], "test": [6, 2], "validation": [6, 3], "train": [3, 6]}
    with pytest.raises(InputError, match=r"data\.test_split: 'val' is no split of the source; it has train"):
        HubConfig(path=str(folder), test_split="val").build("train")
    with pytest.warns(UserWarning, match=r"data\.test_fraction has no effect: \S+ has a split validation"):
        HubConfig(path=str(folder), test_split="validation", test_fraction=0.2).build("train")


def test_rows_without_a_label_and_labels_of_other_types(sounds: list[dict[str, Any]], tmp_path: Path) -> None:
    """As in images' tables: -1 of a ``ClassLabel`` is no label, an empty row is an error, numbers are no labels."""
    import datasets

    def build(labels: list[Any], kind: Any = None) -> HubClips:
        table = datasets.Dataset.from_dict({"sound": sounds, "label": labels}).cast_column("sound", datasets.Audio())
        table = table if kind is None else table.cast_column("label", kind)
        table.to_parquet(str(tmp_path / "data.parquet"))
        return HubConfig(path=str(tmp_path / "data.parquet"), test_fraction=0).build("train")

    partly = build([1, -1, 0], datasets.ClassLabel(names=["low", "high"]))
    assert [partly[index].label for index in range(3)] == [1, -1, 0] and partly.classes == ("low", "high")
    truths = build([True, False, None])
    assert [truths[index].label for index in range(2)] == [1, 0] and truths.classes == ("False", "True")
    with pytest.raises(InputError, match="row 2: has no label"):
        truths[2]
    with pytest.warns(UserWarning, match=r"label of .* holds double|label of .* holds float64"):
        measured = build([0.5, 1.5, 2.5])
    assert measured.classes == () and not measured[0].condition


def test_columns_that_are_named_are_read_and_no_other(write_audio: Write, hub_cache: None, tmp_path: Path) -> None:
    import datasets

    rows: dict[str, list[Any]] = {"kind": [0, 1, 0], "place": ["sea", "sea", "air"]}
    rows |= {"text": ["low", "mid", "high"], "told": ["a low tone", "a tone", "a high tone"]}
    for column, rate in (("near", 8000), ("far", 4000)):
        files = [write_audio(f"{column}/{n}.wav", 200 + 30 * n, rate=rate) for n in range(3)]
        rows[column] = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = datasets.Dataset.from_dict(rows).cast_column("kind", datasets.ClassLabel(names=["bell", "horn"]))
    for column in ("near", "far"):
        table = table.cast_column(column, datasets.Audio())
    path = str(tmp_path / "both.parquet")
    table.to_parquet(path)
    with pytest.raises(InputError, match=r"has 2 columns of type Audio, one is wanted; set data\.audio_column"):
        HubConfig(path=path).build("train")
    usual = HubConfig(path=path, audio_column="near", test_fraction=0)
    chosen = {
        "near": usual,
        "far": usual.model_copy(update={"audio_column": "far"}),
        "place": usual.model_copy(update={"label_column": "place"}),
        "told": usual.model_copy(update={"caption_column": "told"}),
    }
    found = {name: config.build("train") for name, config in chosen.items()}
    assert len({data.fingerprint for data in found.values()}) == 4
    for name, data in found.items():
        examples = [data[index] for index in range(3)]
        assert {example.sample.sample_rate for example in examples} == {4000 if name == "far" else 8000}
        assert data.classes == (("air", "sea") if name == "place" else ("bell", "horn"))
        assert [example.label for example in examples] == ([1, 1, 0] if name == "place" else [0, 1, 0])
        texts = rows["told" if name == "told" else "text"]
        assert [example.captions for example in examples] == [(text,) for text in texts]


def test_a_subset_of_several_is_the_one_that_is_named(parquet: Callable[..., Path]) -> None:
    folder = parquet("folder/few.parquet", num_rows=2).parent
    parquet("folder/many.parquet", num_rows=5)
    names = "".join(f"- {{config_name: {name}, data_files: {name}.parquet}}\n" for name in ("few", "many"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    for subset, size in (("few", 2), ("many", 5)):
        assert len(HubConfig(path=str(folder), subset=subset, test_fraction=0).build("train")) == size
    for subset, said in ((None, "data.subset: .* has several"), ("more", "data.path: datasets cannot open .*'more'")):
        with pytest.raises(InputError, match=rf"^{said}.*\['few', 'many'\]"):
            HubConfig(path=str(folder), subset=subset).build("train")


def test_a_folder_of_sounds_that_cannot_be_opened_says_why(
    write_audio: Write, hub_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torchcodec ``datasets`` makes no table of audio files; ``name: folder`` reads them."""
    for name in ("torchcodec", "torchcodec.encoders", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = write_audio("set/train/low/0.wav").parents[2]
    with pytest.raises(InputError, match=r"^data\.path: datasets cannot open .*set \(.*torchcodec") as refused:
        HubConfig(path=str(folder)).build("train")
    assert "\n" not in str(refused.value)
    assert len(FolderConfig(path=str(folder)).build("train")) == 1


def test_what_save_to_disk_wrote_is_read(sounds: list[dict[str, Any]], tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"sound": sounds, "text": ["a", "b", "c"]})
    table = table.cast_column("sound", datasets.Audio())
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(str(tmp_path / "several"))
    sources = {"one": {"test_fraction": 0}, "several": {}}
    for name, more in sources.items():
        config = HubConfig.model_validate({"path": str(tmp_path / name), **more})
        data = config.build("train")
        for index, row in enumerate(sounds):
            wanted, _ = soundfile.read(io.BytesIO(row["bytes"]), dtype="float32")
            assert np.array_equal(data[index].sample.waveform, wanted) and data[index].captions == ("abc"[index],)
        assert len(config.build("test")) == (1 if name == "several" else 0)


def test_a_row_may_name_a_file_but_no_device(write_audio: Write, hub_cache: None, tmp_path: Path) -> None:
    import datasets
    from pyarrow import Table, parquet

    schema = datasets.Features({"sound": datasets.Audio()}).arrow_schema
    for device in ("null", "zero"):
        rows = [{"bytes": None, "path": name} for name in (str(write_audio("a.wav")), f"/dev/{device}")]
        parquet.write_table(Table.from_pylist([{"sound": row} for row in rows], schema), tmp_path / f"{device}.parquet")
        config = HubConfig(path=str(tmp_path / f"{device}.parquet"), test_fraction=0)
        with pytest.raises(InputError, match=rf"row 1: /dev/{device}: cannot be read \(no regular file\)$"):
            config.build("train")
        data = config.model_copy(update={"on_error": "skip"}).build("train")
        assert data[0].sample.seconds == pytest.approx(0.4)


def test_a_name_that_datasets_takes_for_a_pattern_is_refused(parquet: Callable[..., Path]) -> None:
    file = parquet("set[1]/train.parquet", num_rows=2)
    for path in (file.parent, file):
        with pytest.raises(InputError, match=r"^data\.path: .*: datasets reads \*, \? and \[ in names as patterns"):
            HubConfig(path=str(path)).build("train")


def test_a_row_without_sound_stops_or_is_left_to_the_reader(
    write_audio: Write, hub_cache: None, tmp_path: Path
) -> None:
    import datasets

    sounds = [{"bytes": write_audio("a.wav").read_bytes(), "path": "a.wav"}, None]
    table = datasets.Dataset.from_dict({"sound": sounds}).cast_column("sound", datasets.Audio())
    table.to_parquet(str(tmp_path / "data.parquet"))
    config = HubConfig(path=str(tmp_path / "data.parquet"), test_fraction=0)
    with pytest.raises(InputError, match="row 1: holds no audio"):
        config.build("train")
    data = config.model_copy(update={"on_error": "skip"}).build("train")
    assert data.on_error == "skip" and len(data) == 2 and data[0].sample.seconds > 0
    with pytest.raises(InputError, match="row 1: holds no audio"):
        data[1]


def test_the_fingerprint_of_a_table_follows_its_rows(parquet: Callable[..., Path]) -> None:
    first = HubConfig(path=str(parquet("a.parquet"))).build("train").fingerprint
    assert HubConfig(path=str(parquet("same.parquet"))).build("train").fingerprint == first
    assert HubConfig(path=str(parquet("b.parquet", first=1))).build("train").fingerprint != first


def test_a_fingerprint_of_a_table_is_of_sounds_or_of_its_files(
    parquet: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``stat`` no sound is read, a file that was touched is another one, and splits of the same files differ."""
    file = parquet("folder/train-0.parquet", words=True)
    read: list[str] = []
    contents = HubClips._contents
    monkeypatch.setattr(HubClips, "_contents", lambda *given: read.append(given[2]) or contents(*given))
    for path in (file, file.parent):
        before, after = (
            {
                how: HubConfig(path=str(path), fingerprint=how).build("train").fingerprint
                for how in ("content", "stat", "auto")
            }
            for _ in touched(file.parent)
        )
        assert after["content"] == before["content"] == before["auto"]
        assert len({before["content"], before["stat"], after["stat"]}) == 3
    read.clear()
    large = HubConfig(path=str(file), fingerprint="stat")
    assert large.build("train").fingerprint != large.build("test").fingerprint and not read
    for name in ("test", "validation"):
        parquet(f"folder/{name}-0.parquet", num_rows=2, words=True)
    held_out = (
        HubConfig(path=str(file.parent), test_split=name, fingerprint="stat") for name in ("test", "validation")
    )
    assert len({config.build("test").fingerprint for config in held_out}) == 2
    monkeypatch.setattr("layersync.core.paths.CONTENT_LIMIT", 10)
    assert HubConfig(path=str(file)).build("train").fingerprint == large.build("train").fingerprint and not read


def test_wrong_tables_are_named(parquet: Callable[..., Path], tmp_path: Path) -> None:
    file = parquet("data.parquet")
    with pytest.raises(InputError, match=r"nowhere\.parquet"):
        HubConfig(path=str(tmp_path / "nowhere.parquet")).build("train")
    with pytest.raises(InputError, match="audio_column: 'sund' is no column; did you mean 'sound'"):
        HubConfig(path=str(file), audio_column="sund").build("train")
    with pytest.raises(InputError, match="label_column"):
        HubConfig(path=str(file), label_column="sort").build("train")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no table")
    with pytest.raises(InputError, match="cannot open"):
        HubConfig(path=str(broken)).build("train")


def test_text_files_beside_sounds_are_their_captions(tree: Path) -> None:
    plain = FolderConfig(path=str(tree), test_fraction=0).build("train")
    first = Path(plain[0].source)
    first.with_suffix(".txt").write_text("a low tone\nsomething hums\n")
    data = FolderConfig(path=str(tree), test_fraction=0).build("train")
    assert data[0].captions == ("a low tone", "something hums") and data[1].captions == ()
    assert data.fingerprint != plain.fingerprint


def test_a_column_of_texts_is_read_with_its_row(sounds: list[dict[str, Any]], tmp_path: Path) -> None:
    import datasets

    prints = []
    for last in ("a high tone", "something else"):
        rows = {"sound": sounds, "text": ["a low tone", None, last]}
        table = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio())
        table.to_parquet(str(tmp_path / f"{len(prints)}.parquet"))
        data = HubConfig(path=str(tmp_path / f"{len(prints)}.parquet"), test_fraction=0).build("train")
        assert [data[index].captions for index in range(3)] == [("a low tone",), (), (last,)]
        prints.append(data.fingerprint)
    assert prints[0] != prints[1]


def test_linked_folders_and_their_captions_are_read(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = FolderConfig(path=str(tree), test_fraction=0).build("train")
    outside = tmp_path_factory.mktemp("outside") / "reed"
    (tree / "reed").rename(outside)
    (outside / "r0.txt").write_text("a reed")
    (tree / "reed").symlink_to(outside)
    found = FolderConfig(path=str(tree), test_fraction=0).build("train")
    assert (found.classes, sources(found)) == (before.classes, sources(before))
    assert ("a reed",) in [found[index].captions for index in range(len(found))]


def test_the_label_is_no_part_of_the_ending(write_audio: Write, tmp_path: Path) -> None:
    for name in ("0.wav", "1.flac"):
        write_audio(name)

    def classes(labels: str) -> tuple[str, ...]:
        return FolderConfig(path=str(tmp_path), labels=labels, test_fraction=0).build("train").classes

    for fitting in (r"(?P<label>.*)", r"(?P<label>\d)$", r"^(?P<label>\d)\.(wav|flac)$"):
        assert classes(fitting) == ("0", "1"), fitting
    with pytest.raises(InputError, match=r"0\.wav: data\.labels .* finds no label in the file name"):
        classes("(?P<label>[a-z])")


def test_names_that_are_no_utf8_are_read_and_become_text(tree: Path) -> None:
    (tree / "bell" / "b0.wav").rename(tree / "bell" / os.fsdecode(b"caf\xe9.wav"))
    (tree / "horn").rename(tree / os.fsdecode(b"caf\xe9"))
    found = FolderConfig(path=str(tree)).build("train")
    assert found.classes == ("bell", r"caf\xe9", "reed")
    examples = [found[index] for index in range(len(found))]
    assert all(found.classes[example.label] in example.source for example in examples)
    named = FolderConfig(path=str(tree), labels="(?P<label>caf.+|.)", test_fraction=0).build("train")
    assert named.classes == ("b", r"caf\xe9", "h", "r")


def test_an_unreadable_sound_is_named_or_skipped(write_audio: Write, tmp_path: Path) -> None:
    write_audio("a.wav")
    (tmp_path / "b.wav").symlink_to("/proc/self/mem")  # which nobody reads at its start
    with pytest.raises(InputError, match=r"b\.wav: cannot be read"):
        FolderConfig(path=str(tmp_path), test_fraction=0).build("train")
    found = FolderConfig(path=str(tmp_path), test_fraction=0, on_error="skip").build("train")
    assert found[0].sample.seconds > 0
    with pytest.raises(InputError, match=r"b\.wav: cannot be read"):
        found[1]


def test_settings_of_the_test_split_without_effect_are_said(tree: Path) -> None:
    with pytest.warns(UserWarning, match=r"data\.test_fraction has no effect: data\.test_files chooses the test split"):
        FolderConfig(path=str(tree), test_files="b0", test_fraction=0.5).build("train")
    with pytest.warns(UserWarning, match=r"data\.test_files: 'nothing' is in no file name: nothing is held out"):
        assert len(FolderConfig(path=str(tree), test_files="nothing").build("train")) == 15


def test_the_fingerprint_of_ordinary_names_stays(tmp_path: Path) -> None:
    """Caches are kept under it."""
    for name in ("a/ä.wav", "b/日.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    found = FolderConfig(path=str(tmp_path), test_fraction=0, on_error="skip").build("train")
    assert found.fingerprint == "audio-folder-f2e9954e6358dfdaf5ab1601c8d1df78"


@pytest.mark.parametrize("config", [FolderConfig, HubConfig])
def test_an_empty_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, config: type[FolderConfig] | type[HubConfig]
) -> None:
    with pytest.raises(ValidationError, match="names nothing; a file or folder is wanted"):
        config(path="")
    monkeypatch.setenv("NOTHING", "")
    with pytest.raises(InputError, match=r"data\.path: '\$NOTHING' names nothing"):
        config(path="$NOTHING").build("train")
