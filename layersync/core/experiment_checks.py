"""What is checked before a comparison's runs begin: data, networks, metrics, and what finished runs were made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from layersync.core.classifier import VERSIONED_NAME
from layersync.core.comparison import Arm, Records
from layersync.core.errors import InputError
from layersync.core.evaluation import named_reference, open_extractors, takers
from layersync.core.features import FeatureExtractor
from layersync.core.metric import MetricName, check_labels, parse_metrics, reads_classifier
from layersync.core.parallel import Processes
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import load_recipe
from layersync.core.results import Comparison, RunRecord
from layersync.core.run import DataSummary, differing_keys, outside_data
from layersync.core.session import CAPTIONS_LIMIT, num_conditions
from layersync.core.trainer import Parts, build_parts, check_network, probe_pairs

CLASSIFIERS = "classifiers"
"""Folder of a comparison that holds what its runs are scored by, so that runs of other machines can be added."""


def check_same(directory: Path, arms: Sequence[Arm], earlier: Comparison) -> None:
    """Refuse to go on with a comparison of other recipes."""
    there = {(domain.name, name): variant for domain in earlier.domains for name, variant in domain.variants.items()}
    asked = {(arm.domain, arm.variant): arm for arm in arms}
    for domain, variant in there:
        if (domain, variant) not in asked:
            raise InputError(f"--resume: {directory} compares {variant} of {domain} too, which is not asked for now")
    for key, arm in asked.items():
        if key in there:
            try:
                before = load_recipe(there[key].content).to_mapping()  # keys that are newer have their default
            except InputError as error:
                raise InputError(f"--resume: {arm.variant} of {arm.domain} in {directory}: {error}") from None
            changed = differing_keys(arm.trained.to_mapping(), before)
            if changed:
                raise InputError(
                    f"--resume: {arm.variant} of {arm.domain} differs from the one in {directory} in "
                    f"{', '.join(changed)}; this is another comparison, give it another --out"
                )


def check_work(directory: Path, arms: Sequence[Arm], seeds: Sequence[int], records: Records) -> list[Arm]:
    """The arms with their pairs. Data, latents and extractors that runs will need are there afterwards."""
    checked, parts = [], {}
    for arm in arms:
        own = [records.get((arm.domain, arm.variant, seed)) for seed in seeds]
        if None not in own:
            depth = next(len(record.similarity[0].cosine) for record in own if record is not None)
            checked.append(replace(arm, pairs=probe_pairs(arm.recipe, depth)))
            continue
        read = (arm.domain, arm.recipe.condition.model_dump_json())
        if read not in parts:
            outside_data(directory, arm.recipe.data, "--out")
            parts[read], extractors = _parts(arm, functools.partial(_check_data, arm, arms, records))
            _check_conditions(arm, parts[read], arms, records)
            _check_scores(directory, arm, parts[read], extractors, records)
        depth = check_network(arm.recipe, parts[read].tokenizer, parts[read].data)
        checked.append(replace(arm, pairs=probe_pairs(arm.recipe, depth)))
    return checked


def _alike(arm: Arm, arms: Sequence[Arm], records: Records) -> list[RunRecord]:
    """Finished runs on the data of ``arm`` that read the same labels and texts."""
    alike = {(other.domain, other.variant) for other in arms if other.recipe.condition == arm.recipe.condition}
    return [record for (domain, name, _), record in records.items() if domain == arm.domain and (domain, name) in alike]


def _check_data(arm: Arm, arms: Sequence[Arm], records: Records, data: DataSummary) -> None:
    """Refuse to set runs beside finished ones of other data, or other embeddings."""
    finished = [record for (domain, _, _), record in records.items() if domain == arm.domain]
    if {record.data for record in finished if record.data} - {data.fingerprint}:
        raise InputError(
            f"--resume: the data or the tokenizer of {arm.domain} has changed since its finished runs were made; "
            f"give another --out"
        )
    encoders = {record.environment.get("text_encoder", data.text_encoder) for record in _alike(arm, arms, records)}
    if encoders - {data.text_encoder}:
        raise InputError(
            f"--resume: condition.text_encoder of {arm.domain} is not what its finished runs were trained with; bring "
            f"it back, or give another --out"
        )


def _check_conditions(arm: Arm, parts: Parts, arms: Sequence[Arm], records: Records) -> None:
    """Refuse to set runs beside finished ones that are sampled for fewer examples."""
    kept, kept_before = num_conditions(parts), min(len(parts.cache), CAPTIONS_LIMIT)  # where a run does not say it yet
    if {record.environment.get("conditions", kept_before) for record in _alike(arm, arms, records)} - {kept}:
        raise InputError(
            f"--resume: finished runs of {arm.domain} drew the labels of their samples from fewer training examples "
            f"than {kept}, in an earlier version; give another --out"
        )


def _check_scores(
    directory: Path, arm: Arm, parts: Parts, extractors: Mapping[str, FeatureExtractor], records: Records
) -> None:
    """Refuse to set runs beside finished ones that were scored by other networks."""
    recipe, metrics = arm.recipe, metrics_of(arm.recipe)
    scored = [
        record.environment["evaluation"]["metrics"]
        for (domain, _, _), record in records.items()
        if domain == arm.domain
    ]
    if not scored:
        return
    if read := [metric.name for metric in metrics if reads_classifier([metric])]:
        others = {one[read[0]]["extractor"] for one in scored}
        if older := [name for name in sorted(others) if not name.startswith(f"{VERSIONED_NAME}-")]:
            raise InputError(
                f"--resume: {read[0]} of {arm.domain} was taken by {older[0]} in finished runs, and this version of "
                f"layersync has {VERSIONED_NAME}: not comparable; go on with the version that began it, or give "
                f"another --out"
            )
    held = f"bring back what {directory / CLASSIFIERS} held"
    for metric, extractor in takers(recipe, parts.tokenizer, extractors, directory / CLASSIFIERS, keep=False).items():
        now = (extractor.name, extractor.checksum, extractor.preprocessing)
        before = {tuple(one[metric][key] for key in ("extractor", "checksum", "preprocessing")) for one in scored}
        if other := before - {now}:
            then, anew = (f"{name} (weights {sha256[:12] or 'none'}; {how})" for name, sha256, how in (min(other), now))
            raise InputError(
                f"--resume: {metric} of {arm.domain} was taken by {then} in finished runs and would be by {anew} in "
                f"others: not comparable; {held if metric in read else 'take those weights'}, or give another --out"
            )


def metrics_of(recipe: Recipe) -> tuple[MetricName, ...]:
    """The recipe's metrics, taken apart."""
    return tuple(parse_metrics(recipe.modality, recipe.evaluate.metrics))


def _parts(arm: Arm, check: Callable[[DataSummary], None]) -> tuple[Parts, dict[str, FeatureExtractor]]:
    recipe, metrics = arm.recipe, metrics_of(arm.recipe)
    found = build_parts(recipe, check=check)
    try:
        check_labels(recipe, metrics, found.data.classes, found.data.condition)
    except InputError as error:
        raise InputError(f"{arm.variant} of {arm.given}: {error}") from None
    extractors = open_extractors(recipe.modality, metrics, {})
    if recipe.evaluate.reference_split is None:
        named_reference(recipe, metrics, Processes.here()).check_statistics(metrics, extractors)
    return found, extractors
