from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from layersync.core.errors import InputError
from layersync.modalities.motion.sample import Motion, yaw_of
from layersync.modalities.motion.tokenizer import Smpl6dConfig, Smpl6dTokenizer

ROOTS = ("velocity", "translation")


def fitted(root: str, motions: list[Motion], num_frames: int = 32) -> tuple[Smpl6dTokenizer, list[torch.Tensor]]:
    tokenizer = Smpl6dTokenizer(Smpl6dConfig(num_frames=num_frames, root=root))
    stored = tokenizer.encode(motions)
    tokenizer.fit(stored)
    return tokenizer, stored


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("start", [0, 17, 58])
def test_windows_decode_to_the_canonical_excerpt(make_motion, root, start):
    motion = make_motion(frames=90)
    tokenizer, stored = fitted(root, [motion])
    latents = tokenizer.latents(stored[0][None, start : start + 32])
    assert latents.shape == (1, *tokenizer.latent.shape)
    decoded = tokenizer.decode(latents)[0]
    expected = motion.cut(start, start + 32).canonical()
    np.testing.assert_allclose(decoded.translation, expected.translation, atol=1e-4)
    np.testing.assert_allclose(decoded.rotations, expected.rotations, atol=1e-4)
    np.testing.assert_allclose(decoded.joints(), expected.joints(), atol=1e-4)


@pytest.mark.parametrize("root", ROOTS)
def test_somersaults_decode_to_themselves(root):
    spin = Rotation.from_rotvec(np.outer(np.linspace(0, 12, 60), [1, 0, 0])).as_matrix()
    rotations = np.tile(np.eye(3), (60, 24, 1, 1))
    rotations[:, 0] = Rotation.from_rotvec([0, 1.0, 0]).as_matrix() @ spin
    motion = Motion(np.tile([1.0, 1.0, 2.0], (60, 1)).astype(np.float32), rotations.astype(np.float32))
    tokenizer, stored = fitted(root, [motion], num_frames=60)
    latents = tokenizer.latents(stored[0][None])
    np.testing.assert_allclose(tokenizer.decode(latents)[0].joints(), motion.canonical().joints(), atol=1e-4)
    # The heading does not flip when the body is upside down: what the network sees stays smooth.
    raw = latents * tokenizer.deviation + tokenizer.mean
    assert raw.diff(dim=1).abs().max() < 0.3


@pytest.mark.parametrize("root", ROOTS)
def test_latents_do_not_depend_on_where_a_motion_stands_and_faces(make_motion, root):
    motion = make_motion()
    turn = Rotation.from_rotvec([0, 2.0, 0]).as_matrix()
    rotations = motion.rotations.copy()
    rotations[:, 0] = turn @ rotations[:, 0]
    moved = Motion((motion.translation @ turn.T + [5, 0, -3]).astype(np.float32), rotations)
    tokenizer, _ = fitted(root, [motion])
    one, other = (tokenizer.latents(tokenizer.encode([m])[0][None, 20:52]) for m in (motion, moved))
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


@pytest.mark.parametrize("root", ROOTS)
def test_latents_are_normalised_and_constant_channels_are_zero(make_motion, root):
    motions = [make_motion(seed=seed) for seed in range(4)]
    for motion in motions:
        motion.rotations[:, 22:] = np.eye(3)
    tokenizer, stored = fitted(root, motions)
    windows = torch.stack([clip[start : start + 32] for clip in stored for start in range(0, 59, 8)])
    latents = tokenizer.latents(windows).flatten(0, 1)
    moving = latents.std(0) > 0.01
    assert moving.sum() > 100
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(latents[:, moving].std(0), 1, atol=0.1)
    np.testing.assert_allclose(latents[:, -12:], 0, atol=1e-6)


@pytest.mark.parametrize("root", ROOTS)
def test_padding_stays_zero_reaches_nothing_and_is_cut_off(make_motion, root):
    motion = make_motion(frames=20)
    tokenizer, _ = fitted(root, [make_motion()])
    padded = torch.zeros(1, 32, 147)
    padded[0, :20] = stored_short = tokenizer.encode([motion])[0]
    latents = tokenizer.latents(padded)
    assert not latents[0, 20:].any()
    assert latents.isfinite().all()
    torch.testing.assert_close(latents[:, :20], tokenizer.latents(stored_short[None]))
    mask = torch.arange(32)[None] < 20
    decoded = tokenizer.decode(latents, mask)[0]
    assert len(decoded) == 20
    np.testing.assert_allclose(decoded.joints(), motion.canonical().joints(), atol=1e-4)


@pytest.mark.parametrize("root", ROOTS)
def test_any_latent_decodes_to_rotations_in_the_windows_own_frame(make_motion, root):
    tokenizer, _ = fitted(root, [make_motion()])
    latents = torch.randn(3, *tokenizer.latent.shape, generator=torch.Generator().manual_seed(0)) * 2
    for motion in tokenizer.decode(latents):
        product = motion.rotations @ motion.rotations.swapaxes(-1, -2)
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(motion.rotations), 1, atol=1e-5)
        assert abs(yaw_of(motion.rotations[0, 0])) < 1e-4
        np.testing.assert_allclose(motion.translation[0, [0, 2]], 0, atol=1e-6)


def test_windows_of_samples_are_the_twins_of_windows_of_latents(make_motion):
    motion = make_motion(frames=90)
    tokenizer, stored = fitted("velocity", [motion])
    for position in (0.0, 0.4, 0.999, 1.0):
        start = min(int(position * (90 - 32 + 1)), 90 - 32)
        decoded = tokenizer.decode(tokenizer.latents(stored[0][None, start : start + 32]))[0]
        np.testing.assert_allclose(tokenizer.window(motion, position).joints(), decoded.joints(), atol=1e-4)
    assert len(tokenizer.window(make_motion(frames=20), 0.7)) == 20


def test_motions_at_other_rates_are_resampled(make_motion):
    tokenizer = Smpl6dTokenizer(Smpl6dConfig())
    assert len(tokenizer.encode([make_motion(frames=121, fps=60.0)])[0]) == 61
    assert tokenizer.window(make_motion(frames=241, fps=120.0), 0.0).fps == 30


def test_frames_last_what_the_recipe_says(make_motion):
    motion = make_motion(frames=61)
    tokenizer = Smpl6dTokenizer(Smpl6dConfig(num_frames=16, fps=15))
    (stored,) = tokenizer.encode([motion])
    assert len(stored) == 31
    tokenizer.fit([stored])
    decoded = tokenizer.decode(tokenizer.latents(stored[None, :16]))[0]
    expected = motion.resampled(15).cut(0, 16).canonical()
    assert decoded.fps == tokenizer.window(motion, 0.0).fps == 15
    np.testing.assert_allclose(decoded.joints(), expected.joints(), atol=1e-4)
    np.testing.assert_allclose(tokenizer.window(motion, 0.0).joints(), expected.joints(), atol=1e-4)


def test_frames_that_there_are_not_are_said_to_be_interpolated(make_motion):
    tokenizer = Smpl6dTokenizer(Smpl6dConfig(num_frames=16, fps=60))
    with pytest.warns(UserWarning, match=r"tokenizer\.fps: 60, and motions come at 30 frames a second"):
        tokenizer.encode([make_motion(frames=21)])


def test_statistics_travel_and_wrong_ones_are_refused(make_motion):
    tokenizer, stored = fitted("velocity", [make_motion()])
    other = Smpl6dTokenizer(tokenizer.config)
    other.load_state(tokenizer.state())
    window = stored[0][None, :32]
    torch.testing.assert_close(other.latents(window), tokenizer.latents(window))
    with pytest.raises(InputError, match="147"):
        Smpl6dTokenizer(Smpl6dConfig(root="translation")).load_state(tokenizer.state())
    with pytest.raises(InputError, match="deviation"):
        other.load_state({"mean": tokenizer.mean})


def test_fingerprints_tell_rates_and_windows_apart_and_share_root_forms():
    base = Smpl6dTokenizer(Smpl6dConfig()).fingerprint
    assert Smpl6dTokenizer(Smpl6dConfig(fps=20)).fingerprint != base
    assert Smpl6dTokenizer(Smpl6dConfig(num_frames=16)).fingerprint != base
    assert Smpl6dTokenizer(Smpl6dConfig(root="translation")).fingerprint == base
