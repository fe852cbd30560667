"""Put rendered samples of an image, an audio and a motion run into the one picture that README shows.

python docs/images/make_samples.py IMAGE_DIR AUDIO_DIR MOTION_DIR, each written by ``layersync sample``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

WIDTH = 1200
STRIP_FRAMES = 3


def scaled(picture: Image.Image, width: int = WIDTH) -> Image.Image:
    """``picture`` at ``width`` pixels across."""
    return picture.convert("RGB").resize(
        (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
    )


def animation_strip(path: Path) -> Image.Image:
    """The top row of an animation at a few times, one below the other."""
    animation = Image.open(path)
    rows = []
    for number in range(STRIP_FRAMES):
        animation.seek(number * (animation.n_frames - 1) // STRIP_FRAMES)
        frame = animation.convert("RGB")
        rows.append(frame.crop((0, 0, frame.width, frame.height // 2)))
    strip = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        strip.paste(row, (0, number * row.height))
    return strip


def main() -> None:
    """Compose and write ``samples.png`` beside this file."""
    images, sounds, motions = (Path(argument) for argument in sys.argv[1:4])
    grid = Image.open(images / "grid.png")
    grid = grid.crop((0, 0, grid.width, grid.height // 2))
    parts = [
        scaled(grid),
        scaled(Image.open(sounds / "spectrograms.png")),
        scaled(animation_strip(motions / "motions.gif")),
    ]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    sheet.quantize(128).save(Path(__file__).parent / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
