"""The page in a real browser: it opens from disk, alone, shows and plays all it holds, on a phone too."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.browser import Browser
from layersync.core.results import Comparison
from layersync.report import canvas, write_report

EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
DURATIONS = """Promise.all([...document.querySelectorAll('audio')].map(player => new Promise((done, fail) => {
  if (player.readyState > 0) done(player.duration);
  player.onloadedmetadata = () => done(player.duration);
  player.onerror = () => fail(player.error);
})))"""
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"


@pytest.fixture
def shown(browser: Browser, page: Path) -> Browser:
    browser.size(1200, 900)
    browser.open(page)
    return browser


def test_opens_from_disk_and_asks_nobody_for_anything(shown: Browser, page: Path) -> None:
    assert shown.value("document.querySelectorAll('section').length") == 5
    asked = {request["request"]["url"] for request in shown.named("Network.requestWillBeSent")}
    assert page.resolve().as_uri() in asked
    assert {url for url in asked if not url.startswith("data:")} == {page.resolve().as_uri()}
    assert shown.named("Network.loadingFailed") == []


def test_nothing_is_complained_about_in_the_console(shown: Browser) -> None:
    for event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert shown.named(event) == [], event


def test_pictures_decode_and_are_described(shown: Browser) -> None:
    images = "[...document.images].map(each => [each.complete, each.naturalWidth, each.alt])"
    found = shown.value(images)
    assert len(found) == 2 * (1 + 6 + 1)  # of two variants a grid, six spectrograms, an animation
    assert all(complete and width > 0 and alt for complete, width, alt in found)
    figures = shown.value("[...document.querySelectorAll('svg')].map(each => [each.ariaLabel, each.clientWidth])")
    assert len(figures) == 1 + 3 * (1 + 2 + 1 + 1 + 2)
    assert all("." in label for label, _ in figures)

    assert min(width for _, width in figures) > 300


def test_sounds_have_a_length_and_play(shown: Browser) -> None:
    assert shown.value(DURATIONS) == [2.0] * 12
    played = "(async () => { const a = document.querySelector('audio'); await a.play(); while (a.currentTime == 0) "
    played += "await new Promise(done => setTimeout(done, 20)); a.pause(); return a.currentTime; })()"
    assert shown.call("Runtime.evaluate", expression=played, awaitPromise=True, userGesture=True)["result"]["value"] > 0


def test_animations_move_and_never_stop(shown: Browser) -> None:
    first = shown.picture("img[alt^=Animation]")
    deadline = time.monotonic() + 5
    while shown.picture("img[alt^=Animation]") == first:
        assert time.monotonic() < deadline, "the animation stands still"
    for address in shown.value("[...document.querySelectorAll('img[alt^=Animation]')].map(each => each.src)"):
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as animation:
            assert animation.info["loop"] == 0 and animation.n_frames > 10


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out_of_a_phone_or_a_tablet(shown: Browser, width: int) -> None:
    shown.size(width, 800)
    for opened in ("0", OPEN_ALL):
        shown.value(opened)
        assert shown.value("document.documentElement.scrollWidth") <= width
    inner = "[...document.querySelectorAll('.box')].some(each => each.scrollWidth > each.clientWidth)"
    assert width > 360 or shown.value(inner)  # wide tables are there, and scroll in a box of their own


def test_a_dark_page_has_figures_that_can_be_read(shown: Browser) -> None:
    colours = """(() => { const ink = document.querySelector('section.top svg g[id$="axes_1"] [style*="--ink"]');
      const paper = getComputedStyle(document.body).backgroundColor, {fill, stroke} = getComputedStyle(ink);
      return [paper, fill == 'none' ? stroke : fill]; })()"""

    def light(colour: str) -> bool:
        return sum(int(part) for part in colour.strip("rgb()").split(",")) > 3 * 128

    assert [light(colour) for colour in shown.value(colours)] == [True, False]
    shown.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert [light(colour) for colour in shown.value(colours)] == [False, True]
    finally:
        shown.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize(
    ("scheme", "reference", "series"),
    [
        ("light", canvas.REFERENCE, canvas.SERIES),
        ("dark", canvas.DARK_REFERENCE, canvas.DARK_SERIES),
    ],
)
def test_dots_and_lines_have_one_colour(shown: Browser, scheme: str, reference: str, series: tuple[str, ...]) -> None:
    """That of the figures, by the name of which a figure on the page takes it."""
    shown.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        found = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
        assert shown.value(found.format("reference")) == reference
        for index, colour in enumerate(series):
            assert shown.value(found.format(f"series-{index}")) == colour
        lines = "document.querySelectorAll('section svg [style*=\"var(--series-0)\"]').length"
        assert shown.value(lines) > 0
    finally:
        shown.call("Emulation.setEmulatedMedia", features=[])


def _poisoned(found: Comparison) -> Comparison:
    """Every text that comes from outside carries a script."""
    domain = found.domains[0]
    variant = domain.variants["layersync"]
    assert variant.gain is not None and variant.speed_up is not None
    failed = dataclasses.replace(variant.runs[-1], status="failed", error=f"error {EVIL}", path=f"run {EVIL}")
    evil = dataclasses.replace(
        variant,
        overrides=(f"override {EVIL}",),
        regularizer={f"key {EVIL}": f"value {EVIL}"},
        runs=(*variant.runs[:-1], failed),
        gain=dataclasses.replace(variant.gain, note=f"gain {EVIL}"),
        speed_up=dataclasses.replace(variant.speed_up, note=f"speed {EVIL}"),
        settings={f"setting {EVIL}": [f"entry {EVIL}"]},
    )
    renamed = dataclasses.replace(
        domain,
        name=f"domain {EVIL}",
        recipe=f"recipe {EVIL}",
        modality=f"modality {EVIL}",
        variants={"baseline": domain.variants["baseline"], f"variant {EVIL}": evil},
        notes=(f"note {EVIL}",),
    )
    return dataclasses.replace(
        found,
        domains=(renamed,),
        command=f"command {EVIL}",
        versions={f"package {EVIL}": f"version {EVIL}"},
        machine={f"machine {EVIL}": f"processor {EVIL}"},
    )


def test_texts_from_outside_stay_texts(browser: Browser, changed: Callable[..., Path]) -> None:
    folder = changed(_poisoned)
    samples = folder / "image-quick" / "layersync" / "samples"
    name = "<b onclick=alert(1)>000.gif"
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(samples / name, save_all=True, append_images=frames[1:], loop=0, duration=200)
    (samples.parent / "recipe.yaml").write_text(f"# yaml {EVIL}")
    browser.open(write_report(folder))
    assert browser.value("typeof window.hit") == "undefined"
    assert browser.value("document.querySelectorAll('script, b, [onerror], [onclick]').length") == 0
    said: Any = browser.value("document.body.textContent")
    before = ("domain", "recipe", "modality", "variant", "note", "error", "run", "override", "gain", "speed", "setting")
    for word in (*before, "entry", "key", "value", "yaml", "command", "package", "version", "machine", "processor"):
        assert f"{word} {EVIL}" in said, word
    assert name in said
    assert browser.named("Log.entryAdded") == []
