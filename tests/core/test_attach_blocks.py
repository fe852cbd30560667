"""What attach() takes from a block, what it lets go of and when, and what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from attached_models import INPUT, Gradients, Trunk, by_hand, difference, flux, gradients, made, touched, trunk
from torch import Tensor, nn

import layersync
from layersync import InputError, LayerSync


@pytest.fixture(scope="module")
def expected() -> tuple[float, Gradients]:
    return by_hand()


# ------------------------------------------------------------------------------------------- what is taken from a block


class Returning(nn.Module):
    """A block on a stream of latents and one of text, returning what ``form`` makes of both."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]):
        super().__init__()
        self.linear, self.form = nn.Linear(16, 16), form

    def forward(self, hidden_states: Tensor, text: Tensor) -> Any:
        return self.form(hidden_states + torch.tanh(self.linear(hidden_states)), text)


def streams(form: Callable[[Tensor, Tensor], Any], select: Any = None, text: int = 3, **options: Any) -> Any:
    """Attach to three such blocks, run them by hand, and give the handle and the streams of latents."""
    torch.manual_seed(0)
    blocks = [Returning(form) for _ in range(3)]
    handle = layersync.attach(blocks, [(1, 3)], 0.5, select, **options)
    hidden, other, latents = INPUT, torch.randn(6, text, 16), []
    for block in blocks:
        block(hidden_states=hidden, text=other)
        hidden = hidden + torch.tanh(block.linear(hidden))
        latents.append(hidden)
    return handle, latents


def model_output(latents: Tensor, text: Tensor) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=latents)


with torch.inference_mode():
    CACHED = torch.ones(7, 16)

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda latents, text: latents,
    "tuple": lambda latents, text: (text, latents),
    "the other order": lambda latents, text: (latents, text),
    "list": lambda latents, text: [None, text, latents],
    "dict": lambda latents, text: {"text": text, "latents": latents},
    "beside one of inference mode": lambda latents, text: (CACHED, latents),
    "ModelOutput": model_output,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_tensor_with_the_shape_of_the_hidden_states_is_taken(form: str) -> None:
    handle, latents = streams(FORMS[form])
    similarity = handle.output().similarity[(1, 3)]
    assert torch.allclose(similarity, torch.cosine_similarity(latents[0], latents[2], dim=-1).mean(), atol=1e-6)


SELECTED: list[tuple[str, Any]] = [("tuple", 1), ("dict", "latents"), ("tuple", lambda out: out[1]), ("tensor", 1)]


@pytest.mark.parametrize(("form", "select"), SELECTED)
def test_select_says_which_where_two_fit(form: str, select: Any) -> None:
    handle, latents = streams(FORMS[form], select, text=7)
    similarity = handle.output().similarity[(1, 3)]
    assert torch.allclose(similarity, torch.cosine_similarity(latents[0], latents[2], dim=-1).mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "select", "said"),
    [
        (FORMS["tuple"], None, r"block 1 returned output\[0\] \(6, 7, 16\), output\[1\] \(6, 7, 16\).*select="),
        (FORMS["dict"], None, r"output\['text'\].*several of them fit"),
        (lambda latents, text: latents[:, 1:], None, r"block 1 returned output \(6, 6, 16\); .*\(6, 7, 16\), none"),
        (lambda latents, text: None, None, r"block 1 returned NoneType"),
        (FORMS["tuple"], 2, r"output\[1\].*there is no \[2\]"),
        (FORMS["dict"], "image", r"there is no \['image'\]"),
        (FORMS["tuple"], lambda out: None, r"gave NoneType, no tensor"),
    ],
)
def test_what_cannot_be_told_is_an_error_that_lists_what_there_was(form: Any, select: Any, said: str) -> None:
    handle, _ = streams(form, select, text=7)
    with pytest.raises(ValueError, match=said):
        handle.loss()


class TextFirst(Returning):
    """As reference MMDiT has it: text comes first, by position."""

    def forward(self, context: Tensor, x: Tensor) -> Any:  # type: ignore[override]
        return context, x + torch.tanh(self.linear(x))


def test_text_that_comes_first_is_not_taken_for_the_latents() -> None:
    torch.manual_seed(0)
    blocks = [TextFirst(lambda *_: None) for _ in range(3)]

    def run() -> list[Tensor]:
        context, hidden, latents = torch.randn(6, 3, 16), INPUT, []
        for block in blocks:
            context, hidden = block(context, hidden)
            latents.append(hidden)
        return latents

    handle = layersync.attach(blocks, [(1, 3)], 0.5)
    run()
    with pytest.raises(ValueError, match=r"output\[0\] \(6, 3, 16\).*may be of latents or of text.*select="):
        handle.loss()
    handle.remove()
    handle, latents = layersync.attach(blocks, [(1, 3)], 0.5, 1), run()
    similarity = handle.output().similarity[(1, 3)]
    assert torch.allclose(similarity, torch.cosine_similarity(latents[0], latents[2], dim=-1).mean(), atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_names_of_arguments_are_read_whatever_is_around_a_block(compiled: bool) -> None:
    """Called by position, as checkpointing calls it, a compiled block is known by the one inside."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [Returning(FORMS["tuple"]) for _ in range(3)]
    for block in blocks:
        block.module = "attention"  # type: ignore[assignment]
    called = [torch.compile(block, backend="eager") for block in blocks] if compiled else blocks
    handle, hidden = layersync.attach(called, [(1, 3)], 0.5), INPUT
    for block in called:
        _, hidden = block(hidden, torch.randn(6, 3, 16))
    assert handle.loss() < 0


@pytest.mark.parametrize("name", ["hidden_states", "src", "x", "img", "latents"])
def test_hidden_states_are_known_by_every_name_that_blocks_give_them(name: str) -> None:
    class Named(nn.Module):
        def forward(self, **streams: Tensor) -> Any:
            return streams["text"], torch.tanh(streams[name])

    blocks = [Named() for _ in range(3)]
    handle, hidden = layersync.attach(blocks, [(1, 3)], 0.5), nn.Parameter(INPUT.clone())
    latents = [hidden := block(text=torch.randn(6, 3, 16), **{name: hidden})[1] for block in blocks]
    similarity = handle.output().similarity[(1, 3)]
    assert torch.allclose(similarity, torch.cosine_similarity(latents[0], latents[2], dim=-1).mean(), atol=1e-6)


def test_a_lone_tensor_of_another_shape_is_taken_when_select_says_so() -> None:
    handle, _ = streams(lambda latents, text: latents[:, 1:], select=0)
    assert handle.loss() < 0


def test_flux_needs_select_when_text_is_as_long_as_the_latents() -> None:
    def loss(select: Any) -> Tensor:
        torch.manual_seed(0)
        network = flux(text_tokens=16)
        handle = layersync.attach(network.blocks, [network.pair], 0.5, select)
        network.forward()
        return handle.loss()

    with pytest.raises(ValueError, match="block 2 returned"):
        loss(None)
    assert loss(1) < 0 and loss(1) != loss(0)


def test_select_drops_text_tokens_in_front(expected: tuple[float, Gradients]) -> None:
    """Under both kinds of checkpointing, and with the same gradient as where there never were such tokens."""
    text = torch.randn(6, 3, 16)
    for reentrant in (None, False, True):
        model = trunk(reentrant=reentrant)
        handle = layersync.attach(model.blocks, [(2, 4)], 0.5, lambda hidden: hidden[:, 3:])
        flow = model(torch.cat([text, INPUT], dim=1))[:, 3:].pow(2).mean()
        loss = handle.loss()
        (flow + loss).backward()
        assert loss.item() == pytest.approx(expected[0], abs=1e-6)
        assert difference(gradients(model), expected[1]) < 1e-6


class Axes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1.5 * x)


@pytest.mark.parametrize(
    ("layout", "axes"),
    [(None, (0, 1, 2)), (None, (0, 1, 2, 3)), ("BFTC", (0, 1, 2, 3)), ("BCHW", (0, 3, 1, 2)), ("TBC", (1, 0, 2))],
)
def test_layouts(layout: str | None, axes: tuple[int, ...]) -> None:
    batch_first = torch.randn(3, 2, 5, 16)[:, :, : (5 if len(axes) == 4 else 1)]
    if len(axes) == 3:
        batch_first = batch_first.squeeze(2)
    blocks = [Axes() for _ in range(3)]
    hidden = nn.Parameter(batch_first.permute(axes))
    mask = torch.zeros(batch_first.shape[:-1], dtype=torch.bool)
    mask[:, 0] = mask[0] = True
    kept = [hidden]
    handle = layersync.attach(blocks, [(1, 3)], 0.5, layout=layout)
    for block in blocks:
        kept.append(block(kept[-1]))
    inverse = [axes.index(axis) for axis in range(len(axes))]
    student, teacher = (kept[number].permute(inverse).flatten(1, -2) for number in (1, 3))
    by_hand = LayerSync([(1, 3)], 0.5)({1: student, 3: teacher}, mask=mask.flatten(1))
    assert torch.allclose(handle.loss(mask=mask), by_hand.loss)


def test_axes_that_nobody_named() -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    model(torch.randn(2, 3, 4, 5, 16))
    with pytest.raises(ValueError, match=r"block 2 gives \(2, 3, 4, 5, 16\), 5 axes.*layout="):
        handle.loss()
    for layout in ("BT", "TBCB", "BTTC"):
        with pytest.raises(InputError, match="layout"):
            layersync.attach(model.blocks, [(2, 4)], 0.5, layout=layout)


def test_packed_samples_are_one_sample_by_select() -> None:
    model = trunk()
    packed, mask = INPUT.flatten(0, 1), torch.arange(42)[None] < 30
    with layersync.attach(model.blocks, [(2, 4)], 0.5) as handle:
        model(packed)
        with pytest.raises(ValueError, match=r"block 2 gives \(42, 16\), 2 axes: .*select=lambda out: out\[None\]"):
            handle.loss()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5, lambda out: out[None])
    model(packed)
    loss = handle.loss(mask=mask)
    with layersync.attach(model.blocks, [(2, 4)], 0.5) as plain:
        model(packed[None])
        assert torch.equal(loss, plain.loss(mask=mask))


def test_padded_tokens_do_not_count() -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    mask = torch.arange(7).expand(6, 7) < torch.tensor([7, 3, 4, 5, 6, 1])[:, None]
    losses = []
    for filled in (0.0, 1e3):
        model(INPUT.masked_fill(~mask.unsqueeze(-1), filled))
        losses.append(handle.loss(mask=mask))
    assert torch.equal(*losses)
    model(INPUT)
    assert handle.loss() != losses[0]
    model(INPUT)
    with pytest.raises(ValueError, match=r"mask: \(6, 5\).*\(6, 7\)"):
        handle.loss(mask=mask[:, :5])


# ------------------------------------------------------------------------------------------------------ nothing is left


class Watched:
    """Weak references to what blocks return, through hooks of the test's own."""

    def __init__(self, model: Trunk):
        self.references: list[Any] = []
        for block in model.blocks:
            block.register_forward_hook(lambda module, inputs, output: self.references.append(weakref.ref(output)))

    def alive(self) -> int:
        gc.collect()
        return sum(reference() is not None for reference in self.references)


@pytest.fixture
def watched() -> Iterator[tuple[Trunk, Any, Watched]]:
    model = trunk()
    gc.freeze()  # what is there already need not be gone through again and again
    yield model, layersync.attach(model.blocks, [(2, 4)], 0.5), Watched(model)
    gc.unfreeze()


def test_nothing_outlives_the_step(watched: Any) -> None:
    model, handle, watch = watched
    out = model(INPUT)
    loss = handle.loss()
    (out.mean() + loss).backward()
    del out, loss
    assert len(watch.references) == 5 and watch.alive() == 0


def test_a_loss_that_fails_keeps_nothing(watched: Any) -> None:
    model, handle, watch = watched
    model(INPUT)
    assert watch.alive()
    with pytest.raises(ValueError, match="mask"):
        handle.loss(mask=torch.ones(1, 1, dtype=torch.bool))
    assert watch.alive() == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_runs_again_is_not_kept(reentrant: bool, compiled: bool) -> None:
    model = trunk(reentrant=reentrant)
    if compiled:
        for block in model.blocks:
            block.compile(backend="eager")
    handle = layersync.attach(model.blocks, [(1, 3)], 0.5)
    watch = Watched(model)
    (model(INPUT).mean() + handle.loss()).backward()
    assert len(watch.references) >= 5 and watch.alive() == 0
    with pytest.raises(RuntimeError, match="no forward pass has run"):
        handle.loss()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradient_keeps_nothing(watched: Any, training: bool, mode: Any) -> None:
    model, handle, watch = watched
    model.train(training)
    with mode():
        model(INPUT)
    assert len(watch.references) == 5 and watch.alive() == 0
    with pytest.raises(RuntimeError, match=r"no_grad|no forward pass"):
        handle.loss()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pass_without_gradient_lets_go_of_the_last(watched: Any, mode: Any) -> None:
    """Whose loss nobody took: it must not be given for the one without gradient."""
    model, handle, watch = watched
    model(INPUT)
    with mode():
        model(INPUT.flip(-1))
    assert watch.alive() == 0
    with pytest.raises(RuntimeError, match="block 2 ran without recording gradient"):
        handle.output()


def test_the_next_pass_lets_go_of_the_last(watched: Any) -> None:
    model, _, watch = watched
    model(INPUT)
    seen: list[int] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(watch.alive()))
    first = len(watch.references)
    model(INPUT)
    assert first == 5 and seen == [1], "the input of block 2 alone"


def test_an_interrupted_pass_is_let_go_by_the_next_and_by_remove(watched: Any) -> None:
    model, handle, watch = watched

    def fail(*_: Any) -> None:
        raise KeyError("out of memory")

    broken = model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        model(INPUT)
    broken.remove()
    seen: list[int] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(watch.alive()))
    model.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(KeyError), handle:
        model(INPUT)
    assert seen == [1] and watch.alive() == 0


def test_of_several_passes_the_last_one_counts(watched: Any) -> None:
    model, handle, _ = watched
    model(INPUT.flip(-1))
    model(INPUT)
    last = handle.loss()
    model(INPUT)
    assert torch.equal(last, handle.loss())
    with pytest.raises(RuntimeError, match="no forward pass has run"):
        handle.loss()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_weight_0_touches_nothing() -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.0)
    assert hooks(model) == 0
    model(INPUT)
    assert handle.loss().item() == 0 and handle.output().similarity == {}
    handle = layersync.attach(trunk().to("meta").blocks, [(2, 4)], 0.0)
    assert handle.loss().device.type == "meta", "it can be reduced together with other losses of the model's device"


@pytest.mark.parametrize("compiled", [False, True])
def test_removal_leaves_the_model_as_it_was(compiled: bool) -> None:
    model = trunk()
    if compiled:
        for block in model.blocks:
            block.compile(backend="eager")
    before, names, calls = hooks(model), list(model.state_dict()), [b._compiled_call_impl for b in model.blocks]
    modules = len(list(model.modules()))
    with layersync.attach(model.blocks, [(2, 4), (1, 3)], 0.5) as handle:
        other = layersync.attach(model.blocks, [(2, 3)], 0.5)
        assert list(model.state_dict()) == names and len(list(model.modules())) == modules
        model(INPUT)
        assert handle.loss() < 0 and other.loss() < 0
        model(INPUT)
    other.remove()
    assert hooks(model) == before and [b._compiled_call_impl for b in model.blocks] == calls
    assert list(model.state_dict()) == names
    handle.remove()
    model(INPUT)
    with pytest.raises(RuntimeError, match="removed"):
        handle.loss()


def test_a_copy_is_not_attached(expected: tuple[float, Gradients]) -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5)
    flow = model(INPUT).pow(2).mean()
    average = copy.deepcopy(model)
    average(INPUT.flip(-1))
    loss = handle.loss()
    (flow + loss).backward()
    assert loss.item() == expected[0] and difference(gradients(model), expected[1]) < 1e-7


def test_a_model_that_was_saved_as_a_whole_is_not_attached() -> None:
    """Nor is the saving stopped by a ``select`` that cannot be pickled."""
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5, lambda output: output)
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(INPUT), model(INPUT)) and handle.loss() < 0
    loaded(INPUT)
    with pytest.raises(RuntimeError, match="no forward pass has run"):
        handle.loss()
    assert b"Attachment" not in pickle.dumps(model)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("pairs", "said"),
    [([(2, 6)], "has only 5 blocks"), ([(0, 2)], "numbered from 1"), ([(3, 3)], "shallower"), ([], "empty")],
)
def test_pairs_are_checked_against_the_blocks(pairs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        layersync.attach(trunk().blocks, pairs, 0.5)


def test_auto_goes_by_the_number_of_blocks() -> None:
    model = trunk(12)
    handle = layersync.attach(model.blocks, "auto", 0.3)
    model(INPUT)
    assert set(handle.output().similarity) == {(4, 7)}
    with pytest.raises(InputError, match="at least 3 blocks"):
        layersync.attach(trunk(2).blocks, "auto", 0.3)


def test_what_is_no_list_of_blocks() -> None:
    encoder = made("torch").model
    with pytest.raises(InputError, match=r"TransformerEncoder is no list of blocks"):
        layersync.attach(encoder, "auto", 0.3)
    with pytest.raises(InputError, match="two places"):
        layersync.attach([encoder.layers[0]] * 3, [(1, 2)], 0.3)
    with pytest.raises(InputError, match="str is no module"):
        layersync.attach(["a", "b", "c"], [(1, 2)], 0.3)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="wieght"):
        layersync.attach(encoder.layers, "auto", 0.3, wieght=1)


def test_a_block_that_did_not_run_is_named(watched: Any) -> None:
    model, handle, _ = watched
    with pytest.raises(RuntimeError, match="no forward pass"):
        handle.loss()
    for skipped, missing in (((2,), 2), ((4,), 4), ((1, 2), 2)):
        model.skipped = ()
        model(INPUT)  # a whole pass before, of which nothing may be taken for the next one's
        model.skipped = skipped
        model(INPUT)
        with pytest.raises(RuntimeError, match=f"block {missing} of 5 did not run|no forward pass"):
            handle.loss()


def test_a_student_without_gradient_says_why(watched: Any) -> None:
    model, handle, _ = watched
    model.requires_grad_(False)
    model.last.requires_grad_(True)
    model.blocks[2].requires_grad_(True)
    model(INPUT)
    with pytest.raises(RuntimeError, match=r"block 2 has no gradient.*frozen"):
        handle.loss()


def test_of_several_students_the_one_without_gradient_is_named() -> None:
    model = trunk()
    model.requires_grad_(False)
    model.blocks[1].requires_grad_(True)
    handle = layersync.attach(model.blocks, [(1, 3), (2, 4)], 0.5)
    model(INPUT)
    with pytest.raises(RuntimeError, match=r"block 1 has no gradient.*frozen"):
        handle.loss()


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_an_input_made_to_require_gradient_trains_nothing(reentrant: bool | None) -> None:
    """As checkpointing a frozen model wants it: the loss does nothing where only blocks beyond the student learn."""
    model = trunk(reentrant=reentrant)
    model.first.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    for trained in (model.blocks[2], model.blocks[1], model.first):
        model.requires_grad_(False)
        trained.requires_grad_(True)
        with layersync.attach(model.blocks, [(2, 4)], 0.5) as handle:
            model(INPUT)
            if trained is model.blocks[2]:
                with pytest.raises(RuntimeError, match=r"block 2 has no gradient to learn from: no parameter"):
                    handle.loss()
            else:
                handle.loss().backward()
                assert touched(trained)


def test_a_pair_whose_blocks_differ_in_shape() -> None:
    blocks = [nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)]
    handle = layersync.attach(blocks, [(1, 3)], 0.5, lambda out: out)
    nn.Sequential(*blocks)(INPUT)
    with pytest.raises(ValueError, match=r"pair \[1, 3\].*\(6, 7, 16\) and \(6, 7, 8\)"):
        handle.loss()


@pytest.mark.parametrize(
    "select", [None, lambda output: output[:, 1:], lambda output: output.flatten(0, 0), lambda output: 1 * output]
)
def test_an_output_changed_in_place_is_refused(select: Any) -> None:
    model = trunk()
    handle = layersync.attach(model.blocks, [(2, 4)], 0.5, select)
    model.blocks[1].register_forward_hook(lambda module, inputs, output: output.mul_(2))
    model(INPUT)
    with pytest.raises(RuntimeError, match="block 2: output was changed in place"):
        handle.loss()


def test_times_and_steps_that_are_missing(watched: Any) -> None:
    model, _, _ = watched
    for options, said in (({"t_range": (0.2, 0.8)}, "pass t="), ({"schedule": {"delay": 2}}, "pass step=")):
        with layersync.attach(model.blocks, [(2, 4)], 0.5, **options) as handle:
            model(INPUT)
            with pytest.raises(ValueError, match=said):
                handle.loss()


@pytest.mark.parametrize("blocks", [None, 5])
def test_what_cannot_be_walked_is_no_list_of_blocks(blocks: Any) -> None:
    with pytest.raises(InputError, match=r"blocks: (NoneType|int) is no list of blocks"):
        layersync.attach(blocks, [(1, 2)], 0.5)


@pytest.mark.parametrize(("settings", "said"), [({"select": 1.5}, "select: 1.5"), ({"layout": "BC"}, "layout: 'BC'")])
def test_settings_that_no_block_can_meet(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        layersync.attach(torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3)), [(1, 2)], 0.5, **settings)
