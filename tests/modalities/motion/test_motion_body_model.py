"""SMPL files in their own format: 6890 vertices, generated here because the real ones may not be passed on."""

from __future__ import annotations

import collections
import os
import pickle
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from layersync.core.errors import InputError
from layersync.modalities.motion.io import body_model
from layersync.modalities.motion.io.body_model import BodyModel, read_body_model
from layersync.modalities.motion.skeleton import PARENTS, REST

VERTICES = 6890


@pytest.fixture(scope="module")
def smpl() -> dict[str, np.ndarray]:
    """A body whose joints are those of the generic skeleton, off the origin as SMPL's are."""
    random = np.random.default_rng(0)
    regressor = np.zeros((24, VERTICES))
    template = random.normal(0, 0.3, (VERTICES, 3))
    weights = np.zeros((VERTICES, 24))
    for joint in range(24):
        regressor[joint, joint * 2 : joint * 2 + 2] = 0.5
        template[joint * 2] = REST[joint] + [0.05, -0.22, 0.03]
        template[joint * 2 + 1] = REST[joint] + [-0.05, -0.22, 0.03]
    weights[np.arange(VERTICES), random.integers(0, 24, VERTICES)] = 1
    parents = np.array(PARENTS, dtype=np.int64)
    parents[0] = 2**32 - 1
    return {
        "v_template": template,
        "shapedirs": random.normal(0, 0.01, (VERTICES, 3, 10)),
        "posedirs": np.zeros((VERTICES, 3, 207)),
        "J_regressor": regressor,
        "kintree_table": np.stack([parents, np.arange(24)]),
        "weights": weights,
        "f": random.integers(0, VERTICES, (100, 3)).astype(np.uint32),
    }


@pytest.fixture
def npz(smpl, tmp_path):
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **smpl, bs_type=np.array([{"a": "maker's object"}], dtype=object))
    return tmp_path / "SMPL_NEUTRAL.npz"


def test_joints_of_a_mean_body_are_those_of_its_regressor(npz, make_motion):
    motion = make_motion(frames=6)
    body = BodyModel(npz)
    np.testing.assert_allclose(body.rest(), REST + np.array([0, -0.22, 0.03]), atol=1e-5)
    np.testing.assert_allclose(body.joints(motion), motion.joints(), atol=1e-4)
    assert body.vertices(motion).shape == (6, VERTICES, 3)


def test_a_long_motion_is_posed_in_parts(npz, make_motion, monkeypatch):
    motion, body = make_motion(frames=11), BodyModel(npz)
    whole = body.joints(motion), body.vertices(motion)
    monkeypatch.setattr(body_model, "FRAMES_AT_ONCE", 4)
    for found, wanted in zip((body.joints(motion), body.vertices(motion)), whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_betas_change_the_joints_as_the_blend_shapes_say(npz, smpl, make_motion):
    betas = np.array([1.5, -2.0, 0.3])
    body = BodyModel(npz)
    shaped = smpl["v_template"] + smpl["shapedirs"][..., :3] @ betas
    np.testing.assert_allclose(body.rest(betas), smpl["J_regressor"] @ shaped, atol=1e-5)
    motion = make_motion(frames=2)
    joints = body.joints(motion, betas)
    np.testing.assert_allclose(joints[:, 0], motion.translation, atol=1e-5)
    bone = np.linalg.norm(joints[:, 4] - joints[:, 1], axis=1)
    rest = smpl["J_regressor"] @ shaped
    np.testing.assert_allclose(bone, np.linalg.norm(rest[4] - rest[1]), atol=1e-5)


def test_smplh_files_have_hands_with_fingers(smpl, tmp_path, make_motion):
    parents = [
        *PARENTS[:22],
        *(20 if i % 3 == 0 else 21 + i for i in range(15)),
        *(21 if i % 3 == 0 else 36 + i for i in range(15)),
    ]
    regressor = np.zeros((52, VERTICES))
    regressor[:24] = smpl["J_regressor"]
    regressor[37] = smpl["J_regressor"][23]
    for joint in (*range(23, 37), *range(38, 52)):
        regressor[joint, joint + 100] = 1
    content = smpl | {
        "J_regressor": regressor,
        "kintree_table": np.stack([[2**32 - 1, *parents[1:]], np.arange(52)]),
        "weights": np.pad(smpl["weights"], ((0, 0), (0, 28))),
        "posedirs": np.zeros((VERTICES, 3, 459)),
    }
    np.savez(tmp_path / "SMPLH.npz", **content)
    motion = make_motion(frames=3)
    motion.rotations[:, 22:] = np.eye(3)
    body = BodyModel(tmp_path / "SMPLH.npz")
    assert body.name == "SMPL-H"
    np.testing.assert_allclose(body.joints(motion), motion.joints(), atol=1e-4)


def test_smplx_files_have_a_face_expressions_and_more_vertices(smpl, tmp_path, make_motion):
    """SMPL-X: jaw and eyes between wrists and hands, 10475 vertices, 300 shapes and 100 expressions."""
    more = 10475 - VERTICES
    parents = [
        *PARENTS[:22],
        *(15, 15, 15),
        *(20 if i % 3 == 0 else 24 + i for i in range(15)),
        *(21 if i % 3 == 0 else 39 + i for i in range(15)),
    ]
    regressor = np.zeros((55, 10475))
    regressor[:22, :VERTICES] = smpl["J_regressor"][:22]
    regressor[25, :VERTICES], regressor[40, :VERTICES] = smpl["J_regressor"][22], smpl["J_regressor"][23]
    for joint in (22, 23, 24, *range(26, 40), *range(41, 55)):
        regressor[joint, joint + 100] = 1
    random = np.random.default_rng(1)
    shapedirs = np.zeros((10475, 3, 400), dtype=np.float32)
    shapedirs[..., :20] = random.normal(0, 0.01, (10475, 3, 20))
    content = smpl | {
        "v_template": np.concatenate([smpl["v_template"], random.normal(0, 0.3, (more, 3))]),
        "J_regressor": regressor,
        "kintree_table": np.stack([[2**32 - 1, *parents[1:]], np.arange(55)]),
        "weights": np.eye(55)[random.integers(0, 55, 10475)],
        "shapedirs": shapedirs,
        "posedirs": np.zeros((10475, 3, 486), dtype=np.float32),
    }
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **content, joint2num=np.array({"Pelvis": 0}, dtype=object))
    motion = make_motion(frames=2)
    motion.rotations[:, 22:] = np.eye(3)
    body = BodyModel(tmp_path / "SMPLX_NEUTRAL.npz", num_betas=400)
    assert (body.name, body.num_betas) == ("SMPL-X", 300)
    np.testing.assert_allclose(body.joints(motion), motion.joints(), atol=1e-4)
    assert body.vertices(motion).shape == (2, 10475, 3)
    betas = np.linspace(-1, 1, 10)
    shaped = content["v_template"] + shapedirs[..., :10] @ betas
    np.testing.assert_allclose(body.rest(betas)[22:], (regressor @ shaped)[[25, 40]], atol=1e-5)
    small = content | {"shapedirs": shapedirs[..., :20]}
    np.savez(tmp_path / "SMPLX_10.npz", **small)
    assert BodyModel(tmp_path / "SMPLX_10.npz", num_betas=16).num_betas == 10


def test_skinning_is_that_of_the_classes_of_smplx(npz, smpl, make_motion):
    import torch
    from smplx import SMPLLayer
    from smplx.utils import Struct

    motion, betas = make_motion(frames=3, wild=1.0), np.linspace(-2, 2, 10)
    smpl = smpl | {"posedirs": np.random.default_rng(2).normal(0, 0.01, (VERTICES, 3, 207))}
    np.savez(npz, **smpl)
    body = BodyModel(npz)
    rotations = torch.from_numpy(motion.rotations)
    layer = SMPLLayer("", data_struct=Struct(**smpl), num_betas=10)
    expected = layer(
        betas=torch.from_numpy(betas).float()[None].expand(3, -1),
        body_pose=rotations[:, 1:],
        global_orient=rotations[:, :1],
        transl=torch.from_numpy(motion.translation - body.rest(betas)[0]),
    )
    np.testing.assert_allclose(body.vertices(motion, betas), expected.vertices, atol=1e-5)
    np.testing.assert_allclose(body.joints(motion, betas), expected.joints[:, :24], atol=1e-5)


def test_published_pickles_hold_sparse_and_chumpy_arrays(smpl, tmp_path, make_motion, monkeypatch):
    chumpy, ch = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")

    class Ch:
        """With the state that chumpy leaves in a pickle, sets among it (chumpy/ch.py, ``__getstate__``)."""

        def __init__(self, **state):
            self.__dict__.update(state, _dirty_vars=set(), _itr=None, _depends_on_deps={})

    class Select(Ch):
        pass

    for kind in (Ch, Select):
        kind.__module__, kind.__qualname__ = "chumpy.ch", kind.__name__
        setattr(ch, kind.__name__, kind)
    order = np.random.default_rng(2).permutation(smpl["v_template"].size)
    content = smpl | {
        "J_regressor": scipy.sparse.csc_matrix(smpl["J_regressor"]),
        "shapedirs": Ch(x=smpl["shapedirs"]),
        "v_template": Select(
            a=Ch(x=smpl["v_template"].ravel()[order]), idxs=np.argsort(order), preferred_shape=(VERTICES, 3)
        ),
        "bs_style": "lbs",
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "chumpy", chumpy)
        patch.setitem(sys.modules, "chumpy.ch", ch)
        (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps(content, protocol=2))
        (tmp_path / "odd.pkl").write_bytes(pickle.dumps(content | {"weights": Ch(b=1)}, protocol=2))
    with pytest.raises(InputError, match=r"odd\.pkl: no body model .*\(a chumpy array of .*b"):
        read_body_model(tmp_path / "odd.pkl")
    read = read_body_model(tmp_path / "SMPL_NEUTRAL.pkl")
    np.testing.assert_array_equal(read["J_regressor"], smpl["J_regressor"])
    np.testing.assert_array_equal(read["shapedirs"], smpl["shapedirs"])
    np.testing.assert_array_equal(read["v_template"], smpl["v_template"])
    motion = make_motion(frames=2)
    np.testing.assert_allclose(BodyModel(tmp_path / "SMPL_NEUTRAL.pkl").joints(motion), motion.joints(), atol=1e-4)


class Evil:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, __import__, np.load, collections.OrderedDict])
def test_pickles_that_ask_for_anything_else_are_refused_and_nothing_runs(smpl, tmp_path, function):
    target = tmp_path / "ran"
    argument = f"touch {target}" if function is os.system else [] if function is collections.OrderedDict else "1"
    path = tmp_path / "SMPL.pkl"
    path.write_bytes(pickle.dumps({"v_template": Evil(function, argument)}))
    with pytest.raises(InputError, match=r"SMPL.pkl.*asks for"):
        read_body_model(path)
    assert not target.exists()


@pytest.mark.parametrize("length", [10**16, 2**70])
def test_a_pickle_that_asks_for_an_array_of_absurd_size_is_refused(tmp_path, length):
    path = tmp_path / "SMPL.pkl"
    path.write_bytes(pickle.dumps({"v_template": Evil(np.ndarray, (length,))}))
    with pytest.raises(InputError, match=r"SMPL\.pkl: no body model that can be read safely") as refused:
        read_body_model(path)
    assert "\n" not in str(refused.value)


def test_other_files_are_named(smpl, tmp_path):
    np.savez(tmp_path / "few.npz", v_template=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    (tmp_path / "text.pkl").write_text("hello")
    np.savez(tmp_path / "odd.npz", **smpl | {"kintree_table": np.zeros((2, 30))})
    for name in ("few.npz", "torn.npz", "list.pkl", "text.pkl", "none.npz"):
        with pytest.raises(InputError, match=name):
            read_body_model(tmp_path / name)
    with pytest.raises(InputError, match="30 joints"):
        BodyModel(tmp_path / "odd.npz")
