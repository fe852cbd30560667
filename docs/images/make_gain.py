"""Draw the gains of several comparisons into the one picture that README begins with.

python docs/images/make_gain.py COMPARISON ..., each a folder with a ``compare.json``, written by ``layersync compare``.
Domains of one name are told apart by how long they were trained.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from layersync.core.results import read_comparison
from layersync.report.figures import gain_figure


def main() -> None:
    """Compose and write ``gain.png`` beside this file."""
    domains = [domain for directory in sys.argv[1:] for domain in read_comparison(directory).domains]
    times = Counter(domain.name for domain in domains)
    named = [
        replace(domain, name=f"{domain.name}, {domain.variants[domain.reference].content['train']['steps']:,} steps")
        if times[domain.name] > 1
        else domain
        for domain in domains
    ]
    (Path(__file__).parent / "gain.png").write_bytes(gain_figure(named).png)


if __name__ == "__main__":
    main()
