"""Checks of a modality's data, recipe sections and tokenizer."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layersync.core.adapter import SECTIONS, Example, ExampleDataset, Section
from layersync.core.conformance.subject import (
    Fault,
    NotApplicable,
    Subject,
    at,
    calling,
    expect,
    readable,
    relative_error,
    same,
    spread,
)
from layersync.core.errors import InputError
from layersync.core.metric import KINDS, parse_metric
from layersync.core.reading import read_ahead
from layersync.core.recipe_reading import load_recipe
from layersync.core.run import apart

ELSEWHERE = """
import json, sys
from layersync.core.conformance.data import identity
from layersync.core.conformance.subject import Subject
from layersync.core.recipe_reading import load_recipe
recipe, indices = json.load(sys.stdin)
sys.stdout.write("\\n" + json.dumps(identity(Subject(load_recipe(recipe)), indices)))
"""
"""What another process runs; what a plug-in prints comes before the last line."""
SOURCES_LOOKED_AT = 64
LATENTS_SIZE = 0.05, 20.0
"""Root mean squares of latents that are of order 1, as the noise is that they are mixed with."""
ALONE_TOLERANCE = 1e-4
"""Relative: a sample that is encoded alone or beside others, in float32."""


def sections(subject: Subject) -> None:
    """Keys that a section does not have are refused; a recipe written out is read as itself."""
    recipe = subject.recipe
    for section in SECTIONS:
        kind: type[Section] = type(getattr(recipe, section))
        content = recipe.to_mapping()
        content[section] = {**content[section], "no_such_key": 1}
        refused = ""
        try:
            load_recipe(content)
        except InputError as error:
            refused = str(error)
        expect(
            "no_such_key: unknown key" in refused,
            at(kind, "model_config"),
            f"{section}.no_such_key to be refused (Section's extra='forbid')",
            refused or "a recipe",
        )
    where = at(type(recipe.data))
    with calling(where):
        again = load_recipe(recipe.to_mapping()).to_mapping()
    for section in SECTIONS:
        where = at(type(getattr(recipe, section)))
        expect(again[section] == recipe.to_mapping()[section], where, "what was written out", f"{again[section]}")


def names(subject: Subject) -> None:
    """Extractors, metrics and aliases go together; every alias leads to a metric."""
    adapter = subject.adapter
    for method in ("features", "metrics", "aliases"):
        with calling(subject.where(method)):
            found = getattr(adapter, method)()
            expect(all(isinstance(name, str) for name in found), subject.where(method), "names", f"{list(found)}")
    for name in adapter.features():
        expect("." not in name, subject.where("features"), "names without a dot, which begins a stream", repr(name))
    for alias, full in adapter.aliases().items():
        try:
            parse_metric(subject.recipe.modality, alias)
        except InputError:
            kinds = ", ".join(KINDS)
            there = ", ".join(adapter.features()) or "none"
            raise Fault(
                f"{subject.where('aliases')}: {alias!r} stands for {full!r}, which is no KIND-EXTRACTOR; kinds are "
                f"{kinds}; extractors of {subject.where('features')} are {there}"
            ) from None


def dataset(subject: Subject) -> None:
    """The training split has examples, which can be read."""
    fingerprint = getattr(subject.train, "fingerprint", None)
    expect(
        isinstance(fingerprint, str) and bool(fingerprint), at(subject.train, "fingerprint"), "text", repr(fingerprint)
    )
    expect(bool(subject.examples), at(subject.train), "examples", "none")
    for variant in subject.train.variants:
        with calling(f"{at(subject.train, 'variant')}(sample, {variant!r})"):
            subject.train.variant(subject.examples[0][1].sample, variant)


def labels(subject: Subject) -> None:
    """Labels are indices into ``classes``, which both splits share."""
    data, count = subject.train, len(subject.train.classes)
    named = all(isinstance(name, str) for name in data.classes)
    expect(named, at(data, "classes"), "names, strings all", f"{tuple(data.classes)}")
    expect(len(set(data.classes)) == count, at(data, "classes"), "different names", f"{data.classes}")
    for index, example in subject.examples:
        with calling(f"{at(data, '__getitem__')}({index})"):
            found = example.label
        expect(
            -1 <= found < count,
            f"{at(data, '__getitem__')}({index})",
            f"a label below {count}, the number of classes" if count else "no label, as classes is empty",
            f"{found}",
        )
    if len(subject.test):
        came = f"{subject.test.classes} in the test split, {data.classes} in the training split"
        expect(tuple(subject.test.classes) == tuple(data.classes), at(data, "classes"), "the same in both splits", came)


def repeats(subject: Subject) -> None:
    """The same index gives the same example, twice and in another instance, whose fingerprint is the same too."""
    first, other = subject.train, subject.dataset("train")
    came = f"{first.fingerprint!r}, then {other.fingerprint!r}"
    expect(first.fingerprint == other.fingerprint, at(first, "fingerprint"), "the same for the same data", came)
    expect(len(first) == len(other), at(first, "__len__"), f"{len(first)} again", f"{len(other)}")
    for which, source in (("again", first), ("in another instance", other)):
        for (index, before), (_, after) in zip(
            subject.examples, readable(source, [index for index, _ in subject.examples]), strict=True
        ):
            where = f"{at(first, '__getitem__')}({index})"
            expect(same(before, after), where, f"the same example {which}", "another one")


def splits(subject: Subject) -> None:
    """Held-out examples are no training examples: none of the same source, and not all of others."""
    train, test = subject.train, subject.test
    if not len(test):
        raise NotApplicable("there is no test split")
    expect(train.fingerprint != test.fingerprint, at(train, "fingerprint"), "another for each split", train.fingerprint)
    trained, held_out = _looked_at(train), _looked_at(test)
    by_source = {example.source: example for _, example in trained if example.source}
    for index, example in held_out:
        twin = by_source.get(example.source)
        expect(
            twin is None or not same(twin.sample, example.sample),
            f"{subject.where('dataset')}(data, 'test')[{index}]",
            "an example that is not in the training split",
            f"the same sample, of {example.source!r}, in both",
        )
    different = any(not any(same(twin.sample, example.sample) for _, twin in trained) for _, example in held_out)
    expect(
        different or not held_out,
        f"{subject.where('dataset')}(data, 'test')",
        "examples that are not in the training split",
        f"training examples, all {len(held_out)} that were looked at",
    )


def _looked_at(dataset: ExampleDataset) -> list[tuple[int, Example]]:
    """The first examples of a split, and others evenly spread, with their indices."""
    size = len(dataset)
    return readable(dataset, sorted({*range(min(size, SOURCES_LOOKED_AT)), *spread(size, SOURCES_LOOKED_AT)}))


def workers(subject: Subject) -> None:
    """The data set can be pickled; two worker processes, and threads where it allows them, read what is read here."""
    data = subject.train
    with calling(f"{at(data)}, pickled"):
        copied = pickle.loads(pickle.dumps(data))
    indices = [index for index, _ in subject.examples]
    where = at(data, "__getitem__")
    for (index, before), (_, after) in zip(subject.examples, readable(copied, indices), strict=True):
        expect(same(before, after), f"{where}({index})", "a pickled data set to give the same example", "another one")
    loader = DataLoader(
        cast(Dataset[object], data), batch_size=4, sampler=indices, num_workers=2, collate_fn=list, timeout=60
    )
    with calling(f"{where}, in a worker process"):
        read = [example for batch in loader for example in batch]
    for (index, before), after in zip(subject.examples, read, strict=True):
        expect(same(before, after), f"{where}({index})", "the same example in a worker process", "another one")
    if data.concurrent:
        with closing(read_ahead(data.__getitem__, indices, 4, lambda _: 1)) as found:
            for (index, before), after in zip(subject.examples, found, strict=True):
                expected = "the same example where threads read, as concurrent says they may"
                expect(same(before, after), f"{where}({index})", expected, "another one")


def hash_seed(subject: Subject) -> None:
    """Fingerprints, classes and labels are the same in another process, whose strings have other hashes."""
    indices = [index for index, _ in subject.examples]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", ELSEWHERE],
        input=json.dumps([subject.recipe.to_mapping(), indices]),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Fault(f"{at(subject.train)}, in another process: raised {said}")
    there: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for where, here in identity(subject, indices).items():
        expected = "the same in another process, whatever the order of a set and hash() are there"
        expect(there.get(where) == here, where, expected, f"{here} here, {there.get(where)} there")


def identity(subject: Subject, indices: Sequence[int]) -> dict[str, Any]:
    """What is known of the data by every process, by where it comes from; labels are those of some examples."""
    train, tokenizer = subject.train, subject.new_tokenizer()
    return {
        at(train, "fingerprint"): str(train.fingerprint),
        at(train, "classes"): [str(name) for name in train.classes],
        at(train, "__getitem__"): [example.label for _, example in readable(train, indices)],
        at(tokenizer, "fingerprint"): str(tokenizer.fingerprint),
    }


def encode(subject: Subject) -> None:
    """Stored forms are float32 and laid out alike; a sample is encoded alone, and after ``fit``, as beside others."""
    tokenizer = subject.new_tokenizer()
    subject.check_stored(tokenizer, subject.stored)
    where, example = at(tokenizer, "encode"), subject.examples[-1][1]
    with calling(where):
        (alone,) = tokenizer.encode([example.sample])
    wanted = subject.stored[-1]
    expect(alone.shape == wanted.shape, where, f"{list(wanted.shape)} of a sample alone", f"{list(alone.shape)}")
    error = relative_error(alone, wanted)
    expect(
        error <= ALONE_TOLERANCE, where, "a sample alone to be encoded as beside others", f"a difference of {error:.2g}"
    )
    with calling(at(tokenizer, "fit")):
        tokenizer.fit(subject.stored)
    with calling(where):
        (fitted,) = tokenizer.encode([example.sample])
    error = relative_error(fitted, alone)
    expect(
        error <= ALONE_TOLERANCE,
        where,
        "the same stored values once fitted: normalise in latents, as the training split is encoded before fit",
        f"a difference of {error:.2g}",
    )


def latents(subject: Subject) -> None:
    """Latents are of order 1, in float32, in the shape of ``LatentSpec``, which settings alone say, where stored."""
    tokenizer, spec = subject.tokenizer, subject.recipe.tokenizer.latent_spec()
    if spec is not None:
        where = at(subject.recipe.tokenizer, "latent_spec")
        expect(spec == tokenizer.latent, where, f"{at(tokenizer, 'latent')}, {tokenizer.latent}", f"{spec}")
    if tokenizer.latent.variable:
        expect(tokenizer.latent.num_frames is not None, at(tokenizer, "latent"), "frames in a variable grid", "none")
    x1, mask = subject.batch.x1, subject.batch.mask
    real = x1 if mask is None else x1.movedim(tokenizer.latent.frame_axis + 1, 1)[mask]
    size, (low, high) = float(real.square().mean().sqrt()), LATENTS_SIZE
    where = f"{at(tokenizer, 'latents')} and fit"
    expect(low < size < high, where, "latents of order 1, as noise is", f"a root mean square of {size:.3g}")


def window(subject: Subject) -> None:
    """A window of a raw sample is as long as one latent says, or as the sample where that is shorter."""
    tokenizer = subject.tokenizer
    axis, limit = tokenizer.latent.frame_axis, tokenizer.latent.num_frames
    for (index, example), clip in zip(subject.examples, subject.stored, strict=True):
        for position in (0.0, 0.5, 0.999):
            where = f"{at(tokenizer, 'window')}(sample {index}, {position})"
            with calling(where):
                (found,) = tokenizer.encode([tokenizer.window(example.sample, position)])
            if limit is None:
                expect(found.shape == clip.shape, where, f"{list(clip.shape)} when encoded", f"{list(found.shape)}")
                continue
            frames, wanted = found.shape[axis], min(limit, clip.shape[axis])
            # an encoder that pads may find a frame more in what is cut at frames
            expect(frames - wanted in (0, 1), where, f"{wanted} frames when encoded", f"{frames}")


def tokenizer_state(subject: Subject) -> None:
    """What a fitted tokenizer's ``state`` returns makes another give the same latents; fingerprints stay."""
    tokenizer, batch = subject.tokenizer, subject.batch
    with calling(at(tokenizer, "state")):
        kept = load(save(apart(tokenizer.state())))
    other = subject.new_tokenizer()
    came = f"{tokenizer.fingerprint!r} once fitted, {other.fingerprint!r} before"
    expect(tokenizer.fingerprint == other.fingerprint, at(tokenizer, "fingerprint"), "one that fit leaves alone", came)
    with calling(at(other, "load_state")):
        other.load_state(kept)
    with calling(at(other, "latents")):
        error = relative_error(other.latents(batch.stored, batch.posterior), batch.x1)
    where = f"{at(tokenizer, 'state')} and load_state"
    expect(
        error <= 1e-6, where, "the latents of the tokenizer that was fitted", f"a relative difference of {error:.2g}"
    )


def round_trip(subject: Subject) -> None:
    """Latents decoded and encoded again are what they were, within the tokenizer's ``round_trip_tolerance``."""
    tokenizer, batch = subject.tokenizer, subject.batch
    where, axis, allowed = at(tokenizer, "decode"), tokenizer.latent.frame_axis, tokenizer.round_trip_tolerance
    if allowed is None:
        raise NotApplicable(f"{at(tokenizer, 'round_trip_tolerance')} is None: its weights say how much is lost")
    with calling(at(tokenizer, "prepare_decoding")):
        tokenizer.prepare_decoding()
    with calling(where):
        samples = tokenizer.decode(batch.x1, batch.mask)
    expect(len(samples) == len(batch.x1), where, f"{len(batch.x1)} samples", f"{len(samples)}")
    with calling(at(tokenizer, "encode")):
        encoded = tokenizer.encode(samples)
    again = torch.zeros_like(batch.stored)
    real = torch.ones_like(batch.x1, dtype=torch.bool)
    for row, clip in enumerate(encoded):
        if batch.mask is None:
            expect(
                clip.shape == again[row].shape, where, f"{list(again[row].shape)} encoded again", f"{list(clip.shape)}"
            )
            again[row] = clip
            continue
        length = int(batch.mask[row].sum())
        expect(clip.shape[axis] - length in (0, 1), where, f"{length} real frames", f"{clip.shape[axis]} encoded again")
        again[row].narrow(axis, 0, length).copy_(clip.narrow(axis, 0, length))
        real[row].narrow(axis, length, real.shape[axis + 1] - length).fill_(False)
    with calling(at(tokenizer, "latents")):
        found: Tensor = tokenizer.latents(again, batch.posterior)
    error = relative_error(found[real], batch.x1[real])
    expect(
        error <= allowed,
        f"{where} and encode",
        f"latents again with a relative error of at most {allowed:g} (round_trip_tolerance)",
        f"{error:.3g}",
    )
