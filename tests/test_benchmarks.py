"""Every benchmark runs to a value, whatever the machine makes of the bar."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_benchmark_gives_a_value() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    found = {result["name"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert list(found) == list(NAMES)
    assert [name for name in NAMES if found[name]["value"] is None] == [], done.stderr[-2000:]
