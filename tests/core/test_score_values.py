"""The value of every kind of metric through ``score_samples``, against its definition written out in NumPy.

An extractor of the tests' own gives the numbers of a sample as its features, and those that its text spells as its
text's: what enters a score is known, and text and sample, real and generated are unlike, so that none can stand in for
another. Kinds that draw at random are held against what they are expected to give over all draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugins import Installer
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from scipy.special import log_softmax
from scipy.stats import hypergeom

from layersync import InputError, score_samples
from layersync.core import reference, scoring
from layersync.core.metric import KINDS

KNOWN = '''class Known(Outline):
    """Numbers that a test knows: the sample's own, and those that its text spells."""

    name = "known"
    streams = ("whole", "frames", "logits", "text")
    text_streams = ("text",)

    def __call__(self, examples: Sequence[Example]) -> Streams:
        streams = {
            "whole": [example.sample.reshape(1, -1) for example in examples],
            "frames": [example.sample for example in examples],
            "logits": [example.sample.reshape(1, -1) for example in examples],
        }
        if all(example.captions for example in examples):
            streams["text"] = [np.array([example.captions[0].split()], dtype=np.float32) for example in examples]
        return streams


def reach('''
Scores = Callable[..., Any]


@pytest.fixture(scope="module")
def modality(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        yield Installer(tmp_path_factory.mktemp("site"), patch).strokes(
            ("def reach(", KNOWN), ('{"outline": Outline}', '{"outline": Outline, "known": Known}')
        )


@pytest.fixture
def scored(modality: str, tmp_path: Path) -> Scores:
    """``scored(metric, generated, texts, real)``: the score of strokes of 4 frames, 8 numbers each."""

    def write(name: str, rows: np.ndarray, texts: Any = ()) -> Path:
        path, values = tmp_path / f"{name}-{len(rows)}.npz", rows.reshape(len(rows), -1, 2)
        np.savez(path, values=values, lengths=np.full(len(rows), values.shape[1]), labels=[], texts=texts)
        return path

    def score(metric: str, generated: np.ndarray, texts: Any = (), real: np.ndarray | None = None) -> Any:
        reference = None if real is None else write("real", real)
        return score_samples(modality, [write("generated", generated, texts)], [metric], real=reference).metrics[metric]

    return score


SIZE, NUM_REAL, TEXTS, BATCH = 96, 48, 8, 32


def drawn() -> tuple[np.ndarray, ...]:
    """Texts, samples that are like them, and real samples, 8 numbers each."""
    random = np.random.default_rng(0)
    text = random.normal(size=(SIZE, 8)).astype(np.float32)
    samples = (0.6 * text + random.normal(0.3, 0.5, (SIZE, 8))).astype(np.float32)
    real = random.normal([0.1] * 4 + [0.5] * 4, [1.0] * 6 + [0.5] * 2, (NUM_REAL, 8)).astype(np.float32)
    return text, samples, real


TEXT, SAMPLES, REAL = drawn()
"""Samples lie nearer to each other than their texts do, and than real ones: nothing here is symmetric."""


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real))


def frechet_infinity(x: np.ndarray, y: np.ndarray) -> float:
    """25 sizes from a quarter of the samples, which are fewer than 2,000, to all of them; drawn with seed 0."""
    random, sizes = np.random.default_rng(0), np.linspace(SIZE / 4, SIZE, 25).astype(int)
    scores = [frechet(x[random.choice(SIZE, size)], y) for size in sizes]
    return float(np.polyfit(1 / sizes, scores, 1)[1])


def unbiased(kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(sum(within) - 2 * kernel(x, y).mean())


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) @ y.T / x.shape[1] + 1) ** 3


def kernel_audio(x: np.ndarray, y: np.ndarray) -> float:
    distances = np.sort(pdist(y))
    width = distances[(len(distances) - 1) // 2]
    return 100 * unbiased(lambda a, b: np.exp(-(cdist(a, b) ** 2) / (2 * width**2)), x, y)


def inside(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """(x, y): whether a row of x is no further from one of y than that one's k-th neighbour in y."""
    return cdist(x, y) <= np.sort(cdist(y, y), axis=1)[:, k]


def inception(logits: np.ndarray) -> float:
    """Ten splits of the shuffled samples, each with a p(class) of its own."""
    p = np.exp(log_softmax(logits.astype(np.float64), axis=1))[np.random.RandomState(0).permutation(len(logits))]
    splits = [p[SIZE * n // 10 : SIZE * (n + 1) // 10] for n in range(10)]
    return float(np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in splits]))


BY_HAND: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "fd": frechet,
    "fd-inf": frechet_infinity,
    "kd": lambda x, y: unbiased(cubic, x, y),
    "kad": kernel_audio,
    "precision": lambda x, y: float(inside(x, y, 3).any(1).mean()),
    "recall": lambda x, y: float(inside(y, x, 3).any(1).mean()),
    "density": lambda x, y: float(inside(x, y, 5).sum() / 5 / len(x)),
    "coverage": lambda x, y: float(inside(x, y, 5).any(0).mean()),
    "is": lambda x, _: inception(x),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_value_against_real_samples(kind: str, scored: Scores) -> None:
    alone = kind == "is"
    found = scored(f"{kind}-known" if alone else f"{kind}-known.whole", SAMPLES, real=None if alone else REAL)
    assert found.value == pytest.approx(BY_HAND[kind](SAMPLES, REAL), rel=1e-5)


def nearer(text: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """How many other motions are nearer to each text than its own."""
    distances = cdist(text, motion)
    return (distances < np.diag(distances)[:, None]).sum(1)


def r_precision(k: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """Expected over all ways to draw the other 31 of a batch: at most k - 1 of the nearer ones are among them."""
    return lambda x, text: float(hypergeom.cdf(k - 1, SIZE - 1, nearer(text, x), BATCH - 1).mean())


def of_one_text(x: np.ndarray, _: object) -> float:
    """Expected distance of two draws among samples of one text, which may meet themselves; texts come in turns."""
    return float(np.mean([cdist(x[n::TEXTS], x[n::TEXTS]).mean() for n in range(TEXTS)]))


OF_TEXTS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "similarity": lambda x, text: float((unit(x) * unit(text)).sum(1).mean()),
    "matching": lambda x, text: float(np.linalg.norm(x - text, axis=1).mean()),
    "r-precision-1": r_precision(1),
    "r-precision-2": r_precision(2),
    "r-precision-3": r_precision(3),
    "diversity": lambda x, _: float(cdist(x, x).mean()),
    "multimodality": of_one_text,
}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", OF_TEXTS)
def test_value_of_samples_and_their_texts(kind: str, scored: Scores) -> None:
    text = np.resize(TEXT[:TEXTS], TEXT.shape) if kind == "multimodality" else TEXT
    samples = (0.3 * SAMPLES + 3 * text).astype(np.float32) if kind == "multimodality" else SAMPLES
    found = scored(f"{kind}-known.whole", samples, [" ".join(f"{value:.9g}" for value in row) for row in text])
    low, high = found.interval or (found.value * (1 - 1e-6), found.value * (1 + 1e-6))
    half = (high - low) / 2  # of the mean over 20 draws, where there are any: 1.96 deviations
    assert found.value == pytest.approx(OF_TEXTS[kind](samples, text), abs=1.5 * half)


@pytest.mark.parametrize("kind", ["precision", "recall", "density", "coverage"])
def test_neighbours_are_samples_and_not_rows_of_one(kind: str, scored: Scores) -> None:
    """Rows of a sample lie next to each other, as windows of a sound do that overlap: they are not its neighbours."""
    random = np.random.default_rng(1)
    centres = [random.normal(size=(count, 1, 2)) for count in (SIZE, NUM_REAL)]
    x, y = ((centre + 1e-3 * random.normal(size=(len(centre), 4, 2))).astype(np.float32) for centre in centres)
    found = scored(f"{kind}-known.frames", x, real=y)
    assert found.value == pytest.approx(BY_HAND[kind](x.mean(1), y.mean(1)), rel=1e-5) and found.value > 0.5


def test_several_rows_of_a_sample_count_as_their_mean(scored: Scores) -> None:
    found = scored("diversity-known.frames", SAMPLES)
    means = SAMPLES.reshape(SIZE, 4, 2).mean(1)
    half = (found.interval[1] - found.interval[0]) / 2
    assert found.value == pytest.approx(cdist(means, means).mean(), abs=1.5 * half) and half < 0.03 * found.value


def test_each_sample_by_itself_is_the_distance_of_its_own_rows(scored: Scores) -> None:
    """Three samples of four rows, against all rows of the real ones."""
    three = SAMPLES[:3] + np.float32([[0], [2], [1]])
    rows = REAL.reshape(-1, 2)
    each = [frechet(sample.reshape(4, 2), rows) for sample in three]
    found = scored("fd-each-known.frames", three, real=REAL)
    assert found.details["each"] == pytest.approx(each, rel=1e-5)
    assert found.value == pytest.approx(each[2], rel=1e-5) and each[0] < each[2] < each[1]


def test_kernel_distance_takes_the_published_subsets_where_they_can_be_drawn(
    scored: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 of 1,000; here 4, for time: their mean lies about the distance of all samples."""
    assert scoring.KID_SUBSETS == (100, 1000)
    monkeypatch.setattr(scoring, "KID_SUBSETS", (4, 1000))
    random = np.random.default_rng(0)
    x, y = random.normal(0.2, 1, (1100, 8)).astype(np.float32), random.normal(0, 1, (1000, 8)).astype(np.float32)
    of_subsets, of_all = scored("kd-known.whole", x, real=y), scored("kd-known.whole", x, real=y[:999])
    assert of_subsets.details["subsets"] == [4, 1000] and of_all.details == {"subsets": "all samples at once"}
    assert of_all.value == pytest.approx(unbiased(cubic, x, y[:999]), rel=1e-6)
    assert 0 < abs(of_subsets.value - unbiased(cubic, x, y)) < of_subsets.details["std_over_subsets"]


def test_statistics_without_the_stream_are_found_before_any_work(
    modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "one.npz", mu=np.zeros(8), sigma=np.eye(8))
    np.savez(tmp_path / "generated.npz", values=SAMPLES.reshape(SIZE, 4, 2), lengths=[4] * SIZE, labels=[], texts=())
    monkeypatch.setattr(reference, "extract", lambda *_, **__: pytest.fail("features were made"))
    with pytest.raises(InputError, match="extractor known has no 'frames' here; it has: whole"):
        metrics = ["fd-known", "fd-known.frames"]
        score_samples(modality, [tmp_path / "generated.npz"], metrics, real=tmp_path / "one.npz")


def test_every_kind_has_a_value_here() -> None:
    assert {*BY_HAND, *OF_TEXTS, "fd-each"} == set(KINDS)
