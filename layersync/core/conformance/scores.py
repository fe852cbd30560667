"""Checks of what a modality gives to scores and to people: features, metrics, files."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layersync.core.adapter import Example
from layersync.core.conformance.subject import NUM_WINDOWS, NotApplicable, Subject, at, calling, expect, relative_error
from layersync.core.draws import sample_noise
from layersync.core.features import FeatureExtractor
from layersync.metrics import frechet_distance

SHARE_OF_NOISE = 0.5
"""Two halves of the data are at most this part of the Fréchet distance between the data and decoded noise."""
ARCHIVE_TOLERANCE = 1e-2
"""Relative: what an archive may lose by its layout."""
NUM_FILES = 4


def _unweighted(subject: Subject) -> dict[str, FeatureExtractor]:
    """Extractors of the modality that need no published weights."""
    with calling(subject.where("features")):
        factories = subject.adapter.features()
    made = {}
    for name, factory in factories.items():
        if not getattr(factory, "published_weights", False):
            with calling(f"{subject.where('features')}()[{name!r}](None), which says no published_weights = True"):
                made[name] = factory(None)
            expect(
                isinstance(made[name], FeatureExtractor),
                f"{subject.where('features')}()[{name!r}]",
                "a FeatureExtractor",
                repr(type(made[name])),
            )
    return made


def _rows(extractor: FeatureExtractor, examples: Sequence[Example]) -> dict[str, list[NDArray[Any]]]:
    """Features of every stream, in batches of the extractor's size."""
    texts = all(example.captions for example in examples)
    wanted = [stream for stream in extractor.streams if texts or stream not in extractor.text_streams]
    found: dict[str, list[NDArray[Any]]] = {stream: [] for stream in wanted}
    where = at(extractor, "__call__")
    for first in range(0, len(examples), extractor.batch_size):
        part = examples[first : first + extractor.batch_size]
        with calling(where):
            streams = extractor(part)
        expect(set(streams) >= set(wanted), where, f"streams {wanted}", f"{sorted(streams)}")
        for stream in wanted:
            rows = streams[stream]
            expect(len(rows) == len(part), f"{where}, {stream}", f"{len(part)} arrays, one a sample", f"{len(rows)}")
            found[stream] += rows
    return found


def features(subject: Subject) -> None:
    """Features are finite rows of one width, whatever the sample."""
    extractors = _unweighted(subject)
    if not extractors:
        raise NotApplicable("every extractor needs published weights, or there is none")
    for name, extractor in extractors.items():
        where = at(extractor, "__call__")
        for attribute in ("name", "preprocessing"):
            said = getattr(extractor, attribute, None)
            expect(isinstance(said, str) and bool(said), at(extractor, attribute), "text", repr(said))
        expect(extractor.name == name, at(extractor, "name"), f"{name!r}, as in features()", repr(extractor.name))
        for stream, rows in _rows(extractor, subject.windows).items():
            for number, row in enumerate(rows):
                what = _said(subject.windows, number)
                expect(
                    isinstance(row, np.ndarray) and row.ndim == 2 and len(row) > 0,
                    f"{where}, {stream}",
                    f"an array (rows, features) of {what}",
                    f"{getattr(row, 'shape', type(row))}",
                )
                expect(
                    row.shape[1] == rows[0].shape[1],
                    f"{where}, {stream}",
                    f"{rows[0].shape[1]} features of every sample, as of {_said(subject.windows, 0)}",
                    f"{row.shape[1]} of {what}",
                )
                expect(bool(np.isfinite(row).all()), f"{where}, {stream}", f"finite features of {what}", "others")


def classifier_input(subject: Subject) -> None:
    """The in-domain classifier gets float32 of one width and layout, with a frame mask where lengths differ."""
    where, windows = subject.where("classifier_input"), subject.windows
    with calling(where):
        alone = [subject.adapter.classifier_input([example.sample])[0] for example in windows]
    for number, x in enumerate(alone):
        what = _said(windows, number)
        expect(isinstance(x, Tensor), where, "a tensor", repr(type(x)))
        expect(x.dtype == torch.float32, where, f"float32 of {what}", str(x.dtype))
        expect(x.ndim in (3, 4), where, "(batch, channels, *grid) with a 1-D or 2-D grid", f"{list(x.shape)} of {what}")
        expect(
            x.shape[1] == alone[0].shape[1],
            where,
            f"{alone[0].shape[1]} channels of every sample, as of {_said(windows, 0)}",
            f"{x.shape[1]} of {what}",
        )
        expect(bool(torch.isfinite(x).all()), where, f"finite values of {what}", "others")
    x, mask = _classifier_input(subject, windows)
    expect(len(x) == len(windows), where, f"{len(windows)} rows, one a sample", f"{len(x)}")
    size = float(x.square().mean().sqrt())
    expect(0.01 < size < 100, where, "values of order 1", f"a root mean square of {size:.3g}")
    differing = len({part.shape[-1] for part in alone}) > 1
    expect(mask is not None or not differing, where, "a mask, as lengths differ", "None")
    if mask is not None:
        wanted = [len(windows), x.shape[-1]]
        expect(
            mask.dtype == torch.bool and list(mask.shape) == wanted,
            where,
            f"a boolean mask {wanted}",
            f"{mask.dtype} {list(mask.shape)}",
        )
    for row, part in enumerate(alone):
        frames = part.shape[-1]
        error = relative_error(x[row : row + 1, ..., :frames], part)
        expect(
            error <= 1e-3,
            where,
            f"{_said(windows, row)} alone to be read as beside others",
            f"a difference of {error:.2g}",
        )


def distance(subject: Subject) -> None:
    """Two halves of the data are close, compared with decoded noise."""
    noise = _noise(subject)
    half = len(subject.windows) // 2
    for where, real, drawn in _described(subject, noise):
        with warnings.catch_warnings():  # more features than samples: both sides of the comparison have as many
            warnings.simplefilter("ignore")
            halves = frechet_distance(real[:half], real[half : 2 * half])
            apart = frechet_distance(real[:half], drawn[:half])
        expect(
            halves <= SHARE_OF_NOISE * apart,
            where,
            f"two halves of the data closer than half of the distance to decoded noise, {apart:.4g}",
            f"{halves:.4g}",
        )


def metrics(subject: Subject) -> None:
    """Each metric gives one finite number a sample."""
    with calling(subject.where("metrics")):
        found = subject.adapter.metrics()
    if not found:
        raise NotApplicable("the modality has no metrics of its own")
    some = subject.windows[:NUM_FILES]
    for name, metric in found.items():
        where = f"{subject.where('metrics')}()[{name!r}]"
        with calling(where):
            values = np.asarray(metric(some))
        expect(values.shape == (len(some),), where, f"{len(some)} values, one a sample", f"{list(values.shape)}")
        expect(
            values.dtype.kind == "f" and bool(np.isfinite(values).all()), where, "finite numbers", f"{values.tolist()}"
        )


def render(subject: Subject) -> None:
    """Rendering writes files that are not empty, and returns exactly those."""
    for examples in (subject.windows[:NUM_FILES], subject.windows[:1]):
        _render(subject, [example.sample for example in examples])


def _render(subject: Subject, samples: Sequence[Any]) -> None:
    where = subject.where("render")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with calling(where):
            returned = subject.adapter.render(samples, folder)
        expect(isinstance(returned, list), where, "a list of files", repr(type(returned)))
        written = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        named = {Path(path).relative_to(folder) for path in returned if Path(path).is_relative_to(folder)}
        expect(len(named) == len(set(returned)), where, "files of the folder that it was given", f"{returned}")
        expect(bool(named), where, "at least one file", "none")
        for which, files in (("did not write", named - written), ("did not return", written - named)):
            listed = ", ".join(sorted(map(str, files)))
            expect(not files, where, "exactly the files that it returns", f"{listed}, which it {which}")
        empty = [str(path) for path in written if not (folder / path).stat().st_size]
        expect(not empty, where, "files with content", f"empty {', '.join(empty)}")


def archive(subject: Subject) -> None:
    """An archive is read again by ``open_samples``: as many samples, in their order, as they were."""
    some = subject.windows[:NUM_FILES]
    where, opening = subject.where("archive"), subject.where("open_samples")
    labels = [max(example.label, 0) for example in some]
    with tempfile.TemporaryDirectory() as scratch:
        for name, given in (("labelled", labels), ("plain", None)):
            path = Path(scratch) / f"{name}.npz"
            with calling(where):
                subject.adapter.archive([example.sample for example in some], given, path)
            expect(path.is_file(), where, f"a file at {path.name}", f"{sorted(p.name for p in path.parent.iterdir())}")
            with calling(opening):
                opened = subject.adapter.open_samples(path)
                again = [opened[index] for index in range(len(opened))]
            expect(len(again) == len(some), opening, f"the {len(some)} samples of the archive", f"{len(again)}")
            for label, found in zip(labels, again, strict=True):
                expect(isinstance(found, Example), opening, "an Example", repr(type(found)))
                if given is not None and found.label >= 0:
                    expect(found.label == label, opening, f"label {label}", f"{found.label}")
            error = relative_error(_description(subject, again), _description(subject, some))
            expect(
                error <= ARCHIVE_TOLERANCE,
                f"{where} and open_samples",
                "the samples again",
                f"a relative difference of {error:.2g}",
            )


def _said(examples: Sequence[Example], number: int) -> str:
    source = examples[number].source
    return f"sample {number}{f' ({source})' if source else ''}"


def _classifier_input(subject: Subject, examples: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
    with calling(subject.where("classifier_input")):
        return subject.adapter.classifier_input([example.sample for example in examples])


def _noise(subject: Subject) -> list[Example]:
    """Decoded noise of whole windows, half as many as there are windows of the data."""
    tokenizer = subject.tokenizer
    latent = tokenizer.latent
    count = NUM_WINDOWS // 2
    mask = None if latent.num_frames is None else torch.ones(count, latent.num_frames, dtype=torch.bool)
    with calling(at(tokenizer, "decode")):
        tokenizer.prepare_decoding()
        return [Example(sample) for sample in tokenizer.decode(sample_noise(0, 0, count, latent), mask)]


def _described(subject: Subject, noise: Sequence[Example]) -> list[tuple[str, NDArray[Any], NDArray[Any]]]:
    """Of the classifier's input and of each extractor: where it comes from, a row a window, a row a noise sample."""
    found = []
    pooled = [_pooled(*_classifier_input(subject, part)).numpy() for part in (subject.windows, noise)]
    found.append((subject.where("classifier_input"), pooled[0], pooled[1]))
    for extractor in _unweighted(subject).values():
        stream = extractor.streams[0]
        rows = [np.stack([row.mean(0) for row in _rows(extractor, part)[stream]]) for part in (subject.windows, noise)]
        found.append((f"{at(extractor, '__call__')}, {stream}", rows[0], rows[1]))
    return found


def _pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean and deviation of each channel over what is real, (batch, 2 channels)."""
    flat = x.flatten(2)
    weights = torch.ones_like(x[:, :1]) if mask is None else mask.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1)
    real = weights.expand_as(x[:, :1]).flatten(2).to(x.dtype)
    mean = (flat * real).sum(2) / real.sum(2)
    deviation = (((flat - mean[..., None]) ** 2 * real).sum(2) / real.sum(2)).sqrt()
    return torch.cat([mean, deviation], dim=1)


def _description(subject: Subject, examples: Sequence[Example]) -> Tensor:
    """One row that says what samples are: features where some need no weights, else their stored form."""
    for extractor in _unweighted(subject).values():
        rows = _rows(extractor, examples)[extractor.streams[0]]
        return torch.from_numpy(np.concatenate([row.ravel() for row in rows]))
    tokenizer = subject.tokenizer
    with calling(at(tokenizer, "encode")):
        return torch.cat([clip.flatten() for clip in tokenizer.encode([example.sample for example in examples])])
