"""Where a process computes, and that float32 is float32 there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import layersync
from layersync.core.classifier import DomainClassifier
from layersync.core.device import float32_products, take_own_device
from layersync.modalities.image.backbone import SiT
from layersync.modalities.image.tokenizer import Pixels

PLACES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def newer() -> list[str]:
    """What torch's newer names say of products, convolutions and recurrences."""
    return [place.fp32_precision for place in PLACES]


@pytest.fixture
def as_before() -> Iterator[None]:
    before = newer()
    yield
    for place, value in zip(PLACES, before, strict=True):
        place.fp32_precision = value


def older() -> tuple[bool, bool]:
    """The same by its older names."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_on_inside_where_it_is_wanted_and_as_it_was_outside(tf32: bool) -> None:
    before = older()
    assert before == (False, True), "torch's own default"
    with float32_products(tf32=tf32):
        assert older() == (tf32, tf32)
    assert older() == before


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("tf32", [False, True])
def test_a_program_that_uses_torchs_newer_names_is_left_as_it_was(tf32: bool) -> None:
    for place in PLACES:
        place.fp32_precision = "tf32"
    with pytest.raises(RuntimeError):
        older()
    with float32_products(tf32=tf32):
        assert newer() == ["tf32" if tf32 else "ieee"] * 3
    assert newer() == ["tf32"] * 3


@pytest.mark.parametrize(("rank", "taken"), [("0", 0), ("3", 3), ("4", 0), ("7", 3)])
def test_processes_take_accelerators_in_turn(monkeypatch: pytest.MonkeyPatch, rank: str, taken: int) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    take_own_device()
    assert chosen == [taken]


def test_what_is_kept_or_compared_is_computed_in_float32_proper(
    monkeypatch: pytest.MonkeyPatch, trained: layersync.Run
) -> None:
    """Samples and features are to be the same on every device."""
    seen: dict[str, set[tuple[bool, bool]]] = {}

    def watched(kind: Any, method: str) -> None:
        own = getattr(kind, method)

        def watching(*arguments: Any, **keywords: Any) -> Any:
            seen.setdefault(f"{kind.__name__}.{method}", set()).add(older())
            return own(*arguments, **keywords)

        monkeypatch.setattr(kind, method, watching)

    for kind, method in ((SiT, "forward"), (Pixels, "decode"), (DomainClassifier, "__call__")):
        watched(kind, method)
    layersync.evaluate(trained.path, ["fd-classifier"], num_samples=16)
    exact = {(False, False)}
    assert seen["SiT.forward"] == seen["Pixels.decode"] == exact <= seen["DomainClassifier.__call__"]


def test_a_recipe_samples_in_tf32_where_it_says_so(monkeypatch: pytest.MonkeyPatch, trained: layersync.Run) -> None:
    seen: list[tuple[bool, bool]] = []
    own = SiT.forward
    monkeypatch.setattr(SiT, "forward", lambda *given, **named: (seen.append(older()), own(*given, **named))[1])
    model = layersync.load(trained.path)
    for precision, tf32 in (("tf32", True), ("float32", False)):
        seen.clear()
        model.sample_latents(model.conditions(2), settings=model.settings(precision=precision))
        assert set(seen) == {(tf32, tf32)}


def test_a_processor_is_named_with_the_instructions_that_decide_its_rounding() -> None:
    code = "import torch; from layersync.core import run; print(run.environment(torch.device('cpu'), '', '', 1))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"})
    assert f"'device_name': '{platform.processor() or platform.machine()}, DEFAULT'" in done.stdout, done
