"""Anybody's motion samples: folders of AMASS, BVH or HumanML3D files, or one array of joints; with captions.

Nothing is unpickled. Motions of AMASS and BVH files are brought to 30 frames a second, as everywhere in this package;
arrays are taken at 20, HumanML3D's rate, unless an archive says ``fps``. AMASS's clips of bodies with a shape of their
own are put on the floor, as the data set ``amass`` does; what this package has written stays as it was generated.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from layersync.core.adapter import Example, ExampleDataset
from layersync.core.archive import opened_npz, padded, positive, write_arrays
from layersync.core.errors import InputError
from layersync.core.packaged import file_digest
from layersync.core.paths import files_below, first_caption, name_bytes
from layersync.modalities.motion.data import FPS as MOTION_FPS
from layersync.modalities.motion.data import BvhConfig
from layersync.modalities.motion.humanml3d import FPS, NUM_FEATURES, HumanML3DFeatures
from layersync.modalities.motion.io.amass import holds_motion, read_amass, read_amass_header
from layersync.modalities.motion.kit import KitFeatures
from layersync.modalities.motion.sample import JointMotion, Motion

logger = logging.getLogger(__name__)

JOINT_COUNTS = (22, 24)
SPLIT_FRAMES = range(40, 200)
"""Lengths that published protocols keep of HumanML3D's splits."""

ARCHIVE = "samples.npz"
"""What ``layersync sample --npz`` adds to a folder of motions; it is a file of its own, not one of the folder's."""
_SUFFIXES = (".npy", ".npz", ".bvh")
_STATISTICS = ("mean", "std")
_SHAPES = f"(frames, 22 or 24, 3) joints or (frames, {NUM_FEATURES}) HumanML3D features, or several of one length"
_PICKLED = (
    "holds pickled objects, which are not read; of MDM's results.npy make an archive: r = numpy.load(FILE, "
    "allow_pickle=True).item(); numpy.savez('motions.npz', motion=r['motion'].transpose(0, 3, 1, 2), "
    "lengths=r['lengths'], text=r['text'], fps=20)"
)

Read = Callable[[], Any]
Statistics = tuple[np.ndarray, np.ndarray]


class Caption(NamedTuple):
    """A line of text, and the seconds of the motion that it is about; 0 and 0 for all of it."""

    text: str
    start: float = 0.0
    stop: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether it is about all of the motion."""
        return not (self.start or self.stop)

    def rows(self, frames: int, fps: float) -> range:
        """Which of a motion's frames it is about."""
        return range(frames) if self.whole else range(frames)[int(self.start * fps) : int(self.stop * fps)]


class Record(NamedTuple):
    """One sample: what it is called, how it is read, its text if any, and what identifies its content."""

    source: str
    read: Read
    caption: Caption | None
    digest: str


class MotionSamples(ExampleDataset):
    """Motions in the order of their names, read when asked for; ``text`` is a caption as its file has it."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = tuple(records)
        digest = hashlib.sha256()
        for record in self._records:
            digest.update(name_bytes(f"{record.source}\n{record.caption}\n{record.digest}\n"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        sample, caption = record.read(), record.caption
        if caption is None:
            return Example(sample, {}, record.source)
        if not caption.whole:
            rows = caption.rows(len(sample), sample.fps)
            if not rows:
                raise InputError(f"{record.source}: has no frame from {caption.start:g} to {caption.stop:g} s")
            sample = sample.cut(rows.start, rows.stop)
        return Example(sample, {"text": caption.text}, record.source)


def open_motion_samples(path: Path) -> MotionSamples:
    """All motions of a folder or a file.

    A folder holds files of one kind, directly or in folders of its own: AMASS ``.npz``, ``.bvh``, or ``.npy`` of
    HumanML3D, joints (frames, 22 or 24, 3) or features (frames, 263) that are not normalised, as ``new_joints`` and
    ``new_joint_vecs`` are. Where ``mean.npy`` and ``std.npy`` lie among features, these are denormalised with them.

    A file is one of those; or ``.npy`` or ``.npz`` of joints (n, frames, 22 or 24, 3) or features (n, frames, 263), an
    archive possibly with ``lengths`` (n,), ``text`` (n,) and ``fps``; or one of HumanML3D's splits (``test.txt``), of
    which the motions of 40 to 199 frames are taken, as published.

    Captions: the first line of NAME.txt beside NAME.npy that is not empty; or NAME.txt in a folder ``texts`` next to
    the samples or their folder, in HumanML3D's format, of which the first line about the whole motion counts, and each
    line about a part makes a sample of that part, as published; or FILE.txt with a line for each motion of an array.

    Raises :class:`InputError` for a path that is missing or empty and, naming the file, for what cannot be read: here
    what its head shows, when a sample is asked for the rest.
    """
    path = path.expanduser()
    if path.is_dir():
        return MotionSamples(_of_folder(path))
    if not path.is_file():
        raise InputError(f"{path}: there is no such folder or file")
    if path.suffix == ".txt":
        return MotionSamples(_of_split(path))
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: motion samples are {', '.join(_SUFFIXES)} files, or a folder of them")
    if path.suffix.lower() == ".bvh" or _is_amass(path):
        return MotionSamples(_of_files([path], path.parent))
    return MotionSamples(_of_array(path))


def write_motion_archive(path: Path, samples: Sequence[Any], labels: Sequence[int] | None = None) -> None:
    """Write motions as one ``.npz`` that :func:`open_motion_samples` reads, padded with zeros.

    Joints in metres, or the features of samples that are such; of KIT-ML's these are written but not read.
    """
    featured = isinstance(samples[0], HumanML3DFeatures | KitFeatures)
    parts = [np.asarray(sample.values if featured else sample.joints(), dtype=np.float32) for sample in samples]
    motions, lengths = padded(parts)
    named = {"features" if featured else "joints": motions}
    write_arrays(path, lengths=lengths, fps=np.float64(samples[0].fps), labels=labels, **named)


def _of_folder(folder: Path) -> list[Record]:
    paths = _samples_in(sorted(folder.iterdir())) or _samples_in(files_below(folder, _SUFFIXES, given=str(folder)))
    if not paths:
        raise InputError(f"{folder}: no motion samples in it ({', '.join(_SUFFIXES)} files)")
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise InputError(f"{folder}: holds {' and '.join(suffixes)} files; give a folder with files of one kind")
    return _of_files(paths, folder)


def _samples_in(paths: Sequence[Path]) -> list[Path]:
    return [
        path
        for path in paths
        if path.suffix.lower() in _SUFFIXES and path.stem.lower() not in _STATISTICS and path.is_file()
        if path.name != ARCHIVE and holds_motion(path)
    ]


def _is_amass(path: Path) -> bool:
    if path.suffix.lower() != ".npz":
        return False
    with opened_npz(path) as archive:
        return "poses" in archive or {"root_orient", "pose_body"} <= set(archive.files)


def _of_files(paths: Sequence[Path], root: Path) -> list[Record]:
    """One motion a file, and one more for each caption that is about a part of it."""
    suffix = paths[0].suffix.lower()
    readers: dict[Path, Read] = {}
    statistics: dict[Path, Statistics | None] = {}
    if suffix == ".bvh":
        readers |= BvhConfig(path=str(root)).readers(paths)
    elif suffix == ".npz":
        readers |= {path: partial(_read_amass, path) for path in paths if read_amass_header(path)}
    else:
        statistics = {folder: _statistics_in(folder) for folder in {path.parent for path in paths}}
        kinds = {_kind_of(_array(path, mapped=True).shape, str(path)): path for path in paths}
        if len(kinds) > 1:
            both = " and ".join(f"{kind} ({path.relative_to(root)})" for kind, path in kinds.items())
            raise InputError(f"{root}: holds {both}; give a folder with files of one kind")
        readers |= {path: partial(_read_array, path, statistics[path.parent]) for path in paths}
    records = []
    for path, read in readers.items():
        source, digest = str(path.relative_to(root)), file_digest(path) + _digest(statistics.get(path.parent))
        digest += "on the floor" if suffix == ".npz" else ""
        found: list[Caption | None] = [*_captions(path)]
        records += [Record(source, read, caption, digest) for caption in found or [None]]
    return records


def _digest(statistics: Statistics | None) -> str:
    """Of what samples are denormalised with."""
    return "" if statistics is None else hashlib.sha256(np.stack(statistics).tobytes()).hexdigest()


def _read_amass(path: Path) -> Motion:
    return read_amass(path, floor="auto").resampled(MOTION_FPS)


def _statistics_in(folder: Path) -> Statistics | None:
    """``mean.npy`` and ``std.npy``, however they are spelt, among the samples."""
    found = {path.stem.lower(): path for path in folder.glob("*.npy") if path.stem.lower() in _STATISTICS}
    if not found:
        return None
    if len(found) == 1:
        raise InputError(f"{folder}: holds {next(iter(found.values())).name} alone; mean.npy and std.npy go together")
    mean, std = (_array(found[name]).astype(np.float64) for name in _STATISTICS)
    if mean.shape != (NUM_FEATURES,) or std.shape != (NUM_FEATURES,) or not (std > 0).all():
        raise InputError(f"{folder}: mean.npy and std.npy are not {NUM_FEATURES} numbers each, deviations above 0")
    return mean, std


def _array(path: Path, *, mapped: bool = False) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except (OSError, EOFError, ValueError) as error:
        if "allow_pickle" in str(error):
            raise InputError(f"{path}: {_PICKLED}") from None
        raise InputError(f"{path}: no readable array ({' '.join(str(error).split())})") from None
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path}: not an array of floating-point numbers")
    return array


def _kind_of(shape: tuple[int, ...], source: str) -> str:
    """Joints or features."""
    if len(shape) == 3 and shape[1] in JOINT_COUNTS and shape[2] == 3 and shape[0]:
        return "joints"
    if len(shape) == 2 and shape[1] == NUM_FEATURES and shape[0]:
        return "features"
    raise InputError(f"{source}: has shape {shape}; a motion is {_SHAPES}")


def _read_array(path: Path, statistics: Statistics | None = None) -> JointMotion | HumanML3DFeatures:
    return _motion(_array(path), str(path), FPS, statistics)


def _motion(
    array: np.ndarray, source: str, fps: float, statistics: Statistics | None = None
) -> JointMotion | HumanML3DFeatures:
    """The sample that an array is, checked."""
    kind = _kind_of(array.shape, source)
    values = array.astype(np.float32)
    if kind == "joints":
        if statistics is not None:
            raise InputError(f"{source}: joints are metres; take away the mean.npy and std.npy that lie beside them")
        if bad := int((~np.isfinite(values)).sum()):
            raise InputError(f"{source}: holds {bad} values that are not finite numbers")
        return JointMotion(values, fps)
    if abs(fps - FPS) > 1e-3:
        raise InputError(f"{source}: HumanML3D features are at {FPS:g} frames a second, not {fps:g}")
    try:
        if statistics is None:
            return HumanML3DFeatures(values)
        return HumanML3DFeatures.from_normalised(values, *statistics)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _of_array(path: Path) -> list[Record]:
    """The motions of one array: one, or as many as its first axis says."""
    fps, lengths, texts = FPS, None, None
    if path.suffix.lower() == ".npy":
        array = _array(path)
    else:
        array, lengths, texts, fps = _archive(path)
    single = (array.ndim, array.shape[-1:]) in ((3, (3,)), (2, (NUM_FEATURES,)))
    motions = array[None] if single else array
    if motions.ndim not in (3, 4) or not len(motions):
        raise InputError(f"{path}: has shape {array.shape}; expected {_SHAPES}")
    if motions.ndim == 4 and motions.shape[1] in JOINT_COUNTS and motions.shape[2] == 3:
        raise InputError(f"{path}: has shape {array.shape}, frames last; transpose(0, 3, 1, 2) makes what is expected")
    _kind_of(motions.shape[1:], str(path))
    frames = np.full(len(motions), motions.shape[1]) if lengths is None else lengths
    if frames.shape != (len(motions),) or frames.min() < 1 or frames.max() > motions.shape[1]:
        raise InputError(f"{path}: lengths are not {len(motions)} numbers from 1 to {motions.shape[1]}")
    texts = texts or _lines_beside(path, len(motions))
    statistics = _statistics_in(path.parent) if motions.ndim == 3 else None
    records, digest = [], file_digest(path) + _digest(statistics)
    for number, motion in enumerate(motions):
        place = "" if single else f"[{number}]"
        read = partial(_motion, motion[: frames[number]], f"{path}{place}", fps, statistics)
        caption = None if texts is None else Caption(texts[number])
        records.append(Record(f"{path.name}{place}", read, caption, digest))
    return records


def _archive(path: Path) -> tuple[np.ndarray, np.ndarray | None, list[str] | None, float]:
    """The motions of an ``.npz``, their lengths, texts and frame rate."""
    with opened_npz(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    candidates = [name for name, array in arrays.items() if array.ndim > 1 and np.issubdtype(array.dtype, np.floating)]
    if len(candidates) != 1:
        raise InputError(f"{path}: expected one array, {_SHAPES}; it holds {', '.join(arrays) or 'nothing'}")
    motions = arrays[candidates[0]]
    lengths, text = arrays.get("lengths"), arrays.get("text")
    if lengths is not None and not np.issubdtype(lengths.dtype, np.integer):
        raise InputError(f"{path}: lengths are {lengths.dtype}, not whole numbers")
    if text is not None and text.shape != (len(motions),):
        raise InputError(f"{path}: text has shape {text.shape}, but there are {len(motions)} motions")
    fps = positive(path, "fps", arrays.get("fps", np.array(FPS)))
    return motions, lengths, None if text is None else [str(line) for line in text], fps


def _lines_beside(path: Path, count: int) -> list[str] | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    lines = _lines(beside)
    if len(lines) != count:
        raise InputError(f"{beside}: has {len(lines)} lines of text, but {path.name} holds {count} motions")
    return lines


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable text ({error})") from None
    return [line for line in lines if line]


def _captions(path: Path) -> list[Caption]:
    """What is said of the motion in a file; nothing where no text lies beside it."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return [Caption(first_caption(beside))]
    for folder in (path.parent / "texts", path.parent.parent / "texts"):
        if (folder / beside.name).is_file():
            return _parts(folder / beside.name)
    return []


def _some_lines(path: Path) -> list[str]:
    if lines := _lines(path):
        return lines
    raise InputError(f"{path}: holds no caption")


def _parts(path: Path) -> list[Caption]:
    """Of HumanML3D's lines the first about the whole motion, and those about a part of it."""
    captions = []
    for line in _some_lines(path):
        fields = line.split("#")
        try:
            times = [0.0 if math.isnan(float(field)) else float(field) for field in fields[2:4]]
        except ValueError:
            raise InputError(f"{path}: {line!r} does not end in two times, as in caption#tokens#start#end") from None
        captions.append(Caption(line, *times) if len(times) == 2 else Caption(line))
    whole = [caption for caption in captions if caption.whole]
    return whole[:1] + [caption for caption in captions if not caption.whole]


def _of_split(path: Path) -> list[Record]:
    """The motions that one of HumanML3D's splits names, of the lengths that published protocols keep."""
    folder = path.parent / "new_joint_vecs"
    if not folder.is_dir():
        raise InputError(f"{path}: a list of names needs {folder} beside it, HumanML3D's features")
    named = [folder / f"{name}.npy" for name in _lines(path)]
    paths = [each for each in named if each.is_file()]
    if not paths:
        raise InputError(f"{path}: none of its {len(named)} names is a file in {folder}")
    if len(paths) < len(named):
        logger.warning("%s: %d of %d names have no file in %s", path, len(named) - len(paths), len(named), folder)
    frames = {each: len(_array(each, mapped=True)) for each in paths}
    kept = [each for each in paths if frames[each] in SPLIT_FRAMES]
    finite = [each for each in kept if np.isfinite(_array(each)).all()]
    told = [each for each in finite if (path.parent / "texts" / f"{each.stem}.txt").is_file()] or finite
    for some, fewer, why in ((kept, finite, "values that are not finite"), (finite, told, "no texts")):
        if len(fewer) < len(some):  # as published loaders do: two motions of HumanML3D's own test set are not finite
            logger.warning("%s: %d of %d motions are left out: %s", path, len(some) - len(fewer), len(some), why)
    if kept and not finite:
        raise InputError(f"{path}: all {len(kept)} motions of its lengths hold values that are not finite")
    lengths = {str(each.relative_to(folder)): frames[each] for each in told}
    records = [
        record
        for record in (_of_files(told, folder) if told else [])
        if record.caption is None or len(record.caption.rows(lengths[record.source], FPS)) in SPLIT_FRAMES
    ]
    if not records:
        raise InputError(f"{path}: no motion is {SPLIT_FRAMES.start} to {SPLIT_FRAMES.stop - 1} frames long")
    return records
