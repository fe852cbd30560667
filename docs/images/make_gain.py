"""Draw the gains of several comparisons into the one picture that README begins with.

python docs/images/make_gain.py COMPARISON ..., each a folder with a ``compare.json``, written by ``layersync compare``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from layersync.core.results import read_comparison
from layersync.report.figures import gain_figure


def main() -> None:
    """Compose and write ``gain.png`` beside this file."""
    domains = [domain for directory in sys.argv[1:] for domain in read_comparison(directory).domains]
    (Path(__file__).parent / "gain.png").write_bytes(gain_figure(domains).png)


if __name__ == "__main__":
    main()
