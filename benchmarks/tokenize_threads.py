"""``tokenize-threads``: a folder of photographs becomes latents at least 1.05 times as fast where threads read ahead.

Images of 500x375 pixels as JPEG, the size that ImageNet's are on average, are opened, cropped to 256x256 as ADM does
and kept as pixels: :func:`layersync.core.shards.build`, from the page cache, with the threads that two cores or more
give a process, and with its own alone. Both caches have to be the same to the bit. The more cores there are, or the
more of the encoding is an accelerator's, the more there is to gain.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import Bar, Result, SkippedError, interleaved, main, paired_result
from layersync.core import shards
from layersync.core.reading import reading_threads
from layersync.modalities.image.data import Folder
from layersync.modalities.image.tokenizer import Pixels, PixelsConfig

NAME = "tokenize-threads"
BAR = Bar("at least", 1.05)
NUM_IMAGES = 256
WIDTH, HEIGHT = 500, 375


def photograph(rng: np.random.Generator) -> Image.Image:
    """Smooth shapes under grain: about 100 KB as JPEG, as ImageNet's files are."""
    shapes = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(shapes).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = rng.normal(0, 14, (HEIGHT, WIDTH, 3))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def measure(quick: bool) -> Result:
    threads = reading_threads()
    if not threads:
        raise SkippedError("a process with one core reads by itself")
    tokenizer = Pixels(PixelsConfig(image_size=256, channels=3))
    with tempfile.TemporaryDirectory() as scratch:
        rng, root = np.random.default_rng(0), Path(scratch)
        (root / "images").mkdir()
        for number in range(NUM_IMAGES // 8 if quick else NUM_IMAGES):
            photograph(rng).save(root / f"images/{number:04d}.jpg", quality=90)
        dataset = Folder(name="folder", path=str(root / "images")).build("train")

        def build(concurrent: bool, pair: int) -> None:
            dataset.concurrent = concurrent
            shards.build(root / f"{concurrent}-{pair}", dataset, tokenizer)

        pairs = interleaved(
            lambda pair: build(False, pair),
            lambda pair: build(True, pair),
            pairs=1 if quick else 7,
            warmup=1,
            what=NAME,
        )
        kept = [(root / f"{concurrent}-1/shard-00000.bin").read_bytes() for concurrent in (False, True)]
        assert kept[0] == kept[1], "threads give another cache"
        size = sum(file.stat().st_size for file in (root / "images").iterdir()) / len(dataset)
    return {**paired_result(pairs, BAR, ("alone", "threads"), "seconds"), "reading": threads, "bytes_a_file": size}


if __name__ == "__main__":
    main(NAME, BAR, measure)
