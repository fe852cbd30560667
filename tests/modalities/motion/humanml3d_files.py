"""Small data sets in the layout of HumanML3D and KIT-ML, and a small CLIP text model in transformers' files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from layersync.modalities.motion import joints_to_humanml3d
from layersync.modalities.motion.sample import Motion

TEXTS = {
    "walk": "a person walks forward#a/DET person/NOUN walk/VERB forward/ADV#0.0#0.0",
    "again": "someone is walking#someone/PRON is/AUX walk/VERB#nan#nan",
    "part": "a man raises his arm#a/DET man/NOUN raise/VERB his/DET arm/NOUN#0.5#3.0",
    "short": "he stops#he/PRON stop/VERB#0.5#1.0",
}


def write_folder(
    root: Path,
    motions: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[str]],
    lists: Mapping[str, Sequence[str]],
) -> Path:
    """``new_joint_vecs``, ``texts`` and lists, as published; statistics of all motions."""
    (root / "new_joint_vecs").mkdir(parents=True)
    (root / "texts").mkdir()
    for name, values in motions.items():
        np.save(root / "new_joint_vecs" / f"{name}.npy", values)
    for name, lines in texts.items():
        (root / "texts" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for name, names in lists.items():
        (root / f"{name}.txt").write_text("\n".join(names) + "\n")
    rows = np.concatenate([values[np.isfinite(values).all(1)] for values in motions.values()])
    deviation = np.maximum(rows.std(0), 1e-3)
    deviation[-4:] = 0.4
    np.save(root / "Mean.npy", rows.mean(0).astype(np.float32))
    np.save(root / "Std.npy", deviation.astype(np.float32))
    return root


def write_humanml3d(root: Path, make_motion: Callable[..., Motion], count: int = 6) -> Path:
    """``count`` motions of 45 to 70 frames for training, half as many to test with."""
    motions, lists = {}, {"train": [], "val": [], "test": []}
    for number in range(count + count // 2):
        name = f"{number:06d}"
        motion = make_motion(frames=46 + 5 * (number % 6), seed=number, fps=20.0)
        motions[name] = joints_to_humanml3d(motion.joints(), 20.0)
        lists["train" if number < count else "test"].append(name)
    texts = dict.fromkeys(motions, (TEXTS["walk"], TEXTS["again"]))
    return write_folder(root, motions, texts, lists)


def write_clip(folder: Path, width: int = 24) -> Path:
    """A CLIP text model with random weights and a vocabulary of letters, projecting to ``width`` numbers."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder
