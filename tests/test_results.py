"""What README and the pages of results say of comparisons is what the comparisons in the repository hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from layersync.core.results import Comparison, read_comparison
from layersync.report import text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/results/compare"
NAMED = re.compile(r"\]\((?:docs/results/|results/)?compare/([a-z0-9-]+)/(?:report\.html|compare\.json)?\)")
LINK = re.compile(r"\[(.*)\]\(.*\)")
PAGES = ("README.md", "docs/results/compare.md")
README_ROWS = {
    ("third", "fashion", "layersync"), ("third", "spoken-digits", "layersync"), ("motion", "motion-bvh", "layersync"),
    ("notes", "notes", "layersync"), ("cifar10", "cifar10", "layersync"), ("satellite", "satellite", "layersync"),
    ("longer", "fashion", "layersync"), ("screened", "fashion", "screened"), ("screened", "spoken-digits", "screened"),
    ("screened-motion", "motion-bvh", "screened"), ("controls", "fashion", "wider"),
}  # fmt: skip


@cache
def comparison(name: str) -> Comparison:
    return read_comparison(FOLDER / name)


def rows(page: str) -> Iterator[tuple[str, list[str]]]:
    """Of each row of a table of gains: the comparison that was last linked, there or before; its cells.

    A table of gains is one of domains and variants; no row of one is left out.
    """
    name, inside = "", False
    for line in (ROOT / page).read_text().splitlines():
        if found := NAMED.findall(line):
            name = found[-1]
        cells = [cell.strip().strip("`*") for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells[:2] == ["domain", "variant"]:
            inside = True
            assert any(cell.startswith("gain") for cell in cells), line
        elif not cells:
            inside = False
        elif inside and line.strip("|-: "):
            assert name and len(cells) in (6, 8), line
            domain = LINK.sub(r"\1", cells[0])
            known = {(one.name, variant) for one in comparison(name).domains for variant in one.variants}
            assert (domain, cells[1].split()[0]) in known, (line, name)
            yield name, [domain, cells[1].split()[0], *cells[2:]]


@pytest.mark.parametrize("page", PAGES)
def test_gains_are_those_of_the_comparisons(page: str) -> None:
    found = list(rows(page))
    assert found
    for name, (domain_name, variant_name, *settings, gain, resolution, loss, seeds) in found:
        (domain,) = (domain for domain in comparison(name).domains if domain.name == domain_name)
        variant = domain.variants[variant_name]
        held = variant.gain
        assert held is not None, (name, domain_name, variant_name)
        said = (text.gain(held), text.percent(held.resolution, sign=False), text.gain(variant.held_out_gain))
        assert (gain, resolution, loss, seeds) == (*said, str(held.seeds)), (name, domain_name, variant_name)
        if settings:
            weight, steps = variant.regularizer.get("weight"), variant.content["train"]["steps"]
            distance = settings[1].split()[0]
            assert settings[0] == f"{'none' if weight is None else f'{weight:g}'}, {steps:,}", (name, domain_name)
            assert distance == domain.metric, (name, domain_name)


def test_the_readme_has_a_row_for_each_comparison_that_it_is_about() -> None:
    assert {(name, *cells[:2]) for name, cells in rows("README.md")} >= README_ROWS


def test_every_variant_of_every_comparison_is_in_the_page() -> None:
    """Nothing that was run is left out."""
    said = {(name, cells[0], cells[1]) for name, cells in rows("docs/results/compare.md")}
    files = list(FOLDER.glob("*/compare.json"))
    assert len(files) >= len({name for name, _, _ in README_ROWS})
    for file in files:
        for domain in comparison(file.parent.name).domains:
            held = {(file.parent.name, domain.name, name) for name in domain.variants if name != domain.reference}
            assert held <= said


@pytest.mark.parametrize("name", sorted(file.parent.name for file in FOLDER.glob("*/compare.json")))
def test_comparisons_carry_no_path_of_the_machine_that_made_them(name: str) -> None:
    for file in (FOLDER / name).iterdir():
        if file.suffix in (".json", ".html", ".svg"):
            text_alone = re.sub(r"base64,[A-Za-z0-9+/=]+", "", file.read_text())
            assert not re.search(r"(?<![\w.$])/(?:tmp|work|root|home|check)/", text_alone), file
