"""A comparison of three domains with really rendered samples, its report, and a browser to look at it."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.browser import Browser
from benchmarks.report_comparison import write_comparison
from layersync.core.results import Comparison
from layersync.report import write_report

Change = Callable[[Comparison], Comparison]


@pytest.fixture(scope="session")
def comparison_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, sounds and motions, two variants, three seeds; with its report, and left as it is."""
    folder = tmp_path_factory.mktemp("comparison") / "out"
    write_comparison(folder, num_seeds=3, num_steps=3, num_samples=7)
    write_report(folder)
    return folder


@pytest.fixture
def page(comparison_folder: Path) -> Path:
    return comparison_folder / "report.html"


@pytest.fixture
def changed(comparison_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """``changed(change, domain=0)``: a copy of that folder with one domain, changed, in it, not reported yet."""

    def make(change: Change | None = None, domain: int = 0) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(comparison_folder, folder)
        shutil.rmtree(folder / "figures")
        (folder / "report.html").unlink()
        before = Comparison.from_mapping(json.loads((folder / "compare.json").read_text()))
        one = dataclasses.replace(before, domains=before.domains[domain : domain + 1])
        after = one if change is None else change(one)
        (folder / "compare.json").write_text(json.dumps(after.to_mapping()))
        return folder

    return make


@pytest.fixture(scope="session")
def words() -> Callable[[Path], str]:
    """What a page says, without its tags, styles and figures."""

    def read(page: Path) -> str:
        body = re.sub(r"<style>.*?</style>|<svg .*?</svg>", " ", page.read_text(), flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())

    return read


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium; a missing one is an error of every test that asks for it."""
    with Browser() as found:
        yield found
