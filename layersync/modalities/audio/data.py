"""The user's own audio: folders of files, and Hugging Face ``datasets`` sources.

Both are lazy: a clip is decoded when asked for, and what cannot be used raises an error that names it. The latent
cache reads everything before training and either stops there or, with ``on_error: skip``, leaves it out and counts it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.paths import (
    FINGERPRINT,
    UNREADABLE,
    Fingerprint,
    as_text,
    caption_files,
    expand,
    files_below,
    fingerprint_files,
    held_out_folder,
    label_in_name,
    name_bytes,
    read_captions,
    read_or_skip,
    sizes_and_times,
)
from layersync.modalities.audio.clip import check_header, read_clip

OnError = Literal["stop", "skip"]


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def _with_label_group(pattern: str) -> str:
    if "label" not in re.compile(_compilable(pattern)).groupindex:
        raise ValueError(f"{pattern!r} has no group named label, such as (?P<label>[a-z]+)")
    return pattern


Pattern = Annotated[str, AfterValidator(_compilable)]
LabelPattern = Annotated[str, AfterValidator(_with_label_group)]


class FolderConfig(DataConfig):
    """A tree of audio files.

    ``labels`` is a regular expression with a group ``label``, searched in the file name, of whose ending the label has
    nothing. Without it the label is the folder that holds the file, relative to ``path`` (the name of ``path`` itself
    for files at the top), and there are no labels when all files lie in one folder. Where audio lies below ``train``
    and ``test`` (or ``val``, where there is no ``test``), those are the splits, labels are relative to them, and all
    other files are left out; else the test split is the files in whose relative name ``test_files`` is found; else
    ``test_fraction`` of the files, chosen by a hash of their relative names.
    """

    name: Literal["folder"] = "folder"
    path: str
    labels: LabelPattern | None = None
    test_files: Pattern | None = None
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    on_error: OnError = "stop"
    extensions: tuple[str, ...] = Field(default=(".wav", ".flac", ".mp3", ".ogg"), min_length=1)
    fingerprint: Fingerprint = Field("auto", description=FINGERPRINT)

    def build(self, split: Split) -> FolderClips:
        """The readable files of ``split``, by relative name."""
        return FolderClips(self, split)


class FolderClips(ExampleDataset):
    """Audio files as clips, read when asked for."""

    concurrent = True

    def __init__(self, config: FolderConfig, split: Split) -> None:
        root = expand(config.path, "data.path")
        if not root.is_dir():
            raise InputError(f"data.path: {config.path!r} is a file, not a folder")
        names = _audio_files(root, config.extensions, skip=config.on_error == "skip")
        held_out = held_out_folder(names)
        if held_out is not None:
            names = [name for name in names if name.startswith(("train/", f"{held_out}/"))]
        if split == "train":
            _warn_of_unused(config, names, held_out)
        labels = _labels_by_name(root, names, config, held_out is not None)
        self.classes = tuple(sorted({label for label in labels.values() if label is not None}))
        chosen = _names_of_split(names, config, split, held_out)
        if not chosen and split == "train":
            raise InputError(f"data.path: no audio file of {root} falls into the split {split}")
        self.on_error = config.on_error
        self._pattern = config.labels
        self._files = [root / name for name in chosen]
        self._labels = [labels[name] for name in chosen]
        texts = caption_files(self._files)
        self._captions = {file: read_captions(text) for file, text in texts.items()}
        if self.on_error == "stop":
            for file, label in zip(self._files, self._labels, strict=True):
                self._require_label(file, label)
                check_header(file)
        settings = (self.on_error, *self.classes)
        skip = self.on_error == "skip"
        self.fingerprint = _folder_fingerprint(
            chosen, self._files, self._labels, settings, config.fingerprint, skip=skip
        )
        if texts:
            self.fingerprint += f"-{fingerprint_files(root, sorted(texts.values()), None)}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        file, label = self._files[index], self._labels[index]
        self._require_label(file, label)
        condition: dict[str, int | str | tuple[str, ...]] = {}
        if label is not None:
            condition["label"] = self.classes.index(label)
        if texts := self._captions.get(file):
            condition["text"] = texts
        return Example(read_clip(file, str(file)), condition, as_text(str(file)))

    def _require_label(self, file: Path, label: str | None) -> None:
        if self._pattern is not None and label is None:
            raise InputError(f"{file}: data.labels {self._pattern!r} finds no label in the file name")


def chosen_by_hash(names: Sequence[str], fraction: float) -> set[str]:
    """``fraction`` of ``names``, at least one of several: those whose hashes are smallest, whatever their order."""
    if fraction == 0 or len(names) < 2:
        return set()
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    return set(sorted(names, key=lambda name: hashlib.blake2b(name_bytes(name)).digest())[:count])


def _audio_files(root: Path, extensions: Sequence[str], *, skip: bool) -> list[str]:
    """Relative names of the audio files under ``root``, sorted; hidden files and folders are left alone."""
    endings = tuple(sorted({"." + extension.lower().lstrip(".") for extension in extensions}))
    names = sorted(file.relative_to(root).as_posix() for file in files_below(root, endings, skip=skip))
    if not names:
        raise InputError(f"data.path: {root} holds no audio file ({', '.join(endings)})")
    return names


def _warn_of_unused(config: FolderConfig, names: Sequence[str], held_out: str | None) -> None:
    """Of what is set and changes nothing: a pattern that fits no name, too."""
    defaults = FolderConfig.model_fields
    given = [key for key in ("test_files", "test_fraction") if getattr(config, key) != defaults[key].default]
    if held_out is not None:
        for key in given:
            warnings.warn(f"data.{key} has no effect: {config.path} has folders train and {held_out}", stacklevel=4)
    elif config.test_files is not None:
        if "test_fraction" in given:
            warnings.warn("data.test_fraction has no effect: data.test_files chooses the test split", stacklevel=4)
        if not any(re.search(config.test_files, name) for name in names):
            warnings.warn(
                f"data.test_files: {config.test_files!r} is in no file name: nothing is held out", stacklevel=4
            )


def _labels_by_name(root: Path, names: Sequence[str], config: FolderConfig, folders: bool) -> dict[str, str | None]:
    """The label of each file; ``None`` for unlabelled trees and for names that ``labels`` does not match."""
    if config.labels is not None:
        return {name: label_in_name(config.labels, name.rpartition("/")[2]) for name in names}
    parents: dict[str, str | None] = {}
    for name in names:
        inner = name.split("/", 1)[1] if folders else name
        parents[name] = as_text(inner.rpartition("/")[0] or root.resolve().name)
    return parents if len(set(parents.values())) > 1 else dict.fromkeys(names)


def _names_of_split(names: Sequence[str], config: FolderConfig, split: Split, held_out: str | None) -> list[str]:
    if held_out is not None:
        test = {name for name in names if name.startswith(f"{held_out}/")}
    elif config.test_files is not None:
        test = {name for name in names if re.search(config.test_files, name)}
    else:
        test = chosen_by_hash(names, config.test_fraction)
    return [name for name in names if (name in test) == (split == "test")]


def _folder_fingerprint(
    names: Sequence[str],
    files: Sequence[Path],
    labels: Sequence[str | None],
    settings: Sequence[str],
    how: Fingerprint,
    *,
    skip: bool,
) -> str:
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    stats = sizes_and_times(files, how, skip=skip)
    for number, (name, file, label) in enumerate(zip(names, files, labels, strict=True)):
        if stats is None:
            read = read_or_skip(Path.read_bytes, file, skip)
            contents = UNREADABLE if read is None else hashlib.blake2b(read, digest_size=16).hexdigest()
        else:
            contents = "{}-{}".format(*stats[number])
        digest.update(name_bytes(f"{name}\0{label}\0{contents}\n"))
    return f"audio-folder-{digest.hexdigest()}"
