"""Scores of a run, and of anybody's samples: samples -> features -> score, the real side made once and kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from layersync.core.adapter import Example, ExampleDataset, ModalityAdapter, Split, Tokenizer, load_adapter
from layersync.core.device import take_own_device
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor
from layersync.core.featureset import FeatureSet, save_features
from layersync.core.generation import GenerativeModel, KnownConditions, load, one_checkpoint, sampling_settings
from layersync.core.latents import LatentCache, cache_key
from layersync.core.metric import (
    CLASS_SCORES,
    COMPARED_WITH_TEXT,
    DOMAIN_METRICS,
    NEEDS_LABELS,
    MetricName,
    Needs,
    check_labels,
    parse_metrics,
    reads_classifier,
    rows_first,
)
from layersync.core.parallel import Processes
from layersync.core.paths import expand
from layersync.core.plugin import calling
from layersync.core.recipe import Recipe, ineffective
from layersync.core.reference import RealSet, RunData, SampleFiles, examples_of
from layersync.core.results import Evaluation, Score, SetScores
from layersync.core.run import package_versions, writable_parent
from layersync.core.run_scoring import RunScorer, classifier_of, own_score
from layersync.core.scoring import combine, score


def open_extractors(
    modality: str, metrics: Sequence[MetricName], weights: Mapping[str, str]
) -> dict[str, FeatureExtractor]:
    """The extractors that ``metrics`` need, their weights found: ``weights`` maps names to paths or hub ids."""
    adapter = load_adapter(modality)
    known = adapter.features()
    for name in weights:
        if name not in known:
            there = ", ".join(known) or "none"
            raise InputError(f"--extractor: {name!r} is no extractor of modality {modality}; there are: {there}")
    wanted = list(dict.fromkeys(metric.extractor for metric in metrics if metric.extractor))
    for name in weights:
        if name not in wanted:
            warnings.warn(f"--extractor {name} has no effect: no metric is taken on it", stacklevel=3)
    made = {}
    for name in wanted:
        with calling(adapter, f"features()[{name!r}]"):
            made[name] = known[name](weights.get(name))
    for metric in metrics:
        if metric.extractor:
            _check_streams(metric, made[metric.extractor])
    return made


def _check_streams(metric: MetricName, extractor: FeatureExtractor) -> None:
    """InputError for a metric of features that the extractor does not give."""
    if (metric.kind == "is" and metric.stream != CLASS_SCORES) or metric.stream not in (None, *extractor.streams):
        wanted = f"class scores, a stream {CLASS_SCORES!r}" if metric.kind == "is" else f"a stream {metric.stream!r}"
        raise InputError(
            f"metric {metric.name}: needs {wanted}; extractor {extractor.name} gives {', '.join(extractor.streams)}"
        )
    if metric.kind in COMPARED_WITH_TEXT and not extractor.text_streams:
        raise InputError(f"metric {metric.name}: extractor {extractor.name} reads no texts")


def takers(
    recipe: Recipe,
    tokenizer: Tokenizer,
    extractors: Mapping[str, FeatureExtractor],
    folder: Path | None,
    *,
    keep: bool = True,
) -> dict[str, FeatureExtractor]:
    """By metric of the recipe, the extractor or the classifiers that would take it now, where any does."""
    metrics = parse_metrics(recipe.modality, recipe.evaluate.metrics)
    found = {metric.name: extractors[metric.extractor] for metric in metrics if metric.extractor is not None}
    if read := [metric.name for metric in metrics if reads_classifier([metric])]:
        found |= dict.fromkeys(read, classifier_of(recipe, tokenizer, folder, keep=keep))
    return found


def evaluate(
    run: str | Path,
    metrics: Sequence[str] | None = None,
    *,
    num_samples: int | None = None,
    step: int | None = None,
    weights: str = "ema",
    reference: str | Path | None = None,
    extractors: Mapping[str, str] | None = None,
    classifiers: str | Path | None = None,
    replications: int = 1,
    overrides: Sequence[str] = (),
    shown: bool = False,
) -> Evaluation:
    """Draw samples from a run and score them.

    Args:
        run: run directory.
        metrics: names as :func:`layersync.core.metric.metric_names` lists them; the recipe's own when left out.
        num_samples: how many to draw; the recipe's own number when left out.
        step: checkpoint to take; the newest when left out.
        weights: ``ema`` or ``model``.
        reference: samples or statistics to compare with instead of the run's own data.
        extractors: weights of feature extractors by name, a path or a hub id each.
        classifiers: folder of the classifiers behind ``fd-classifier`` and ``label-agreement``, which gets them where
            it has none; the cache of this machine when left out. Scores of one folder can be compared across machines.
        replications: draws of the whole set, with seeds that follow the recipe's; a score is then their mean with
            the interval 1.96 sd / sqrt(n).
        overrides: ``sample.KEY=VALUE`` and ``evaluate.KEY=VALUE``, in the place of what the run's recipe says.
        shown: whether progress bars are drawn.

    Raises:
        InputError: for an unknown metric, fewer than 2 samples, a run that does not exist, weights that are missing,
            classifiers that are damaged or cannot be kept, data without labels where a metric needs them, and data of
            other classes than the run's. What one of several metrics raises when it is counted is in ``failed`` of the
            result, and the others' scores are kept.
    """
    take_own_device()  # the network goes there
    processes = Processes.here()
    model = load(run, step=step, weights=weights)
    one_checkpoint(model, processes)
    model.override(overrides, ["sample", "evaluate"])
    recipe = model.recipe
    for line in ineffective(recipe):
        if line not in ineffective(model.run.recipe):
            warnings.warn(line, stacklevel=2)
    chosen = parse_metrics(recipe.modality, metrics or recipe.evaluate.metrics)
    count = recipe.evaluate.num_samples if num_samples is None else num_samples
    _check_run(model, chosen, count, replications)
    folder = None if classifiers is None else Path(classifiers)
    if folder is not None and not reads_classifier(chosen):
        warnings.warn(f"--classifiers has no effect: no metric is {' or '.join(NEEDS_LABELS)}", stacklevel=2)
    compares = _compares(chosen)
    if reference is not None and not compares:
        warnings.warn("--reference has no effect: no metric compares samples with others", stacklevel=2)
    made = open_extractors(recipe.modality, chosen, extractors or {})
    real = _real_side(model, chosen, reference, processes)
    if isinstance(real, SampleFiles):
        real.check_statistics(chosen, made)
    wordy = any(metric.needs is Needs.TEXT for metric in chosen)
    if folder is not None and reads_classifier(chosen):
        classifier_of(recipe, model.tokenizer, folder)  # a folder that cannot be used is found before samples are drawn
    known, without = conditions_of_split(model), 0
    if wordy:
        known, without = _with_texts(model, known)
    found: list[dict[str, Score]] = []
    failed: dict[str, str] = {}
    for number in range(replications):
        seed = recipe.evaluate.seed + number
        examples = draw(model, count, seed, processes, known=known, shown=shown)
        scorer = RunScorer(model, examples, real, made, processes, shown, wordy, folder)
        found.append({})
        for metric in rows_first([metric for metric in chosen if metric.name not in failed]):
            try:
                found[-1][metric.name] = scorer.score(metric)
            except InputError as error:
                if processes.count > 1 or len(chosen) == 1:  # processes have to go the same way
                    raise
                failed[metric.name] = str(error)
    done = [metric.name for metric in chosen if metric.name not in failed]
    if not done:
        raise InputError(next(iter(failed.values())))
    scores = {name: combine([part[name] for part in found]) if replications > 1 else found[0][name] for name in done}
    settings = sampling_settings(recipe.sample, count, recipe.evaluate.seed, recipe.evaluate.conditions)
    said = {
        "reference": str(reference) if reference is not None and compares else None,
        "extractors": {name: given for name, given in (extractors or {}).items() if name in made},
        "replications": replications if replications > 1 else None,
        "without_text": without,
        "set": list(overrides) if recipe != model.run.recipe else None,
    }
    beside = {key: value for key, value in said.items() if value}
    result = Evaluation(str(run), model.step, weights, settings, scores, package_versions(), beside, failed)
    if processes.main:
        try:
            model.run.append("evaluation.jsonl", result.to_mapping())
        except OSError as error:
            warnings.warn(f"{model.run.path}: the scores are not kept there ({error.strerror})", stacklevel=2)
    return result


def draw(
    model: GenerativeModel,
    count: int,
    seed: int,
    processes: Processes,
    *,
    known: KnownConditions | None = None,
    shown: bool = False,
) -> dict[int, Example]:
    """This process's share of ``count`` samples, by number. A sample is the same whoever draws it.

    ``known`` is what they are drawn for, the run's training data by default.
    """
    conditions = model.conditions_as_scored(count, seed=seed, known=known)
    share = processes.share(count)
    part = conditions[share.start : share.stop]
    if not len(share):
        return {}
    model.tokenizer.prepare_decoding()
    latents, mask = model.sample_latents(part, seed=seed, start=share.start, shown=shown and processes.main)
    return examples_of(model.decode(latents, mask), part.label.tolist(), part.captions, share.start)


def conditions_of_split(model: GenerativeModel) -> KnownConditions | None:
    """What the recipe's samples are drawn for: the held-out split, where it says so; ``None`` for the training data."""
    recipe = model.recipe
    if recipe.evaluate.conditions != "test":
        return None
    dataset = recipe.adapter.dataset(recipe.data, "test")
    if not len(dataset):
        raise InputError(f"evaluate.conditions: test, and data {recipe.data.name} has no such split")
    cache = LatentCache.open(dataset, model.tokenizer)
    return KnownConditions(torch.from_numpy(cache.labels), torch.from_numpy(cache.frames), cache.captions)


def _with_texts(model: GenerativeModel, known: KnownConditions | None) -> tuple[KnownConditions | None, int]:
    """The examples of ``known``, or of the training data, that have a text, and how many have none, which is said.

    ``known`` as it is where all have one. Raises :class:`InputError` where none has.
    """
    asked = known or model.known
    captions = [[text for text in texts if text] for texts in asked.captions]
    rows = [row for row, texts in enumerate(captions) if texts]
    if not rows:
        raise InputError(
            f"{model.run.path}: none of the {len(captions)} examples that samples are drawn for has a text, which a "
            f"metric needs; leave out such metrics, or write samples out by --prompt and give them to layersync score"
        )
    without = len(captions) - len(rows)
    if not without:
        return known, 0
    warnings.warn(
        f"{without} of {len(captions)} examples have no text, which a metric needs: samples are drawn for the others",
        stacklevel=3,
    )
    return KnownConditions(asked.label[rows], asked.frames[rows], [captions[row] for row in rows]), without


def _check_run(model: GenerativeModel, metrics: Sequence[MetricName], count: int, replications: int) -> None:
    if count < 2:
        raise InputError(f"--num-samples: {count}; a score needs at least 2")
    if replications < 1:
        raise InputError(f"--replications: {replications}; at least 1")
    check_labels(model.recipe, metrics, model.classes, model.condition)
    wordy = [metric for metric in metrics if metric.needs is Needs.TEXT]
    if wordy and not model.condition.text_channels:
        raise InputError(
            f"metric {wordy[0].name} needs texts, and the run is not conditioned on any; write its samples out and "
            f"give captions to layersync score"
        )
    if "multimodality" in (metric.kind for metric in wordy):
        raise InputError(
            "metric multimodality needs several samples of each text: draw them by layersync sample --prompt and give "
            "them to layersync score"
        )


def _compares(metrics: Sequence[MetricName]) -> bool:
    """Whether one of ``metrics`` is of real samples, too."""
    return any(metric.needs in (Needs.BOTH, Needs.BOTH_ROWS) or metric.kind == "fd-classifier" for metric in metrics)


def _real_side(
    model: GenerativeModel, metrics: Sequence[MetricName], reference: str | Path | None, processes: Processes
) -> RealSet:
    """What a run's samples are compared with; empty splits and unreadable files are found here."""
    recipe, names = model.recipe, [metric.name for metric in metrics]
    needed: list[Split] = ["train", "test"] if "nearest-training" in names else []
    if reads_classifier(metrics):
        needed.append("train")
    against = recipe.evaluate.reference_split if reference is None else None
    if against is not None:
        needed.append(against)
    opened = {split: recipe.adapter.dataset(recipe.data, split) for split in needed}
    if opened:
        trained_on = recipe.data.split
        _check_data(model, opened.get(trained_on) or recipe.adapter.dataset(recipe.data, trained_on))
    for split, dataset in opened.items():
        if not len(dataset):
            raise InputError(f"data {recipe.data.name}: split {split} is empty, {', '.join(names)} cannot be scored")
    if reference is not None:
        files = SampleFiles(recipe.adapter, Path(reference), "--reference", processes)
        files.check(metrics)
        return files
    if against is None:
        return named_reference(recipe, metrics, processes)
    own = RunData(opened[against], model.tokenizer, recipe.data.name, against, processes)
    own.check(metrics)
    return own


def named_reference(recipe: Recipe, metrics: Sequence[MetricName], processes: Processes) -> SampleFiles:
    """The samples or statistics that ``evaluate.reference`` names. InputError where they cannot serve ``metrics``."""
    key = "evaluate.reference"
    named = recipe.evaluate.reference
    files = SampleFiles(recipe.adapter, expand(named, key), key, processes, named)
    files.check(metrics)
    return files


def _check_data(model: GenerativeModel, dataset: ExampleDataset) -> None:
    """Warn where ``dataset`` is no longer what the run was trained on; InputError where its classes are others."""
    recipe, run = model.recipe, model.run
    if not run.data.fingerprint:
        return
    changed = f"data {recipe.data.name}, or the tokenizer, has changed since {run.path} was trained"
    if tuple(dataset.classes) != run.data.classes:
        classes = f"{len(run.data.classes)} classes then, {len(dataset.classes)} now, or others"
        raise InputError(f"{changed}: {classes}; bring it back, or give --reference, no metric of training data")
    if cache_key(dataset, model.tokenizer) != run.data.fingerprint:
        warnings.warn(f"{changed}: scores are taken against what it is now", stacklevel=3)


def score_samples(
    modality: str,
    generated: Sequence[str | Path],
    metrics: Sequence[str],
    *,
    real: str | Path | None = None,
    extractors: Mapping[str, str] | None = None,
    save_statistics: str | Path | None = None,
    shown: bool = False,
) -> SetScores:
    """Score anybody's samples: what ``layersync score`` does.

    Args:
        modality: which adapter reads them.
        generated: folders or files of samples; several are replications of one experiment, whose scores are averaged
            with the interval 1.96 sd / sqrt(n).
        metrics: names as :func:`layersync.core.metric.metric_names` lists them, but for those that need a run.
        real: samples or statistics to compare with; may be left out for metrics of generated samples alone.
        extractors: weights of feature extractors by name.
        save_statistics: a file for the statistics of ``real``, to be shared and given as ``real`` later.
        shown: whether progress bars are drawn.

    Raises:
        InputError: before any work, for whatever cannot be read or compared.
    """
    chosen = parse_metrics(modality, metrics)
    adapter, processes = load_adapter(modality), Processes.here()
    for metric in chosen:
        if metric.kind in DOMAIN_METRICS:
            raise InputError(f"metric {metric.name} needs a run and its data: layersync evaluate RUN")
        if real is None and metric.needs in (Needs.BOTH, Needs.BOTH_ROWS):
            raise InputError(f"metric {metric.name} needs --real: samples or statistics to compare with")
    if real is not None and save_statistics is None and not _compares(chosen):
        warnings.warn("--real has no effect: no metric compares samples with others", stacklevel=2)
        real = None
    sets = [SampleFiles(adapter, Path(path), "--generated", processes) for path in generated]
    target = SampleFiles(adapter, Path(real), "--real", processes) if real is not None else None
    for files in sets:
        if files.statistics and any(metric.needs is not Needs.BOTH or metric.kind != "fd" for metric in chosen):
            _ = files.examples
    if target is not None:
        target.check(chosen)
    made = open_extractors(modality, chosen, extractors or {})
    if target is not None:
        target.check_statistics(chosen, made)
    saved = _statistics_target(save_statistics, target, made)
    found = [_score_set(adapter, chosen, files, target, made, processes, shown) for files in sets]
    scores = found[0] if len(found) == 1 else {name: combine([part[name] for part in found]) for name in found[0]}
    if saved is not None and target is not None and processes.main:
        save_features(saved, target.features(next(iter(made.values())), rows=False), rows=False)
    where = None if real is None else str(real)
    return SetScores(modality, tuple(map(str, generated)), where, scores, package_versions())


def _statistics_target(
    path: str | Path | None, real: SampleFiles | None, extractors: Mapping[str, FeatureExtractor]
) -> Path | None:
    if path is None:
        return None
    target = Path(path)
    if real is None or len(extractors) != 1:
        raise InputError(
            f"--save-statistics: needs --real and metrics of one extractor, not of {len(extractors)} "
            f"({', '.join(extractors) or 'none'})"
        )
    if target.suffix != ".npz":
        raise InputError(f"--save-statistics: {target} does not end in .npz")
    if target.exists():
        raise InputError(f"--save-statistics: {target} exists")
    writable_parent(target, "--save-statistics")
    return target


def _score_set(
    adapter: ModalityAdapter,
    metrics: Sequence[MetricName],
    generated: SampleFiles,
    real: SampleFiles | None,
    extractors: Mapping[str, FeatureExtractor],
    processes: Processes,
    shown: bool,
) -> dict[str, Score]:
    scores: dict[str, Score] = {}
    features: dict[str, FeatureSet] = {}
    wordy = {metric.extractor for metric in metrics if metric.needs is Needs.TEXT}
    for metric in rows_first(metrics):
        if metric.extractor is None:
            share = processes.share(len(generated.examples))
            own = {number: generated.examples[number] for number in share}
            scores[metric.name] = own_score(adapter, metric, own, processes)
            continue
        extractor = extractors[metric.extractor]
        if extractor.name not in features:
            only_statistics = generated.statistics and all(part.kind == "fd" for part in metrics)
            features[extractor.name] = (
                generated.features(extractor, rows=False)
                if only_statistics
                else generated.extracted(extractor, texts=metric.extractor in wordy, shown=shown)
            )
        against = None
        if real is not None and metric.needs in (Needs.BOTH, Needs.BOTH_ROWS):
            against = real.features(extractor, rows=metric.needs is Needs.BOTH_ROWS, shown=shown)
        reference = real.reference(against) if real is not None and against is not None else None
        scores[metric.name] = score(metric, features[extractor.name], against, reference)
    return {metric.name: scores[metric.name] for metric in metrics}
