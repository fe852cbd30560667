"""The text-motion evaluator of HumanML3D, on which motion FID, R-precision and the rest are quoted.

Layout, preprocessing and checkpoint file are those of github.com/EricGuo5513/text-to-motion (Guo et al., CVPR 2022;
``networks/modules.py``, ``networks/evaluator_wrapper.py``), which MDM and its successors use unchanged. There is no
public direct address of its weights, so that the user gives a folder.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, Streams, missing_weights
from layersync.core.packaged import file_digest
from layersync.modalities.motion.features.joints import BODY_JOINTS, joints_of
from layersync.modalities.motion.features.words import PARTS_OF_SPEECH, WORD_CHANNELS, Words, tokens_of
from layersync.modalities.motion.humanml3d import (
    CONTACTS,
    NUM_FEATURES,
    HumanML3DFeatures,
    joints_to_humanml3d,
    skeleton_offsets,
)

logger = logging.getLogger(__name__)

UNIT = 4
"""Frames to one step of the recurrent network."""
MAX_FRAMES = 196
CHANNELS = NUM_FEATURES - 4
"""The movement encoder does not see the foot contacts."""
EMBEDDING, TEXT_HIDDEN, MOTION_HIDDEN = 512, 512, 1024

WEIGHTS = ("text_mot_match/model/finest.tar", "model/finest.tar", "finest.tar")
MEAN = ("meta/mean.npy", "mean.npy", "t2m_mean.npy", "text_mot_match/meta/mean.npy")
STD = ("meta/std.npy", "std.npy", "t2m_std.npy", "text_mot_match/meta/std.npy")
SKELETON = ("000021.npy", "joints/000021.npy")
VOCABULARY = ("our_vab_data.npy", "our_vab_words.pkl", "our_vab_idx.pkl")

_NEEDED = (
    "finest.tar (text-to-motion's checkpoints/t2m/text_mot_match/model/finest.tar), the evaluator's own mean.npy and "
    "std.npy (MDM's dataset/t2m_mean.npy and t2m_std.npy), and for texts its GloVe files our_vab_data.npy, "
    "our_vab_words.pkl and our_vab_idx.pkl"
)
_BAD_CHECKPOINT = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError)


class MovementEncoder(nn.Module):
    """Normalised features (samples, frames, 259) to (samples, frames / 4, 512): ``movement_encoder``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (CHANNELS, EMBEDDING):
            layers += [nn.Conv1d(channels, EMBEDDING, 4, stride=2, padding=1), nn.Dropout(0.2), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers)
        self.out_net = nn.Linear(EMBEDDING, EMBEDDING)

    def forward(self, features: Tensor) -> Tensor:
        """One row for four frames."""
        movements: Tensor = self.out_net(self.main(features.transpose(1, 2)).transpose(1, 2))
        return movements


class SequenceEncoder(nn.Module):
    """Rows (samples, places, channels) of which ``lengths`` (samples,) count, to (samples, 512): ``motion_encoder``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.input_emb = nn.Linear(channels, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(hidden * 2, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, EMBEDDING)
        )
        self.hidden = nn.Parameter(torch.zeros(2, 1, hidden))

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The last state of both directions, through two layers."""
        packed = pack_padded_sequence(self.input_emb(rows), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed, self.hidden.repeat(1, len(rows), 1))
        embedding: Tensor = self.output_net(torch.cat([last[0], last[1]], dim=-1))
        return embedding


class TextEncoder(SequenceEncoder):
    """Word vectors (samples, 22, 300) and classes (samples, 22, 15) to (samples, 512): ``text_encoder``."""

    def __init__(self) -> None:
        super().__init__(WORD_CHANNELS, TEXT_HIDDEN)
        self.pos_emb = nn.Linear(len(PARTS_OF_SPEECH), WORD_CHANNELS)

    def embed(self, words: Tensor, classes: Tensor, lengths: Tensor) -> Tensor:
        """Captions of ``lengths`` (samples,) places."""
        embedding: Tensor = self(words + self.pos_emb(classes), lengths)
        return embedding


class TextMotion(FeatureExtractor):
    """``features`` of motions and ``text`` of their captions, 512 numbers each, in one space.

    Made from what follows ``--extractor text-motion=``: a folder, ``#sha256=HEX`` behind it where the weights must have
    a checksum. A motion comes as joints or as :class:`HumanML3DFeatures`, which are never normalised: the evaluator's
    own mean and deviation, not those that models are trained with, are applied here and nowhere else.

    Joints are brought onto the skeleton of HumanML3D where ``000021.npy`` lies in the folder. Of features the first 196
    rows are taken, a multiple of 4, and zeros put behind them, which the last movements of a shorter motion see, as
    published. ``text`` is given where all captions have tokens and the GloVe files are there. A run's captions have
    none: with HumanML3D's folder ``texts`` in the extractor's folder, their tokens are found there.
    """

    name = "text-motion"
    published_weights = True
    streams = ("features", "text")
    text_streams = ("text",)

    def __init__(self, given: str | None = None) -> None:
        if given is None:
            raise missing_weights(
                f"extractor {self.name}", _NEEDED, f"give --extractor {self.name}=FOLDER, a folder with these files"
            )
        name, _, stated = given.partition("#sha256=")
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"--extractor {self.name}={given}: {folder} is no folder; it must hold {_NEEDED}")
        weights, mean, std = (_located(folder, names) for names in (WEIGHTS, MEAN, STD))
        self.checksum = file_digest(weights)
        if not self.checksum.startswith(stated.lower()):
            raise InputError(
                f"extractor {self.name}: {weights} is not what its checksum says "
                f"(SHA-256 {self.checksum[:16]}..., expected {stated})"
            )
        self.mean, self.std = _statistics(mean), _statistics(std)
        _check_deviation(std, self.std)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.movement_encoder = MovementEncoder()
        self.motion_encoder = SequenceEncoder(EMBEDDING, MOTION_HIDDEN)
        self.text_encoder = TextEncoder()
        self._load(weights)
        skeleton = _found(folder, SKELETON)
        self.offsets = None if skeleton is None else _offsets(skeleton)
        vocabulary = [_found(folder, (each, f"glove/{each}")) for each in VOCABULARY]
        self.words = None if None in vocabulary else Words(*[path for path in vocabulary if path])
        self.preprocessing = (
            f"HumanML3D features at 20 fps, not normalised; minus mean.npy {file_digest(mean)[:8]}, divided by std.npy "
            f"{file_digest(std)[:8]}; the first {MAX_FRAMES} rows, a multiple of {UNIT}, zeros behind"
            + (f"; joints on the skeleton of 000021.npy {file_digest(skeleton)[:8]}" if skeleton else "")
            + (f"; words of our_vab {self.words.checksum[:8]}" if self.words else "")
        )
        self._texts = folder / "texts"
        self._said: set[str] = set()

    @torch.inference_mode()
    def __call__(self, examples: Sequence[Example]) -> Streams:
        """One row (1, 512) a sample and stream."""
        motions, lengths = self.motions(examples)
        movements = self.movement_encoder(motions.to(self.device))
        streams = {"features": self.motion_encoder(movements, lengths // UNIT)}
        if (captions := self.captions(examples)) is not None:
            words, classes, used = captions
            streams["text"] = self.text_encoder.embed(words.to(self.device), classes.to(self.device), used)
        return {name: list(rows.cpu().numpy()[:, None]) for name, rows in streams.items()}

    def motions(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """What enters the movement encoder, (samples, 196, 259) float32, and how many rows of each count (samples,).

        Raises :class:`InputError`, naming the sample, for one that is no motion or shorter than 4 rows.
        """
        rows = np.zeros((len(examples), MAX_FRAMES, NUM_FEATURES))
        lengths = []
        for row, example in zip(rows, examples, strict=True):
            features = self._features(example)
            length = min(len(features), MAX_FRAMES) // UNIT * UNIT
            if not length:
                raise InputError(
                    f"extractor {self.name}: {example.source} has {len(features)} rows of features at 20 a second; it "
                    f"takes at least {UNIT} (published protocols: 40)"
                )
            row[:length] = (features[:length] - self.mean) / self.std
            lengths.append(length)
        return torch.from_numpy(rows[..., :CHANNELS].astype(np.float32)), torch.tensor(lengths)

    def captions(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Word vectors (samples, 22, 300), classes (samples, 22, 15) and places in use (samples,), or ``None`` where
        captions cannot be read: without tokens, or without GloVe files. Said once in the log.
        """
        texts = [example.condition.get("text") for example in examples]
        if None in texts:
            return None
        lines = [self._lines.get(_one_blank(str(text)), str(text)) for text in texts]
        tokens = [tokens_of(line, example.source) for line, example in zip(lines, examples, strict=True)]
        found = [each for each in tokens if each is not None]
        if 0 < len(found) < len(tokens):
            plain = examples[tokens.index(None)].source
            raise InputError(f"extractor {self.name}: the caption of {plain} has no tokens, others have")
        if not found:
            self._say(
                f"extractor {self.name}: captions are plain, so that it gives no text, and R-precision and matching "
                f"cannot be taken; lines with tokens, caption#word/POS word/POS ...#start#end, are made by HumanML3D's "
                f"text_process.py (spaCy, en_core_web_sm), or found where its folder texts lies in the extractor's"
            )
            return None
        if self.words is None:
            self._say(f"extractor {self.name}: texts are left out: its folder lacks one of {', '.join(VOCABULARY)}")
            return None
        encoded = [self.words.encode(each) for each in found]
        words, classes = (torch.from_numpy(np.stack([each[column] for each in encoded])) for column in (0, 1))
        return words, classes, torch.tensor([used for _, _, used in encoded])

    @cached_property
    def _lines(self) -> dict[str, str]:
        """Lines with tokens by their caption, of the folder ``texts``, whatever blanks it has."""
        found: dict[str, str] = {}
        for path in sorted(self._texts.glob("*.txt")):
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"extractor {self.name}: {path}: no readable text ({error})") from None
            for line in map(str.strip, lines):
                found.setdefault(_one_blank(line.partition("#")[0]), line)
        return found

    def _features(self, example: Example) -> np.ndarray:
        """(rows, 263) float64, not normalised."""
        if isinstance(example.sample, HumanML3DFeatures):
            return example.sample.values.astype(np.float64)
        joints = joints_of(example.sample, example.source)
        if self.offsets is None and joints.shape[1] > BODY_JOINTS:
            self._say(
                f"extractor {self.name}: motions are taken on a skeleton of their own; with HumanML3D's "
                f"joints/000021.npy in its folder they are brought onto the one that the evaluator knows"
            )
        try:
            return joints_to_humanml3d(joints, float(example.sample.fps), target_offsets=self.offsets)
        except InputError as error:
            raise InputError(f"{example.source}: {error}") from None

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    def _load(self, path: Path) -> None:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            for part in ("movement_encoder", "motion_encoder", "text_encoder"):
                getattr(self, part).load_state_dict(stored[part])
        except _BAD_CHECKPOINT as error:
            reason = " ".join(str(error).split())[:200]
            if isinstance(error, pickle.UnpicklingError):  # what torch says then advises to run it
                reason = "no file of tensors alone, and anything else in it could be code"
            raise InputError(
                f"extractor {self.name}: {path} is no checkpoint of the text-motion evaluator ({reason})"
            ) from None
        for network in (self.movement_encoder, self.motion_encoder, self.text_encoder):
            network.to(self.device).eval()


def _one_blank(caption: str) -> str:
    return " ".join(caption.split())


def _found(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _located(folder: Path, names: Sequence[str]) -> Path:
    path = _found(folder, names)
    if path is None:
        raise InputError(f"extractor text-motion: {folder} holds none of {', '.join(names)}; it must hold {_NEEDED}")
    return path


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: no readable array ({' '.join(str(error).split())})") from None
    return array


def _offsets(path: Path) -> np.ndarray:
    try:
        return skeleton_offsets(_array(path))
    except InputError as error:
        raise InputError(f"{path}: not HumanML3D's joints/000021.npy ({error})") from None


def _statistics(path: Path) -> np.ndarray:
    values = _array(path)
    if values.shape != (NUM_FEATURES,) or not np.isfinite(values.astype(np.float64)).all():
        raise InputError(f"{path}: expected {NUM_FEATURES} finite numbers, found shape {values.shape}")
    return values.astype(np.float64)


def _check_deviation(path: Path, std: np.ndarray) -> None:
    """Contacts are 0 or 1, so that their deviation is 0.2 to 0.5 in data; the evaluator's is 25 times smaller."""
    if not (std > 0).all():
        raise InputError(f"{path}: holds a deviation that is not above 0")
    if std[CONTACTS].max() > 0.1:
        raise InputError(
            f"{path}: the foot contacts deviate by {std[CONTACTS].max():.2f}: this is the Std.npy that models are "
            f"trained with, not the evaluator's own std.npy, which is 25 times smaller there (t2m_std.npy: 0.014)"
        )
