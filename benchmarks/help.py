"""``help``: ``layersync --help`` answers in under a second, in a fresh process each time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Bar, Result, SkippedError, main, median_interval, seconds, side

NAME = "help"
BAR = Bar("below", 1.0)


def measure(quick: bool) -> Result:
    folder = Path(sys.executable).parent
    command = shutil.which("layersync", path=str(folder)) or shutil.which("layersync")
    if command is None:
        raise SkippedError("the command layersync is not installed")

    def call() -> None:
        done = subprocess.run([command, "--help"], stdout=subprocess.PIPE, text=True, check=True)
        assert "Usage" in done.stdout, done.stdout

    call()  # once untimed: compiled modules are written, the files come into the page cache
    times = [seconds(call) for _ in range(3 if quick else 10)]
    value, low, high = median_interval(times)
    return {
        "value": value,
        "bar": BAR.limit,
        "sense": BAR.sense,
        "holds": BAR.holds(value),
        "unit": "seconds",
        "interval": [low, high],
        "repeats": len(times),
        "help": side(times, "seconds"),
    }


if __name__ == "__main__":
    main(NAME, BAR, measure)
