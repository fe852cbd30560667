"""``report-size``: a report of 3 domains x 2 variants x 10 seeds under 25 MB, open in headless Chromium in under 2 s.

Scores are drawn, samples are rendered by the adapters: 16 images, 16 sounds of two seconds, 16 motions a variant, of
which the page shows what any page shows. The value is its size in MB (10^6 bytes). It holds only where the median time
to the end of the load event, from navigation timing, is below its own bar too; every load is a new navigation.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.browser import Browser, BrowserError
from benchmarks.measure import Bar, Result, SkippedError, main, median_interval, say, side
from benchmarks.report_comparison import write_comparison
from layersync.report import write_report

NAME = "report-size"
BAR = Bar("below", 25.0)
OPENS = Bar("below", 2.0)
LOAD_SECONDS = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"


def measure(quick: bool) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "comparison"
        write_comparison(folder, num_seeds=2 if quick else 10)
        page = write_report(folder)
        megabytes = page.stat().st_size / 1e6
        try:
            with Browser() as browser:
                browser.size(1280, 900)
                times = [_load(browser, page) for _ in range(2 if quick else 10)]
        except BrowserError as error:
            raise SkippedError(str(error)) from None
    loaded, low, high = median_interval(times)
    say(f"{NAME}: {megabytes:.2f} MB, opens in {loaded:.3f} s (bar: {OPENS.sense} {OPENS.limit})")
    return {
        "value": megabytes,
        "bar": BAR.limit,
        "sense": BAR.sense,
        "holds": BAR.holds(megabytes) and OPENS.holds(loaded),
        "unit": "MB",
        "load": {"value": loaded, "bar": OPENS.limit, "interval": [low, high], **side(times, "seconds")},
    }


def _load(browser: Browser, page: Path) -> float:
    browser.open(page)
    # The load event's end is noted after its handlers have run, which is later than its being announced.
    while not (found := browser.value(LOAD_SECONDS)):
        pass
    return float(found)


if __name__ == "__main__":
    main(NAME, BAR, measure)
