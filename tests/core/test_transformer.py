"""The trunk: published names and shapes, published arithmetic, taps, padding, grids, text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersync import InputError
from layersync.core.transformer import DiffusionTransformer, sincos_positions
from layersync.modalities.image import SiT


def published_shapes(input_size: int, patch: int, channels: int, width: int, depth: int, classes: int) -> dict:
    """Names and shapes in the state dict of a published SiT checkpoint (learn_sigma, class dropout)."""
    tokens = (input_size // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
    }
    for n in range(depth):
        shapes |= {
            f"blocks.{n}.attn.qkv.weight": (3 * width, width),
            f"blocks.{n}.attn.qkv.bias": (3 * width,),
            f"blocks.{n}.attn.proj.weight": (width, width),
            f"blocks.{n}.attn.proj.bias": (width,),
            f"blocks.{n}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{n}.mlp.fc1.bias": (4 * width,),
            f"blocks.{n}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{n}.mlp.fc2.bias": (width,),
            f"blocks.{n}.adaLN_modulation.1.weight": (6 * width, width),
            f"blocks.{n}.adaLN_modulation.1.bias": (6 * width,),
        }
    return shapes | {
        "final_layer.linear.weight": (patch * patch * channels * 2, width),
        "final_layer.linear.bias": (patch * patch * channels * 2,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }


def shaken(model: nn.Module, std: float = 0.08, seed: int = 0) -> nn.Module:
    """Weights everywhere, also where they start at zero; the table of positions stays."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.mark.parametrize(("patch", "classes"), [(2, 1000), (4, 10)])
def test_names_and_shapes_are_the_published_ones(patch: int, classes: int) -> None:
    with torch.device("meta"):
        model = SiT(32, patch, 4, 384, 12, 6, num_classes=classes)
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == published_shapes(32, patch, 4, 384, 12, classes)


def test_without_class_dropout_there_is_no_row_for_none() -> None:
    with torch.device("meta"):
        model = SiT(32, 2, 4, 384, 1, 6, class_dropout_prob=0.0)
    assert model.state_dict()["y_embedder.embedding_table.weight"].shape == (1000, 384)


@pytest.mark.parametrize(
    ("depth", "width", "heads", "millions"),
    [(28, 1152, 16, 675), (24, 1024, 16, 458), (12, 768, 12, 130), (12, 384, 6, 33)],
)
def test_published_sizes(depth: int, width: int, heads: int, millions: int) -> None:
    with torch.device("meta"):
        model = SiT(depth=depth, hidden_size=width, num_heads=heads)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6) == millions
    assert not model.pos_embed.requires_grad


def by_the_paper(
    w: Mapping[str, Tensor], x: Tensor, t: Tensor, y: Tensor, *, heads: int, patch: int, eps: float = 1e-6
):
    """SiT, section 3 and DiT's appendix, written down once more on a bare state dict."""
    batch, channels, side, _ = x.shape
    width, cells = w["pos_embed"].shape[-1], side // patch
    patches = x.unfold(2, patch, patch).unfold(3, patch, patch)  # b c i j p q
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(batch, cells * cells, channels * patch * patch)
    h = patches @ w["x_embedder.proj.weight"].reshape(width, -1).T + w["x_embedder.proj.bias"] + w["pos_embed"]
    frequencies = torch.tensor([10000.0 ** (-k / 128) for k in range(128)])
    wave = torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], 1)
    c = F.linear(wave, w["t_embedder.mlp.0.weight"], w["t_embedder.mlp.0.bias"])
    c = F.linear(F.silu(c), w["t_embedder.mlp.2.weight"], w["t_embedder.mlp.2.bias"])
    c = c + w["y_embedder.embedding_table.weight"][y]

    def norm(z: Tensor) -> Tensor:
        return (z - z.mean(-1, keepdim=True)) / torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + eps)

    outputs = []
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for n in range(depth):
        b = {name.removeprefix(f"blocks.{n}."): v for name, v in w.items() if name.startswith(f"blocks.{n}.")}
        modulation = F.linear(F.silu(c), b["adaLN_modulation.1.weight"], b["adaLN_modulation.1.bias"])
        s1, g1, a1, s2, g2, a2 = (m[:, None] for m in modulation.split(width, dim=1))
        z = norm(h) * (1 + g1) + s1
        q, k, v = F.linear(z, b["attn.qkv.weight"], b["attn.qkv.bias"]).split(width, dim=-1)
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width // heads)
            mixed.append(torch.softmax(scores, -1) @ v[..., part])
        h = h + a1 * F.linear(torch.cat(mixed, -1), b["attn.proj.weight"], b["attn.proj.bias"])
        z = norm(h) * (1 + g2) + s2
        z = F.linear(z, b["mlp.fc1.weight"], b["mlp.fc1.bias"])
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        h = h + a2 * F.linear(z, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
        outputs.append(h)
    last = F.linear(F.silu(c), w["final_layer.adaLN_modulation.1.weight"], w["final_layer.adaLN_modulation.1.bias"])
    shift, scale = (m[:, None] for m in last.split(width, dim=1))
    values = F.linear(norm(h) * (1 + scale) + shift, w["final_layer.linear.weight"], w["final_layer.linear.bias"])
    out = torch.zeros(batch, values.shape[-1] // patch**2, side, side)
    for token in range(cells * cells):
        i, j = divmod(token, cells)
        cell = values[:, token].reshape(batch, patch, patch, -1).permute(0, 3, 1, 2)
        out[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = cell
    return out[:, :channels], outputs


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("patch", [2, 4])
def test_forward_is_the_papers(learn_sigma: bool, patch: int) -> None:
    model = shaken(SiT(8, patch, 3, 48, 3, 4, num_classes=10, learn_sigma=learn_sigma))
    x, t, y = torch.randn(5, 3, 8, 8), torch.rand(5), torch.tensor([0, 3, 9, 10, 10])
    with torch.no_grad():
        found = model(x, t, {"label": y}, taps=(1, 2, 3))
        wanted, outputs = by_the_paper(model.state_dict(), x, t, y, heads=4, patch=patch)
    assert found.prediction.shape == x.shape
    assert float(wanted.std()) > 0.05
    assert torch.allclose(found.prediction, wanted, atol=1e-5)
    for number, output in enumerate(outputs, start=1):
        assert torch.allclose(found.features[number], output, atol=1e-5)


def test_learn_sigma_drops_the_second_half() -> None:
    model = shaken(SiT(8, 2, 3, 48, 2, 4, num_classes=10, learn_sigma=True))
    inputs = torch.randn(2, 3, 8, 8), torch.rand(2), {"label": torch.tensor([1, 2])}
    with torch.no_grad():
        before = model(*inputs).prediction
        rows = model.final_layer.linear.bias.reshape(2, 2, 6)
        rows[..., 3:] += 7.0
        assert torch.equal(model(*inputs).prediction, before)
        rows[..., :3] += 7.0
        assert torch.allclose(model(*inputs).prediction, before + 7, atol=1e-5)


def test_blocks_are_the_identity_and_the_output_zero_at_the_start() -> None:
    torch.manual_seed(0)
    model = SiT(8, 2, 1, 32, 4, 4, num_classes=10)
    out = model(torch.randn(2, 1, 8, 8), torch.rand(2), {"label": torch.tensor([1, 2])}, taps=(1, 4))
    assert torch.equal(out.features[1], out.features[4])
    assert float(out.prediction.detach().abs().max()) == 0


class TestPositions:
    def test_unit_pairs_and_distinct_cells(self) -> None:
        table = sincos_positions(64, (5, 7))
        sine_and_cosine = table.reshape(35, 2, 2, 16)
        assert torch.allclose((sine_and_cosine**2).sum(2), torch.ones(35, 2, 16), atol=1e-6)
        assert len(torch.unique(table, dim=0)) == 35

    def test_inner_product_depends_on_the_offset_alone(self) -> None:
        table = sincos_positions(64, (6, 6)).reshape(6, 6, 64)
        assert float(table[1, 2] @ table[3, 5]) == pytest.approx(float(table[2, 0] @ table[4, 3]), abs=1e-5)
        assert float(table[1, 2] @ table[3, 5]) != pytest.approx(float(table[1, 2] @ table[2, 5]), abs=1e-3)

    def test_two_axes_by_hand_as_published(self) -> None:
        table = sincos_positions(8, (2, 3)).reshape(2, 3, 8)
        row, column = 1, 2
        half = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100)]
        other = [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
        assert table[row, column].tolist() == pytest.approx(half + other, abs=1e-6)

    @pytest.mark.parametrize("grid", [(9,), (2, 3), (2, 3, 4)])
    def test_widths_that_do_not_divide_are_filled_with_zeros(self, grid: tuple[int, ...]) -> None:
        table = sincos_positions(50, grid)
        used = 2 * len(grid) * (50 // (2 * len(grid)))
        assert table.shape == (math.prod(grid), 50)
        assert float(table[:, used:].abs().sum()) == 0


def small(**changes: object) -> DiffusionTransformer:
    settings = {"grid": (8, 8), "patch_size": 2, "in_channels": 2, "hidden_size": 48, "depth": 3, "num_heads": 4}
    return shaken(DiffusionTransformer(**{**settings, **changes}))  # type: ignore[arg-type, return-value]


def test_taps_are_what_hooks_see_and_nothing_is_kept_unasked() -> None:
    model = small()
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda m, i, out, number=number: seen.__setitem__(number, out))
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    out = model(x, t, {}, taps=(1, 3))
    assert set(out.features) == {1, 3}
    assert all(torch.equal(out.features[n], seen[n]) for n in (1, 3))
    without = model(x, t, {})
    assert without.features == {}
    assert torch.equal(without.prediction, out.prediction)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            model(x, t, {}, taps=(wrong,))


@pytest.mark.parametrize(
    ("grid", "patch"), [((12,), 3), ((6, 8), (3, 2)), ((80, 4), (16, 1)), ((4, 6, 8), (2, 3, 4)), ((8, 4), 2)]
)
def test_grids_of_any_dimension_and_shape(grid: tuple[int, ...], patch: int | tuple[int, ...]) -> None:
    model = small(grid=grid, patch_size=patch)
    sizes = (patch,) * len(grid) if isinstance(patch, int) else patch
    x = torch.randn(2, 2, *grid)
    out = model(x, torch.rand(2), {}, taps=(1,))
    tokens = math.prod(g // p for g, p in zip(grid, sizes, strict=True))
    assert out.prediction.shape == x.shape
    assert out.features[1].shape == (2, tokens, 48)
    # patches go back to where they came from: with all blocks idle, one cell's change stays in its patch
    with torch.no_grad():
        for block in model.blocks:
            block.adaLN_modulation[1].weight.zero_()
            block.adaLN_modulation[1].bias.zero_()
        t = torch.rand(2)
        moved = x.clone()
        corner = tuple(size - 1 for size in grid)
        moved[(slice(None), slice(None), *corner)] += 1.0
        changed = (model(moved, t, {}).prediction - model(x, t, {}).prediction).abs().sum((0, 1)) > 1e-7
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[tuple(slice(g - p, g) for g, p in zip(grid, sizes, strict=True))] = True
    assert torch.equal(changed, inside)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 3}, r"patch_size: \[3, 3\] does not divide the latents' grid \[8, 8\]"),
        ({"patch_size": (2,)}, "has 1 axes"),
        ({"num_heads": 5}, "48 is not a multiple of num_heads, 5"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**changes)


class TestPadding:
    @pytest.fixture(
        params=[((12,), 2, True), ((4, 12), (2, 3), False), ((2, 4, 12), (1, 2, 3), False)],
        ids=["sequence", "spectrogram", "video"],
    )
    def case(self, request: pytest.FixtureRequest) -> tuple[DiffusionTransformer, Tensor, Tensor, int]:
        grid, patch, sequence = request.param
        model = small(grid=grid, patch_size=patch, sequence=sequence)
        x = torch.randn(3, 12, 2) if sequence else torch.randn(3, 2, *grid)
        mask = torch.arange(12)[None] < torch.tensor([12, 7, 3])[:, None]
        return model, x, mask, 1 if sequence else x.ndim - 1

    def test_contents_of_padding_change_nothing(self, case: tuple) -> None:
        model, x, mask, axis = case
        t = torch.rand(3)
        real = mask[:, :, None] if axis == 1 else mask.reshape(3, *[1] * (x.ndim - 2), 12)
        real = real.expand_as(x)
        found = [model(torch.where(real, x, f), t, {}, taps=(1, 3), mask=mask) for f in (0.0, 1e3, -7.0)]
        for other in found[1:]:
            assert torch.equal(other.prediction, found[0].prediction)
            assert torch.equal(other.features[3], found[0].features[3])
        assert float((model(x, t, {}).prediction - found[0].prediction)[1].abs().max()) > 1e-3

    def test_tokens_of_padding_are_seen_by_nobody(self, case: tuple) -> None:
        """Whatever the padding's tokens hold (here: other positions), real tokens stay as they are."""
        model, x, mask, _axis = case
        t = torch.rand(3)
        whole = model(x, t, {}, taps=(3,), mask=mask)
        tokens = whole.token_mask
        with torch.no_grad():
            padding = ~tokens[1][None, :, None]  # positions of the second sample's padding
            model.pos_embed += 3 * torch.randn(model.pos_embed.shape) * padding
            other = model(x, t, {}, taps=(3,), mask=mask)
        assert torch.allclose(other.features[3][1][tokens[1]], whole.features[3][1][tokens[1]], atol=1e-5)
        assert not torch.allclose(other.features[3][0], whole.features[3][0], atol=1e-3)

    def test_batch_partners_change_nothing(self, case: tuple) -> None:
        model, x, mask, axis = case
        t = torch.rand(3)
        together = model(x, t, {}, mask=mask).prediction
        for row in range(3):
            alone = model(x[row : row + 1], t[row : row + 1], {}, mask=mask[row : row + 1]).prediction
            frames = mask[row]
            select = (lambda z, f=frames: z[:, f]) if axis == 1 else (lambda z, f=frames: z[..., f])
            assert torch.allclose(select(alone), select(together[row : row + 1]), atol=1e-5)

    def test_a_token_is_real_if_any_of_its_frames_is(self, case: tuple) -> None:
        model, x, mask, _axis = case
        found = model(x, torch.rand(3), {}, mask=mask).token_mask
        patch, across = model.patch_size[-1], math.prod(model.token_grid[:-1])
        for row, length in enumerate((12, 7, 3)):
            along = [first < length for first in range(0, 12, patch)]
            assert found[row].tolist() == along * across


def test_qk_norm_changes_something_and_bounds_the_logits() -> None:
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    plain, normed = small(), small(qk_norm=True)
    missing = normed.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[-2] for name in missing.missing_keys} == {"q_norm", "k_norm"}
    for block in normed.blocks:
        nn.init.ones_(block.attn.q_norm.weight)
        nn.init.ones_(block.attn.k_norm.weight)
    before = normed(x, t, {}).prediction
    assert not torch.allclose(before, plain(x, t, {}).prediction, atol=1e-4)
    with torch.no_grad():
        for block in normed.blocks:
            block.attn.qkv.weight[:96] *= 3.0
            block.attn.qkv.bias[:96] *= 3.0
    assert torch.allclose(normed(x, t, {}).prediction, before, atol=1e-4)


class TestText:
    def inputs(self, mask: list[list[int]], seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        random = torch.Generator().manual_seed(seed)
        x, t = torch.randn(2, 2, 8, 8, generator=random), torch.rand(2, generator=random)
        text = torch.randn(2, 3, 5, generator=random)
        return x, t, {"text": text, "text_mask": torch.tensor(mask, dtype=torch.bool)}

    def test_text_changes_the_prediction_by_both_ways(self) -> None:
        model = small(text_channels=5)
        x, t, condition = self.inputs([[1, 1, 1], [1, 1, 0]])
        before = model(x, t, condition).prediction
        other = {**condition, "text": condition["text"] + torch.tensor([1.0, 0, 0])[None, :, None]}
        assert not torch.allclose(model(x, t, other).prediction, before, atol=1e-4)
        # same pooled vector, other tokens: cross-attention sees what the mean does not
        swing = torch.tensor([[1.0, -1.0, 0.0]])[..., None] * torch.randn(2, 1, 5)
        swung = {**condition, "text": condition["text"] + swing}
        assert not torch.allclose(model(x, t, swung).prediction, before, atol=1e-5)
        # no cross-attention: the pooled vector alone
        for block in model.blocks:
            nn.init.zeros_(block.cross_attn.proj.weight)
        assert torch.allclose(model(x, t, swung).prediction, model(x, t, condition).prediction, atol=1e-5)
        assert not torch.allclose(model(x, t, other).prediction, model(x, t, condition).prediction, atol=1e-4)

    def test_masked_text_tokens_change_nothing(self) -> None:
        model = small(text_channels=5)
        x, t, condition = self.inputs([[1, 1, 0], [1, 0, 0]])
        hidden = torch.where(condition["text_mask"][..., None], condition["text"], torch.tensor(99.0))
        assert torch.equal(model(x, t, {**condition, "text": hidden}).prediction, model(x, t, condition).prediction)

    def test_no_text_is_none_whatever_the_tokens(self) -> None:
        model = small(text_channels=5)
        x, t, condition = self.inputs([[0, 0, 0], [0, 0, 0]])
        none = model(x, t, condition).prediction
        assert torch.isfinite(none).all()
        assert torch.equal(model(x, t, {**condition, "text": -condition["text"]}).prediction, none)
        real = {**condition, "text_mask": torch.ones(2, 3, dtype=torch.bool)}
        assert not torch.allclose(model(x, t, real).prediction, none, atol=1e-4)

    def test_taps_hold_latent_tokens_only(self) -> None:
        x, t, condition = self.inputs([[1, 1, 0], [1, 0, 0]])
        assert small(text_channels=5)(x, t, condition, taps=(2,)).features[2].shape == (2, 16, 48)

    def test_cross_attention_starts_at_zero(self) -> None:
        model = DiffusionTransformer((8, 8), 2, 2, 48, 1, 4, text_channels=5)
        assert float(model.blocks[0].cross_attn.proj.weight.abs().sum()) == 0


def test_dropout_acts_in_training_only() -> None:
    model = small(dropout=0.5)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    assert torch.equal(model(x, t, {}).prediction, model(x, t, {}).prediction)
    model.train()
    assert not torch.equal(model(x, t, {}).prediction, model(x, t, {}).prediction)
