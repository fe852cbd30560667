"""Data sets that are lists: what they give, and what their fingerprint tells apart."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersync.core.errors import InputError
from layersync.core.listed import ListedExamples

SOURCES = ["a", "b"]
PAIR = [np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)]


def test_examples_are_those_of_the_list() -> None:
    listed = ListedExamples(PAIR, SOURCES, [1, 0], ["low", "high"])
    assert len(listed) == 2 and listed.classes == ("low", "high")
    assert (listed[1].sample == PAIR[1]).all()
    assert (listed[0].label, listed[1].label, listed[1].source) == (1, 0, "b")
    assert ListedExamples(PAIR, SOURCES)[0].condition == {}
    with pytest.raises(IndexError):
        listed[2]


def test_a_reader_reads_when_asked_here_and_in_another_process(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.npy" for name in SOURCES]
    listed = ListedExamples(partial(_load, files), SOURCES, fingerprint="two files")
    for file, array in zip(files, PAIR, strict=True):
        np.save(file, array)
    again = pickle.loads(pickle.dumps(listed))
    assert again.fingerprint == listed.fingerprint == "two files"
    assert all((again[row].sample == PAIR[row]).all() for row in range(2))


def _load(files: list[Path], index: int) -> np.ndarray:
    array: np.ndarray = np.load(files[index])
    return array


def test_a_fingerprint_tells_whatever_changes() -> None:
    told = [
        ListedExamples(samples, SOURCES, labels, classes).fingerprint
        for samples, labels, classes in [
            (PAIR, None, ()),
            (PAIR[::-1], None, ()),
            ([PAIR[0], PAIR[1] + 1], None, ()),
            ([PAIR[0].reshape(2, 2), PAIR[1]], None, ()),
            ([np.arange(3, dtype=np.float32), np.arange(3, 8, dtype=np.float32)], None, ()),
            ([array.view(np.int32) for array in PAIR], None, ()),
            (PAIR, [0, 1], ("low", "high")),
            (PAIR, [1, 0], ("low", "high")),
            (PAIR, [0, 1], ("high", "low")),
            (PAIR, [0, 1], ("low", "high", "none")),
        ]
    ]
    assert len(set(told)) == len(told)
    one = np.array([0, 1])
    assert ListedExamples(PAIR, SOURCES, [0, 1]).fingerprint == ListedExamples(PAIR, SOURCES, list(one)).fingerprint


def test_lists_that_do_not_go_together_are_refused() -> None:
    for samples, labels in ((PAIR[:1], None), (PAIR, [0, 1, 2]), (PAIR, np.arange(3)), (np.zeros((1, 4)), None)):
        with pytest.raises(ValueError, match="of 2 sources"):
            ListedExamples(samples, SOURCES, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need a fingerprint"):
        ListedExamples(PAIR.__getitem__, SOURCES)


def test_what_a_reader_raises_names_the_sample(tmp_path: Path) -> None:
    listed = ListedExamples(partial(_load, [tmp_path / "gone.npy"]), SOURCES, fingerprint="two files")
    with pytest.raises(InputError, match=r"^a: reading it raised FileNotFoundError: .*gone\.npy' \(.*, line \d+, in"):
        listed[0]
    with pytest.raises(InputError, match=r"^b: reading it raised IndexError"):
        listed[1]


class Column:
    """A column of a table, as pandas has it: indexed by the names of rows, walked over in their order."""

    def __init__(self, rows: Mapping[int, Any]):
        self.rows = rows

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows.values())


def test_columns_of_a_table_are_read_in_the_order_of_its_rows() -> None:
    sources, labels, samples = (Column({1: a, 0: b}) for a, b in (SOURCES, (1, 0), PAIR))
    listed = ListedExamples(samples, sources, labels)  # type: ignore[arg-type]
    assert [(example.source, example.label) for example in (listed[0], listed[1])] == [("a", 1), ("b", 0)]
    assert (listed[0].sample == PAIR[0]).all() and (listed[1].sample == PAIR[1]).all()
    with pytest.raises(ValueError, match="1 labels of 2 sources"):
        ListedExamples(PAIR, SOURCES, Column({1: 0}))  # type: ignore[arg-type]


def test_labels_are_integers() -> None:
    assert ListedExamples(PAIR, SOURCES, np.array([1, 0]))[0].condition == {"label": 1}  # type: ignore[arg-type]
    table = ListedExamples(PAIR, SOURCES, np.array([1.0, 0.0]))  # type: ignore[arg-type]
    assert table[0].label == 1 and table.fingerprint == ListedExamples(PAIR, SOURCES, [1, 0]).fingerprint
    named = ListedExamples(PAIR, SOURCES, ["high", "low"], ["high", "low"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"^b: has the label 'low'; a label is an integer"):
        _ = named[1].label
