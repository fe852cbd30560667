from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from layersync.core.adapter import ConditionSpec, ModalityAdapter, load_adapter
from layersync.core.errors import InputError
from layersync.core.metric import parse_metric
from layersync.modalities.motion.adapter import MotionAdapter
from layersync.modalities.motion.io.amass import read_amass
from layersync.modalities.motion.render import draw_motions
from layersync.modalities.motion.sample import JointMotion, Motion
from layersync.modalities.motion.skeleton import STANDING_HEIGHT


def test_the_adapter_is_found_and_complete():
    adapter = load_adapter("motion")
    assert isinstance(adapter, MotionAdapter)
    assert isinstance(adapter, ModalityAdapter)
    assert {kind: set(names) for kind, names in adapter.sections.items()} == {
        "data": {"mocap-clips", "bvh", "amass", "humanml3d", "kit-ml"},
        "tokenizer": {"smpl6d", "humanml3d", "kit-ml"},
        "backbone": {"transformer", "mdm"},
    }
    for names in adapter.sections.values():
        for name, section in names.items():
            assert section.model_fields["name"].default == name


def test_the_backbone_takes_the_latents_and_a_mask(make_motion):
    adapter = MotionAdapter()
    tokenizer = adapter.tokenizer(adapter.sections["tokenizer"]["smpl6d"](num_frames=16))
    config = adapter.sections["backbone"]["transformer"](depth=3, hidden_size=32, num_heads=2, patch_size=4)
    network = adapter.backbone(config, tokenizer.latent, ConditionSpec(num_classes=5))
    x = tokenizer.latents(torch.stack(tokenizer.encode([make_motion(frames=16), make_motion(frames=16, seed=1)])))
    mask = torch.ones(2, 16, dtype=torch.bool)
    output = network(x, torch.tensor([0.2, 0.7]), {"label": torch.tensor([1, 5])}, taps=(2,), mask=mask)
    assert output.prediction.shape == x.shape
    assert output.features[2].shape == (2, 4, 32)


NAMES = {
    "motion-fid": ("fd", "text-motion", "lower"),
    "r-precision-1": ("r-precision-1", "text-motion", "higher"),
    "r-precision-2": ("r-precision-2", "text-motion", "higher"),
    "r-precision-3": ("r-precision-3", "text-motion", "higher"),
    "matching": ("matching", "text-motion", "lower"),
    "diversity": ("diversity", "text-motion", None),
    "multimodality": ("multimodality", "text-motion", None),
    "fd-kinetic": ("fd", "kinetic", "lower"),
    "fd-geometric": ("fd", "geometric", "lower"),
    "foot-skating": ("foot-skating", None, "lower"),
    "jitter": ("jitter", None, None),
    "floor-penetration": ("floor-penetration", None, "lower"),
}


def test_the_fields_names_are_these_scores_and_improve_this_way():
    adapter = MotionAdapter()
    assert {*adapter.aliases(), *adapter.metrics(), "fd-kinetic", "fd-geometric"} == set(NAMES)
    assert set(adapter.features()) == {"kinetic", "geometric", "text-motion"}
    for name, expected in NAMES.items():
        found = parse_metric("motion", name)
        assert (found.kind, found.extractor, found.better) == expected and found.stream is None


def test_classifier_input_takes_motions_with_rotations_only(make_motion):
    motion = make_motion(frames=8)
    with pytest.raises(InputError, match=r"JointMotion has joints alone.*fd-kinetic"):
        MotionAdapter().classifier_input([motion, JointMotion(motion.joints(), 30.0)])


def test_classifier_input_does_not_depend_on_place_and_heading(make_motion):
    motion = make_motion()
    values, mask = MotionAdapter().classifier_input([motion, motion.canonical(), make_motion(frames=40, seed=3)])
    assert values.shape == (3, 72, 90)
    assert values.dtype == torch.float32
    assert mask.sum(1).tolist() == [90, 90, 40]
    torch.testing.assert_close(values[0], values[1], atol=1e-3, rtol=0)
    assert not values[2, :, 40:].any()
    assert 0.1 < values[mask[:, None].expand_as(values)].std() < 2


def test_classifier_input_holds_offsets_speed_and_height(make_motion):
    still = make_motion(frames=30)
    glide = Motion(
        np.stack([np.zeros(30), np.full(30, STANDING_HEIGHT + 0.1), np.arange(30) / 30 * 1.5], axis=1).astype(
            np.float32
        ),
        np.tile(np.eye(3, dtype=np.float32), (30, 24, 1, 1)),
    )
    values = MotionAdapter().classifier_input([glide])[0][0].numpy()
    np.testing.assert_allclose(values[:3], np.tile([[0], [0.1], [1.5]], 30), atol=1e-4)
    np.testing.assert_allclose(
        values[3:].T.reshape(30, 23, 3), np.tile(glide.joints()[0, 1:] - glide.joints()[0, 0], (30, 1, 1)), atol=1e-5
    )
    assert len(still) == 30


def test_render_writes_a_moving_picture_and_files_that_open_again(make_motion, tmp_path):
    motions = [make_motion(frames=30 + 10 * index, seed=index) for index in range(3)]
    paths = MotionAdapter().render(motions, tmp_path / "samples")
    assert [path.suffix for path in paths] == [".gif", ".npz", ".npz", ".npz"]
    picture = Image.open(paths[0])
    assert picture.n_frames == 25
    assert picture.info["loop"] == 0
    first = np.array(picture.convert("RGB"), dtype=int)
    picture.seek(12)
    assert np.abs(np.array(picture.convert("RGB"), dtype=int) - first).max() > 100
    for motion, path in zip(motions, paths[1:], strict=True):
        np.testing.assert_allclose(read_amass(path).joints()[:, :22], motion.joints()[:, :22], atol=1e-4)
    assert MotionAdapter().render([], tmp_path / "none") == []


def test_the_moving_picture_plays_as_fast_as_the_motion(make_motion, tmp_path):
    motion = make_motion(frames=91)  # 3 s
    with Image.open(MotionAdapter().render([motion], tmp_path)[0]) as picture:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert len(durations) == 46 and sum(durations[:45]) == 3000
    assert set(durations) <= {60, 70}


def test_a_title_stands_above_its_own_motion(make_motion):
    motions = [make_motion(frames=4, seed=seed) for seed in range(2)]
    plain, titled = (np.array(draw_motions(motions, titles)[0], dtype=int) for titles in ((), ("", "a person walks")))
    rows, columns = np.nonzero((plain != titled).any(axis=2))
    assert len(rows) > 20 and rows.max() < plain.shape[0] / 4 and columns.min() >= plain.shape[1] / 2
