"""The folder of a text-motion evaluator: the published layout and file formats with weights made up here."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[2] / "golden"
GRU = {"weight_ih": 1, "weight_hh": 1, "bias_ih": 0, "bias_hh": 0}


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def sequence(channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in text-to-motion's ``TextEncoderBiGRUCo`` and ``MotionEncoderBiGRUCo`` (networks.modules)."""
    shapes = {"hidden": (2, 1, hidden)} | layer("input_emb", hidden, channels)
    for direction in ("", "_reverse"):
        shapes |= {f"gru.{part}_l0{direction}": (3 * hidden, hidden)[: 1 + matrix] for part, matrix in GRU.items()}
    return (
        shapes
        | layer("output_net.0", hidden, 2 * hidden)
        | layer("output_net.1", hidden)
        | layer("output_net.3", 512, hidden)
    )


LAYOUT = {
    "movement_encoder": layer("main.0", 512, 259, 4) | layer("main.3", 512, 512, 4) | layer("out_net", 512, 512),
    "motion_encoder": sequence(512, 1024),
    "text_encoder": sequence(300, 512) | layer("pos_emb", 300, 15),
}

WORDS = ("sos", "eos", "unk", "a", "person", "walk", "forward", "slowly", "left", "hand", "and", "wave", "then", "the")


def evaluator_weights() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of the size that networks have, the same everywhere: NumPy's generators do not change."""
    random = np.random.default_rng(20)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for part, shapes in LAYOUT.items():
        weights[part] = {
            name: torch.from_numpy(random.normal(0, 1.5 / np.sqrt(np.prod(shape[1:]) or 1), shape).astype(np.float32))
            if len(shape) > 1
            else torch.from_numpy(random.normal(1.0 if name == "output_net.1.weight" else 0, 0.1, shape).astype("f4"))
            for name, shape in shapes.items()
        }
    return weights


def model_statistics() -> tuple[np.ndarray, np.ndarray]:
    """A mean and deviation (263,) as HumanML3D's ``Mean.npy`` and ``Std.npy`` are: of a body, one deviation a group."""
    std = np.repeat([0.013, 0.017, 0.15, 0.12, 0.3, 0.019, 0.36], [1, 2, 1, 63, 126, 66, 4])
    with np.load(GOLDEN / "motion_humanml3d.npz", allow_pickle=False) as stored:
        mean = stored["features"].astype(np.float64).mean(0) + np.random.default_rng(21).normal(0, 0.2, 263) * std
    return mean.astype(np.float32), std.astype(np.float32)


def evaluator_statistics() -> tuple[np.ndarray, np.ndarray]:
    """The evaluator's own, which are 25 times smaller in root and contacts, as published ones are."""
    mean, std = (values.astype(np.float64) for values in model_statistics())
    std[[0, 1, 2, 3, 259, 260, 261, 262]] /= 25
    return mean + np.random.default_rng(22).normal(0, 0.003, 263) * std, std * 0.997


def vectors() -> np.ndarray:
    return np.random.default_rng(23).normal(0, 0.4, (len(WORDS), 300)).astype(np.float32)


def write_evaluator(folder: Path, *, legacy: bool = False) -> Path:
    """The files that a user gives, as text-to-motion and MDM name them; ``legacy``: as torch before 1.6 saved them."""
    path = folder / "text_mot_match" / "model" / "finest.tar"
    path.parent.mkdir(parents=True)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    content = {**evaluator_weights(), "opt_text_encoder": optimizer, "epoch": 23, "iter": 9}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    mean, std = evaluator_statistics()
    np.save(folder / "t2m_mean.npy", mean)
    np.save(folder / "t2m_std.npy", std)
    write_words(folder)
    return folder


def write_words(folder: Path) -> None:
    np.save(folder / "our_vab_data.npy", vectors())
    (folder / "our_vab_words.pkl").write_bytes(pickle.dumps(list(WORDS), protocol=3))
    (folder / "our_vab_idx.pkl").write_bytes(pickle.dumps({word: row for row, word in enumerate(WORDS)}, protocol=3))
