"""The alignment loss: what it is, where its gradient goes, what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layersync
from layersync import InputError, LayerSync
from layersync.core.regularizer.layersync import WeightSchedule, alignment, auto_pairs
from layersync.modalities.image import SiT

pytestmark = pytest.mark.filterwarnings("ignore:LayerSync. no student's features require gradient")


def features(batch: int = 3, tokens: int = 5, channels: int = 7, blocks: int = 4, seed: int = 0) -> dict[int, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(batch, tokens, channels, generator=random) for n in range(1, blocks + 1)}


def numpy_similarity(student: Any, teacher: Any, mask: Any = None, centred: bool = False) -> float:
    """The definition, sample by sample and token by token, in float64."""
    per_sample = []
    for row in range(len(student)):
        real = np.ones(student.shape[1], bool) if mask is None else np.asarray(mask[row])
        s, z = np.asarray(student[row], np.float64)[real], np.asarray(teacher[row], np.float64)[real]
        if centred:
            s, z = s - s.mean(0), z - z.mean(0)
        cosines = [s[i] @ z[i] / (np.linalg.norm(s[i]) * np.linalg.norm(z[i])) for i in range(len(s))]
        per_sample.append(np.mean(cosines))
    return float(np.mean(per_sample))


@pytest.fixture
def network() -> SiT:
    """Four blocks with weights everywhere, adaLN's included: at initialisation blocks are the identity."""
    torch.manual_seed(0)
    model = SiT(8, 2, 1, 32, 4, 4, num_classes=10, learn_sigma=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model


def network_features(model: SiT, taps: tuple[int, ...]) -> dict[int, Tensor]:
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(6, 1, 8, 8, generator=random), torch.rand(6, generator=random)
    return model(x, t, {"label": torch.arange(6)}, taps=taps).features


def touched(model: SiT) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}


def test_no_gradient_reaches_past_the_student(network: SiT) -> None:
    LayerSync([(2, 4)], 0.5)(network_features(network, (2, 4))).loss.backward()
    found = touched(network)
    past = [name for name in found if name.startswith(("blocks.2.", "blocks.3.", "final_layer."))]
    assert not past, f"beyond the student block: {past}"
    for shallow in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "x_embedder.proj.weight"):
        assert shallow in found


def test_gradient_of_the_student_is_that_of_a_constant_teacher(network: SiT) -> None:
    taps = network_features(network, (2, 4))
    constant = taps[4].detach().clone()
    own = torch.autograd.grad(LayerSync([(2, 4)], 0.5)(taps).loss, taps[2], retain_graph=True)[0]
    by_hand = -0.5 * F.cosine_similarity(taps[2], constant, dim=-1).mean()
    assert torch.allclose(own, torch.autograd.grad(by_hand, taps[2])[0], atol=1e-8)


def test_stop_gradient_off_lets_it_into_the_teacher(network: SiT) -> None:
    LayerSync([(2, 4)], 0.5, stop_gradient=False)(network_features(network, (2, 4))).loss.backward()
    assert {"blocks.2.attn.qkv.weight", "blocks.3.mlp.fc2.weight"} <= touched(network)


def test_two_pairs_are_the_mean_of_single_ones() -> None:
    taps = features()
    both = LayerSync([(1, 3), (2, 4)], 0.7)(taps)
    first, second = (LayerSync([pair], 0.7)(taps) for pair in ((1, 3), (2, 4)))
    assert float(both.loss) == pytest.approx((float(first.loss) + float(second.loss)) / 2, abs=1e-7)
    assert both.similarity == {**first.similarity, **second.similarity}
    assert float(first.loss) != pytest.approx(float(second.loss), abs=1e-3)


def test_value_against_the_definition() -> None:
    taps = features()
    found = LayerSync([(1, 3)], 0.3)(taps)
    wanted = numpy_similarity(taps[1], taps[3])
    assert float(found.similarity[(1, 3)]) == pytest.approx(wanted, abs=1e-6)
    assert float(found.loss) == pytest.approx(-0.3 * wanted, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_centred_similarity_against_numpy(masked: bool) -> None:
    taps = {n: value + 3 for n, value in features().items()}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool) if masked else None
    found = LayerSync([(1, 3)], 0.3, similarity="centred")(taps, mask=mask)
    assert float(found.loss) == pytest.approx(-0.3 * numpy_similarity(taps[1], taps[3], mask, centred=True), abs=1e-6)
    assert float(found.similarity[(1, 3)]) == pytest.approx(numpy_similarity(taps[1], taps[3], mask), abs=1e-6)


def test_means_go_over_real_tokens_then_samples() -> None:
    taps = features()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    found = LayerSync([(1, 3)], 1.0)(taps, mask=mask)
    assert float(found.loss) == pytest.approx(-numpy_similarity(taps[1], taps[3], mask), abs=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "centred"])
def test_padding_leaves_no_trace(similarity: str) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    sync = LayerSync([(1, 3), (2, 4)], 0.3, similarity=similarity)  # type: ignore[arg-type]
    results = []
    for filling in (0.0, 1.0, -1e4, math.nan, math.inf):
        taps = {n: torch.where(mask[..., None], v, torch.full_like(v, filling)) for n, v in features().items()}
        taps = {n: value.requires_grad_() for n, value in taps.items()}
        loss = sync(taps, mask=mask).loss
        loss.backward()
        results.append((loss.detach(), taps[1].grad, taps[2].grad))
    for loss, *gradients in results[1:]:
        assert torch.equal(loss, results[0][0])
        for gradient, wanted in zip(gradients, results[0][1:], strict=True):
            assert torch.allclose(gradient[mask], wanted[mask], atol=1e-9)
            assert float(gradient[~mask].abs().max()) == 0


@pytest.mark.parametrize("filling", [math.nan, -math.inf, math.inf])
def test_a_mask_that_is_added_to_attention_is_refused(filling: float) -> None:
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    sync = LayerSync([(1, 3)], 0.3)
    wanted = sync(features(), mask=real).loss
    for kind in (torch.long, torch.uint8, torch.float16):
        assert torch.equal(sync(features(), mask=real.to(kind)).loss, wanted)
    for mask in (torch.zeros(3, 5).masked_fill(~real, filling), torch.where(real, 0, -10000), 2 * real):
        with pytest.raises(ValueError, match=r"mask: holds .*True \(or 1\) on real tokens.*mask == 0"):
            sync(features(), mask=mask)


def test_features_without_gradient_are_told_once() -> None:
    """Where a loss is asked for that could train something; not in evaluation, nor while the weight is 0."""
    taps = features()
    learning = {n: value.clone().requires_grad_() for n, value in taps.items()}
    sync = LayerSync([(1, 3)], 0.3, schedule={"delay": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sync(learning, step=9)
        sync(taps, step=0)
        LayerSync([(1, 3)], 0.0)(taps)
        LayerSync([(1, 3)], 0.3, stop_gradient=False)({1: taps[1], 3: learning[3]})
        with torch.no_grad():
            sync(taps, step=9)
    with pytest.warns(UserWarning, match="no student's features require gradient") as told:
        for _ in range(2):
            sync({1: taps[1], 3: learning[3]}, step=9)
    assert len(told) == 1 and told[0].filename == __file__


def test_cosine_is_float32_under_bf16_autocast() -> None:
    taps = {n: (value * 50).bfloat16() for n, value in features(channels=256).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LayerSync([(1, 3)], 0.3)(taps)
        direct = alignment(taps[1], taps[3])
    wanted = numpy_similarity(taps[1].float(), taps[3].float())
    assert found.loss.dtype == direct.dtype == found.similarity[(1, 3)].dtype == torch.float32
    assert float(found.loss) == pytest.approx(-0.3 * wanted, abs=1e-6)
    assert float(direct.mean()) == pytest.approx(wanted, abs=1e-6)


def test_centring_is_float32_under_bf16_autocast() -> None:
    taps = {n: (value + 2).bfloat16() for n, value in features(channels=256).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LayerSync([(1, 3)], 1.0, similarity="centred")(taps)
    wanted = numpy_similarity(taps[1].float(), taps[3].float(), centred=True)
    assert float(found.loss) == pytest.approx(-wanted, abs=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "centred"])
def test_a_sample_without_a_real_token_gives_nothing(similarity: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    taps = {n: value.requires_grad_() for n, value in features().items()}
    sync = LayerSync([(1, 3)], 0.3, similarity=similarity)
    found = sync(taps, mask=mask).loss
    found.backward()
    rest = sync({n: value[[0, 2]] for n, value in features().items()}, mask=mask[[0, 2]]).loss
    assert float(found) == pytest.approx(float(rest) * 2 / 3, rel=1e-5)
    assert torch.isfinite(taps[1].grad).all() and not taps[1].grad[1].any()


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(2, 2)], ["[2, 2]", "shallower", "12"]),
        ([(3, 2)], ["[3, 2]", "shallower", "12"]),
        ([(4, 13)], ["[4, 13]", "only 12 blocks"]),
        ([(0, 3)], ["[0, 3]", "numbered from 1", "12"]),
        ([(-1, 3)], ["[-1, 3]", "numbered from 1"]),
        ([], ["empty"]),
        ([(1, 2), (1, 2)], ["twice"]),
        ([(1, 2, 3)], ["(1, 2, 3)"]),
        ((1, 2), ["1 is no [student, teacher] pair"]),
        ([(1.5, 3)], ["(1.5, 3)"]),
        ([(True, 3)], ["(True, 3)"]),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pairs: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        LayerSync(pairs, 0.2, depth=12)
    assert isinstance(refused.value, ValueError)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "0.2", None])
def test_weights_that_make_no_sense_are_refused(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"weight.*at least 0"):
        LayerSync([(1, 2)], weight)


@pytest.mark.parametrize(
    "settings", [{"similarity": "dot"}, {"t_range": (0.5, 0.5)}, {"t_range": (-0.1, 1)}, {"schedule": {"decay": 3}}]
)
def test_settings_that_make_no_sense_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError):
        LayerSync([(1, 2)], 0.2, **settings)


def test_auto_pairs_are_the_papers() -> None:
    assert auto_pairs(28) == ((8, 16),)
    assert auto_pairs(12) == ((4, 7),)
    assert LayerSync("auto", depth=28).pairs == ((8, 16),)
    for depth in range(3, 60):
        ((student, teacher),) = auto_pairs(depth)
        assert 1 <= student < teacher <= depth
    for depth in (1, 2):
        with pytest.raises(InputError, match=f"at least 3 blocks, the backbone has {depth}"):
            auto_pairs(depth)
    with pytest.raises(InputError, match="needs depth"):
        LayerSync("auto")


def test_weight_0_asks_for_nothing_and_gives_exactly_0() -> None:
    sync = LayerSync([(1, 3)], 0.0)
    assert sync.taps() == ()
    assert float(sync({}).loss) == 0.0


SCHEDULED = WeightSchedule(delay=2, warmup=4, decay=4, stop=12)
BY_HAND = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0, 0]


@pytest.mark.parametrize(("step", "factor"), list(enumerate(BY_HAND)))
def test_schedule_by_hand(step: int, factor: float) -> None:
    assert SCHEDULED.factor(step) == pytest.approx(factor, abs=1e-12)
    taps = features()
    plain = LayerSync([(1, 3)], 0.5)(taps).loss
    scheduled = LayerSync([(1, 3)], 0.5, schedule=SCHEDULED)(taps, step=step)
    assert float(scheduled.loss) == pytest.approx(factor * float(plain), abs=1e-7)
    assert scheduled.similarity  # logged where the weight is 0, too


def test_schedule_needs_a_step_and_t_range_needs_t() -> None:
    with pytest.raises(ValueError, match="step="):
        LayerSync([(1, 3)], schedule={"warmup": 3})(features())
    with pytest.raises(ValueError, match="t="):
        LayerSync([(1, 3)], t_range=(0, 0.5))(features())


@pytest.mark.parametrize(
    ("taps", "mask", "said"),
    [
        ({3: torch.zeros(3, 1, 16)}, None, r"pair \[1, 3\]: .*have to be the same"),
        ({3: torch.zeros(1, 9, 16)}, None, r"pair \[1, 3\]: .*have to be the same"),
        ({1: torch.zeros(3, 9, 2, 8), 3: torch.zeros(3, 9, 2, 8)}, None, r"\(batch, tokens, channels\)"),
        ({}, torch.ones(3, 1, dtype=torch.bool), r"mask: \(3, 1\) is not \(batch, tokens\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(taps: dict[int, Tensor], mask: Tensor | None, said: str) -> None:
    given = {number: torch.zeros(3, 9, 16) for number in (1, 3)} | taps
    with pytest.raises(ValueError, match=said):
        LayerSync([(1, 3)])(given, mask=mask)


@pytest.mark.parametrize(
    ("t", "said"),
    [
        (torch.tensor([10.0, 500.0, 999.0]), "10 to 999; times run from 0, noise, to 1"),
        (torch.rand(3, 1), r"is \(3, 1\)"),
        (0.5, "is float"),
    ],
)
def test_times_that_would_count_wrongly_are_refused(t: Any, said: str) -> None:
    """Timesteps, of which all would lie outside; and times that would broadcast."""
    with pytest.raises(ValueError, match=said):
        LayerSync([(1, 3)], t_range=(0, 0.5))(features(), t=t)


def test_outside_of_t_range_there_is_no_loss_and_no_gradient() -> None:
    taps = {n: value.requires_grad_() for n, value in features().items()}
    t = torch.tensor([0.1, 0.5, 0.9])
    found = LayerSync([(1, 3)], 0.6, t_range=(0.4, 0.6))(taps, t=t)
    wanted = -0.6 * numpy_similarity(taps[1][1:2].detach(), taps[3][1:2].detach()) / 3
    assert float(found.loss.detach()) == pytest.approx(wanted, abs=1e-6)
    found.loss.backward()
    assert [float(row.abs().max()) > 0 for row in taps[1].grad] == [False, True, False]
    parts = [
        LayerSync([(1, 3)], 0.6, t_range=(0.4, 0.6))({n: v[i : i + 1] for n, v in taps.items()}, t=t[i : i + 1]).loss
        for i in range(3)
    ]
    assert float(found.loss.detach()) == pytest.approx(float(sum(parts).detach()) / 3, abs=1e-7)


def test_alone_in_a_plain_loop() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))
    sync = LayerSync(pairs=[(1, 3)], weight=0.5, depth=4)
    optimizer = torch.optim.SGD(blocks.parameters(), lr=0.5)
    x = torch.randn(8, 6, 16)
    similarities = []
    for _ in range(60):
        outputs, state = {}, x
        for number, block in enumerate(blocks, start=1):
            outputs[number] = state = block(state)
        loss, similarity = sync({n: outputs[n] for n in sync.taps()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        similarities.append(float(similarity[(1, 3)]))
    assert similarities[-1] > similarities[0] + 0.1


def test_weight_0_trains_bit_identically_to_none(
    tiny: Callable[..., Any], tmp_path: Any, tensors_of: Any, identical: Any
) -> None:
    with pytest.warns(UserWarning, match="regularizer.weight is 0") as warned:
        zero = tiny("regularizer.weight=0")
    assert len(warned) == 1
    none = tiny("regularizer.name=none")
    runs = [layersync.train(recipe, tmp_path / name) for name, recipe in (("zero", zero), ("none", none))]
    for kind in ("model", "ema", "optimizer"):
        assert identical(*(tensors_of(run, kind) for run in runs)), kind
    other = layersync.train(tiny(), tmp_path / "other")
    assert not identical(tensors_of(runs[0]), tensors_of(other))


def test_both_similarities_are_logged_for_the_baseline_too(
    trained: Any, tiny: Callable[..., Any], tmp_path: Any
) -> None:
    baseline = layersync.train(tiny("regularizer.name=none", "train.steps=1"), tmp_path / "run")
    for run, pair in ((trained, "1-3"), (baseline, "1-2")):
        measured = [record for record in run.records() if "held_out_similarity" in record]
        assert [record["step"] for record in measured] == [0, run.recipe.train.steps]
        assert set(measured[-1]["held_out_similarity"][pair]) == {"cosine", "centred"}
        assert len(measured[-1]["held_out_loss_by_t"]) == 8
    logged = [record for record in trained.records() if "flow_loss" in record]
    assert all(-1 <= record["similarity"]["1-3"] <= 1 for record in logged)
    assert logged[0]["loss"] == pytest.approx(logged[0]["flow_loss"] + logged[0]["regularizer_loss"])


def test_a_vector_of_length_zero_does_no_harm() -> None:
    taps = features()
    taps[1][0, 0] = 0
    taps[1][2, 3] *= 1e-9
    taps[3][1, 2] = 0
    for similarity in ("cosine", "centred"):
        given = {n: value.clone().requires_grad_() for n, value in taps.items()}
        loss = LayerSync([(1, 3)], 0.3, similarity=similarity, stop_gradient=False)(given).loss  # type: ignore[arg-type]
        loss.backward()
        assert torch.isfinite(loss)
        for number in (1, 3):
            assert given[number].grad.norm() < 1, "the gradients of all other tokens would vanish in a clipped step"
        if similarity == "cosine":
            without = [given[number].grad[row] for number in (1, 3) for row in ((0, 0), (2, 3), (1, 2))]
            assert not any(gradient.any() for gradient in without)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"schedule": {"wamup": 3}}, "regularizer.schedule.wamup: unknown key; did you mean 'warmup'? there are: d"),
        ({"schedule": {"warmup": "a"}}, "regularizer.schedule.warmup: input should be a valid integer"),
        ({"schedule": {"decay": 3}}, "regularizer.schedule: decay needs stop"),
        ({"schedule": 3}, "regularizer.schedule: 3 is no mapping of delay, warmup, decay, stop"),
        ({"pairs": np.array([[2, 4]])}, "regularizer.pairs: array([[2, 4]]) is no list of [student, teacher] pairs"),
        ({"pairs": "Auto"}, "regularizer.pairs: 'Auto' is no list of [student, teacher] pairs of blocks, nor auto"),
        ({"t_range": (0.5,)}, "regularizer.t_range: (0.5,) is no range [from, to] within [0, 1]"),
        ({"t_range": None}, "regularizer.t_range: None is no range"),
        ({"weight": True}, "regularizer.weight: True is not a number"),
    ],
)
def test_attach_says_what_is_wrong_in_one_line(settings: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        layersync.attach(
            nn.ModuleList(nn.Linear(2, 2) for _ in range(6)), **{"pairs": [(2, 4)], "weight": 0.2, **settings}
        )
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
