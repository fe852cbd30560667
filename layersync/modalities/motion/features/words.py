"""Captions as the text-motion evaluator reads them: GloVe vectors and parts of speech.

After ``utils/word_vectorizer.py`` and ``data/dataset.py`` of github.com/EricGuo5513/text-to-motion (Guo et al., CVPR
2022), whose word lists and order of classes the evaluator's weights were trained with.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layersync.core.errors import InputError
from layersync.core.packaged import file_digest

WORD_CHANNELS = 300
MAX_TOKENS = 20
"""Words of a caption that are read; with the marks of start and end there are 22 places."""

PARTS_OF_SPEECH = (
    "VERB", "NOUN", "DET", "ADP", "NUM", "AUX", "PRON", "ADJ", "ADV",
    "Loc_VIP", "Body_VIP", "Obj_VIP", "Act_VIP", "Desc_VIP", "OTHER",
)  # fmt: skip

_CLASS_WORDS = {
    "Loc_VIP": "left right clockwise counterclockwise anticlockwise forward back backward up down straight curve",
    "Body_VIP": "arm chin foot feet face hand mouth leg waist eye knee shoulder thigh",
    "Obj_VIP": "stair dumbbell chair window floor car ball handrail baseball basketball",
    "Act_VIP": (
        "walk run swing pick bring kick put squat throw hop dance jump turn stumble stop sit lift lower raise wash "
        "stand kneel stroll rub bend balance flap jog shuffle lean rotate spin spread climb"
    ),
    "Desc_VIP": "slowly carefully fast careful slow quickly happy angry sad happily angrily sadly",
}
CLASS_OF_WORD = {word: name for name, words in _CLASS_WORDS.items() for word in words.split()}
"""Words that matter have a class of their own, whatever part of speech they are."""

_FORMAT = "caption#word/POS word/POS ...#start#end"


def tokens_of(text: str, source: str = "") -> list[str] | None:
    """The tokens ``word/POS`` of a line of HumanML3D's ``texts``; ``None`` for a plain caption, which has none.

    Raises :class:`InputError`, naming ``source``, for a line that is neither.
    """
    if "#" not in text:
        return None
    tokens = text.split("#")[1].split(" ")
    if bad := next((token for token in tokens if token.count("/") != 1), None):
        raise InputError(f"{source}: the text has {bad!r} where a token word/POS belongs; a line is {_FORMAT}")
    if tokens == [""]:
        raise InputError(f"{source}: the text has no tokens; a line is {_FORMAT}")
    return tokens


class Words:
    """GloVe vectors of the evaluator's vocabulary, from ``our_vab_data.npy``, ``our_vab_words.pkl`` and
    ``our_vab_idx.pkl``.

    The pickles are read by an unpickler that builds lists, dicts, strings and numbers and calls nothing. Raises
    :class:`InputError`, naming the file, for anything else.
    """

    def __init__(self, data: Path, words: Path, numbers: Path) -> None:
        try:
            self.vectors = np.load(data, allow_pickle=False).astype(np.float32)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{data}: no readable array ({' '.join(str(error).split())})") from None
        known, index = read_plain_pickle(words), read_plain_pickle(numbers)
        if not isinstance(known, list) or not isinstance(index, dict):
            raise InputError(f"{words}, {numbers}: not a list of words and a dict from word to row")
        if self.vectors.ndim != 2 or self.vectors.shape[1] != WORD_CHANNELS:
            raise InputError(f"{data}: vectors are {self.vectors.shape}, not (words, {WORD_CHANNELS})")
        self.checksum = hashlib.sha256("".join(map(file_digest, (data, words, numbers))).encode()).hexdigest()
        self.rows: Mapping[str, int] = {word: index[word] for word in known if word in index}
        rows = range(len(self.vectors))
        missing = [word for word in (*known, "unk", "sos", "eos") if self.rows.get(word) not in rows]
        if missing:
            raise InputError(f"{numbers}: no row of {data.name} for {missing[0]!r}")

    def encode(self, tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int]:
        """Vectors (22, 300) and classes (22, 15) float32 of a caption, and how many of the 22 places are in use.

        Cut to 20 words, between ``sos`` and ``eos``, ``unk`` behind them.
        """
        used = ["sos/OTHER", *tokens[:MAX_TOKENS], "eos/OTHER"]
        padded = used + ["unk/OTHER"] * (MAX_TOKENS + 2 - len(used))
        vectors = np.zeros((len(padded), WORD_CHANNELS), dtype=np.float32)
        classes = np.zeros((len(padded), len(PARTS_OF_SPEECH)), dtype=np.float32)
        for place, token in enumerate(padded):
            word, _, part = token.partition("/")
            if word in self.rows:
                name = CLASS_OF_WORD.get(word, part if part in PARTS_OF_SPEECH else "OTHER")
            else:
                word, name = "unk", "OTHER"
            vectors[place] = self.vectors[self.rows[word]]
            classes[place, PARTS_OF_SPEECH.index(name)] = 1
        return vectors, classes, len(used)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no list of words needs")


def read_plain_pickle(path: Path) -> Any:
    """What a pickle of lists, dicts, strings and numbers holds. Raises :class:`InputError` for one of anything else."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: no pickle that can be read safely ({error})") from None
