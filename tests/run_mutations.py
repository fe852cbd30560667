"""Break the package on purpose, one line at a time, and see that the test which guards the line fails.

    python tests/run_mutations.py [WORD ...] [--markdown]

Works on a copy in a temporary directory; the checkout is left alone. WORDs choose mutations by property or test.
Exit status 1 when a mutation survives, or when a test fails on the copy before anything is broken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """``old`` stands once in ``file`` of the package; with ``new`` in its place ``test`` must fail."""

    property: str
    file: str
    old: str
    new: str
    test: str


IMAGES, SOUNDS = "modalities/image/test_image_features.py::", "modalities/audio/test_audio_features.py::"
SYNC, TRUNK, GAIN = "core/regularizer/layersync.py", "core/transformer.py", "core/gain.py"
SCORES, VALUES = "core/scoring.py", "test_score_values.py::"
MUTATIONS = [
    Mutation("no gradient past the student", SYNC,
             "features[teacher].detach() if self.stop_gradient else features[teacher]", "features[teacher]",
             "test_layersync.py::test_no_gradient_reaches_past_the_student"),
    Mutation("stop_gradient: false lets it in", SYNC,
             "features[teacher].detach() if self.stop_gradient else features[teacher]", "features[teacher].detach()",
             "test_layersync.py::test_stop_gradient_off_lets_it_into_the_teacher"),
    Mutation("two pairs are the mean of single ones", SYNC, "(-factor / len(self.pairs))", "(-factor)",
             "test_layersync.py::test_two_pairs_are_the_mean_of_single_ones"),
    Mutation("two pairs: not only the last counts", SYNC,
             "total = counted.mean() if total is None else total + counted.mean()", "total = counted.mean()",
             "test_layersync.py::test_two_pairs_are_the_mean_of_single_ones"),
    Mutation("student == teacher is refused", SYNC, "if student >= teacher:", "if student > teacher:",
             "test_layersync.py::test_pairs_that_make_no_sense_are_refused"),
    Mutation("teacher beyond the depth is refused", SYNC, "teacher > depth:", "teacher > depth + 1:",
             "test_layersync.py::test_pairs_that_make_no_sense_are_refused"),
    Mutation("weight 0 is bit-identical to none", SYNC, "= float(weight), _range(",
             "= max(float(weight), 1e-6), _range(",
             "test_layersync.py::test_weight_0_trains_bit_identically_to_none"),
    Mutation("padding leaves no trace: alignment", SYNC,
             "student.masked_fill(padded, 0), teacher.masked_fill(padded, 0)", "student, teacher",
             "test_layersync.py::test_padding_leaves_no_trace"),
    Mutation("padding does not count: alignment", SYNC, "(cosine * real).sum(1) / real.sum(1)", "cosine.mean(1)",
             "test_layersync.py::test_means_go_over_real_tokens_then_samples"),
    Mutation("padding does not count: centring", SYNC,
             "features.sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp_min(1)",
             "features.mean(1, keepdim=True)",
             "test_layersync.py::test_centred_similarity_against_numpy"),
    Mutation("no gradient where there is no direction", SYNC, "torch.minimum(*norms) < NORM_FLOOR",
             "torch.minimum(*norms) < NORM_FLOOR / 1e6",
             "test_layersync.py::test_a_vector_of_length_zero_does_no_harm"),
    Mutation("a student's gradient reaches a parameter", "core/regularizer/attach.py",
             "any(weight.requires_grad for weight in weights) or _reaches_a_parameter(features)", "True",
             "test_attach_blocks.py::test_an_input_made_to_require_gradient_trains_nothing"),
    Mutation("padding leaves no trace: attention", TRUNK,
             "hidden = None if mask_BT is None else mask_BT[:, None, None, :]", "hidden = None",
             "test_transformer.py::TestPadding::test_tokens_of_padding_are_seen_by_nobody"),
    Mutation("padding leaves no trace: patches", TRUNK,
             "x = x * mask.reshape(len(mask), *(1 for _ in self.grid), -1).to(x.dtype)", "x = x",
             "test_transformer.py::TestPadding::test_contents_of_padding_change_nothing"),
    Mutation("padding leaves no trace: flow loss", "core/probe.py", "(per_frame * real).sum(1) / real.sum(1)",
             "per_frame.mean(1)", "test_trainer.py::TestPadding"),
    Mutation("float32 cosine under bf16", SYNC, "student, teacher = student.float(), teacher.float()",
             "student, teacher = student, teacher",
             "test_layersync.py::test_cosine_is_float32_under_bf16_autocast"),
    Mutation("schedule", SYNC, "(step - self.delay + 1) / self.warmup", "(step - self.delay) / self.warmup",
             "test_layersync.py::test_schedule_by_hand"),
    Mutation("t_range", SYNC, "per_sample * inside", "per_sample",
             "test_layersync.py::test_outside_of_t_range_there_is_no_loss_and_no_gradient"),
    Mutation("taps are the blocks' outputs", TRUNK, "if number in taps:", "if number - 1 in taps:",
             "test_transformer.py::test_taps_are_what_hooks_see_and_nothing_is_kept_unasked"),
    Mutation("published arithmetic: gelu", TRUNK, 'approximate="tanh"', 'approximate="none"',
             "test_transformer.py::test_forward_is_the_papers"),
    Mutation("published arithmetic: time embedding", TRUNK, "[angle.cos(), angle.sin()]", "[angle.sin(), angle.cos()]",
             "test_transformer.py::test_forward_is_the_papers"),
    Mutation("published positions", TRUNK, "for axis in reversed(axes):", "for axis in axes:",
             "test_transformer.py::TestPositions"),
    Mutation("learn_sigma drops the second half", TRUNK, "x = x[:, : self.in_channels]", "x = x[:, self.in_channels :]",
             "test_transformer.py::test_learn_sigma_drops_the_second_half"),
    Mutation("equal under compile", TRUNK, "if number in taps:",
             "if number in taps and not torch.compiler.is_compiling():",
             "test_trainer.py::test_equal_loss_and_gradients_when_traced"),
    Mutation("equal under checkpointing", TRUNK, "checkpoint(block, x, c,", "checkpoint(block, x.detach(), c,",
             "test_trainer.py::test_equal_loss_and_gradients[checkpointing]"),
    Mutation("equal under accumulation: scale", "core/trainer.py",
             "((losses.flow + losses.regularizer) / accumulate).backward()",
             "(losses.flow + losses.regularizer).backward()",
             "test_trainer.py::test_equal_loss_and_gradients[accumulation-2]"),
    Mutation("equal under accumulation: slices", "core/trainer.py", "train.accumulate + micro) * self.micro_batch",
             "train.accumulate) * self.micro_batch", "test_trainer.py::test_equal_loss_and_gradients[accumulation-2]"),
    Mutation("equal under DDP: gradients", "core/trainer.py", "self.model = self.accelerator.prepare_model(model)",
             "self.model = model", "test_distributed.py::test_two_processes_train_as_one"),
    Mutation("equal under DDP: slices", "core/trainer.py",
             "(self.accelerator.process_index * train.accumulate", "(0 * train.accumulate",
             "test_distributed.py::test_two_processes_train_as_one"),
    Mutation("resume: averages", "core/trainer.py", 'self.ema.steps = state["step"]',
             "self.ema.steps = 0", "test_resume.py::test_resume_at_every_checkpoint_equals_a_straight_run"),
    Mutation("resume: optimizer", "core/checkpoint.py", "if name in grouped:", "if name in ():",
             "test_resume.py::test_resume_at_every_checkpoint_equals_a_straight_run"),
    Mutation("resume: dropout", "core/trainer.py",
             "torch.manual_seed(module_seed(self.recipe.seed, step, rank, micro))", "pass",
             "test_resume.py::test_resume_at_every_checkpoint_equals_a_straight_run"),
    Mutation("resume: logs are cut back", "core/run.py", 'if record["step"] <= step]', "]",
             "test_resume.py::test_killed_and_resumed_ends_bit_identical[image/quick]"),
    Mutation("resume: a torn line is left out", "core/run.py",
             "with suppress(json.JSONDecodeError):", "with suppress():",
             "test_resume.py::test_a_log_that_was_torn_goes_on"),
    Mutation("resume: a changed recipe is refused", "core/run.py", 'return [] if ours == theirs else [path]',
             "return []", "test_resume.py::test_a_changed_recipe_is_refused"),
    Mutation("samples are independent of the batch: noise", "core/generation.py",
             "sample_noise(seed, start + first, size, self.latent)", "sample_noise(seed, start, size, self.latent)",
             "test_generation.py::test_samples_do_not_depend_on_the_batch"),
    Mutation("samples are independent of the batch: SDE", "core/generation.py",
             "solver_noise(seed, step, first, shape)", "solver_noise(seed, step, 0, shape)",
             "test_generation.py::test_samples_do_not_depend_on_the_batch"),
    Mutation("guidance mixes", "core/guidance.py", "mixed = unconditional + self.guidance",
             "mixed = conditional + self.guidance", "test_guidance.py::test_guidance_mixes_with_none"),
    Mutation("guidance interval", "core/guidance.py", "bool(self.condition) and inside", "bool(self.condition)",
             "test_guidance.py::test_outside_of_the_interval_the_unconditional_half_is_not_computed"),
    Mutation("order of heun", "core/solver.py", "return x + dt / 2 * (first + f(x + dt * first,",
             "return x + dt / 2 * (first + f(x + 0.9 * dt * first,",
             "test_solver.py::test_order_of_convergence[heun-2]"),
    Mutation("order of midpoint", "core/solver.py", "f(x + dt / 2 * f(x, _times(x, t)), _times(x, t + dt / 2))",
             "f(x + dt / 2 * f(x, _times(x, t)), _times(x, t))",
             "test_solver.py::test_order_of_convergence[midpoint-2]"),
    Mutation("order of rk4", "core/solver.py", "2 * k2 + 2 * k3", "k2 + 3 * k3",
             "test_solver.py::test_order_of_convergence[rk4-4]"),
    Mutation("dopri5 stays inside its range", "core/solver.py", ", options=options)", ")",
             "test_solver.py::test_dopri5_never_asks_beyond_the_end"),
    Mutation("nothing is asked at an open end", "core/solver.py", "last = open_end and index == steps - 1",
             "last = False", "test_solver.py::test_nothing_is_asked_at_an_open_end"),
    Mutation("SDE samples a Gaussian", "core/solver.py", "torch.sqrt(2 * weight)", "torch.sqrt(weight)",
             "test_solver.py::test_each_diffusion_form_samples_a_gaussian"),
    Mutation("conversions: score", "core/interpolant.py", "else -sigma * prediction", "else sigma * prediction",
             "test_interpolant.py::test_every_prediction_gives_data_noise_velocity_and_score"),
    Mutation("conversions: data", "core/interpolant.py", "(x_t - alpha * prediction) / sigma",
             "(x_t - prediction) / sigma", "test_solver.py::test_each_prediction_samples_a_gaussian_by_ode"),
    Mutation("conversions: velocity", "core/interpolant.py", "(d_sigma * x_t - sigma * prediction) / wronskian",
             "(d_sigma * x_t + sigma * prediction) / wronskian",
             "test_interpolant.py::test_every_prediction_gives_data_noise_velocity_and_score"),
    Mutation("variance-preserving path", "core/interpolant.py", "0.5 * s * spread + 0.5 * self.beta_min",
             "0.5 * s * spread", "test_interpolant.py::test_variance_preserving_is_the_integral_of_beta"),
    Mutation("draws of slices agree", "core/draws.py", 'source = generator(seed, "train", step, position)',
             'source = generator(seed, "train", step, row)', "test_draws.py::test_slices_agree_with_the_whole"),
    Mutation("cache key: tokenizer", "core/latents.py", "fingerprint_of(dataset), fingerprint_of(tokenizer),",
             "fingerprint_of(dataset),", "test_latents.py::test_the_key_changes_with_data_tokenizer_and_variants"),
    Mutation("a torn cache is rebuilt", "core/shards.py", '.stat().st_size == file["bytes"] for', ".is_file() for",
             "test_latents.py::test_a_torn_cache_is_built_anew"),
    Mutation("one of two processes builds", "core/shards.py",
             'with FileLock(target / f".shard-{number:05d}.lock", timeout=0):', "if True:",
             "test_latents_shards.py::test_two_processes_share_the_work_and_equal_one"),
    Mutation("files of latents are bounded", "core/shards.py", "> self._limit:", "> 2 * self._limit:",
             "test_latents_shards.py::test_files_are_bounded_and_hold_what_was_encoded"),
    Mutation("damaged latents are found", "core/shards.py", "if found != file.crc32:", "if False:",
             "test_latents_shards.py::test_a_flipped_byte_is_found_and_its_shard_alone_built_anew"),
    Mutation("held-out rows of a stream", "core/huggingface.py", "index // (HELD_OUT_EVERY - 1)",
             "index // HELD_OUT_EVERY",
             "modalities/image/test_image_imagenet.py::test_a_streamed_source_is_what_the_cached_one_is"),
    Mutation("YAML tags are never executed", "core/recipe_reading.py", "class _Loader(yaml.SafeLoader)",
             "class _Loader(yaml.UnsafeLoader)", "test_recipe.py::test_yaml_tags_are_never_executed"),
    Mutation("NaN stops", "core/trainer.py", "if not bool(torch.isfinite(", "if False and not bool(torch.isfinite(",
             "test_command_line.py::test_nan_loss_exits_with_1_and_keeps_the_last_checkpoint"),
    Mutation("every option changes something", "core/trainer.py", "weight_decay=settings.weight_decay",
             "weight_decay=0.0",
             "test_options.py::test_every_training_option_changes_the_weights[optimizer.weight_decay]"),
    Mutation("Fréchet distance", "metrics/frechet.py", "distance - 2 * float(np.linalg.svd",
             "distance - float(np.linalg.svd", "metrics/test_frechet.py::test_against_scipys_root"),
    Mutation("a reference made otherwise is refused", "core/featureset.py", "if about and about[key] != ours[key]:",
             "if False and about[key] != ours[key]:",
             "test_score.py::test_a_reference_of_another_extractor_or_preprocessing_is_refused_naming_both"),
    Mutation("rows stay with their samples", "core/featureset.py", "rows, owner = rows[order], owner[order]",
             "rows, owner = rows[order[::-1]], owner[order]",
             "test_classifier_windows.py::test_rows_are_those_of_their_samples_in_whatever_order_these_are_read"),
    Mutation("replications draw other samples", "core/evaluation.py", "seed = recipe.evaluate.seed + number",
             "seed = recipe.evaluate.seed",
             "test_evaluation.py::test_replications_draw_other_samples_and_give_the_published_interval"),
    Mutation("unbiased kernel distance", "metrics/kernel.py", "total / (len(rows) * (len(rows) - 1))",
             "total / len(rows) ** 2", "metrics/test_kernel.py::test_definitions"),
    Mutation("KID is of the published subsets", SCORES, "KID_SUBSETS if enough else None", "None",
             VALUES + "test_kernel_distance_takes_the_published_subsets_where_they_can_be_drawn"),
    Mutation("precision is of generated samples", SCORES, "precision_recall(x, y)", "precision_recall(y, x)",
             VALUES + "test_value_against_real_samples[precision]"),
    Mutation("an inception score is of ten splits", SCORES, "softmax(logits, axis=1), IS_SPLITS",
             "softmax(logits, axis=1), 1", VALUES + "test_value_against_real_samples[is]"),
    Mutation("per-file FAD is the median", SCORES, "float(np.median(values))", "float(np.mean(values))",
             VALUES + "test_each_sample_by_itself_is_the_distance_of_its_own_rows"),
    Mutation("CLIP score is with the text", SCORES, "cosine_similarity_score(features, text)",
             "cosine_similarity_score(features, features)",
             VALUES + "test_value_of_samples_and_their_texts[similarity]"),
    Mutation("matching is with the text", SCORES, "matching_score(text, features)", "matching_score(text, text)",
             VALUES + "test_value_of_samples_and_their_texts[matching]"),
    Mutation("R-precision looks for the motion of a text", SCORES, "batched_r_precision(text, features,",
             "batched_r_precision(features, text,", VALUES + "test_value_of_samples_and_their_texts[r-precision-1]"),
    Mutation("R-precision counts the first k", SCORES, "seed=n)[-1]", "seed=n)[0]",
             VALUES + "test_value_of_samples_and_their_texts[r-precision-3]"),
    Mutation("multimodality is of one text", SCORES, "features[found[:fewest]]", "features[:fewest]",
             VALUES + "test_value_of_samples_and_their_texts[multimodality]"),
    Mutation("rows of a sample count as their mean", "core/featureset.py", "sums / counts[:, None]", "sums",
             VALUES + "test_several_rows_of_a_sample_count_as_their_mean"),
    Mutation("sFID takes ADM's second statistics", "core/featureset.py", '{"spatial": "_s"}', '{"spatial": ""}',
             IMAGES + "test_of_adms_file_each_score_takes_its_own_part"),
    Mutation("what the field calls precision", "modalities/image/adapter.py",
             '"precision": "precision-inception-v3.pool"', '"precision": "recall-inception-v3.pool"',
             IMAGES + "test_the_fields_names_are_these_scores_and_improve_this_way"),
    Mutation("coverage improves upwards", "core/metric.py", 'a generated one near (k = 5)", "higher"',
             'a generated one near (k = 5)", "lower"',
             "test_score.py::test_every_kind_has_a_name_of_its_own_and_a_way_to_improve[coverage]"),
    Mutation("TensorFlow's resizing", "modalities/image/features/inception.py", "(torch.cat(resized) - 128) / 128",
             "(torch.cat(resized) - 127.5) / 127.5",
             IMAGES + "test_what_enters_the_inception_is_what_its_tensorflow_graph_makes"),
    Mutation("sFID's order of values", "modalities/image/features/inception.py",
             "[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)", "[:, :SPATIAL_CHANNELS].flatten(1)",
             IMAGES + "test_inception_streams_are_torch_fidelitys_and_adms"),
    Mutation("VGGish's mel bands", "modalities/audio/features/vggish.py", "triangularize_in_mel_space=True",
             "triangularize_in_mel_space=False",
             SOUNDS + "TestVGGish::test_the_network_is_fed_what_published_code_feeds_it"),
    Mutation("fadtk's resampling", "modalities/audio/features/waveform.py", "rolloff=KAISER_ROLLOFF", "rolloff=0.99",
             SOUNDS + "TestResampling::test_is_fadtks"),
    Mutation("GE2E's volume", "modalities/audio/features/ge2e.py", "max(gain, 1.0)", "gain",
             SOUNDS + "TestGE2E::test_published_code_and_weights_give_the_same"),
    Mutation("HumanML3D's contacts", "modalities/motion/humanml3d.py", "CONTACT_THRESHOLD = 0.002",
             "CONTACT_THRESHOLD = 0.004",
             "modalities/motion/test_motion_humanml3d.py::test_features_are_those_of_the_published_code"),
    Mutation("the evaluator's own normalisation", "modalities/motion/features/text_motion.py",
             "(features[:length] - self.mean) / self.std", "features[:length] - self.mean",
             "modalities/motion/test_motion_text_motion.py::"
             "test_what_enters_the_network_is_what_the_published_code_gives_it"),
    Mutation("a dropped text has no token", "core/condition.py",
             'out["text_mask"] & ~dropped.to(out["text_mask"].device)[:, None]', 'out["text_mask"]',
             "test_text.py::test_guidance_moves_away_from_no_text"),
    Mutation("one of several captions is drawn", "core/latents.py",
             "captions[min(int(position * len(captions)), len(captions) - 1)]", "captions[0]",
             "test_latents.py::test_captions_are_kept_and_one_of_several_is_drawn"),
    Mutation("padding is no part of a text", "core/text.py",
             "row[real].mean(0, keepdim=True)", "row.mean(0, keepdim=True)",
             "test_text.py::test_one_vector_a_text_is_clips_projection_or_the_mean"),
    Mutation("each prompt reaches its own sample", "core/generation.py",
             "texts.read(conditions.captions[part])",
             "texts.read(conditions.captions[:1] * len(conditions.captions[part]))",
             "test_text.py::test_what_is_said_changes_what_is_drawn"),
    Mutation("labels are not read beside texts unless wanted", "core/trainer.py",
             'used = labels == "required" or (labels == "auto" and encoder is None)', 'used = labels != "ignored"',
             "test_text.py::test_labels_are_left_to_scores_where_text_is_read"),
    Mutation("scores are asked for on the named split", "core/evaluation.py",
             'if recipe.evaluate.conditions != "test":', "if recipe.seed == 0:",
             "modalities/motion/test_motion_captions.py::"
             "test_scores_are_asked_for_on_the_split_that_the_recipe_names"),
    Mutation("texts of files belong to the fingerprint", "modalities/image/data.py",
             'told = f"{told}-{fingerprint_files(root, sorted(texts.values()), None)}"', "pass",
             "modalities/image/test_image_data.py::test_text_files_beside_images_are_their_captions"),
    Mutation("sides in texts forbid mirror images", "modalities/motion/data.py",
             "sided = sided_text is not None or any(map(_names_side, self.classes))",
             "sided = any(map(_names_side, self.classes))",
             "modalities/motion/test_motion_captions.py::test_texts_that_name_a_side_are_not_mirrored"),
    Mutation("gains are paired by seed", GAIN, "ratios = np.log(after / before)",
             "ratios = np.log(np.roll(after, 1) / before)",
             "test_gain.py::test_pairing_takes_out_what_seeds_share"),
    Mutation("gains are those of seeds, not of their mean", GAIN, "quantile * float(values.std(ddof=1))",
             "quantile * float(values.std())",
             "test_gain.py::test_interval_is_scipys_on_logarithms_of_ratios"),
    Mutation("which way a score improves", GAIN, '-math.expm1(log_ratio) if better == "lower"',
             "-math.expm1(log_ratio) if better",
             "test_gain.py::test_a_score_that_improves_upwards_gains_by_rising"),
    Mutation("speed-ups are read off between evaluations", GAIN,
             "share = (values[first - 1] - goal) / (values[first - 1] - values[first])",
             "share = 1.0",
             "test_gain.py::test_speed_up_of_a_curve_that_falls_so_many_times_as_fast"),
    Mutation("a speed-up keeps pairs together", GAIN, "before[every != row], after[every != row], better)",
             "before[every != row], after[every != row - 1], better)",
             "test_gain.py::test_speed_up_leaves_out_pairs"),
    Mutation("a speed-up's interval is the jackknife's", GAIN,
             "pseudo = count * (whole - costs.mean()) - (count - 1) *", "pseudo =",
             "test_gain.py::test_speed_ups_interval_covers_what_it_says"),
    Mutation("a named variant keeps its meaning", "core/experiment.py", 'return ("regularizer.name=none", *given)',
             'return given or ("regularizer.name=none",)',
             "test_compare.py::test_a_name_keeps_its_meaning_under_overrides"),
    Mutation("what ended meanwhile is kept", "core/experiment.py", "self.records = found | self.records", "pass",
             "test_compare.py::test_what_ends_while_another_process_checks_its_work_is_kept"),
    Mutation("stratified labels", "core/generation.py", "ordered = np.lexsort((lengths.numpy(), known.label.numpy()))",
             "ordered = source.permutation(len(lengths))",
             "test_generation.py::test_stratified_labels_come_as_often_as_their_share_says"),
    Mutation("not reached is told from reached", GAIN, "        return 0.0\n    first", "        return 1.0\n    first",
             "test_gain.py::test_speed_up_of_what_never_comes_there"),
    Mutation("a gain in held-out loss is at the last step", "core/comparison.py",
             "[b.held_out_loss[-1] for b, _ in both]", "[b.held_out_loss[0] for b, _ in both]",
             "test_compare.py::test_gain_in_held_out_loss_is_that_of_the_runs_own_logs"),
    Mutation("losses of unlike objectives are no gain", "core/comparison.py", "if key in LOSS_OF]", "if False]",
             "test_compare.py::test_losses_of_unlike_objectives_are_no_gain"),
    Mutation("a variant that changes nothing is refused", "core/experiment.py",
             "if not differing and arm.offset", "if differing == [1] and arm.offset",
             "test_compare.py::test_bad_input_is_one_line_before_any_work"),
    Mutation("scores that mean other things are not compared", "core/experiment.py",
             'key == common or key.startswith(f"{common}.")', "key == common",
             "test_compare.py::test_bad_input_is_one_line_before_any_work"),
    Mutation("a step: data and noise", "core/trainer.py",
             "self.interpolant.sample(x1, x0, t)",
             "self.interpolant.sample(x0, x1, t)",
             "test_trainer.py::test_a_step_is_what_the_definitions_give"),
    Mutation("a step: the network's time", "core/trainer.py",
             "self.backbone(x_t, t, condition, taps",
             "self.backbone(x_t, 1 - t, condition, taps",
             "test_trainer.py::test_a_step_is_what_the_definitions_give"),
    Mutation("a step: dropped labels", "core/trainer.py",
             "draws.drop < train.condition_dropout",
             "draws.drop >= train.condition_dropout",
             "test_trainer.py::test_a_step_is_what_the_definitions_give"),
    Mutation("a step: the regularizer's time", "core/trainer.py",
             "x1, x_t, t, out.features",
             "x1, x_t, 1 - t, out.features",
             "test_trainer.py::test_t_range_is_about_the_times_of_the_samples"),
    Mutation("held out: averaged weights", "core/trainer.py",
             "self.probe.held_out_loss(self.ema_forward, self.interpolant)",
             "self.probe.held_out_loss(self.backbone, self.interpolant)",
             "test_probe.py::test_losses_are_those_of_the_averaged_network"),
    Mutation("held out: averaged weights, similarity", "core/trainer.py",
             "self.probe.similarity(self.ema_forward, self.interpolant, self.pairs)",
             "self.probe.similarity(self.backbone, self.interpolant, self.pairs)",
             "test_probe.py::test_similarities_are_means_over_three_times"),
    Mutation("held out: no training images", "core/trainer.py",
             "cache = parts.held_out or parts.cache",
             "cache = parts.cache",
             "test_probe.py::test_the_batch_is_of_images_that_nothing_is_trained_on"),
    Mutation("held out: data and noise", "core/probe.py",
             "x_t, target = interpolant.sample(self.x1, self.x0, t)",
             "x_t, target = interpolant.sample(self.x0, self.x1, t)",
             "test_probe.py::test_losses_are_those_of_the_averaged_network"),
    Mutation("held out: labels", "core/probe.py",
             "drop_condition(condition, torch.zeros(count, dtype=torch.bool), spec)",
             "drop_condition(condition, torch.ones(count, dtype=torch.bool), spec)",
             "test_probe.py::test_losses_are_those_of_the_averaged_network"),
    Mutation("held out: times of similarities", "core/probe.py",
             "SIMILARITY_TIMES = (0.25, 0.5, 0.75)",
             "SIMILARITY_TIMES = (0.25, 0.5, 0.8)",
             "test_probe.py::test_similarities_are_means_over_three_times"),
    Mutation("held out: centred", "core/probe.py",
             "alignment(*features, out.token_mask, centred=True)",
             "alignment(*features, out.token_mask)",
             "test_probe.py::test_similarities_are_means_over_three_times"),
    Mutation("checkpointing is done", "core/trainer.py",
             'setattr(backbone, "gradient_checkpointing", True)',
             'setattr(backbone, "gradient_checkpointing", False)',
             "test_trainer.py::test_checkpointing_computes_each_block_twice"),
    Mutation("accumulation is done", "core/trainer.py",
             "        self.recipe, self.parts = recipe, parts\n",
             '        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"accumulate": 1})})\n'
             "        self.recipe, self.parts = recipe, parts\n",
             "test_trainer.py::test_accumulation_gives_the_network_a_part_at_a_time"),
    Mutation("separate steps: training", "core/recipe.py",
             "return DdpmCosine(self.prediction, self.num_timesteps)",
             "return DdpmCosine(self.prediction)",
             "test_ddpm.py::test_training_times_are_those_of_the_steps_that_the_recipe_says"),
    Mutation("separate steps: sampling", "core/recipe.py",
             "return DdpmCosine(self.prediction, self.num_timesteps)",
             "return DdpmCosine(self.prediction)",
             "test_ddpm.py::test_sampling_visits_the_steps_that_the_recipe_says"),
    Mutation("scores draw with their own seed", "core/evaluation.py",
             "seed = recipe.evaluate.seed + number",
             "seed = number",
             "test_evaluation.py::test_the_recipe_says_how_many_samples_and_with_which_seed"),
    Mutation("scores draw alike for every training seed", "core/evaluation.py",
             "seed = recipe.evaluate.seed + number",
             "seed = recipe.seed + recipe.evaluate.seed + number",
             "test_evaluation.py::test_the_recipe_says_how_many_samples_and_with_which_seed"),
    Mutation("scored samples are of the split that is named", "core/evaluation.py",
             "draw(model, count, seed, processes, known=known, shown=shown)",
             "draw(model, count, seed, processes, shown=shown)",
             "test_evaluation.py::test_samples_are_drawn_for_each_example_of_the_split_that_the_recipe_names"),
    Mutation("texts and labels are dropped together", "core/condition.py",
             "dropped.to(label.device)", "dropped.flip(0).to(label.device)",
             "test_text.py::test_texts_and_labels_are_dropped_together"),
    Mutation("TensorBoard shows no step twice", "core/session.py",
             "self.start + 1 if self.start else 0",
             "self.start + 1",
             "test_resume.py::test_tensorboard_shows_what_was_logged_and_no_step_twice"),
]  # fmt: skip


def location(mutation: Mutation) -> str:
    """Where pytest finds the test: in ``tests/core`` unless it says otherwise."""
    return f"tests/{mutation.test}" if "/" in mutation.test.partition("::")[0] else f"tests/core/{mutation.test}"


def passes(copy: Path, tests: list[str]) -> bool:
    """Whether pytest passes on the copy."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {tests}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> None:
    words = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    chosen = [m for m in MUTATIONS if not words or any(word in m.property or word in m.test for word in words)]
    with tempfile.TemporaryDirectory(prefix="layersync-mutations-") as scratch:
        copy = Path(scratch)
        for name in ("layersync", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        tests = sorted({location(m) for m in chosen})
        if not passes(copy, tests):
            raise SystemExit("a test fails before anything is broken")
        survivors = 0
        for mutation in chosen:
            path = copy / "layersync" / mutation.file
            whole = path.read_text()
            if whole.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.property}: {mutation.old!r} stands {whole.count(mutation.old)} times")
            path.write_text(whole.replace(mutation.old, mutation.new))
            survived = passes(copy, [location(mutation)])
            path.write_text(whole)
            survivors += survived
            result = "SURVIVED" if survived else "killed"
            if "--markdown" in sys.argv:
                old, new = (" ".join(text.split()) for text in (mutation.old, mutation.new))
                print(f"| {mutation.property} | `{mutation.test}` | `{old}` → `{new}` | {result} |", flush=True)
            else:
                print(f"{result:9} {mutation.property} ({mutation.test})", flush=True)
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
