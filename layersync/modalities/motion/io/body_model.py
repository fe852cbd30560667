"""SMPL, SMPL-H and SMPL-X body model files, read without running anything that is in them.

``smplx.create`` unpickles what it is given, and a pickle may run any code. Here ``.npz`` files are read without
pickle, and ``.pkl`` files by an unpickler that knows numpy arrays, scipy's sparse matrices and a stand-in for
chumpy's arrays, and refuses everything else. The arrays go to smplx's own skinning.

smplx is licensed for non-commercial scientific research only, and so are the body models (smpl.is.tue.mpg.de).
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layersync.core.archive import opened_npz
from layersync.core.errors import InputError
from layersync.modalities.motion.io.amass import BODY_JOINTS
from layersync.modalities.motion.sample import Motion
from layersync.modalities.motion.skeleton import NUM_JOINTS

_NEEDED = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")

FRAMES_AT_ONCE = 256
"""Of a body that is posed: half a megabyte each while it is."""
_MODELS = {24: ("SMPL", (22, 23)), 52: ("SMPL-H", (22, 37)), 55: ("SMPL-X", (25, 40))}
"""By its joints, what a model is called and which of them are its hands, left and right."""

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),  # Python 2's name of it, in the state of every chumpy array
    ("builtins", "set"),
    *(
        (module, f"{kind}_matrix")
        for kind in ("csc", "csr", "coo")
        for module in ("scipy.sparse", f"scipy.sparse.{kind}", f"scipy.sparse._{kind}")
    ),
}


_BAD_PICKLE = (
    pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, OSError,
    MemoryError, OverflowError,
)  # fmt: skip


class ChumpyArray:
    """Stand-in for ``chumpy.Ch``: keeps what was pickled and shows its value, ``x``, or a selection ``a[idxs]``."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        state = self.__dict__
        if "x" in state:
            return np.array(state["x"], dtype=dtype)
        if {"a", "idxs", "preferred_shape"} <= set(state):  # chumpy.reordering.Select
            chosen = np.asarray(state["a"]).ravel()[np.asarray(state["idxs"])]
            return np.array(chosen.reshape(state["preferred_shape"]), dtype=dtype)
        raise ValueError(f"a chumpy array of {', '.join(sorted(map(str, state))) or 'nothing'} is none that is known")


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
    try:
        return {key: _plain(content[key]) for key in _NEEDED}
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: no body model that can be read safely ({error})") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with opened_npz(path) as archive:
        # Published archives also hold their makers' own objects, which could only be unpickled: they are left alone.
        return {key: archive[key] for key in _NEEDED if key in archive}


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
    """SMPL, SMPL-H or SMPL-X from a file, for the joints and vertices of motions on a body of a given shape.

    Hands are flat and the face rests: motions say nothing about either. Raises :class:`InputError` for other files.
    """

    def __init__(self, path: Path, num_betas: int = 10) -> None:
        content = read_body_model(path)
        joints = content["kintree_table"].shape[1]
        if joints not in _MODELS:
            known = ", ".join(f"{name} ({count})" for count, (name, _) in _MODELS.items())
            raise InputError(f"{path}: a body of {joints} joints is none of {known}")
        self.name, self._hands = _MODELS[joints]
        self.num_betas = min(num_betas, _shapes(content["shapedirs"].shape[-1], self.name))
        self._v_template = _tensor(content["v_template"])
        self._shapedirs = _tensor(content["shapedirs"])[..., : self.num_betas]
        self._posedirs = _tensor(content["posedirs"]).flatten(0, 1).T
        self._J_regressor, self._weights = _tensor(content["J_regressor"]), _tensor(content["weights"])
        self._parents = torch.from_numpy(content["kintree_table"][0].astype(np.int64))
        self._parents[0] = -1

    def rest(self, betas: np.ndarray | None = None) -> np.ndarray:
        """(24, 3) joints of a body of this shape in T-pose, in metres. Hands with fingers end at the knuckles."""
        from smplx.lbs import blend_shapes, vertices2joints

        vertices = self._v_template + blend_shapes(self._betas(betas), self._shapedirs)
        return self._body(vertices2joints(self._J_regressor, vertices))[0].numpy()

    def joints(self, motion: Motion, betas: np.ndarray | None = None) -> np.ndarray:
        """Joint positions (frames, 24, 3) in metres of ``motion`` on a body of shape ``betas`` (num_betas,)."""
        return self._body(self._posed(motion, betas, skin=False)).numpy()

    def vertices(self, motion: Motion, betas: np.ndarray | None = None) -> np.ndarray:
        """Vertices (frames, 6890 or SMPL-X's 10475, 3) in metres."""
        return self._posed(motion, betas, skin=True).numpy()

    def _betas(self, betas: np.ndarray | None) -> Tensor:
        values = torch.zeros(1, self.num_betas)
        if betas is not None:
            given = torch.as_tensor(np.asarray(betas), dtype=torch.float32)[: self.num_betas]
            values[0, : len(given)] = given
        return values

    @torch.no_grad()
    def _posed(self, motion: Motion, betas: np.ndarray | None, *, skin: bool) -> Tensor:
        """Vertices of the whole model, or its joints."""
        from smplx.lbs import lbs

        given = NUM_JOINTS if self.name == "SMPL" else BODY_JOINTS
        parts: list[Tensor] = []
        for rotations in torch.from_numpy(motion.rotations[:, :given]).split(FRAMES_AT_ONCE):
            pose = torch.eye(3).repeat(len(rotations), len(self._parents), 1, 1)
            pose[:, :given] = rotations
            vertices, joints = lbs(
                self._betas(betas).expand(len(rotations), -1), pose, self._v_template, self._shapedirs, self._posedirs,
                self._J_regressor, self._parents, self._weights, pose2rot=False,
            )  # fmt: skip
            parts.append(vertices if skin else joints)
        # The model's origin is moved so that the pelvis comes to where the motion says that it is.
        return torch.cat(parts) + torch.from_numpy(motion.translation - self.rest(betas)[:1])[:, None]

    def _body(self, joints: Tensor) -> Tensor:
        """SMPL's 24 of a model's joints; the first left and right finger joint stand for hands with fingers."""
        return joints[:, [*range(BODY_JOINTS), *self._hands]]


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _shapes(columns: int, name: str) -> int:
    """How many of ``shapedirs``' columns are shapes; SMPL-X's others, 100 of 400 or 10 of 20, are expressions."""
    if name != "SMPL-X":
        return columns
    return 300 if columns >= 400 else min(columns, 10)
