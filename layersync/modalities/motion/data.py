"""Folders of motion files: BVH and AMASS."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.errors import InputError, nearest
from layersync.core.packaged import file_digest
from layersync.core.paths import (
    FINGERPRINT,
    Fingerprint,
    as_text,
    caption_files,
    expanded,
    files_below,
    held_out_folder,
    label_in_name,
    name_bytes,
    read_captions,
    sizes_and_times,
    warn_of_merged,
)
from layersync.modalities.motion.captions import read_rules
from layersync.modalities.motion.io.amass import Floor, holds_motion, read_amass, read_amass_header
from layersync.modalities.motion.io.bvh import BvhFile, read_bvh
from layersync.modalities.motion.presets import OWN_ENDINGS, PRESETS, Preset, choose_preset, read_preset
from layersync.modalities.motion.retarget import Alignment, Up, align
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import INDEX

logger = logging.getLogger(__name__)

FPS = 30.0
_NUM_REFERENCES = 8
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # also within TurnLeft
_NO_SIDE = re.compile(
    r"(al|b|birth|copy|down|f|forth|out|up)right(s|ed|en|ened|ening|er|est|ful|fully|ly|ness)?", re.IGNORECASE
)

Checked = TypeVar("Checked")


class Record(NamedTuple):
    """A file that can be read, its label and texts, and how to read it."""

    path: Path
    label: str | None
    captions: tuple[str, ...]
    read: Callable[[], Motion]


class MotionFolderConfig(DataConfig):
    """What every folder of motion files has.

    ``labels``: a regular expression with a group ``label``, searched in the file name, of whose ending the label has
    nothing; without it the parent folder is the label (folders of one name in different places are one, which is
    warned of), and files that all lie in ``path`` itself have none.
    ``min_clips``: labels with fewer files are left out (a label needs two, one for each split). ``test_files``, a
    regular expression that is searched in the file name and in the name relative to ``path``, chooses the test split;
    without it, it is ``path``'s folder ``test`` (or ``val``, where there is no ``test``) if motions lie below it and
    below ``train``, and files elsewhere are left out; else ``test_fraction`` of each label's files, chosen by a hash of
    the name. A file directly in a split's folder has no label.
    ``mirror``: also the clips with left and right exchanged; ``auto`` does so unless a label or a text names a side.
    ``captions``: rules that make texts of file names (see :mod:`layersync.modalities.motion.captions`), a file or
    ``bandai-namco``; without them, a text file of the same name beside a motion holds its captions, one a line.
    ``on_error``: what a file that cannot be read does. ``fingerprint``: what tells that files changed.
    """

    path: str
    labels: str | None = None
    min_clips: PositiveInt = 2
    test_files: str | None = None
    test_fraction: float = Field(0.2, gt=0, lt=1)
    captions: str | None = None
    mirror: Literal["auto"] | bool = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    fingerprint: Fingerprint = Field("auto", description=FINGERPRINT)

    @field_validator("labels")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
            if "label" not in groups:
                raise ValueError(f"{pattern!r} has no group (?P<label>...)")
        return pattern

    @field_validator("test_files")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return pattern

    @abstractmethod
    def readers(self, paths: Sequence[Path]) -> dict[Path, Callable[[], Motion]]:
        """How to read each of ``paths``; those that cannot be read raise, or are left out, as ``on_error`` says."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """How the names of the files end."""

    def build(self, split: Split) -> MotionFolder:
        """The motions of ``split``. Raises :class:`InputError` for a folder that is missing or holds nothing
        readable.
        """
        root = expanded(self.path, "data.path")
        rules = None if self.captions is None else read_rules(self.captions)
        if not root.is_dir():
            raise InputError(f"data.path: {root} is no folder")
        paths = files_below(root, (self.suffix,), skip=self.on_error == "skip")
        if not paths:
            raise InputError(f"data.path: there is no {self.suffix} file in {root}")
        held_out = self._held_out_folder(paths, root, split)
        if held_out is not None:
            paths = [path for path in paths if path.relative_to(root).parts[0] in ("train", held_out)]
        readers = self.readers(paths)
        if not readers:
            raise InputError(f"data.path: none of the {len(paths)} {self.suffix} files in {root} can be read")
        if held_out is not None:
            unlabelled = {root / "train", root / held_out}
        else:
            unlabelled = {root} if all(path.parent == root for path in readers) else set()
        records = [Record(path, self._label(path, unlabelled), (), read) for path, read in readers.items()]
        kept = self._frequent(records, root)
        if self.labels is None and split == "train":
            bases = [root if held_out is None else root / path.relative_to(root).parts[0] for path, *_ in kept]
            warn_of_merged(list(zip(bases, (path for path, *_ in kept), strict=True)), stacklevel=3)
        texts = caption_files([record.path for record in kept]) if rules is None else {}
        if rules is not None:
            kept = [record._replace(captions=rules.captions(as_text(record.path.name))) for record in kept]
        kept = [
            record._replace(captions=read_captions(texts[record.path])) if record.path in texts else record
            for record in kept
        ]
        return MotionFolder(self, split, root, kept, held_out)

    def _held_out_folder(self, paths: Sequence[Path], root: Path, split: Split) -> str | None:
        """The folder of the test split where the tree comes split and no pattern splits it otherwise."""
        default = MotionFolderConfig.model_fields["test_fraction"].default
        given = split == "train" and self.test_fraction != default
        if self.test_files is not None:
            if given:
                warnings.warn("data.test_fraction has no effect: data.test_files chooses the test split", stacklevel=3)
            return None
        held_out = held_out_folder(path.relative_to(root).as_posix() for path in paths)
        if held_out is not None and given:
            warnings.warn(
                f"data.test_fraction has no effect: {self.path} has folders train and {held_out}", stacklevel=3
            )
        return held_out

    def _label(self, path: Path, unlabelled: Collection[Path]) -> str | None:
        if self.labels is None:
            return None if path.parent in unlabelled else as_text(path.parent.name)
        if (label := label_in_name(self.labels, path.name)) is None:
            match = re.search(self.labels, as_text(path.name))
            if match is None or match["label"]:  # no match, or one in the ending; a group may have been left out
                raise InputError(f"data.labels: {self.labels!r} finds no label in the file name {path.name}")
        return label

    def _frequent(self, records: list[Record], root: Path) -> list[Record]:
        counts = Counter(record.label for record in records)
        rare = sorted(f"{label} ({count})" for label, count in counts.items() if label and count < self.min_clips)
        if rare:
            logger.info(
                "data %s: labels with fewer than %d files are left out: %s", root, self.min_clips, ", ".join(rare)
            )
        kept = [record for record in records if record.label is None or counts[record.label] >= self.min_clips]
        if not kept:
            raise InputError(
                f"data.min_clips: no label in {root} has {self.min_clips} files; there are {', '.join(rare)}"
            )
        return kept

    def _try(self, path: Path, read: Callable[[Path], Checked]) -> Checked | None:
        """What ``read`` makes of ``path``; ``None`` for a file that is skipped."""
        try:
            return read(path)
        except InputError as error:
            if self.on_error == "stop":
                raise
            logger.warning("skipped: %s", error)
            return None

    def _say_skipped(self, readable: int, paths: Sequence[Path]) -> None:
        if readable < len(paths):
            logger.warning("data %s: %d of %d files skipped", self.path, len(paths) - readable, len(paths))


class BvhConfig(MotionFolderConfig):
    """The ``data`` section for a tree of BVH files.

    ``skeleton``: a preset, ``auto`` to choose one by joint names, or a YAML file of SMPL's joints and which of the
    files' they are. ``scale``: metres per unit of the files; ``auto`` gives each performer the legs of the generic
    skeleton, whatever the unit, so that feet meet the floor. ``up``: the vertical axis; ``auto`` finds it in the
    motion.
    """

    name: Literal["bvh"] = "bvh"
    skeleton: str = "auto"
    scale: Literal["auto"] | PositiveFloat = "auto"
    up: Up = "auto"

    @field_validator("skeleton")
    @classmethod
    def _known(cls, name: str) -> str:
        if name != "auto" and name not in PRESETS and not name.lower().endswith(OWN_ENDINGS):
            raise ValueError(f"skeleton {name!r} is no .yaml file and unknown; {nearest(name, ['auto', *PRESETS])}")
        return name

    @property
    def suffix(self) -> str:
        """BVH."""
        return ".bvh"

    @property
    def has_own_skeleton(self) -> bool:
        """Whether a file says which joint is which."""
        return self.skeleton.lower().endswith(OWN_ENDINGS)

    def readers(self, paths: Sequence[Path]) -> dict[Path, Callable[[], Motion]]:
        """Check every file, solve each skeleton once, and read motions when they are asked for."""
        wanted = read_preset(self.skeleton) if self.has_own_skeleton else self.skeleton
        skeletons: dict[tuple[object, ...], list[Path]] = {}
        for path in paths:
            if (file := self._try(path, partial(self._checked, wanted))) is not None:
                skeletons.setdefault(self._skeleton(wanted, file), []).append(path)
        readers: dict[Path, Mapped] = {}
        for members in skeletons.values():
            alignment = self._align(wanted, members)
            readers |= {path: Mapped(path, alignment) for path in members}
        self._say_verticals(readers)
        self._say_skipped(len(readers), paths)
        return {path: readers[path] for path in paths if path in readers}

    def _checked(self, wanted: str | Preset, path: Path) -> BvhFile:
        file = read_bvh(path)
        choose_preset(file.hierarchy.names, wanted, str(path))
        return file

    def _skeleton(self, wanted: str | Preset, file: BvhFile) -> tuple[object, ...]:
        """What files of one skeleton share: names, and bones from the pelvis on (a dummy root may lie anywhere)."""
        names = file.hierarchy.names
        joints = choose_preset(names, wanted).matched(names)
        first = joints[INDEX["pelvis"]] + 1 if joints else 0
        return names, file.hierarchy.parents, file.hierarchy.offsets[first:].round(3).tobytes()

    def _align(self, wanted: str | Preset, members: Sequence[Path]) -> Alignment:
        """The alignment of one skeleton, from some of its files spread over the folder."""
        chosen = members[:: max(1, len(members) // _NUM_REFERENCES)][:_NUM_REFERENCES]
        references = [read_bvh(path).motion() for path in chosen]
        preset = choose_preset(references[0].names, wanted, str(chosen[0]))
        try:
            alignment = align(references, preset, up=self.up, scale=None if self.scale == "auto" else self.scale)
        except InputError as error:
            raise InputError(f"{chosen[0]}: {error}") from None
        logger.info(
            "%d BVH files: skeleton %s, rest pose from %s, %.5f m per unit, vertical %s", len(members), preset.name,
            alignment.how, alignment.scale, alignment.vertical,
        )  # fmt: skip
        return alignment

    def _say_verticals(self, readers: Mapping[Path, Mapped]) -> None:
        """Warn where skeletons of one tree seem to stand along different axes: one may only have been seen lying."""
        found = Counter(reader.alignment.vertical for reader in readers.values())
        if len(found) > 1:
            rare = min(found, key=lambda vertical: found[vertical])
            first = next(path for path, reader in readers.items() if reader.alignment.vertical == rare)
            warnings.warn(
                f"data.up: {rare} is vertical in {found[rare]} of {found.total()} files ({first} is the first), whose "
                f"skeletons are others; if they only lie or crawl, set up to the axis of the rest",
                stacklevel=4,
            )


@dataclass(frozen=True)
class Mapped:
    """Reads the motion of a BVH file on SMPL's joints, at 30 fps."""

    path: Path
    alignment: Alignment

    def __call__(self) -> Motion:
        """Once more from the file."""
        return self.alignment.apply(read_bvh(self.path).motion(), FPS)


class AmassConfig(MotionFolderConfig):
    """The ``data`` section for any tree of AMASS-style ``.npz`` files, of SMPL, SMPL-H or SMPL-X.

    ``up``: their vertical axis. ``pelvis``: where the pelvis of their body lies in T-pose, in metres, as
    ``BodyModel(FILE).rest()[0]`` gives it; null is that of SMPL's neutral mean body. ``floor``: ``auto`` moves each
    clip up or down until the generic skeleton's feet are on the floor, as its subject's were; ``keep`` leaves the
    subject's heights.
    """

    name: Literal["amass"] = "amass"
    up: Literal["y", "z"] = "z"
    pelvis: tuple[float, float, float] | None = None
    floor: Floor = "auto"

    @property
    def suffix(self) -> str:
        """Numpy's archives."""
        return ".npz"

    def readers(self, paths: Sequence[Path]) -> dict[Path, Callable[[], Motion]]:
        """Check that every file holds what it must, and read motions when they are asked for."""
        paths = [path for path in paths if holds_motion(path)]
        readers = {path: partial(self._read, path) for path in paths if self._try(path, read_amass_header)}
        self._say_skipped(len(readers), paths)
        return dict(readers)

    def _read(self, path: Path) -> Motion:
        return read_amass(path, up=self.up, pelvis=self.pelvis, floor=self.floor).resampled(FPS)


class MotionFolder(ExampleDataset):
    """The motions of one split at 30 fps, read from their files when asked for."""

    def __init__(
        self,
        config: MotionFolderConfig,
        split: Split,
        root: Path,
        records: Sequence[Record],
        held_out: str | None = None,
    ) -> None:
        self.classes = tuple(sorted({record.label for record in records if record.label is not None}))
        texts = {text for record in records for text in record.captions}
        sided_text = next((text for text in sorted(texts) if _names_side(text)), None)
        sided = sided_text is not None or any(map(_names_side, self.classes))
        mirror = not sided if config.mirror == "auto" else config.mirror
        if sided and config.mirror == "auto" and split == "train":
            named = next((name for name in self.classes if _names_side(name)), sided_text)
            logger.info("data.mirror: auto mirrors nothing, since %r names a side", named)
        if mirror and (sided_text := next((text for text in sorted(texts) if _names_side(text, turns=False)), None)):
            raise InputError(f"data.mirror: true, and captions name a side ({sided_text!r}); set it to auto or false")
        self.variants = ("original", "mirror") if mirror else ("original",)
        self.reference_variants = self.variants
        self.on_error = config.on_error
        self._root = root
        self._records = self._of_split(records, split, config, held_out)
        if not self._records and split == "train":
            raise InputError(f"data.path: {len(records)} files in {root} leave none for training")
        exclude = {"path", "split", "captions", "fingerprint"}
        if isinstance(config, BvhConfig) and config.has_own_skeleton:  # what it says is in how files are aligned
            exclude.add("skeleton")
        settings = config.model_dump_json(exclude=exclude)
        digest = hashlib.sha256(settings.encode())
        digest.update(name_bytes(f"{self.classes} {self.variants}"))  # which files of the other split decide too
        stats = sizes_and_times([record.path for record in self._records], config.fingerprint)
        for number, record in enumerate(self._records):
            content = file_digest(record.path) if stats is None else "{}-{}".format(*stats[number])
            name = record.path.relative_to(root)
            how = record.read.alignment.told if isinstance(record.read, Mapped) else ""
            digest.update(name_bytes(f"{name} {record.label} {record.captions} {content} {how}"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        condition: dict[str, int | str | tuple[str, ...]] = {}
        if record.label is not None:
            condition["label"] = self.classes.index(record.label)
        if record.captions:
            condition["text"] = record.captions
        return Example(record.read(), condition, as_text(str(record.path.relative_to(self._root))))

    def variant(self, sample: Motion, name: str) -> Motion:
        """``sample``, or with left and right exchanged for ``mirror``."""
        return sample.mirrored() if name == "mirror" else sample

    def _of_split(
        self, records: Sequence[Record], split: Split, config: MotionFolderConfig, held_out: str | None
    ) -> list[Record]:
        """By folder, by name, or the same share of each label, whose files are ordered by a hash of their names."""
        if held_out is not None:
            folder = "train" if split == "train" else held_out
            return [record for record in records if record.path.relative_to(self._root).parts[0] == folder]
        if config.test_files is not None:
            held_out_files = {record.path for record in records if self._fits(config.test_files, record.path)}
            if split == "train" and not held_out_files:
                warnings.warn(
                    f"data.test_files: {config.test_files!r} is in no file name: nothing is held out", stacklevel=3
                )
            return [record for record in records if (record.path in held_out_files) == (split == "test")]
        test: set[Path] = set()
        for label in {record.label for record in records}:
            own = [record.path for record in records if record.label == label]
            own.sort(key=lambda path: hashlib.sha256(name_bytes(str(path.relative_to(self._root)))).digest())
            count = max(1, round(len(own) * config.test_fraction)) if len(own) > 1 else 0
            test.update(own[:count])
        return [record for record in records if (record.path in test) == (split == "test")]

    def _fits(self, pattern: str, path: Path) -> bool:
        """Whether ``pattern`` is in the file's name, or in that relative to the root."""
        return any(re.search(pattern, name) for name in (path.name, path.relative_to(self._root).as_posix()))


def _names_side(text: str, *, turns: bool = True) -> bool:
    """Whether left or right is in ``text``, or with ``turns`` clockwise: mirrored, it would say what is not so.

    If only within a word, unless all the word is one such as upright; ``cw`` and ``ccw`` as words of their own.
    """
    rest = _WORD.sub(lambda word: "" if _NO_SIDE.fullmatch(word[0]) else word[0], text)
    sides = r"left|right|clockwise|(?<![a-z])c?cw(?![a-z])" if turns else r"left|right"
    return re.search(sides, rest, re.IGNORECASE) is not None
