"""``humanml3d`` and ``kit-ml``: the folders of features and captions that text-to-motion papers train on.

Which motions and captions count is after ``Text2MotionDatasetV2`` (``data_loaders/humanml/data/dataset.py``) of
github.com/GuyTevet/motion-diffusion-model.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from layersync.core.adapter import DataConfig, DataFacts, Example, ExampleDataset, Split
from layersync.core.errors import InputError
from layersync.core.paths import expanded
from layersync.modalities.motion.humanml3d import NUM_FEATURES, HumanML3DFeatures
from layersync.modalities.motion.kit import NUM_FEATURES as KIT_FEATURES
from layersync.modalities.motion.kit import KitFeatures
from layersync.modalities.motion.samples import Caption

logger = logging.getLogger(__name__)

TAG_FPS = 20
"""Frames a second by which times of captions are read, in KIT-ML too, as published."""
LONGEST = 199
"""Frames; longer motions and parts are left out, as published."""


class Kind(NamedTuple):
    """What tells the two data sets apart: numbers a frame, and the fewest frames that count."""

    features: int
    shortest: int


KINDS = {"humanml3d": Kind(NUM_FEATURES, 40), "kit-ml": Kind(KIT_FEATURES, 24)}


class Record(NamedTuple):
    """A motion, or the part of one that has captions of its own."""

    path: Path
    start: int
    stop: int
    captions: tuple[str, ...]


class HumanML3DConfig(DataConfig):
    """The ``data`` section for HumanML3D (263 numbers a frame), and for KIT-ML (251).

    ``path`` is the folder with ``new_joint_vecs``, ``texts`` and the lists ``train.txt``, ``val.txt``, ``test.txt``.
    ``test_split``: the list that serves as the test split.
    """

    name: Literal["humanml3d", "kit-ml"] = "humanml3d"
    path: str
    test_split: Literal["test", "val"] = "test"

    def facts(self) -> DataFacts:
        """Motions have texts and no labels."""
        return DataFacts(num_classes=0)

    def build(self, split: Split) -> HumanML3DFolder:
        """The motions of ``split`` that published protocols keep.

        Raises :class:`InputError` for folders or lists that are missing, and a split without a motion that counts.
        """
        root = expanded(self.path, "data.path")
        if not root.is_dir():
            raise InputError(f"data.path: {root} is no folder")
        for folder in ("new_joint_vecs", "texts"):
            if not (root / folder).is_dir():
                raise InputError(f"data.path: {root} has no folder {folder}: {self.name} is new_joint_vecs and texts")
        listed = root / f"{'train' if split == 'train' else self.test_split}.txt"
        if not listed.is_file():
            raise InputError(f"data.path: {root} has no {listed.name}, the names of the split")
        return HumanML3DFolder(self, root, listed)


class KitConfig(HumanML3DConfig):
    """The ``data`` section for KIT-ML."""

    name: Literal["kit-ml"] = "kit-ml"


class HumanML3DFolder(ExampleDataset):
    """Motions of one list at their own rate, and parts of them that are captioned by themselves.

    Of a motion all captions about the whole of it are kept, of which training draws one at each step. A line about a
    part makes an example of that part, which has this one caption. Files are read once here, for their checksum and to
    leave out those with values that are not finite, and again when asked for.
    """

    def __init__(self, config: HumanML3DConfig, root: Path, listed: Path) -> None:
        self._kind, self._name = KINDS[config.name], config.name
        self._root = root
        names = list(
            dict.fromkeys(name for line in listed.read_text(encoding="utf-8").splitlines() if (name := line.strip()))
        )
        digest = hashlib.sha256(config.name.encode())
        records: list[Record] = []
        left_out = {"without a file": 0, "with values that are not finite": 0, "without texts": 0}
        for name in names:
            path, text = root / "new_joint_vecs" / f"{name}.npy", root / "texts" / f"{name}.txt"
            if not path.is_file():
                left_out["without a file"] += 1
                continue
            content = path.read_bytes()
            values = self._array(content, path)
            if not self._counts(len(values)):
                continue
            if not np.isfinite(values).all():
                left_out["with values that are not finite"] += 1
                continue
            if not text.is_file():
                left_out["without texts"] += 1
                continue
            found = self._records(path, len(values), read_captions(text))
            records += found
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()} {[record[1:] for record in found]}".encode())
        self._records_kept = records
        self.fingerprint = digest.hexdigest()[:16]
        said = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
        if not records:
            raise InputError(
                f"data.path: {listed} names {len(names)} motions, none of {self._kind.shortest} to {LONGEST} frames "
                f"with captions in {root}{f' ({said})' if said else ''}"
            )
        if said:
            logger.warning("data %s: of %d motions in %s, left out: %s", root, len(names), listed.name, said)

    def __len__(self) -> int:
        return len(self._records_kept)

    def __getitem__(self, index: int) -> Example:
        record = self._records_kept[index]
        values = self._array(record.path.read_bytes(), record.path)[record.start : record.stop].astype(np.float32)
        try:
            sample = HumanML3DFeatures(values) if self._name == "humanml3d" else KitFeatures(values)
        except InputError as error:
            raise InputError(f"{record.path}: {error}") from None
        return Example(sample, {"text": record.captions}, f"{record.path.stem}[{record.start}:{record.stop}]")

    def _counts(self, frames: int) -> bool:
        return self._kind.shortest <= frames <= LONGEST

    def _array(self, content: bytes, path: Path) -> np.ndarray:
        try:
            values: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{path}: no readable array ({' '.join(str(error).split())})") from None
        if values.ndim != 2 or values.shape[1] != self._kind.features:
            other = next((name for name, kind in KINDS.items() if values.shape[1:] == (kind.features,)), None)
            hint = f"; that is {other}" if other else ""
            raise InputError(f"{path}: has shape {values.shape}; {self._name} is (frames, {self._kind.features}){hint}")
        return values

    def _records(self, path: Path, frames: int, captions: list[Caption]) -> list[Record]:
        whole = tuple(caption.text for caption in captions if caption.whole)
        records = [Record(path, 0, frames, whole)] if whole else []
        for caption in captions:
            part = caption.rows(frames, TAG_FPS)
            if not caption.whole and self._counts(len(part)):
                records.append(Record(path, part.start, part.stop, (caption.text,)))
        return records


def read_captions(path: Path) -> list[Caption]:
    """Lines ``caption#tokens#start#end``, times in seconds, nan for 0. InputError for another format."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable text ({error})") from None
    captions = []
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("#")
        try:
            times = [float(each) for each in fields[2:4]]
        except ValueError:
            times = []
        if len(times) != 2 or not fields[0]:
            raise InputError(f"{path}: {line[:60]!r} is not caption#tokens#start#end with times in seconds")
        captions.append(Caption(fields[0], *(0.0 if math.isnan(time) else time for time in times)))
    return captions
