"""Archives of samples: what is written comes back, and whatever is wrong with a file is one line that names it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersync.core.archive import SampleArray, padded, read_arrays, read_samples, write_arrays
from layersync.core.errors import InputError

AXES, BESIDE = ("steps", "channels"), ("lengths", "labels", "rate")
SERIES = np.random.default_rng(3).normal(size=(3, 5, 2)).astype(np.float32)


def opened(path: Path) -> SampleArray:
    """As a modality reads its samples."""
    return read_samples(path, "series", AXES, np.floating, BESIDE)


def refusal(path: Path, read: Callable[[], object] | None = None) -> str:
    """The error's one line, which names the file."""
    with pytest.raises(InputError) as caught:
        (read or (lambda: opened(path)))()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    samples = [SERIES[0], SERIES[1][:2], SERIES[2][:4]]
    series, lengths = padded(samples)
    assert series.dtype == np.float32 and not series[1, 2:].any()
    write_arrays(tmp_path / "a.npz", series=series, lengths=lengths, labels=[2, 0, 2], rate=12.5)
    found = opened(tmp_path / "a.npz")
    assert (found.lengths(), found.labels(), found.positive("rate", 1.0)) == ([5, 2, 4], [2, 0, 2], 12.5)
    assert all((row[: len(one)] == one).all() for row, one in zip(found.samples, samples, strict=True))
    assert found.sources == [f"{tmp_path}/a.npz[{row}]" for row in range(3)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_what_is_not_told_is_left_out(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", series=SERIES, labels=None, other=np.arange(3))
    np.save(tmp_path / "b.npy", SERIES)
    assert set(np.load(tmp_path / "a.npz").files) == {"series", "other"}
    for path in (tmp_path / "a.npz", tmp_path / "b.npy"):
        found = opened(path)
        assert (found.samples == SERIES).all() and not found.beside
        assert (found.lengths(), found.labels(), found.positive("rate", 7.0)) == ([5, 5, 5], None, 7.0)


def test_an_archive_that_cannot_be_written_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", series=SERIES)
    with pytest.raises(UnicodeEncodeError):
        write_arrays(tmp_path / "a.npz", **{"series": 2 * SERIES, "\ud800": SERIES})  # no name of a zip's member
    assert (opened(tmp_path / "a.npz").samples == SERIES).all()
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"motions": SERIES}, "has no array series; it holds motions"),
        ({}, "it holds nothing"),
        ({"series": SERIES[0]}, r"series is float32 [5, 2]; floating [n, steps, channels] is wanted"),
        ({"series": np.float32(1)}, "series is 1; floating [n"),
        ({"series": SERIES[:0]}, "series is float32 [0, 5, 2]"),
        ({"series": SERIES[:, :0]}, "series is float32 [3, 0, 2]"),
        ({"series": SERIES.astype(int)}, "series is int64 [3, 5, 2]"),
        ({"series": SERIES.astype(str)}, "series is <U"),
        ({"series": np.array([[[None]]], dtype=object)}, "no readable npz file"),
    ],
)
def test_other_samples_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert words in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("labels", [0, 1, -1], "labels go from -1 to 1"),
        ("labels", [0, 1, 2**40], "not from 0 to"),
        ("labels", [0, 0.5, 1], "labels is float64 [3]; a whole number for each of the 3 samples"),
        ("labels", ["a", "b", "c"], "labels is <U1 [3]"),
        ("labels", [True, False, True], "labels is bool [3]"),
        ("labels", [0, 1], "labels is int64 [2]"),
        ("labels", 1, "labels is 1;"),
        ("lengths", [5, 5, 6], "lengths go from 5 to 6, not from 1 to 5"),
        ("lengths", [5, 5, 0], "lengths go from 0 to 5"),
        ("lengths", [5.0, 5.0, 4.0], "lengths is float64 [3]"),
        ("lengths", ["5", "5", "4"], "lengths is <U1 [3]"),
        ("lengths", [[5], [5], [5]], "lengths is int64 [3, 1]"),
        ("rate", 0, "rate is 0; one number above 0"),
        ("rate", np.nan, "rate is nan"),
        ("rate", np.inf, "rate is inf"),
        ("rate", [8, 8], "rate is int64 [2]"),
        ("rate", "fast", "rate is <U4 []"),
    ],
)
def test_what_lies_beside_is_refused_where_it_cannot_be(tmp_path: Path, name: str, value: Any, words: str) -> None:
    np.savez(tmp_path / "a.npz", series=SERIES, **{name: value})
    found = opened(tmp_path / "a.npz")
    read = {"labels": found.labels, "lengths": found.lengths, "rate": lambda: found.positive("rate", 1)}[name]
    assert words in refusal(tmp_path / "a.npz", read)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", series=SERIES)
    np.save(tmp_path / "array.npy", SERIES)
    (tmp_path / "archive.npz").rename(tmp_path / "was-npz.npy")
    (tmp_path / "array.npy").rename(tmp_path / "was-npy.npz")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.npz").mkdir()
    for name in ("was-npz.npy", "was-npy.npz", "text.npz", "empty.npy", "folder.npz"):
        assert "no readable np" in refusal(tmp_path / name)
    (tmp_path / "sound.wav").touch()
    assert "an .npz or .npy file is wanted" in refusal(tmp_path / "sound.wav")
    assert "does not exist" in refusal(tmp_path / "nothing.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_any_damage_is_one_line(tmp_path: Path, write: Callable[..., None]) -> None:
    """A byte is changed, or the end is missing: read, if numpy can, or refused; which of the two it must not be."""
    path = tmp_path / "a.npz"
    write(path, series=SERIES, labels=np.arange(3))
    whole, draws, refused = path.read_bytes(), np.random.default_rng(0), 0
    for trial in range(400):
        damaged = bytearray(whole)
        if trial % 4:
            damaged[draws.integers(len(whole))] ^= int(draws.integers(1, 256))
        else:
            del damaged[draws.integers(len(whole)) :]
        path.write_bytes(damaged)
        try:
            opened(path).labels()
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused > 250


def test_an_archive_behind_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, series=SERIES)
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag in both of a member's headers
        content[content.index(mark) + offset] |= 1
    path.write_bytes(content)
    assert zipfile.ZipFile(path).infolist()[0].flag_bits & 1
    assert "encrypted" in refusal(path)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", series=SERIES, labels=np.arange(3), notes=np.array({"a": 1}, dtype=object))
    assert list(read_arrays(tmp_path / "a.npz", ("series",), ("labels", "lengths"))) == ["series", "labels"]
