"""LayerSync on somebody else's transformer: two lines in a training loop that is not ours::

    handle = layersync.attach(model.transformer_blocks, pairs=[(8, 16)], weight=0.2)
    loss = flow_loss + handle.loss()          # after each forward pass

A hook keeps the very tensors that a block returned until :meth:`Attachment.loss` is called, and what is made of them
happens there, outside of the model. That is what makes re-entrant gradient checkpointing work: its first pass records
no gradient, but the outputs of the checkpointed function are made differentiable in place as soon as it returns. A view
made in the hook would stay without gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from layersync.core.errors import InputError
from layersync.core.regularizer.layersync import LayerSync, LayerSyncOutput

Select = int | str | Callable[[Any], Tensor]
DEFAULT_LAYOUTS = {3: "BTC", 4: "BFTC"}
"""How axes are read where no layout is given, by their number."""
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")
"""Where torch.compile, checkpoint_wrapper, FSDP and DDP keep the block that they were given."""
HIDDEN_STATES = ("hidden_states", "src", "x", "img", "latents")
"""What blocks call the latent tokens that they work on, where text may come first."""
COMPILED_BEFORE = "; where it was compiled and run before attach(), call torch._dynamo.reset()"


class _Kept(NamedTuple):
    """What a block returned, the shape of its hidden states, versions of its tensors; was gradient being recorded."""

    output: Any
    shape: torch.Size | None
    named: bool
    """Whether a name said that the shape is of hidden states, and not only that it is the first argument's."""
    versions: tuple[int, ...]
    recorded: bool


def attach(
    blocks: Iterable[nn.Module],
    pairs: Sequence[Sequence[int]] | Literal["auto"],
    weight: float,
    select: Select | None = None,
    *,
    layout: str | None = None,
    **options: Any,
) -> Attachment:
    """Regularize any transformer: let some of its blocks learn from deeper ones.

    Args:
        blocks: the blocks in the order in which they run, numbered from 1: a ModuleList, or a sequence of blocks and
            ModuleLists (Flux: ``[model.transformer_blocks, model.single_transformer_blocks]``).
        pairs: (student, teacher) block numbers; ``"auto"`` for the paper's fractions of the number of blocks.
        weight: as in :class:`LayerSync`. With 0 nothing is hooked and the loss is exactly 0.
        select: which of the things that a block returns holds the latent tokens. Not needed where exactly one tensor
            has the shape of the block's ``hidden_states``. An index or a key (blocks that return a lone tensor do
            without), or a function from what a block returns to a tensor, which may drop text or register tokens.
        layout: a letter for each axis of that tensor: B batch, C channels, any other letter an axis of tokens. By
            default BTC for three axes and BFTC (video: frames, tokens) for four; say BCHW or TBC where that is wrong.
        options: the other arguments of :class:`LayerSync`: ``schedule``, ``t_range``, ``similarity``,
            ``stop_gradient``.

    Raises:
        InputError: (a ValueError) for pairs beyond the number of blocks, settings that make no sense, or blocks that
            are none.
    """
    numbered = tuple(_modules(blocks))
    if len({id(block) for block in numbered}) < len(numbered):
        raise InputError("blocks: the same module stands at two places; a block that runs twice has no number")
    if select is not None and not (callable(select) or isinstance(select, int | str)):
        raise InputError(f"select: {select!r} is no index, key or function")
    if layout is not None and not (
        layout.count("B") == layout.count("C") == 1 and len(set(layout)) == len(layout) >= len("BTC")
    ):
        raise InputError(f"layout: {layout!r} is none; B and C once, a letter for each axis of tokens, as in BFTC")
    return Attachment(numbered, LayerSync(pairs, weight, depth=len(numbered), **options), select, layout)


class Attachment:
    """The blocks of a model under LayerSync; made by :func:`attach`. As a context manager it is removed at the end.

    It holds outputs of blocks from a forward pass until :meth:`loss` or :meth:`output` is called, the next pass begins,
    or :meth:`remove`. Several passes before :meth:`loss`: the last one counts. A pass without gradient keeps nothing.
    The model gets no parameter and no module from it. Copies of the model (an EMA) are not attached.
    """

    def __init__(self, blocks: Sequence[nn.Module], sync: LayerSync, select: Select | None, layout: str | None):
        self.sync, self._blocks, self._select, self._layout = sync, blocks, select, layout
        self._students = frozenset(student for student, _ in sync.pairs)
        self._named = [_first_argument(block) in HIDDEN_STATES for block in blocks]
        self._kept: dict[int, _Kept] = {}
        self._dropped: dict[int, bool] = {}
        """Students of the last pass that had no gradient, and whether gradient was being recorded."""
        self._learning: set[int] = set()
        """Blocks whose gradient was found to reach a parameter."""
        self._active = bool(sync.taps())
        self._undo: list[Callable[[], None]] = []
        if self._active:
            self._undo.append(_before(blocks[0], _Begin(self, 1)))
        for number in sync.taps():
            self._undo.append(_after(blocks[number - 1], _Keep(self, number)))
            if number in self._students:  # which is never the last block
                self._undo.append(_before(blocks[number], _Check(self, number + 1)))

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __deepcopy__(self, _: dict[int, Any]) -> Attachment:
        """Itself: the hooks of a copied model find that its blocks are not theirs and do nothing."""
        return self

    def loss(self, t: Tensor | None = None, mask: Tensor | None = None, step: int | None = None) -> Tensor:
        """The weighted loss of the last forward pass, a float32 scalar; see :meth:`output`."""
        return self.output(t, mask, step).loss

    def output(self, t: Tensor | None = None, mask: Tensor | None = None, step: int | None = None) -> LayerSyncOutput:
        """Loss and raw similarity of each pair in the last forward pass, whose outputs are let go.

        Args:
            t: (batch,) times in [0, 1], 1 being data; for ``t_range``.
            mask: True on real tokens; (batch, tokens), or (batch, frames, tokens) as the layout has it.
            step: the training step, for ``schedule``.

        Raises:
            RuntimeError: when a block did not run since the last call, or nothing at or below a student is trained
                though gradient is being recorded.
            ValueError: when a block's output does not say which of its tensors to take, the two of a pair do not fit
                each other or the mask, or this holds other values than 0 and 1.
        """
        try:
            features = {number: self._tokens(number) for number in self.sync.taps()}
        finally:
            self._kept.clear()
            self._dropped.clear()
        if mask is not None and mask.ndim > 2:
            mask = mask.flatten(1)
        found = self.sync(features, t=t, mask=mask, step=step)
        if features:
            return found
        device = next((weight.device for block in self._blocks for weight in block.parameters()), found.loss.device)
        return found._replace(loss=found.loss.to(device))

    def remove(self) -> None:
        """Take every hook out and let go of everything kept. Doing so twice does no harm."""
        self._active = False
        while self._undo:
            self._undo.pop()()
        self._kept.clear()
        self._dropped.clear()

    def _tokens(self, number: int) -> Tensor:
        """Features of a block, (batch, tokens, channels)."""
        if number not in self._kept:
            raise RuntimeError(self._missing(number))
        features = _chosen(number, self._kept[number], self._select)
        needs_gradient = number in self._students or not self.sync.stop_gradient
        if needs_gradient and torch.is_grad_enabled() and not self._learns(number, features):
            raise RuntimeError(_without_gradient(number, self._kept[number].recorded or features.requires_grad))
        return _flattened(number, features, self._layout)

    def _learns(self, number: int, features: Tensor) -> bool:
        """Whether a block's features hand gradient to a parameter, and not only to a tensor made to require it.

        Looked into until the first yes. Re-entrant checkpointing hides the parameters of blocks from the graph.
        """
        if not features.requires_grad or number in self._learning or torch.compiler.is_compiling():
            return features.requires_grad
        weights = (weight for block in self._blocks[:number] for weight in block.parameters())
        found = any(weight.requires_grad for weight in weights) or _reaches_a_parameter(features)
        if found:
            self._learning.add(number)
        return found

    def _missing(self, number: int) -> str:
        if not self._active:
            return "this handle was removed from its model: attach again"
        if self._dropped:
            return _without_gradient(*next(iter(self._dropped.items())))
        if self._kept:
            return (
                f"block {number} of {len(self._blocks)} did not run in the last forward pass: choose pairs of blocks "
                f"that always run{COMPILED_BEFORE}"
            )
        return (
            "no forward pass has run through the attached blocks since the last loss: run the model first, with "
            f"gradient, and take one loss a pass{COMPILED_BEFORE}"
        )

    # What hooks do. They run inside torch.compile too, so they are few, plain lines.

    def _begin(self) -> None:
        self._kept.clear()
        self._dropped.clear()

    def _keep(self, number: int, inputs: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        if number in self._kept:  # a pass that left out block 1
            self._begin()
        recorded = torch.is_grad_enabled()
        if number in self._students:
            if recorded and _without_any_gradient(output):
                self._dropped[number] = True
                return
        elif not self._kept:
            return  # no student of this pass has gradient
        shape = _hidden_shape(inputs, keywords)
        named = self._named[number - 1] or not inputs or "hidden_states" in keywords
        self._kept[number] = _Kept(output, shape, named, _versions(output), recorded)

    def _check(self, number: int) -> None:
        """At the start of the block after a student: without gradient by now, it never gets any."""
        kept = self._kept.get(number)
        if kept is not None and not kept.recorded and _without_any_gradient(kept.output):
            del self._kept[number]
            self._dropped[number] = False


class _Hook:
    """What runs at a block of the attached model; not at a copy's, nor when checkpointing runs the block once more."""

    def __init__(self, handle: Attachment, number: int):
        self.handle, self.number = handle, number

    def __deepcopy__(self, _: dict[int, Any]) -> _Hook:
        return self

    def __reduce__(self) -> tuple[type[_Idle], tuple[()]]:
        """Of a model that is saved as a whole: what is loaded is not attached."""
        return _Idle, ()

    def applies(self, block: nn.Module) -> bool:
        return self.handle._active and block is self.handle._blocks[self.number - 1] and not _replayed()


class _Idle:
    """In the place of a hook in a model that was saved as a whole."""

    def __call__(self, *_: Any) -> None:
        """Nothing."""


class _Begin(_Hook):
    def __call__(self, block: nn.Module, inputs: Any, keywords: Any) -> None:
        if self.applies(block):
            self.handle._begin()


class _Check(_Hook):
    def __call__(self, block: nn.Module, inputs: Any, keywords: Any) -> None:
        if self.applies(block):
            self.handle._check(self.number - 1)


class _Keep(_Hook):
    def __call__(self, block: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        if self.applies(block):
            self.handle._keep(self.number, inputs, keywords, output)


class _Around:
    """In the place of what ``Module.compile`` made of a block: hooks around it, seen by no compiler.

    Inside they would be one more graph for each hooked block, and run in a re-entrant checkpoint's second pass too.
    """

    def __init__(self, block: nn.Module, compiled: Callable[..., Any]):
        self.block, self.compiled = block, compiled
        self.before: list[_Begin | _Check] = []
        self.after: list[_Keep] = []

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        for before in self.before:
            before(self.block, inputs, keywords)
        output = self.compiled(*inputs, **keywords)
        for after in self.after:
            after(self.block, inputs, keywords, output)
        return output

    @classmethod
    def of(cls, block: nn.Module) -> _Around | None:
        """That of a block compiled in place, put there if it is not; None for other blocks."""
        compiled = block._compiled_call_impl
        if compiled is None or isinstance(compiled, cls):
            return compiled
        around = block._compiled_call_impl = cls(block, compiled)
        return around

    def drop(self, hooks: list[Any], hook: _Hook) -> None:
        """Remove ``hook`` from ``hooks``, and with the last one itself."""
        hooks.remove(hook)
        if not self.before and not self.after and self.block._compiled_call_impl is self:
            self.block._compiled_call_impl = self.compiled


def _before(block: nn.Module, hook: _Begin | _Check) -> Callable[[], None]:
    """Let ``hook`` run before ``block``; what is returned takes it off."""
    around = _Around.of(block)
    if around is None:
        return block.register_forward_pre_hook(hook, with_kwargs=True).remove
    around.before.append(hook)
    return partial(around.drop, around.before, hook)


def _after(block: nn.Module, hook: _Keep) -> Callable[[], None]:
    """Let ``hook`` run after ``block``; what is returned takes it off."""
    around = _Around.of(block)
    if around is None:
        return block.register_forward_hook(hook, with_kwargs=True).remove
    around.after.append(hook)
    return partial(around.drop, around.after, hook)


def _replayed() -> bool:
    """Whether this is a backward pass, in which checkpointing runs blocks again; no compiler can trace the question."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _modules(blocks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The blocks one by one, lists within taken apart."""
    if isinstance(blocks, nn.Module) and not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        raise InputError(f"blocks: {type(blocks).__name__} is no list of blocks; pass the ModuleList inside of it")
    if not isinstance(blocks, Iterable):
        raise InputError(f"blocks: {type(blocks).__name__} is no list of blocks")
    for entry in blocks:
        if isinstance(entry, (nn.ModuleList, list, tuple)):
            yield from _modules(entry)
        elif isinstance(entry, nn.Module):
            yield entry
        else:
            raise InputError(f"blocks: {type(entry).__name__} is no module")


def _named(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Tensors in what a block returned, with the path to each."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _named(value, f"{name}[{key!r}]")
    elif isinstance(output, (tuple, list)):
        for index, value in enumerate(output):
            yield from _named(value, f"{name}[{index}]")


def _without_any_gradient(output: Any) -> bool:
    required = [tensor.requires_grad for _, tensor in _named(output)]
    return bool(required) and not any(required)


def _versions(output: Any) -> tuple[int, ...]:
    return () if torch.compiler.is_compiling() else tuple(_version(tensor) for _, tensor in _named(output))


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _reaches_a_parameter(features: Tensor) -> bool:
    """Whether the graph that made ``features`` ends in a parameter."""
    seen, left = set(), [features.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        seen.add(node)
        left.extend(following for following, _ in node.next_functions)
    return False


def _hidden_shape(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> torch.Size | None:
    """Shape of what a block works on: ``hidden_states`` by name, else the first argument, else by another such name."""
    for candidate in (keywords.get("hidden_states"), *inputs[:1], *[keywords.get(name) for name in HIDDEN_STATES]):
        if isinstance(candidate, Tensor):
            return candidate.shape
    return None


def _first_argument(block: nn.Module) -> str:
    """What a block calls it, whatever is wrapped around it; empty where its signature does not say."""
    inside = [getattr(block, name, None) for name in WRAPPED]
    while wrapped := [inner for inner in inside if isinstance(inner, nn.Module)]:
        block = wrapped[0]
        inside = [getattr(block, name, None) for name in WRAPPED]
    try:
        return next(iter(inspect.signature(block.forward).parameters), "")
    except (TypeError, ValueError):
        return ""


def _chosen(number: int, kept: _Kept, select: Select | None) -> Tensor:
    """The tensor of latent tokens in what a block returned."""
    named = list(_named(kept.output))
    returned = f"block {number} returned " + (
        ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named) or type(kept.output).__name__
    )
    if callable(select):
        chosen = select(kept.output)
    elif select is not None and isinstance(kept.output, Tensor):
        chosen = kept.output
    elif select is not None:
        try:
            chosen = kept.output[select]
        except (IndexError, KeyError, TypeError):
            raise ValueError(f"{returned}: there is no [{select!r}]; choose another select=") from None
    else:
        fitting = [tensor for _, tensor in named if tensor.shape == kept.shape]
        streams = [1 for _, tensor in named for own in fitting[:1] if tensor.ndim == own.ndim > 2]
        if len(fitting) != 1 or (len(streams) > 1 and not kept.named):
            wanted = f"no argument called {', '.join(HIDDEN_STATES)}" if kept.shape is None else tuple(kept.shape)
            count = "several of them fit" if len(fitting) > 1 else "none of them fits"
            if len(fitting) == 1:
                count = "which may be of latents or of text: its name does not say"
            raise ValueError(
                f"{returned}; its input is {wanted}, {count}: say which holds the latent tokens by select=, an index, "
                "a key or a function"
            )
        chosen = fitting[0]
    if not isinstance(chosen, Tensor):
        raise ValueError(f"{returned}; select={select!r} gave {type(chosen).__name__}, no tensor")
    kept_versions = zip(named, kept.versions, strict=False)
    for name, tensor in [entry for entry, version in kept_versions if _version(entry[1]) != version]:
        if _share(tensor, chosen) or not any(_share(other, chosen) for _, other in named):  # it may be in a copy
            raise RuntimeError(f"block {number}: {name} was changed in place after the block had returned it")
    return chosen


def _share(tensor: Tensor, chosen: Tensor) -> bool:
    """Whether ``chosen`` is the tensor, or a view of it or of what it is a view of."""
    whole = tensor if tensor._base is None else tensor._base
    return chosen is tensor or chosen._base is whole


def _flattened(number: int, features: Tensor, layout: str | None) -> Tensor:
    """(batch, tokens, channels)."""
    layout = layout or DEFAULT_LAYOUTS.get(features.ndim)
    if layout is None or len(layout) != features.ndim:
        hint = "say what they are by layout=, as in BFTC"
        if layout:
            hint = f"layout={layout!r} does not fit"
        elif features.ndim == 2:
            hint = "if they are tokens and channels of packed samples, make them one by select=lambda out: out[None]"
        raise ValueError(f"block {number} gives {tuple(features.shape)}, {features.ndim} axes: {hint}")
    batch_first = features.movedim((layout.index("B"), layout.index("C")), (0, -1))
    return batch_first.flatten(1, -2)


def _without_gradient(number: int, recorded: bool) -> str:
    if recorded:
        return (
            f"block {number} has no gradient to learn from: no parameter at or below it gets one (all frozen, or its "
            "input is detached); leave something there to train, LoRA layers for instance"
        )
    return (
        f"block {number} ran without recording gradient and got none afterwards: the pass ran under torch.no_grad() "
        "or inference_mode(), or re-entrant checkpointing covers more than this block or has inputs that require no "
        "gradient; use use_reentrant=False, or checkpoint block by block and let the first input require gradient"
    )
