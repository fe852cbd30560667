"""LayerSync on other people's transformers: the same numbers as our own taps, whatever the model is wrapped in."""

from __future__ import annotations

import gc
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attached_models import (
    CHECKPOINTED,
    INPUT,
    MODELS,
    Gradients,
    by_hand,
    difference,
    distributed_step,
    gradients,
    made,
    step,
    touched,
    trunk,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layersync
from layersync import LayerSync
from layersync.modalities.image import SiT

DOCS = Path(__file__).resolve().parents[2] / "docs" / "attach.md"


@pytest.fixture(scope="module")
def expected() -> tuple[float, Gradients]:
    return by_hand()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"similarity": "centred"},
    {"stop_gradient": False},
    {"t_range": (0.25, 0.75)},
    {"schedule": {"warmup": 10}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
@pytest.mark.parametrize("checkpointed", [False, True])
def test_our_own_backbone_gives_what_its_taps_give(options: dict[str, Any], checkpointed: bool) -> None:
    torch.manual_seed(0)
    model = SiT(8, 2, 1, 32, 6, 4, num_classes=10, learn_sigma=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model.gradient_checkpointing = checkpointed
    x, t, condition = torch.randn(6, 1, 8, 8), torch.linspace(0, 1, 6), {"label": torch.arange(6)}
    pairs = [(2, 4), (3, 6)]
    sync = LayerSync(pairs, 0.5, **options)
    out = model(x, t, condition, taps=sync.taps())
    ours = sync(out.features, t=t, step=3)
    (out.prediction.pow(2).mean() + ours.loss).backward()
    by_taps = gradients(model)
    model.zero_grad(set_to_none=True)
    with layersync.attach(model.blocks, pairs, 0.5, **options) as handle:
        prediction = model(x, t, condition).prediction
        theirs = handle.output(t=t, step=3)
        (prediction.pow(2).mean() + theirs.loss).backward()
    assert theirs.loss.dtype == torch.float32
    assert torch.equal(ours.loss, theirs.loss) and ours.similarity == theirs.similarity
    assert difference(by_taps, gradients(model)) < 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_the_student_and_no_block_beyond(name: str) -> None:
    network = made(name)
    student = network.pair[0]
    handle = layersync.attach(network.blocks, [network.pair], 0.5, network.select)
    network.model.train()
    network.forward()
    out = handle.output()
    assert torch.isfinite(out.loss) and -0.5 <= out.loss <= 0.5
    assert out.loss.item() == pytest.approx(-0.5 * out.similarity[network.pair].item())
    out.loss.backward()
    reached = [touched(block) for block in network.flat]
    assert reached == [number <= student for number in range(1, len(reached) + 1)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    network = made(name)
    model: Any = network.model.train()
    handle = layersync.attach(network.blocks, [network.pair], 0.5, network.select)

    def one_step() -> tuple[Tensor, Gradients]:
        model.zero_grad()
        torch.manual_seed(1)  # classes are dropped inside of DiT
        flow = network.forward().pow(2).mean()
        loss = handle.loss()
        (flow + loss).backward()
        return loss.detach(), gradients(model)

    plain = one_step()
    runs: list[int] = []
    network.flat[1].register_forward_pre_hook(lambda *_: runs.append(1))
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
    checkpointed = one_step()
    assert len(runs) == 2, "the block was not run again"
    assert torch.equal(plain[0], checkpointed[0])
    assert difference(plain[1], checkpointed[1]) < 1e-6


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_plain_loop(reentrant: bool | None, expected: tuple[float, Gradients]) -> None:
    model = trunk(reentrant=reentrant)
    loss, found = step(model, layersync.attach(model.blocks, [(2, 4)], 0.5))
    assert loss == expected[0] and difference(found, expected[1]) < 1e-7


def test_checkpointing_several_blocks_at_once(expected: tuple[float, Gradients]) -> None:
    """Without re-entering it works; with it a student inside of the stretch can have no gradient, and that is said."""
    model = trunk(reentrant=False, span=3)
    loss, found = step(model, layersync.attach(model.blocks, [(2, 4)], 0.5))
    assert loss == expected[0] and difference(found, expected[1]) < 1e-7
    model = trunk(reentrant=True, span=3)
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    model(INPUT)
    with pytest.raises(RuntimeError, match=r"block 2 ran without recording gradient.*use_reentrant=False"):
        handle.loss()
    handle.remove()
    model = trunk(reentrant=True, span=2)  # here the stretch ends with the student
    loss, found = step(model, layersync.attach(model.blocks, [(2, 4)], 0.5))
    assert loss == expected[0] and difference(found, expected[1]) < 1e-7
    model = trunk(6, reentrant=True, span=2)  # and here, of the two, only the teacher could learn nothing
    handle = layersync.attach(model.blocks, [(2, 5)], 0.5, stop_gradient=False)
    model(INPUT)
    with pytest.raises(RuntimeError, match="block 5 ran without recording gradient"):
        handle.loss()


def outputs_alive() -> int:
    gc.collect()
    return sum(type(thing) is Tensor and thing.shape == INPUT.shape for thing in gc.get_objects())


WAYS = [("whole", None), ("whole", False), ("whole", True), ("in place", False), ("in place", True), ("wrapped", None)]


@pytest.mark.parametrize(("how", "reentrant"), WAYS)
def test_compiled(how: str, reentrant: bool | None, expected: tuple[float, Gradients]) -> None:
    torch._dynamo.reset()
    model = trunk(reentrant=reentrant)
    if how == "in place":
        for block in model.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
    if how == "wrapped":
        model.blocks = nn.ModuleList(torch.compile(block, backend="aot_eager") for block in model.blocks)
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    called = torch.compile(model, backend="aot_eager", fullgraph=reentrant is None) if how == "whole" else model
    for _ in range(2):
        loss, found = step(called, handle)
        assert loss == pytest.approx(expected[0], abs=1e-7) and difference(found, expected[1]) < 1e-6
        with torch.no_grad():
            called(INPUT)
    handle.remove()
    if how == "whole" and reentrant is None:
        before = outputs_alive()
        called(INPUT)
        assert outputs_alive() == before, "hooks in compiled code go on keeping outputs"


def test_repeated_blocks_of_diffusers_compiled() -> None:
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        network = made("flux")
        model: Any = network.model
        if compiled:
            model.compile_repeated_blocks(backend="eager", fullgraph=True)
        handle = layersync.attach(network.blocks, [network.pair], 0.5)
        network.forward()
        loss = handle.loss()
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6) and difference(found[0][1], found[1][1]) < 1e-6


def test_suggested_pairs_in_the_docs_are_those_of_auto() -> None:
    rows = re.findall(r"\| (\d+)(?: \([^)]*\))? \| (\d+)-(\d+) \|", DOCS.read_text())
    assert len(rows) >= 15
    for depth, student, teacher in rows:
        assert LayerSync("auto", 0.2, depth=int(depth)).pairs == ((int(student), int(teacher)),)


def test_a_model_compiled_and_run_before_is_no_silent_zero() -> None:
    torch._dynamo.reset()
    model = trunk()
    compiled = torch.compile(model, backend="eager")
    compiled(INPUT)
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    compiled(INPUT)
    with pytest.raises(RuntimeError, match=r"torch\._dynamo\.reset"):
        handle.loss()
    torch._dynamo.reset()
    compiled(INPUT)
    assert handle.loss() < 0


def test_autocast() -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    exact = step(model, handle)
    with torch.autocast("cpu", torch.bfloat16):
        flow = model(INPUT).pow(2).mean()
        loss = handle.loss()
    assert loss.dtype == torch.float32
    model.zero_grad()
    (flow + loss).backward()
    assert loss.item() == pytest.approx(exact[0], rel=0.01) and loss.item() != exact[0]
    assert difference(gradients(model), exact[1]) < 0.02


def test_two_micro_batches_are_one_batch(expected: tuple[float, Gradients]) -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    for half in INPUT.chunk(2):
        flow = model(half).pow(2).mean()
        ((flow + handle.loss()) / 2).backward()
    assert difference(gradients(model), expected[1]) < 1e-6


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path: Any, expected: tuple[float, Gradients]) -> None:
    """Attached before DDP is put around the model, and after."""
    torch.multiprocessing.spawn(distributed_step, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        ways = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(ways) == 2 and all(difference(found, expected[1]) < 1e-6 for found in ways)


@pytest.mark.parametrize("attached_first", [False, True])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_lora_alone_gets_gradient(reentrant: bool | None, attached_first: bool) -> None:
    from peft import LoraConfig

    network = made("sd3")
    model: Any = network.model
    model.requires_grad_(False)
    if attached_first:
        handle = layersync.attach(network.blocks, [network.pair], 0.5)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    if reentrant is not None:
        model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
        model.pos_embed.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    if not attached_first:
        handle = layersync.attach(network.blocks, [network.pair], 0.5)
    network.forward()
    handle.loss().backward()
    found = gradients(model)
    assert found and all("lora_" in name for name in found)
    assert [touched(block) for block in network.flat] == [True, True, False, False]
