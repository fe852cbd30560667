"""``python -m benchmarks [NAME ...] [--quick]``: every benchmark in a process of its own, one after another.

One JSON line each on stdout, everything for people on stderr. Exit status 0 when every bar holds, 1 when one does not
(a skipped or failed benchmark counts as such), 2 for a name that is none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Bar, failed, say

NAMES = (
    "regularizer-time",
    "regularizer-memory",
    "attach-vs-taps",
    "step-vs-eager",
    "guidance-interval",
    "cache-read",
    "cached-vs-vae",
    "latents-random",
    "tokenize-threads",
    "help",
    "frechet-vs-sqrtm",
    "frechet-vs-fidelity",
    "frechet-small",
    "fid-memory",
    "precision-recall",
    "report-size",
    "compare-overhead",
    "compare-jobs",
)
LIMIT_SECONDS = 600
"""After which one benchmark is stopped and reported as failed."""
ROOT = Path(__file__).resolve().parent.parent


def run(name: str, quick: bool) -> dict:
    """The result of one benchmark, whatever becomes of it."""
    module = f"benchmarks.{name.replace('-', '_')}"
    command = [sys.executable, "-m", module, *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, cwd=ROOT)
        result = json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0 and result["name"] == name:
            return result
        reason = f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"took more than {LIMIT_SECONDS} s"
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        reason = f"exit status {done.returncode}, without a result on stdout"
    return {"name": name, **failed(_bar(module), f"failed: {reason}")}


def _bar(module: str) -> Bar | None:
    try:
        return importlib.import_module(module).BAR
    except Exception as error:  # noqa: BLE001  a module that cannot be imported is what is being reported
        say(f"{module}: {error}")
        return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="few repeats: shows that they work, not what they measure")
    chosen = parser.parse_args()
    for name in chosen.names:
        if name not in NAMES:
            parser.error(f"{name!r} is no benchmark; there are: {', '.join(NAMES)}")
    start = time.perf_counter()
    missed = []
    for name in chosen.names or NAMES:
        result = run(name, chosen.quick)
        print(json.dumps(result), flush=True)
        why = f" ({result['reason']})" if "reason" in result else ""
        verdict = "holds" if result["holds"] else "MISSED"
        say(f"{name}: {result['value']} (bar: {result['sense']} {result['bar']}) {verdict}{why}")
        if not result["holds"]:
            missed.append(name)
    say(f"{time.perf_counter() - start:.0f} s in all; " + (f"missed: {', '.join(missed)}" if missed else "all hold"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
