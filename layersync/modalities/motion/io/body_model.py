"""SMPL and SMPL-H body model files, read without running anything that is in them.

``smplx.create`` unpickles what it is given, and a pickle may run any code. Here ``.npz`` files are read without
pickle, and ``.pkl`` files by an unpickler that knows numpy arrays, scipy's sparse matrices and a stand-in for
chumpy's arrays, and refuses everything else. The arrays go to smplx's own model classes.

smplx is licensed for non-commercial scientific research only, and so are the body models (smpl.is.tue.mpg.de).
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layersync.core.errors import InputError
from layersync.modalities.motion.io.npz import opened_npz
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import NUM_JOINTS

_NEEDED = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
_HANDS = ("hands_componentsl", "hands_componentsr", "hands_meanl", "hands_meanr")

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    *(
        (module, f"{kind}_matrix")
        for kind in ("csc", "csr", "coo")
        for module in ("scipy.sparse", f"scipy.sparse.{kind}", f"scipy.sparse._{kind}")
    ),
}


_BAD_PICKLE = (
    pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError,
)  # fmt: skip


class ChumpyArray:
    """Stand-in for ``chumpy.Ch``: keeps what was pickled and shows its value, ``x``."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.__dict__["x"], dtype=dtype)


class _ModelUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "chumpy":
            return ChumpyArray
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no body model needs")
        return super().find_class(module, name)


def read_body_model(path: Path) -> dict[str, Any]:
    """The arrays of a body model file, ``.npz`` or ``.pkl``.

    Raises :class:`InputError`, naming the file, for a file of another kind or a pickle that asks for more than arrays.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such body model file")
    content = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    if not isinstance(content, dict) or (missing := [key for key in _NEEDED if key not in content]):
        raise InputError(
            f"{path}: no body model: it lacks {', '.join(missing) if isinstance(content, dict) else 'all'}"
        )
    return {key: _plain(value) for key, value in content.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with opened_npz(path) as archive:
        # Published archives also hold their makers' own objects, which could only be unpickled: they are left alone.
        return {key: archive[key] for key in (*_NEEDED, *_HANDS) if key in archive}


def _read_pickle(path: Path) -> Any:
    try:
        # Published files were pickled by Python 2: latin1 is the encoding that keeps the bytes of their arrays.
        return _ModelUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except _BAD_PICKLE as error:
        raise InputError(f"{path}: no body model that can be read safely ({error})") from error


def _plain(value: Any) -> Any:
    """Sparse matrices and chumpy arrays as numpy arrays."""
    if hasattr(value, "toarray"):
        return value.toarray()
    return np.array(value) if isinstance(value, ChumpyArray) else value


class BodyModel:
    """SMPL or SMPL-H from a file, for the joints and vertices of motions on a body of a given shape."""

    def __init__(self, path: Path, num_betas: int = 10) -> None:
        from smplx import SMPLHLayer, SMPLLayer
        from smplx.utils import Struct

        content = read_body_model(path)
        self.num_betas = min(num_betas, content["shapedirs"].shape[-1])
        joints = content["kintree_table"].shape[1]
        if joints not in (24, 52):
            raise InputError(f"{path}: a body of {joints} joints is neither SMPL (24) nor SMPL-H (52)")
        if joints == 52 and (missing := [key for key in _HANDS if key not in content]):
            raise InputError(f"{path}: no SMPL-H body: it lacks {', '.join(missing)}")
        self.hands = joints == 52
        layer = SMPLHLayer if self.hands else SMPLLayer
        with contextlib.redirect_stdout(sys.stderr):  # smplx prints advice, and stdout is for results
            self.layer: nn.Module = layer(str(path), data_struct=Struct(**content), num_betas=self.num_betas)

    def rest(self, betas: np.ndarray | None = None) -> np.ndarray:
        """(24, 3) joints of a body of this shape in T-pose, in metres. SMPL-H's hands end at the knuckles."""
        from smplx.lbs import blend_shapes, vertices2joints

        shape = self._betas(betas)
        vertices = self.layer.v_template + blend_shapes(shape, self.layer.shapedirs)
        joints = vertices2joints(self.layer.J_regressor, vertices)[0]
        return self._body(joints[None])[0].numpy()

    def joints(self, motion: Motion, betas: np.ndarray | None = None) -> np.ndarray:
        """Joint positions (frames, 24, 3) in metres of ``motion`` on a body of shape ``betas`` (num_betas,)."""
        return self._body(self._forward(motion, betas).joints).numpy()

    def vertices(self, motion: Motion, betas: np.ndarray | None = None) -> np.ndarray:
        """Vertices (frames, 6890, 3) in metres."""
        return self._forward(motion, betas).vertices.numpy()

    def _betas(self, betas: np.ndarray | None) -> Tensor:
        values = torch.zeros(1, self.num_betas)
        if betas is not None:
            given = torch.as_tensor(np.asarray(betas), dtype=torch.float32)[: self.num_betas]
            values[0, : len(given)] = given
        return values

    @torch.no_grad()
    def _forward(self, motion: Motion, betas: np.ndarray | None) -> Any:
        frames = len(motion)
        rotations = torch.from_numpy(motion.rotations)
        # smplx moves the model's origin; a motion says where the pelvis is.
        pose: dict[str, Tensor] = {
            "betas": self._betas(betas).expand(frames, -1),
            "global_orient": rotations[:, :1],
            "transl": torch.from_numpy(motion.translation - self.rest(betas)[:1]),
        }
        if self.hands:
            fingers = torch.eye(3).expand(frames, 15, 3, 3)
            pose |= {"body_pose": rotations[:, 1:22], "left_hand_pose": fingers, "right_hand_pose": fingers}
        else:
            pose["body_pose"] = rotations[:, 1:]
        return self.layer(**pose)

    def _body(self, joints: Tensor) -> Tensor:
        """SMPL's 24 of a model's joints; SMPL-H's first left and right finger joint stand for the hands."""
        if not self.hands:
            return joints[:, :NUM_JOINTS]
        return torch.cat([joints[:, :22], joints[:, 22:23], joints[:, 37:38]], dim=1)
