"""OpenAI's CLIP ViT-L/14: image and text embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor, HubWeights, Streams
from layersync.core.pretrained import first_line, load_pretrained
from layersync.modalities.image.features.pixels import Rgb, exact_inference, normalised, one_row_each, rgb_images

WEIGHTS = HubWeights("extractor clip", "openai/clip-vit-large-patch14")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def clip_input(images: Sequence[Rgb], size: int) -> Tensor:
    """uint8 (height, width, 3) images to float32 (batch, 3, size, size), as OpenAI's ``clip.py`` transforms them.

    The shorter side becomes ``size`` by Pillow's bicubic, the longer is cut down to, then the centre is taken.
    """
    return torch.stack(
        [normalised(_centre(Image.fromarray(image), size), CLIP_MEAN, CLIP_DEVIATION) for image in images]
    )


def _centre(picture: Image.Image, size: int) -> Image.Image:
    shorter = min(picture.size)
    width, height = (int(size * side / shorter) for side in picture.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


class Clip(FeatureExtractor):
    """``features``: image embeddings; ``text``: text embeddings; 768 values each, neither normalised.

    A text of more than 77 tokens is cut, its last token kept (as OpenAI's ``tokenize(truncate=True)``); the first batch
    with such texts warns, and ``texts_cut`` counts them all.
    """

    name = "clip"
    published_weights = True
    streams: ClassVar[tuple[str, ...]] = ("features", "text")
    text_streams: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, weights: str | None = None):
        from transformers import CLIPModel

        folder, self.checksum = WEIGHTS.locate(weights)
        self.network = load_pretrained(CLIPModel, "clip", folder, f"extractor {self.name}")
        self.tokenizer = _load_tokenizer(folder, self.network.config.text_config.vocab_size)
        self.texts_cut = 0
        self.size: int = self.network.config.vision_config.image_size
        self.context: int = self.network.config.text_config.max_position_embeddings
        self.preprocessing = (
            f"RGB, grey repeated; shorter side to {self.size} by Pillow bicubic with antialiasing, its centre; / 255; "
            f"minus {CLIP_MEAN}, over {CLIP_DEVIATION}"
        )

    def __call__(self, examples: Sequence[Example]) -> Streams:  # noqa: D102
        network = self.network
        pixels = clip_input(rgb_images(examples, self.name), self.size)
        texts = [str(example.condition["text"]) for example in examples if "text" in example.condition]
        with exact_inference():
            seen = network.vision_model(pixel_values=pixels.to(network.device)).pooler_output
            streams = {"features": one_row_each(network.visual_projection(seen))}
            if len(texts) == len(examples):
                read = network.text_model(input_ids=self.tokens(texts).to(network.device)).pooler_output
                streams["text"] = one_row_each(network.text_projection(read))
        return streams

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token numbers (batch, tokens); shorter texts are filled up with the end token.

        No mask goes with them: attention is causal and the first end token is what is read.
        """
        rows: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"]
        long = [number for number, row in enumerate(rows) if len(row) > self.context]
        if long and not self.texts_cut:
            warnings.warn(
                f"extractor clip: {len(long)} of {len(texts)} texts were cut to {self.context} tokens, the first "
                f"{texts[long[0]][:40]!r}; longer texts are cut from here on without a word",
                stacklevel=2,
            )
        self.texts_cut += len(long)
        kept = [torch.tensor([*row[: self.context - 1], row[-1]] if len(row) > self.context else row) for row in rows]
        return pad_sequence(kept, batch_first=True, padding_value=self.tokenizer.eos_token_id)


def _load_tokenizer(folder: Path, vocabulary: int) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"extractor clip: {folder} holds no tokenizer that can be read ({first_line(error)})"
        ) from None
    if len(tokenizer) != vocabulary:  # where its files are missing, transformers makes one without words
        raise InputError(
            f"extractor clip: the tokenizer of {folder} has {len(tokenizer)} tokens, the network {vocabulary}; it is "
            f"read from tokenizer.json, or vocab.json and merges.txt"
        )
    return tokenizer
