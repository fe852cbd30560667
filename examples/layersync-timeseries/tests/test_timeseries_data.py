"""Series come as the archive has them, and a file that is wrong is one line that says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layersync_timeseries.adapter import TimeSeriesAdapter
from layersync_timeseries.data import BasicMotions, CsvFolder, JapaneseVowels, SeriesDataset, TsFile, read_csv, read_ts

from layersync.core.errors import InputError
from layersync.core.recipe_reading import load_recipe

HEADER = "# a comment\n@problemName two\n@timeStamps false\n@classLabel true up down\n@data\n"
UNEQUAL = HEADER + "1,2,3:10,20,30:up\n4,5:40,50:down\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_archives_own_counts(vowels: SeriesDataset) -> None:
    test = JapaneseVowels().build("test")
    assert (len(vowels), len(test)) == (270, 370)
    lengths = [len(vowels[index].sample) for index in range(len(vowels))]
    assert (min(lengths), max(lengths)) == (7, 26)
    assert np.bincount([vowels[index].label for index in range(len(vowels))]).tolist() == [30] * 9
    assert vowels.fingerprint != test.fingerprint


def test_ten_seconds_of_four_activities() -> None:
    motions = BasicMotions().build("train")
    assert motions.classes == ("Standing", "Running", "Walking", "Badminton")
    assert {motions[index].sample.shape for index in range(40)} == {(100, 6)}
    assert motions[0].sample[:3, 0].tolist() == pytest.approx([0.079106, 0.079106, -0.903497])


@pytest.mark.parametrize("kind", [JapaneseVowels, BasicMotions])
def test_what_is_known_before_reading_is_true(kind: type[JapaneseVowels] | type[BasicMotions]) -> None:
    built, facts = kind().build("train"), kind().facts()
    assert (facts.num_examples, facts.num_classes) == (len(built), len(built.classes))


def test_series_of_a_ts_file_keep_their_lengths(tmp_path: Path) -> None:
    series, labels, classes = read_ts(written(tmp_path, "two.ts", UNEQUAL))
    assert [one.tolist() for one in series] == [[[1, 10], [2, 20], [3, 30]], [[4, 40], [5, 50]]]
    assert (labels, classes) == (["up", "down"], ("up", "down"))


def test_the_test_split_is_the_file_beside(tmp_path: Path) -> None:
    config = TsFile(path=str(written(tmp_path, "two_TRAIN.ts", UNEQUAL)))
    with pytest.raises(InputError, match=r"two_TEST\.ts"):
        config.build("test")
    written(tmp_path, "two_TEST.ts", HEADER + "7,8:70,80:down\n")
    assert config.build("test")[0].sample.tolist() == [[7, 70], [8, 80]]


def test_a_single_file_is_split_label_by_label(tmp_path: Path) -> None:
    lines = [f"{row},{row}:{'up' if row % 2 else 'down'}\n" for row in range(20)]
    config = TsFile(path=str(written(tmp_path, "all.ts", HEADER + "".join(lines))))
    train, test = config.build("train"), config.build("test")
    values = [{float(part[index].sample[0, 0]) for index in range(len(part))} for part in (train, test)]
    assert len(values[0]) == 16 and len(values[1]) == 4 and not values[0] & values[1]
    assert sorted(test[index].label for index in range(4)) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (UNEQUAL.replace("@timeStamps false", "@timeStamps true"), "has time stamps"),
        (HEADER + "1,?,3:1,2,3:up\n", "series 1: has missing values"),
        (HEADER + "1,2:1,2:up\n1,2:1,2,3:up\n", "line 7: is not numbers alone, or its channels differ in length"),
        (HEADER + "1,2:1,2:up\n1,2:up\n", "series 2: has 1 channels"),
        (HEADER + "1,2:sideways\n", "label 'sideways' is not among those of @classLabel: up, down"),
        (HEADER + "1,two:up\n", "line 6: is not numbers alone"),
        (HEADER, "holds no series"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        TsFile(path=str(written(tmp_path, "bad_TRAIN.ts", text))).build("train")
    assert "bad_TRAIN.ts" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [read_csv, read_ts])
def test_what_cannot_be_opened_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: cannot be read \(Is a directory\)$"):
        read(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_cell(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1,2\n3,4\n", encoding="utf-8-sig")
    assert read_csv(file).tolist() == [[1, 2], [3, 4]]


def test_a_tree_of_csv_files(tmp_path: Path) -> None:
    for label in ("calm", "wild"):
        (tmp_path / label).mkdir()
        for number in range(10):
            written(tmp_path / label, f"{number}.csv", f"x,y\n{number},1\n2,3\n4,5\n")
    config = CsvFolder(path=str(tmp_path))
    train, test = config.build("train"), config.build("test")
    assert (train.classes, len(train), len(test)) == (("calm", "wild"), 18, 2)
    assert train[0].sample.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_another_number_of_channels_is_said_before_anything_is_stored() -> None:
    recipe = load_recipe({"modality": "timeseries", "data": {"name": "basic-motions"}, "tokenizer": {"channels": 3}})
    tokenizer = TimeSeriesAdapter().tokenizer(recipe.tokenizer)
    with pytest.raises(InputError, match=r"tokenizer\.channels: 3, but the series of this data have 6"):
        tokenizer.encode([BasicMotions().build("train")[0].sample])
