"""MDM's encoder against the published class.

Golden numbers: ``tests/golden/motion_mdm.npz``, made by running class ``MDM`` (``model/mdm.py``, ``trans_enc``) of
github.com/GuyTevet/motion-diffusion-model, commit d4fd88c, with weights drawn by name as below and CLIP's embedding of
the text given (``text_embed``); every fourth feature of the output. The class has 17,880,327 parameters without CLIP
for HumanML3D and 17,868,027 for KIT-ML.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluator_files import GOLDEN
from torch import Tensor, nn

from layersync import load_recipe
from layersync.core.adapter import ConditionSpec, LatentSpec
from layersync.core.errors import InputError
from layersync.core.interpolant import step_time
from layersync.modalities.motion.mdm import MDM, MdmConfig, read_mdm_checkpoint

LATENT = LatentSpec(263, (7,), sequence=True, variable=True)
TEXT = ConditionSpec(0, 512)


def small(**changes: object) -> MDM:
    settings = {"hidden_size": 64, "mlp_ratio": 1.5, "depth": 3} | changes
    return MdmConfig.model_validate(settings).build(LATENT, TEXT)


def weights_by_name(network: nn.Module) -> dict[str, Tensor]:
    drawn = {}
    for name, parameter in network.named_parameters():
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        values = np.random.Generator(np.random.Philox(key)).standard_normal(tuple(parameter.shape)) * 0.1
        drawn[name] = torch.from_numpy(values.astype(np.float32) + ("norm" in name and name.endswith("weight")))
    return drawn


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "motion_mdm.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    source = np.random.Generator(np.random.Philox(11))
    x = torch.from_numpy(source.standard_normal((3, 7, 263)).astype(np.float32))
    text = torch.from_numpy(source.standard_normal((3, 512)).astype(np.float32))[:, None]
    condition = {"text": text, "text_mask": torch.ones(3, 1, dtype=torch.bool)}
    mask = torch.arange(7)[None] < torch.tensor([7, 4, 6])[:, None]
    return x, step_time(torch.tensor([0, 17, 999]), 1000), condition, mask


@pytest.mark.parametrize("mask_frames", [False, True])
def test_predictions_are_those_of_the_published_class(golden, mask_frames):
    network = small(mask_frames=mask_frames).eval()
    network.load_state_dict(weights_by_name(network))
    x, t, condition, mask = inputs()
    none = condition | {"text_mask": torch.zeros(3, 1, dtype=torch.bool)}
    for training in (False, True):  # PyTorch's layers have a fast path of their own where no gradient is wanted
        with torch.set_grad_enabled(training):
            found = network(x, t, condition, taps=(2,), mask=mask)
            free = network(x, t, none, mask=mask)
        np.testing.assert_allclose(found.prediction.detach()[..., ::4], golden[f"cond_{int(mask_frames)}"], atol=1e-5)
        np.testing.assert_allclose(free.prediction.detach()[..., ::4], golden[f"uncond_{int(mask_frames)}"], atol=1e-5)
        np.testing.assert_allclose(found.features[2].detach(), golden[f"layer2_{int(mask_frames)}"], atol=1e-5)
        assert torch.equal(found.token_mask, mask)


@pytest.mark.parametrize(("channels", "parameters"), [(263, 17_880_327), (251, 17_868_027)])
def test_the_default_size_is_the_published_one(channels, parameters):
    with torch.device("meta"):
        network = MdmConfig().build(LatentSpec(channels, (196,), sequence=True, variable=True), TEXT)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.depth == 8


def test_layers_start_as_copies_of_one_as_published():
    layers = small().seqTransEncoder.layers
    assert torch.equal(layers[0].linear1.weight, layers[2].linear1.weight)
    assert layers[0].linear1.weight is not layers[2].linear1.weight


def test_masked_frames_reach_no_real_one_and_do_where_published():
    x, t, condition, mask = inputs()
    other = torch.where(mask[..., None], x, x + 1)
    for hide, same in ((True, True), (False, False)):
        network = small(mask_frames=hide).eval()
        first, second = (network(v, t, condition, mask=mask).prediction[mask] for v in (x, other))
        assert torch.allclose(first, second, atol=1e-5) == same


def test_labels_condition_it_and_none_is_zero():
    network = MdmConfig(hidden_size=32, depth=2).build(LATENT, ConditionSpec(5, 0)).eval()
    x, t, _, mask = inputs()
    one, two, none = (network(x, t, {"label": torch.full((3,), label)}, mask=mask).prediction for label in (1, 2, 5))
    assert not torch.allclose(one, two)
    with torch.no_grad():
        network.embed_action.action_embedding.zero_()
    torch.testing.assert_close(network(x, t, {"label": torch.full((3,), 1)}, mask=mask).prediction, none)


def test_checkpointing_changes_no_gradient_and_text_tokens_are_averaged():
    x, t, condition, mask = inputs()
    network = small(dropout=0.0).train()
    gradients = []
    for chosen in (False, True):
        network.gradient_checkpointing = chosen
        network.zero_grad()
        network(x, t, condition, mask=mask).prediction.square().mean().backward()
        gradients.append(network.input_process.poseEmbedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    text = condition["text"]
    several = {
        "text": torch.cat([text + 1, text - 1, text * 9], 1),
        "text_mask": torch.tensor([[True, True, False]] * 3),
    }
    torch.testing.assert_close(network(x, t, several).prediction, network(x, t, condition).prediction)


def test_dropout_is_of_training_alone_and_in_tokens_and_layers():
    x, t, condition, mask = inputs()
    parts = ("sequence_pos_encoder", "seqTransEncoder")
    for dropout, training in ((0.3, ()), (0.3, parts[:1]), (0.3, parts[1:]), (0.0, parts)):
        network = small(dropout=dropout).eval()
        for part in training:
            network.get_submodule(part).train()
        first, second = (network(x, t, condition, mask=mask).prediction for _ in range(2))
        assert torch.allclose(first, second, atol=1e-6) == (dropout == 0 or not training), (dropout, training)


@pytest.mark.parametrize("layout", ["plain", "model", "model_avg"])
def test_published_checkpoints_load_by_name(tmp_path, layout):
    network = small()
    state = weights_by_name(network) | {
        "clip_model.visual.proj": torch.zeros(2),
        "sequence_pos_encoder.pe": torch.zeros(5000, 1, 64),
        "embed_timestep.sequence_pos_encoder.pe": torch.zeros(5000, 1, 64),
    }
    other = {name: value + 1 for name, value in state.items()}
    content = {"plain": state, "model": {"model": state}, "model_avg": {"model": other, "model_avg": state}}[layout]
    torch.save(content, tmp_path / "model000475000.pt")
    network.load_state_dict(read_mdm_checkpoint(tmp_path / "model000475000.pt"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_steps_are_counted_alike_by_network_and_path():
    fewer = ("objective.num_timesteps=50", "sample.steps=50")
    with pytest.raises(InputError, match=r"backbone.num_timesteps: 1000, but objective.num_timesteps is 50"):
        load_recipe("motion/humanml3d-mdm", fewer)
    assert load_recipe("motion/humanml3d-mdm", (*fewer, "backbone.num_timesteps=50")).sample.steps == 50
    x, _, condition, mask = inputs()
    network = small(num_timesteps=50).eval()
    near, same, other = (network(x, torch.full((3,), t), condition, mask=mask).prediction for t in (0.51, 0.505, 0.49))
    assert torch.equal(near, same) and not torch.allclose(near, other)  # of times between steps, the nearest


def test_other_files_and_sizes_are_refused_in_one_line(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    for name in ("other.pt", "cut.pt", "code.pt"):
        with pytest.raises(InputError, match=name):
            read_mdm_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match=r"hidden_size: 66 .* num_heads, 4"):
        small(hidden_size=66)
    with pytest.raises(InputError, match="latents of frames"):
        MdmConfig().build(LatentSpec(3, (8, 8)), TEXT)
    with pytest.raises(ValueError, match="1 to 3"):
        small()(*inputs()[:3], taps=(4,))
