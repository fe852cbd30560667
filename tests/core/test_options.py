"""Every option changes what it is there to change: of the core here, of modalities where it is named."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

import layersync
from layersync import Recipe, Run
from layersync.core.adapter import ConditionSpec, DataConfig, LatentSpec, load_adapter
from layersync.core.generation import GenerativeModel, load
from layersync.core.interpolant import Linear
from layersync.core.recipe_reading import PLUGGED
from layersync.core.regularizer.base import load_regularizer
from layersync.core.solver import FIXED_STEP, diffusion_weight
from layersync.core.trainer import Trainer, build_parts

Make = Callable[..., Any]
STEPS = ("train.steps=3",)


def weights_after(make: Make, *overrides: str) -> dict[str, Tensor]:
    """Weights after the recipe's steps; without a run's logs and measurements, which cost more than 3 steps do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = make(*STEPS, *overrides)
    trainer = Trainer(recipe, build_parts(recipe))
    trainer.model.train()
    for step in range(recipe.train.steps):
        trainer.train_step(step)
    return {name: value.clone() for name, value in trainer.backbone.state_dict().items()}


TRAINING = {
    "seed": ("seed=1", ""),
    "objective.interpolant": ("objective.interpolant=trigonometric", ""),
    "objective.interpolant again": ("objective.interpolant=variance-preserving", "objective.interpolant=trigonometric"),
    "objective.prediction": ("objective.prediction=noise", ""),
    "objective.prediction score": ("objective.prediction=score", "objective.prediction=noise"),
    "objective.prediction data": ("objective.prediction=data", ""),
    "objective.time": ("objective.time=logit-normal", ""),
    "objective.time_mean": ("objective.time_mean=1", "objective.time=logit-normal"),
    "objective.time_std": ("objective.time_std=0.3", "objective.time=logit-normal"),
    "objective.shift": ("objective.shift=2", ""),
    "regularizer.pairs": ("regularizer.pairs=[[2, 4]]", ""),
    "regularizer.weight": ("regularizer.weight=0.6", ""),
    "regularizer.schedule.delay": ("regularizer.schedule.delay=2", ""),
    "regularizer.schedule.warmup": ("regularizer.schedule.warmup=3", ""),
    "regularizer.schedule.stop": ("regularizer.schedule.stop=2", ""),
    "regularizer.schedule.decay": ("regularizer.schedule.decay=2", "regularizer.schedule.stop=3"),
    "regularizer.t_range": ("regularizer.t_range=[0.3, 0.6]", ""),
    "regularizer.similarity": ("regularizer.similarity=centred", ""),
    "regularizer.stop_gradient": ("regularizer.stop_gradient=false", ""),
    "optimizer.lr": ("optimizer.lr=0.002", ""),
    "optimizer.betas first": ("optimizer.betas=[0.5, 0.999]", ""),
    "optimizer.betas second": ("optimizer.betas=[0.9, 0.5]", ""),
    "optimizer.weight_decay": ("optimizer.weight_decay=0.1", ""),
    "optimizer.warmup": ("optimizer.warmup=2", ""),
    "optimizer.schedule": ("optimizer.schedule=cosine", ""),
    "optimizer.clip": ("optimizer.clip=0.0001", ""),
    "train.steps": ("train.steps=4", ""),
    "train.batch_size": ("train.batch_size=8", ""),
    "train.condition_dropout": ("train.condition_dropout=0.9", ""),
    "train.precision": ("train.precision=bf16", ""),
    "backbone.mlp_ratio": ("backbone.mlp_ratio=2", ""),
    "backbone.depth": ("backbone.depth=3", ""),
    "backbone.hidden_size": ("backbone.hidden_size=64", ""),
    "backbone.patch_size": ("backbone.patch_size=4", ""),
    "backbone.num_heads": ("backbone.num_heads=2", ""),
    "backbone.qk_norm": ("backbone.qk_norm=true", ""),
    "backbone.learn_sigma": ("backbone.learn_sigma=true", ""),
    "backbone.dropout": ("backbone.dropout=0.5", ""),
    "data.flip": ("data.flip=true", ""),
    "data.split": ("data.split=test", ""),
}
TABLED = {"data": "image.data.digits", "backbone": "image.backbone.sit"}
"""What the keys of these sections in the table above are keys of."""

ELSEWHERE = {  # below tests/, the test that fails where these keys are not what they say
    "core/test_recipe.py::test_modality_given_twice_must_agree": ["modality"],
    "core/test_ddpm.py::test_training_times_are_those_of_the_steps_that_the_recipe_says": ["objective.num_timesteps"],
    "core/test_text.py::test_texts_and_labels_are_dropped_together": ["condition.labels"],
    "core/test_text.py::test_labels_are_left_to_scores_where_text_is_read": ["condition.text_encoder"],
    "core/test_text.py::test_pooling_and_length_of_texts_are_the_recipes": [
        "condition.text_pooling", "condition.max_tokens",
    ],
    "core/test_trainer.py::test_accumulation_gives_the_network_a_part_at_a_time": ["train.accumulate"],
    "core/test_trainer.py::test_equal_loss_and_gradients_when_traced": ["train.compile"],
    "core/test_trainer.py::test_checkpointing_computes_each_block_twice": ["train.gradient_checkpointing"],
    "core/test_trainer.py::test_keep_leaves_the_newest_checkpoints": ["train.checkpoint_every", "train.keep"],
    "core/test_trainer.py::test_checkpoints_of_round_steps_stay_beside_the_newest": ["train.keep_every"],
    "core/test_trainer.py::test_init_starts_from_the_averaged_weights_of_a_run": ["train.init"],
    "core/test_trainer.py::test_of_weights_that_fit_partly_the_others_start_anew": ["train.init_partly"],
    "core/test_options.py::test_averaging_options_change_the_averages_alone": ["train.ema_decay", "train.ema_ramp"],
    "core/test_options.py::test_log_every_and_evaluate_every_change_the_log": ["train.log_every", "evaluate.every"],
    "core/test_options.py::test_guided_channels_change_the_samples": [
        "sample.guidance_channels", "image.tokenizer.pixels.channels",
    ],
    "core/test_generation.py::test_batch_size_is_how_many_samples_the_network_gets_at_once": ["sample.batch_size"],
    "modalities/image/test_image_data.py::test_partly_labelled_images_train_and_are_scored": ["evaluate.metrics"],
    "core/test_evaluation.py::test_the_recipe_says_how_many_samples_and_with_which_seed": [
        "evaluate.num_samples", "evaluate.seed",
    ],
    "core/test_evaluation.py::test_the_recipe_says_what_samples_are_compared_with": ["evaluate.reference"],
    "core/test_evaluation.py::test_samples_are_drawn_for_each_example_of_the_split_that_the_recipe_names": [
        "evaluate.conditions",
    ],
    "modalities/image/test_image_tokenizer.py::test_pixels_come_back_as_they_were": [
        "image.tokenizer.pixels.image_size",
    ],
    "core/test_options.py::test_rounding_of_pixels_by_hand": ["image.tokenizer.pixels.rounding"],
    "modalities/image/test_image_tokenizer.py::test_vae_fingerprint_follows_its_weights": ["image.tokenizer.vae.path"],
    "modalities/image/test_image_tokenizer.py::test_vae_stores_moments_and_draws_from_them": [
        "image.tokenizer.vae.image_size",
    ],
    "modalities/image/test_image_tokenizer.py::test_the_vae_of_a_whole_pipeline_lies_in_a_folder_of_its_own": [
        "image.tokenizer.vae.subfolder",
    ],
    "modalities/image/test_image_tokenizer.py::test_the_recipe_can_name_the_scale": [
        "image.tokenizer.vae.scaling_factor",
    ],
    "modalities/image/test_image_data.py::test_idx_files_are_read": ["image.data.idx.path"],
    "modalities/image/test_image_data.py::test_folders_are_labels": ["image.data.folder.path"],
    "modalities/image/test_image_data.py::test_a_pattern_labels_by_name": ["image.data.folder.labels"],
    "modalities/image/test_image_data.py::test_the_share_that_is_held_out_may_be_none": [
        "image.data.folder.test_fraction", "image.data.hf.test_fraction",
    ],
    "modalities/image/test_image_data.py::test_images_are_turned_upright_as_exif_says": [
        "image.data.folder.orientation", "image.data.hf.orientation",
    ],
    "core/test_command_line.py::test_on_error_skip_trains_on_the_rest": ["image.data.folder.on_error"],
    "modalities/image/test_image_imagenet.py::test_another_set_than_the_recipe_says_is_refused": [
        "image.data.folder.num_classes", "image.data.folder.num_examples",
    ],
    "modalities/image/test_image_imagenet.py::test_a_streamed_source_is_what_the_cached_one_is": ["image.data.hf.flip"],
    "modalities/image/test_image_medical.py::test_slices_follow_the_patient_not_the_file": [
        "image.data.folder.medical.plane",
    ],
    "modalities/image/test_image_medical.py::test_the_recipes_window_goes_before_the_files": [
        "image.data.folder.medical.window",
    ],
    "modalities/image/test_image_medical.py::test_without_a_window_percentiles_are_black_and_white": [
        "image.data.folder.medical.percentiles",
    ],
    "modalities/image/test_image_medical.py::test_frames_of_one_file_are_images": [
        "image.data.folder.medical.step", "image.data.folder.medical.margin",
    ],
    "modalities/image/test_image_medical.py::test_one_of_several_volumes_is_chosen": [
        "image.data.folder.medical.volume",
    ],
    "modalities/image/test_image_medical.py::test_a_patients_series_are_on_one_side_of_the_split": [
        "image.data.folder.medical.split_by",
    ],
    "modalities/image/test_image_data.py::test_tiles_cover_the_picture_and_hold_out_its_right": [
        "image.data.tiles.path", "image.data.tiles.tile_size", "image.data.tiles.stride",
    ],
    "modalities/image/test_image_data.py::test_tiles_are_labelled_by_the_band_that_their_middle_lies_in": [
        "image.data.tiles.bands",
    ],
    "modalities/image/test_image_data.py::test_local_parquet_is_read_by_feature_type": ["image.data.hf.path"],
    "modalities/image/test_image_data.py::test_another_column_is_the_label_where_it_is_named": [
        "image.data.hf.label_column", "image.data.hf.num_classes",
    ],
    "modalities/image/test_image_data.py::test_a_column_of_texts_is_found_by_name_or_named": [
        "image.data.hf.caption_column",
    ],
    "modalities/image/test_image_imagenet.py::test_another_split_can_be_held_out": ["image.data.hf.test_split"],
    "modalities/image/test_image_imagenet.py::test_a_stream_is_walked_once": ["image.data.hf.streaming"],
    "modalities/image/test_image_imagenet.py::test_a_stream_that_is_shorter_than_said_or_of_another_size": [
        "image.data.hf.num_examples",
    ],
    "modalities/audio/test_audio_gm_notes.py::test_every_option_changes_the_notes": [
        "audio.data.gm-notes.num_pitches", "audio.data.gm-notes.velocities", "audio.data.gm-notes.seconds",
    ],
    "modalities/audio/test_audio_data.py::test_labels_come_from_a_regular_expression_on_the_file_name": [
        "audio.data.folder.path", "audio.data.folder.labels",
    ],
    "modalities/audio/test_audio_data.py::test_test_files_choose_the_test_split": ["audio.data.folder.test_files"],
    "modalities/audio/test_audio_data.py::test_extensions_choose_the_files": ["audio.data.folder.extensions"],
    "modalities/audio/test_audio_data.py::test_skipping_is_left_to_the_reader": [
        "audio.data.folder.on_error", "audio.data.folder.test_fraction",
    ],
    "modalities/audio/test_audio_data.py::test_parquet_columns_are_found_by_their_type": [
        "audio.data.hf.path", "audio.data.hf.test_fraction",
    ],
    "modalities/audio/test_audio_jamendo.py::TestReader::test_tracks_and_captions_follow_the_tables": [
        "audio.data.mtg-jamendo.path", "audio.data.mtg-jamendo.held_out",
    ],
    "modalities/audio/test_audio_jamendo.py::TestReader::test_seconds_are_the_middle_of_a_track": [
        "audio.data.mtg-jamendo.seconds",
    ],
    "modalities/audio/test_audio_jamendo.py::TestReader::test_first_tags_are_labels_when_asked_for": [
        "audio.data.mtg-jamendo.label",
    ],
    "modalities/audio/test_audio_jamendo.py::TestReader::test_low_quality_is_another_name": [
        "audio.data.mtg-jamendo.quality",
    ],
    "modalities/audio/test_audio_jamendo.py::TestWrongData::test_missing_tracks_are_counted": [
        "audio.data.mtg-jamendo.on_error",
    ],
    "modalities/audio/test_audio_jamendo.py::TestWrongData::test_no_tables": [
        "audio.data.mtg-jamendo.metadata", "audio.data.mtg-jamendo.subset", "audio.data.mtg-jamendo.split_number",
    ],
    "modalities/audio/test_audio_tokenizer.py::test_every_setting_of_the_mel_changes_it_and_the_fingerprint": [
        "audio.tokenizer.mel.sample_rate", "audio.tokenizer.mel.n_fft", "audio.tokenizer.mel.hop_length",
        "audio.tokenizer.mel.n_mels", "audio.tokenizer.mel.f_min", "audio.tokenizer.mel.f_max",
        "audio.tokenizer.mel.floor",
    ],
    "modalities/audio/test_audio_vocoder.py::TestPresets::test_vocos_is_its_packages_extractor": [
        "audio.tokenizer.mel.preset", "audio.tokenizer.mel.mel_scale", "audio.tokenizer.mel.mel_norm",
        "audio.tokenizer.mel.log",
    ],
    "modalities/audio/test_audio_vocoder.py::TestPresets::test_fastspeech2_conformer_is_what_espnet_computes": [
        "audio.tokenizer.mel.magnitude_floor",
    ],
    "modalities/audio/test_audio_vocoder.py::TestNetworks::test_sound_is_what_the_librarys_network_makes_of_the_mel": [
        "audio.tokenizer.mel.vocoder", "audio.tokenizer.mel.vocoder_path", "audio.tokenizer.mel.vocoder_statistics",
    ],
    "modalities/audio/test_audio_tokenizer.py::test_settings_of_window_and_decoder_change_those_but_not_the_cache": [
        "audio.tokenizer.mel.num_frames", "audio.tokenizer.mel.griffin_lim_iterations",
    ],
    "modalities/audio/test_audio_oobleck.py::test_sizes_come_from_the_autoencoder": [
        "audio.tokenizer.oobleck.path", "audio.tokenizer.oobleck.num_frames",
    ],
    "modalities/audio/test_audio_oobleck.py::test_latents_are_drawn_from_the_posterior_and_scaled": [
        "audio.tokenizer.oobleck.scale",
    ],
    "modalities/motion/test_motion_mocap.py::test_a_tail_goes_on_where_training_ends": [
        "motion.data.mocap-clips.hold_out", "motion.data.mocap-clips.tail_fraction",
    ],
    # what BVH and AMASS share is read by one class, MotionFolderConfig
    "modalities/motion/test_motion_data.py::test_folders_are_labels_and_splits_share_no_file": [
        "motion.data.amass.path", "motion.data.amass.test_fraction", "motion.data.bvh.test_fraction",
    ],
    "modalities/motion/test_motion_data.py::test_a_fingerprint_is_of_contents_or_of_sizes_and_times": [
        "motion.data.amass.fingerprint", "motion.data.bvh.fingerprint",
    ],
    "modalities/motion/test_motion_data.py::test_bvh_trees_are_mapped_resampled_and_labelled": ["motion.data.bvh.path"],
    "modalities/motion/test_motion_data.py::test_files_in_one_folder_have_no_label_unless_a_pattern_names_it": [
        "motion.data.amass.labels", "motion.data.bvh.labels",
    ],
    "modalities/motion/test_motion_data.py::test_rare_labels_are_left_out": [
        "motion.data.amass.min_clips", "motion.data.bvh.min_clips",
    ],
    "modalities/motion/test_motion_captions.py::test_a_pattern_on_names_holds_files_out": [
        "motion.data.amass.test_files", "motion.data.bvh.test_files",
    ],
    "modalities/motion/test_motion_captions.py::test_every_phrase_of_every_template_and_no_slot_left_open": [
        "motion.data.amass.captions", "motion.data.bvh.captions",
    ],
    "modalities/motion/test_motion_data.py::test_labels_that_name_a_side_are_not_mirrored": [
        "motion.data.amass.mirror", "motion.data.bvh.mirror",
    ],
    "modalities/motion/test_motion_data.py::test_a_file_without_poses_stops_or_is_skipped_and_counted": [
        "motion.data.amass.on_error",
    ],
    "modalities/motion/test_motion_data.py::test_a_broken_bvh_file_stops_or_is_skipped": ["motion.data.bvh.on_error"],
    "modalities/motion/test_motion_amass.py::"
    "test_folders_of_both_releases_are_read_and_what_holds_no_motion_is_left": ["motion.data.amass.pelvis"],
    "modalities/motion/test_motion_amass.py::test_clips_of_other_bodies_are_put_on_the_floor_and_only_moved": [
        "motion.data.amass.floor",
    ],
    "modalities/motion/test_motion_humanml3d_data.py::test_lists_are_splits_and_every_change_has_its_fingerprint": [
        "motion.data.humanml3d.path", "motion.data.humanml3d.test_split", "motion.data.kit-ml.test_split",
    ],
    "modalities/motion/test_motion_humanml3d_data.py::test_kit_ml_has_251_numbers_at_its_rate_and_parts_by_20": [
        "motion.data.kit-ml.path", "motion.tokenizer.kit-ml.statistics",
    ],
    "core/test_text.py::test_bad_wishes": ["motion.tokenizer.smpl6d.num_frames"],
    "modalities/motion/test_motion_tokenizer.py::test_statistics_travel_and_wrong_ones_are_refused": [
        "motion.tokenizer.smpl6d.root",
    ],
    "modalities/motion/test_motion_humanml3d_data.py::"
    "test_windows_of_samples_are_those_of_the_cache_and_motions_are_described": [
        "motion.tokenizer.humanml3d.num_frames", "motion.tokenizer.kit-ml.num_frames",
    ],
    "modalities/motion/test_motion_humanml3d_data.py::test_published_statistics_normalise_and_stay_in_the_run": [
        "motion.tokenizer.humanml3d.statistics",
    ],
    "modalities/image/test_image_data.py::test_flip_adds_a_variant_to_every_source": [
        "image.data.mnist5k.flip", "image.data.idx.flip", "image.data.tiles.flip", "image.data.folder.flip",
    ],
    "modalities/image/test_image_data.py::test_the_recipe_says_what_a_fingerprint_is_of": [
        "image.data.folder.fingerprint", "image.data.hf.fingerprint",
    ],
    "modalities/image/test_image_data.py::test_rows_that_hold_no_image_stop_or_are_skipped": ["image.data.hf.on_error"],
    "modalities/image/test_image_tokenizer.py::test_a_vae_rounds_as_the_recipe_says": ["image.tokenizer.vae.rounding"],
    "modalities/audio/test_audio_data.py::test_columns_that_are_named_are_read_and_no_other": [
        "audio.data.hf.audio_column", "audio.data.hf.label_column", "audio.data.hf.caption_column",
    ],
    "modalities/audio/test_audio_data.py::test_another_split_can_be_held_out": ["audio.data.hf.test_split"],
    "modalities/audio/test_audio_data.py::test_a_subset_of_several_is_the_one_that_is_named": ["audio.data.hf.subset"],
    "modalities/audio/test_audio_data.py::test_a_fingerprint_is_of_contents_or_of_sizes_and_times": [
        "audio.data.folder.fingerprint",
    ],
    "modalities/audio/test_audio_data.py::test_a_fingerprint_of_a_table_is_of_sounds_or_of_its_files": [
        "audio.data.hf.fingerprint",
    ],
    "modalities/image/test_image_data.py::test_a_subset_of_several_is_the_one_that_is_named": ["image.data.hf.subset"],
    "modalities/audio/test_audio_data.py::test_a_row_without_sound_stops_or_is_left_to_the_reader": [
        "audio.data.hf.on_error",
    ],
    "modalities/audio/test_audio_oobleck.py::test_the_autoencoder_is_that_of_the_subfolder": [
        "audio.tokenizer.oobleck.subfolder",
    ],
    "modalities/motion/test_motion_mocap.py::"
    "test_loops_are_unrolled_as_long_as_is_said_and_mirrored_only_where_wanted": [
        "motion.data.mocap-clips.seconds", "motion.data.mocap-clips.test_seconds", "motion.data.mocap-clips.mirror",
    ],
    "modalities/motion/test_motion_data.py::test_the_vertical_of_amass_files_is_the_one_that_is_said": [
        "motion.data.amass.up",
    ],
    "modalities/motion/test_motion_data.py::test_the_skeleton_that_is_said_is_taken": ["motion.data.bvh.skeleton"],
    "modalities/motion/test_motion_data.py::test_a_scale_in_metres_per_unit_says_how_far_a_body_goes": [
        "motion.data.bvh.scale",
    ],
    "modalities/motion/test_motion_data.py::test_the_vertical_that_is_said_is_taken_where_none_can_be_seen": [
        "motion.data.bvh.up",
    ],
    "modalities/motion/test_motion_tokenizer.py::test_frames_last_what_the_recipe_says": [
        "motion.tokenizer.smpl6d.fps",
    ],
}  # fmt: skip
MODALITIES = ("image", "audio", "motion")


def keys_of(kind: type[BaseModel], section: str) -> Iterator[str]:
    """Keys of a section and of sections within it, but for ``name``, which says of what kind a section is."""
    for key, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{section}.{key}")
        elif key != "name":
            yield f"{section}.{key}"


def every_key() -> Iterator[str]:
    """Of everything that ships. What a ``data`` section has whatever its kind is the core's."""
    for section, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, section) if section not in PLUGGED else ()
        elif section not in PLUGGED:
            yield section
    for name in ("none", "layersync"):
        yield from keys_of(load_regularizer(name).Config, "regularizer")
    yield from keys_of(DataConfig, "data")
    for modality in MODALITIES:
        for section, kinds in load_adapter(modality).sections.items():
            shared = {key.rpartition(".")[2] for key in keys_of(DataConfig, "data")} if section == "data" else set()
            for name, kind in kinds.items():
                own = keys_of(kind, f"{modality}.{section}.{name}")
                yield from (key for key in own if key.rpartition(".")[2] not in shared)


def keys_here() -> Iterator[str]:
    """Those of the tables of this file."""
    for name in TRAINING:
        section, _, key = name.split(" ")[0].partition(".")
        yield f"{TABLED[section]}.{key}" if section in TABLED and key != "split" else f"{section}.{key}".rstrip(".")
    yield from (f"sample.{key}" for change, _ in SAMPLING.values() for key in change)
    yield from (f"{modality}.backbone.{name}.{key}" for modality, name, key in BACKBONES)


def test_every_key_of_every_section_is_proved_by_a_test() -> None:
    """A key that a new option brings is in a table here, or the test of it is named above."""
    elsewhere = [key for keys in ELSEWHERE.values() for key in keys]
    assert len(set(elsewhere)) == len(elsewhere)
    proved, known = {*keys_here(), *elsewhere}, set(every_key())
    assert known - proved == set(), "no test"
    assert proved - known == set(), "no such key"


def names_of(node: ast.stmt) -> list[str]:
    """What a statement of a module or class defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def words_of(text: str, names: list[str]) -> set[str]:
    """Words of the test ``names`` of a file, and of what it names there: fixtures, helpers, constants, and theirs."""
    scope: Any = ast.parse(text)
    known: dict[str, ast.stmt] = {}
    for name in names:
        inside = {word: node for node in scope.body for word in names_of(node)}
        known |= inside
        scope = inside[name]
    assert isinstance(scope, ast.FunctionDef) and scope.name.startswith("test_")
    lines, found = text.splitlines(), set[str]()
    seen, waiting = set(names), [scope]
    while waiting:
        node = waiting.pop()
        first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
        words = set(re.findall(r"\w+", " ".join(lines[first - 1 : node.end_lineno])))
        found |= words
        waiting += [known[word] for word in words - seen if word in known]
        seen |= words
    return found


def test_the_tests_that_are_named_exist_and_speak_of_their_keys() -> None:
    silent = {}
    for test, keys in ELSEWHERE.items():
        path, *names = test.split("::")
        words = words_of((Path(__file__).parents[1] / path).read_text(), names)
        if without := [key for key in keys if key.rpartition(".")[2] not in words]:
            silent[test] = without
    assert silent == {}


@pytest.fixture(scope="module")
def bases(tiny: Make) -> Callable[[str], dict[str, Tensor]]:
    """Weights by the overrides that an option is tested on top of; each trained once."""
    known: dict[str, dict[str, Tensor]] = {}

    def get(overrides: str) -> dict[str, Tensor]:
        if overrides not in known:
            known[overrides] = weights_after(tiny, *([overrides] if overrides else []))
        return known[overrides]

    return get


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        return True
    return any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", list(TRAINING))
def test_every_training_option_changes_the_weights(name: str, bases: Make, tiny: Make) -> None:
    override, base = TRAINING[name]
    found = weights_after(tiny, *([base] if base else []), override)
    assert changed(found, bases(base)), f"{override} on top of {base or 'the tiny recipe'} changes nothing"


def test_the_same_recipe_gives_the_same_weights_as_a_run(
    bases: Make, tiny: Make, tensors_of: Make, tmp_path: Path
) -> None:
    assert not changed(tensors_of(layersync.train(tiny(*STEPS), tmp_path / "run")), bases(""))


@pytest.mark.parametrize("override", ["train.ema_decay=0.1", "train.ema_ramp=false"])
def test_averaging_options_change_the_averages_alone(
    override: str, bases: Make, tiny: Make, tensors_of: Make, tmp_path: Path
) -> None:
    run = layersync.train(tiny(*STEPS, override), tmp_path / "run")
    other = layersync.train(tiny(*STEPS), tmp_path / "other")
    assert not changed(tensors_of(run), bases(""))
    assert changed(tensors_of(run, "ema"), tensors_of(other, "ema"))


def test_log_every_and_evaluate_every_change_the_log(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("train.steps=6", "train.log_every=4", "evaluate.every=2"), tmp_path / "run")
    assert [r["step"] for r in run.records() if "flow_loss" in r] == [4, 6]
    assert [r["step"] for r in run.records() if "held_out_loss" in r] == [0, 2, 4, 6]


SAMPLING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ddpm is for paths of separate steps alone: test_ddpm.py
    **{f"solver {name}": ({"solver": name}, {"solver": "dopri5"}) for name in (*FIXED_STEP, "euler-maruyama")},
    "steps": ({"steps": 6}, {}),
    "guidance": ({"guidance": 2.0}, {}),
    "guidance_interval": ({"guidance_interval": (0.3, 0.6)}, {"guidance": 2.0}),
    "diffusion_scale": ({"diffusion_scale": 0.3}, {"solver": "euler-maruyama"}),
    **{
        f"diffusion {form}": ({"diffusion": form}, {"solver": "euler-maruyama"})
        for form in ("constant", "sbdm", "decreasing", "increasing-decreasing")
    },
    **{f"last_step {how}": ({"last_step": how}, {"solver": "euler-maruyama"}) for how in ("none", "tweedie", "euler")},
    "last_step_size": ({"last_step_size": 0.2}, {"solver": "euler-maruyama"}),
    "rtol": ({"rtol": 0.5}, {"solver": "dopri5"}),
    "atol": ({"atol": 0.5}, {"solver": "dopri5", "rtol": 1e-6}),
    "precision": ({"precision": "bf16"}, {}),
}


CHANGES: dict[str, Any] = {
    "depth": 3, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 3.0, "qk_norm": True,
    "learn_sigma": True, "dropout": 0.5, "num_timesteps": 50, "mask_frames": True,
}  # fmt: skip
LATENTS = {
    "image": LatentSpec(1, (8, 8)),
    "audio": LatentSpec(1, (8, 8), variable=True),
    "motion": LatentSpec(6, (8,), sequence=True, variable=True),
}
BACKBONES = [
    (modality, name, key)
    for modality in MODALITIES
    for name, kind in load_adapter(modality).sections["backbone"].items()
    for key in kind.model_fields
    if key != "name"
]


@pytest.mark.parametrize(("modality", "name", "key"), BACKBONES)
def test_every_option_of_a_network_changes_it(modality: str, name: str, key: str) -> None:
    """Its weights have other names or shapes, or the same weights give something else in training."""
    latent, kind = LATENTS[modality], load_adapter(modality).sections["backbone"][name]
    base = {"depth": 4, "hidden_size": 32, "num_heads": 4}
    base |= {"patch_size": 2} if "patch_size" in kind.model_fields else {"mask_frames": False}
    x, mask = torch.randn(2, *latent.shape, generator=torch.Generator().manual_seed(0)), None
    if latent.num_frames is not None:
        mask = torch.arange(8)[None] < torch.tensor([[8], [4]])
    found = []
    for settings in (base, base, {**base, key: CHANGES[key]}):
        network = load_adapter(modality).backbone(kind(**settings), latent, ConditionSpec(3, 0)).train()
        torch.manual_seed(1)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        with torch.no_grad():
            out = network(x, torch.tensor([0.2, 0.6]), {"label": torch.tensor([0, 2])}, mask=mask).prediction
        found.append({"out": out, **network.state_dict()})
    assert not changed(found[0], found[1]) and changed(found[0], found[2])


@pytest.fixture(scope="module")
def model(trained: Run) -> GenerativeModel:
    return load(trained.path, weights="model")


@pytest.mark.parametrize("name", list(SAMPLING))
def test_every_sampling_option_changes_the_samples(name: str, model: GenerativeModel) -> None:
    change, base = SAMPLING[name]
    conditions = model.conditions(2, labels=[1, 2])
    found = [model.sample_latents(conditions, settings=model.settings(**s))[0] for s in (base, {**base, **change})]
    assert torch.isfinite(torch.cat(found)).all()
    assert not torch.equal(*found)


def test_guided_channels_change_the_samples(tiny: Make, tmp_path: Path) -> None:
    run = layersync.train(tiny("tokenizer.channels=3", "train.steps=3"), tmp_path / "run")
    model = load(run.path, weights="model")
    conditions = model.conditions(2, labels=[1, 2])
    found = [
        model.sample_latents(conditions, settings=model.settings(guidance=3.0, guidance_channels=n))[0]
        for n in (None, 2)
    ]
    assert not torch.equal(*found)


def choices(section: str, key: str) -> set[str]:
    """What a recipe may say there."""
    return set(get_args(Recipe.model_fields[section].annotation.model_fields[key].annotation))


def test_the_tables_try_every_choice(tiny: Make) -> None:
    """But for separate steps and their solver (test_ddpm.py), TF32, which CUDA alone has (test_device.py), and what is
    the default on this path.
    """
    sigma, linear = (diffusion_weight(form, 1.0, Linear(), torch.linspace(0, 1, 9)) for form in ("sigma", "linear"))
    assert torch.equal(sigma, linear)
    for key in ("interpolant", "prediction", "time"):
        tried = {override.partition("=")[2] for override, _ in TRAINING.values() if f".{key}=" in override}
        assert tried | {getattr(tiny().objective, key), "ddpm-cosine"} >= choices("objective", key)
    for key in ("solver", "diffusion", "last_step", "precision"):
        tried = {settings[key] for pair in SAMPLING.values() for settings in pair if key in settings}
        assert tried | {getattr(tiny().sample, key), "ddpm", "linear", "tf32"} >= choices("sample", key)


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_rounding_of_pixels_by_hand(rounding: str, tiny: Make) -> None:
    recipe = tiny(f"tokenizer.rounding={rounding}")
    tokenizer = recipe.adapter.tokenizer(recipe.tokenizer)
    values = torch.tensor([-1.0, -0.001, 0.0, 0.003, 1.0]).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    found = tokenizer.decode(values)[0][0, :, 0].tolist()
    by_hand = {"nearest": [0, 127, 128, 128, 255], "truncate": [0, 127, 127, 127, 255]}
    assert found == by_hand[rounding]
    stored = np.arange(0, 256, dtype=np.uint8).reshape(16, 16, 1)
    if rounding == "nearest":
        whole = recipe.adapter.tokenizer(tiny("tokenizer.image_size=16").tokenizer)
        assert np.array_equal(whole.decode(torch.stack(whole.encode([stored])))[0], stored)
