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
from accelerate import Accelerator

import layersync
from layersync.core.classifier import DomainClassifier
from layersync.core.device import float32_products, take_own_device
from layersync.core.trainer import Trainer, build_parts
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


@pytest.fixture
def by_default() -> Iterator[tuple[bool, bool]]:
    """What a program finds that says nothing of TF32: off in products, on in convolutions."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    yield False, True
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_on_inside_where_it_is_wanted_and_as_it_was_outside(tf32: bool, by_default: tuple[bool, bool]) -> None:
    with float32_products(tf32=tf32):
        assert older() == (tf32, tf32)
    assert older() == by_default


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_a_program_says_of_all_products_holds_again(precision: str) -> None:
    """``torch.set_float32_matmul_precision``: oneDNN's products follow it, too, and it can be asked inside."""
    torch.set_float32_matmul_precision(precision)
    try:
        outside = torch.backends.mkldnn.matmul.fp32_precision
        with float32_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.mkldnn.matmul.fp32_precision not in ("bf16", "tf32")
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.mkldnn.matmul.fp32_precision == outside
    finally:
        torch.set_float32_matmul_precision("highest")


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
    assert seen["SiT.forward"] == seen["Pixels.decode"] == seen["DomainClassifier.__call__"] == exact


def test_a_recipe_samples_in_tf32_where_it_says_so(monkeypatch: pytest.MonkeyPatch, trained: layersync.Run) -> None:
    seen: list[tuple[bool, bool]] = []
    own = SiT.forward
    monkeypatch.setattr(SiT, "forward", lambda *given, **named: (seen.append(older()), own(*given, **named))[1])
    model = layersync.load(trained.path)
    for precision, tf32 in (("tf32", True), ("float32", False)):
        seen.clear()
        model.sample_latents(model.conditions(2), settings=model.settings(precision=precision))
        assert set(seen) == {(tf32, tf32)}


def test_processes_that_see_one_gpu_each_take_it_whatever_their_rank(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP is told of no device of the local rank's number; what accelerate would do for GPUs, without any."""
    given: list[dict[str, Any]] = []
    monkeypatch.delenv("ACCELERATE_BYPASS_DEVICE_MAP", raising=False)
    recipe = tiny()
    trainer = Trainer(recipe, build_parts(recipe))
    wrap = lambda model, **named: given.append(named) or model  # noqa: E731
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", wrap)
    monkeypatch.setattr(Accelerator, "multi_device", True)
    trainer.accelerator.prepare_model(torch.nn.Linear(2, 2))
    assert [named["device_ids"] for named in given] == [None] and given[0]["gradient_as_bucket_view"]


def test_a_processor_is_named_with_the_instructions_that_decide_its_rounding() -> None:
    code = "import torch; from layersync.core import run; print(run.environment(torch.device('cpu'), '', '', 1))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"})
    assert f"'device_name': '{platform.processor() or platform.machine()}, DEFAULT'" in done.stdout, done
