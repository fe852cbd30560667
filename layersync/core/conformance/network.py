"""Checks of a modality's backbone: shapes, taps, masks, gradients, determinism."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layersync.core.conformance.subject import NotApplicable, Subject, at, calling, expect, relative_error
from layersync.core.probe import flow_loss
from layersync.core.regularizer.layersync import LayerSync, auto_pairs

TOLERANCE = 1e-4
"""Relative, between two ways of computing the same in float32."""


def _where(subject: Subject) -> str:
    return f"{subject.where('backbone')}, {type(subject.backbone).__qualname__}.forward"


def backbone(subject: Subject) -> None:
    """The network is made without data or memory, has ``depth`` blocks, and predicts float32 in the latents' shape."""
    with torch.device("meta"):  # as it is checked before anything is tokenized
        made = subject.new_backbone()
    expect(isinstance(made, nn.Module), subject.where("backbone"), "an nn.Module", repr(type(made)))
    depth, said = getattr(subject.backbone, "depth", None), getattr(subject.recipe.backbone, "depth", None)
    expect(isinstance(depth, int) and depth > 0, at(subject.backbone, "depth"), "the number of blocks", repr(depth))
    expect(said in (None, depth), at(subject.backbone, "depth"), f"{said}, the recipe's backbone.depth", repr(depth))
    prediction = subject.predict(mask=subject.batch.mask).prediction
    wanted = subject.batch.x_t
    expect(
        prediction.shape == wanted.shape,
        _where(subject),
        f"a prediction {list(wanted.shape)}",
        f"{list(prediction.shape)}",
    )
    expect(prediction.dtype == wanted.dtype, _where(subject), f"a prediction in {wanted.dtype}", str(prediction.dtype))
    expect(bool(torch.isfinite(prediction).all()), _where(subject), "a finite prediction", "one that is not")
    expect(
        prediction.device == wanted.device, _where(subject), f"a prediction on {wanted.device}", str(prediction.device)
    )


def taps(subject: Subject) -> None:
    """Taps are the outputs of the blocks that were asked for, (batch, tokens, channels), and no others are kept."""
    where, depth = _where(subject), subject.backbone.depth
    every = range(1, depth + 1)
    plain = subject.predict()
    expect(plain.features == {}, where, "no features with taps=()", f"those of blocks {sorted(plain.features)}")
    for asked in ((depth,), (1,), tuple(every)):
        out = subject.predict(taps=asked)
        expect(set(out.features) == set(asked), where, f"features of blocks {list(asked)}", f"{sorted(out.features)}")
        error = relative_error(out.prediction, plain.prediction)
        expect(error <= TOLERANCE, where, "the same prediction with taps as without", f"a difference of {error:.2g}")
    with _outputs(_blocks(subject.backbone)) as outputs:
        features = subject.predict(taps=tuple(every)).features
    width = getattr(subject.recipe.backbone, "hidden_size", None)
    for number, feature in features.items():
        shape = list(feature.shape)
        expect(
            feature.ndim == 3 and shape[0] == len(subject.batch.x_t) and width in (None, shape[2]),
            f"{where}, features[{number}]",
            f"(batch, tokens, channels), {[len(subject.batch.x_t), 'tokens', width or 'channels']}",
            f"{shape}",
        )
        expect(
            shape == list(features[1].shape), f"{where}, features[{number}]", f"{list(features[1].shape)}", f"{shape}"
        )
        if number in outputs:
            expect(
                _part_of(feature, outputs[number]),
                f"{where}, features[{number}]",
                f"the output of block {number} ({at(_blocks(subject.backbone)[number])}), of latent tokens",
                _which(feature, outputs),
            )
    for low, high in pairwise(every):
        new = _used(subject, features[high]) - _used(subject, features[low])
        lost = _used(subject, features[low]) - _used(subject, features[high])
        expect(
            bool(new) and not lost,
            f"{where}, features[{high}]",
            f"to depend on all that features[{low}] depends on, and on the weights of block {high}",
            f"{len(new)} weights more and {len(lost)} less",
        )


def bad_taps(subject: Subject) -> None:
    """A tap that is no block is refused with ValueError."""
    depth, batch = subject.backbone.depth, subject.batch
    for tap in (0, depth + 1):
        refused = False
        with calling(f"{_where(subject)}, taps=({tap},) of {depth} blocks, where ValueError is expected (check_taps)"):
            try:
                subject.backbone(batch.x_t, batch.t, batch.condition, taps=(tap,), mask=None)
            except ValueError:
                refused = True
        expect(refused, _where(subject), f"ValueError for taps=({tap},) of {depth} blocks (check_taps)", "no error")


def masks(subject: Subject) -> None:
    """What lies behind the end of a clip changes no prediction and no feature of what is real, and not the loss."""
    batch, latent, where = subject.batch, subject.tokenizer.latent, _where(subject)
    if latent.num_frames is None:
        raise NotApplicable("latents have no length of their own: there is no mask")
    lengths = torch.linspace(latent.num_frames / 3, latent.num_frames - 1, len(batch.x_t)).long().clamp(min=1)
    mask = torch.arange(latent.num_frames)[None] < lengths[:, None]
    axes = [len(mask), *(1 for _ in latent.shape)]
    axes[latent.frame_axis + 1] = latent.num_frames
    real = mask.reshape(axes).expand_as(batch.x_t)
    source = torch.Generator().manual_seed(2)
    other = torch.where(real, batch.x_t, 3 * torch.randn(batch.x_t.shape, generator=source))
    tapped = (subject.backbone.depth,)
    first, second = subject.predict(tapped, mask), subject.predict(tapped, mask, x_t=other)
    error = relative_error(second.prediction[real], first.prediction[real])
    expect(
        error <= TOLERANCE,
        where,
        "a prediction of real frames that padding leaves alone (mask)",
        f"a change of {error:.2g}",
    )
    tokens = first.token_mask
    wanted = first.features[tapped[0]].shape[:2]
    expect(
        tokens is not None and tokens.dtype == torch.bool and tokens.shape == wanted,
        f"{where}, token_mask",
        f"a boolean {list(wanted)}, True on real tokens, where there is a mask",
        "None" if tokens is None else f"{tokens.dtype} {list(tokens.shape)}",
    )
    assert tokens is not None
    expect(
        bool(tokens.any(1).all()) and not bool(tokens.all()),
        f"{where}, token_mask",
        "some tokens of each clip to be real, and not all where clips are shorter than the window",
        f"{tokens.sum(1).tolist()} of {tokens.shape[1]}",
    )
    error = relative_error(second.features[tapped[0]][tokens], first.features[tapped[0]][tokens])
    expect(
        error <= TOLERANCE,
        f"{where}, features",
        "features of real tokens that padding leaves alone",
        f"a change of {error:.2g}",
    )
    losses = [flow_loss(out.prediction, batch.x1, mask, latent.frame_axis) for out in (first, second)]
    error = relative_error(losses[1], losses[0])
    expect(error <= TOLERANCE, where, "a loss that padding leaves alone", f"a change of {error:.2g}")


def conditions(subject: Subject) -> None:
    """Time and condition reach the prediction."""
    batch, where = subject.batch, _where(subject)
    plain = subject.predict(mask=batch.mask).prediction
    changes: dict[str, dict[str, Any]] = {"t": {"t": batch.t.flip(0)}}
    if subject.condition.num_classes:
        label = (batch.condition["label"] + 1) % (subject.condition.num_classes + 1)
        changes["condition['label']"] = {"condition": {**batch.condition, "label": label}}
    if subject.condition.text_channels:
        changes["condition['text']"] = {"condition": {**batch.condition, "text": batch.condition["text"].flip(0)}}
    for name, change in changes.items():
        error = relative_error(subject.predict(mask=batch.mask, **change).prediction, plain)
        expect(error > 0, where, f"a prediction that depends on {name}", "the same prediction whatever it is")


def deterministic(subject: Subject) -> None:
    """Two passes give the same, to the last bit; in training too, from the same seed."""
    for training in (False, True):
        subject.backbone.train(training)
        try:
            with torch.random.fork_rng(devices=[]):
                found = []
                for _ in range(2):
                    if training:
                        torch.manual_seed(3)
                    found.append(subject.predict(mask=subject.batch.mask).prediction)
        finally:
            subject.backbone.eval()
        mode = "training, from the same seed" if training else "evaluation"
        error = relative_error(found[1], found[0])
        expect(
            torch.equal(found[0], found[1]),
            _where(subject),
            f"the same prediction twice in {mode}",
            f"a difference of {error:.2g}",
        )


def batches(subject: Subject) -> None:
    """A sample's prediction does not depend on the others of its batch, in training neither: no BatchNorm."""
    batch = subject.batch
    mixing = [name for name, module in subject.backbone.named_modules() if isinstance(module, _BatchNorm)]
    where = f"{at(subject.backbone)}, module {', '.join(mixing)}"
    expect(not mixing, where, "a norm of each sample by itself, such as LayerNorm", "BatchNorm")
    together = subject.predict(mask=batch.mask).prediction
    for row in (0, len(together) - 1):
        part = slice(row, row + 1)
        alone = subject.predict(
            mask=None if batch.mask is None else batch.mask[part],
            x_t=batch.x_t[part],
            t=batch.t[part],
            condition={name: value[part] for name, value in batch.condition.items()},
        ).prediction
        error = relative_error(alone, together[part])
        expect(
            error <= TOLERANCE,
            _where(subject),
            "a sample alone to be predicted as in a batch",
            f"a difference of {error:.2g}",
        )


def gradients(subject: Subject) -> None:
    """The flow loss has a finite gradient for every trained weight, and in training with bfloat16 too, as on GPUs."""
    network, batch = subject.backbone, subject.batch
    out = subject.predict(mask=batch.mask)
    loss = flow_loss(out.prediction, batch.x1, batch.mask, subject.tokenizer.latent.frame_axis).mean()
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    expect(bool(trained), subject.where("backbone"), "weights to train", "none")
    with calling(f"{_where(subject)}, backward"):
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for (name, _), gradient in zip(trained.items(), found, strict=True):
        where = f"{at(network)}, weight {name}"
        expect(
            gradient is not None and bool(gradient.any()), where, "a gradient of the flow loss", "none: it is not used"
        )
        expect(bool(torch.isfinite(gradient).all()), where, "a finite gradient", "one that is not")
    where = f"{_where(subject)}, in training with bfloat16 (torch.autocast)"
    network.train()
    try:
        with calling(where), torch.random.fork_rng(devices=[]):
            with torch.autocast("cpu", torch.bfloat16):
                out = network(batch.x_t, batch.t, batch.condition, taps=(), mask=batch.mask)
            loss = flow_loss(out.prediction, batch.x1, batch.mask, subject.tokenizer.latent.frame_axis).mean()
            rough = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    finally:
        network.eval()
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in rough if gradient is not None)
    expect(finite, where, "finite gradients", "others")


def layersync(subject: Subject) -> None:
    """LayerSync changes the blocks up to the student, and none behind it."""
    network, where = subject.backbone, _where(subject)
    if network.depth < 3:
        raise NotApplicable(f"a pair of blocks needs a depth of 3, the recipe's is {network.depth}")
    ((student, teacher),) = auto_pairs(network.depth)
    out = subject.predict((student, teacher), subject.batch.mask)
    loss = LayerSync([(student, teacher)], weight=1.0)(out.features, mask=out.token_mask).loss
    expect(loss.requires_grad, f"{where}, features[{student}]", "features with a gradient", "detached ones")
    named = dict(network.named_parameters())
    trained = {name: weight for name, weight in named.items() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    touched = {name for name, gradient in zip(trained, found, strict=True) if gradient is not None and gradient.any()}
    expect(bool(touched), f"{where}, features[{student}]", "a gradient of LayerSync in the blocks up to it", "none")
    deeper = {
        id(weight) for number, block in _blocks(network).items() if number > student for weight in block.parameters()
    }
    wrong = sorted(name for name in touched if id(named[name]) in deeper)
    expect(
        not wrong,
        f"{where}, features[{student}]",
        f"LayerSync to change no block behind {student}, the student",
        f"gradients in {', '.join(wrong[:3])}",
    )


def _blocks(network: nn.Module) -> dict[int, nn.Module]:
    """Its blocks by number, where they are the one ``ModuleList`` of ``depth`` entries; else none."""
    lists = [
        module
        for module in network.modules()
        if isinstance(module, nn.ModuleList) and len(module) == getattr(network, "depth", None)
    ]
    return dict(enumerate(lists[0], start=1)) if len(lists) == 1 else {}


@contextmanager
def _outputs(blocks: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What each block returns while the context is open."""
    found: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[number] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    handles = [block.register_forward_hook(keep(number)) for number, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _part_of(feature: Tensor, output: Tensor) -> bool:
    """Whether ``feature`` is a run of consecutive tokens of a block's output, or its grid flattened to tokens."""
    if output.ndim != 3:
        axes = [output.flatten(1, -2)] if output.shape[-1] == feature.shape[-1] else []
        output = axes[0] if axes else output.flatten(2).transpose(1, 2)
    count, room = feature.shape[1], output.shape[1] - feature.shape[1]
    return any(torch.equal(feature, output[:, first : first + count]) for first in range(room + 1))


def _which(feature: Tensor, outputs: dict[int, Tensor]) -> str:
    """For the message: which block's output it is instead."""
    found = [number for number, output in outputs.items() if _part_of(feature, output)]
    return f"that of block {found[0]}" if found else "something else"


def _used(subject: Subject, feature: Tensor) -> set[int]:
    """Weights that ``feature`` is computed from, as numbers."""
    weights = [weight for weight in subject.backbone.parameters() if weight.requires_grad]
    expect(feature.requires_grad, f"{_where(subject)}, features", "features with a gradient", "detached ones")
    found = torch.autograd.grad(feature.sum(), weights, allow_unused=True, retain_graph=True)
    return {number for number, gradient in enumerate(found) if gradient is not None}
