"""``layersync score``: anybody's samples, without a run. Motions as joints need no weights and are quick to score."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersync import InputError, score_samples
from layersync.core import reference
from layersync.core.metric import DOMAIN_METRICS, KINDS, Needs, parse_metric
from layersync.metrics import frechet_distance
from layersync.modalities.motion.features.kinetic import kinetic_features
from layersync.modalities.motion.sample import JointMotion
from layersync.modalities.motion.skeleton import REST

Make = Callable[..., Any]


def motions(count: int, seed: int, speed: float = 1.0, frames: int = 40) -> np.ndarray:
    """(count, frames, 22, 3) joints in metres of a body that glides and sways, each one in its own way."""
    random = np.random.default_rng(seed)
    time = np.arange(frames)[None, :, None, None] / 20
    rates, sizes, phases = (random.uniform(0.2, 1.0, (count, 1, 22, 3)) for _ in range(3))
    sway = 0.1 * sizes * np.sin(2 * np.pi * (speed * rates * time + phases))
    return (REST[:22] + np.array([0, 1.0, 0]) + sway).astype(np.float32)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of 96 joint motions: two of one kind, one quicker."""
    folder = tmp_path_factory.mktemp("sets")
    found = {"real": motions(96, 0), "alike": motions(96, 1), "quick": motions(96, 2, speed=2.5)}
    for name, joints in found.items():
        np.save(folder / f"{name}.npy", joints)
    return {name: folder / f"{name}.npy" for name in found}


def score(sets: dict[str, Path], generated: str, *metrics: str, **keywords: Any) -> Any:
    return score_samples("motion", [sets[generated]], metrics, real=sets["real"], **keywords).metrics


def test_the_score_is_the_metric_of_the_features(sets: dict[str, Path]) -> None:
    found = score(sets, "quick", "fd-kinetic")["fd-kinetic"]
    features = [
        kinetic_features([JointMotion(joints, 20.0) for joints in np.load(sets[name])]).astype(np.float32)
        for name in ("quick", "real")
    ]
    assert found.value == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.num_samples == 96 and found.reference.count == 96


def test_scores_order_what_is_ordered(sets: dict[str, Path]) -> None:
    names = ["fd-kinetic", "kd-kinetic", "kad-kinetic", "precision-kinetic", "recall-kinetic", "coverage-kinetic"]
    same, alike, quick = (score(sets, generated, *names) for generated in ("real", "alike", "quick"))
    assert same["fd-kinetic"].value == pytest.approx(0, abs=1e-6 * quick["fd-kinetic"].value)
    for name in names[:3]:
        assert same[name].value < alike[name].value < quick[name].value, name
    for name in names[3:]:
        assert same[name].value == 1 > alike[name].value > quick[name].value, name


def test_json_says_what_the_score_was_made_with(command: Make, sets: dict[str, Path]) -> None:
    status, out, _ = command(
        "score", "--modality", "motion", "--real", sets["real"], "--generated", sets["alike"],
        "--metrics", "fd-kinetic,foot-skating,diversity-geometric", "--json",
    )  # fmt: skip
    assert status == 0
    found = json.loads(out)
    assert set(found) == {"modality", "generated", "real", "metrics", "versions"}
    assert list(found["metrics"]) == ["fd-kinetic", "foot-skating", "diversity-geometric"]
    distance = found["metrics"]["fd-kinetic"]
    assert distance["extractor"] == "kinetic" and distance["checksum"] == "" and "metres" in distance["preprocessing"]
    assert distance["reference"] == {"data": str(sets["real"]), "split": "all", "count": 96}
    assert "bootstrap" in distance["details"]["interval"]
    skating = found["metrics"]["foot-skating"]
    assert skating["reference"] is None and skating["num_samples"] == 96
    assert found["versions"]["torch"].count(".") >= 1


def test_people_get_a_table(command: Make, sets: dict[str, Path]) -> None:
    status, out, _ = command(
        "score", "--modality", "motion", "--real", sets["real"], "--generated", sets["quick"],
        "--metrics", "fd-kinetic,jitter",
    )  # fmt: skip
    assert status == 0
    head = next(line for line in out.splitlines() if "95 % interval" in line)
    row = next(line for line in out.splitlines() if line.strip().startswith("fd-kinetic "))
    assert row.index("[") == head.index("95 %") and "96 of all" in row
    assert "kinetic: weights none" in out


def test_statistics_are_kept_shared_and_give_the_same_score(sets: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "reference.npz"
    whole = score(sets, "quick", "fd-kinetic", save_statistics=kept)["fd-kinetic"]
    again = score_samples("motion", [sets["quick"]], ["fd-kinetic"], real=kept).metrics["fd-kinetic"]
    assert again.value == pytest.approx(whole.value, rel=1e-9)
    assert again.reference.split == "statistics" and again.reference.count == 96
    with pytest.raises(InputError, match="exists"):
        score(sets, "quick", "fd-kinetic", save_statistics=kept)
    with np.load(kept) as stored:
        foreign = {"mu": stored["mu"], "sigma": stored["sigma"]}  # as pytorch-fid and ADM write them
    np.savez(tmp_path / "foreign.npz", **foreign)
    bare = score_samples("motion", [sets["quick"]], ["fd-kinetic"], real=tmp_path / "foreign.npz").metrics["fd-kinetic"]
    assert bare.value == pytest.approx(whole.value, rel=1e-9) and bare.reference.count is None


def test_statistics_will_do_beside_metrics_that_need_no_reference(sets: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "reference.npz"
    whole = score(sets, "quick", "fd-kinetic", save_statistics=kept)["fd-kinetic"]
    names = ["fd-kinetic", "diversity-kinetic", "foot-skating"]
    found = score_samples("motion", [sets["quick"]], names, real=kept).metrics
    assert found["fd-kinetic"].value == pytest.approx(whole.value, rel=1e-9)
    assert found["diversity-kinetic"].reference is None
    with pytest.raises(InputError, match=r"reference\.npz"):
        score_samples("motion", [sets["quick"]], ["fd-kinetic", "kd-kinetic"], real=kept)


def test_a_reference_of_another_extractor_or_preprocessing_is_refused_naming_both(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "reference.npz"
    score(sets, "quick", "fd-kinetic", save_statistics=kept)
    with pytest.raises(InputError, match="extractor 'kinetic', not 'geometric'"):
        score_samples("motion", [sets["quick"]], ["fd-geometric"], real=kept)
    with np.load(kept) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(str(arrays["layersync"]))
    about["preprocessing"] = "joints in feet"
    arrays["layersync"] = np.array(json.dumps(about))
    np.savez(tmp_path / "feet.npz", **arrays)
    with pytest.raises(InputError, match=r"'joints in feet', not .*joints in metres"):
        score_samples("motion", [sets["quick"]], ["fd-kinetic"], real=tmp_path / "feet.npz")


def test_several_sets_are_replications(sets: dict[str, Path]) -> None:
    single = [score(sets, name, "fd-kinetic")["fd-kinetic"].value for name in ("alike", "quick")]
    both = score_samples("motion", [sets["alike"], sets["quick"]], ["fd-kinetic"], real=sets["real"])
    found = both.metrics["fd-kinetic"]
    assert found.value == pytest.approx(np.mean(single)) and found.details["replications"] == pytest.approx(single)
    half = 1.96 * np.std(single) / np.sqrt(2)
    assert found.interval == pytest.approx((found.value - half, found.value + half))


def test_the_command_takes_several_sets_and_keeps_the_statistics(
    command: Make, sets: dict[str, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "kept.npz"
    status, out, err = command(
        "score", "--modality", "motion", "--generated", sets["alike"], "--generated", sets["quick"],
        "--real", sets["real"], "--metrics", "fd-kinetic", "--save-statistics", kept, "--json",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    assert found["generated"] == [str(sets["alike"]), str(sets["quick"])]
    each = found["metrics"]["fd-kinetic"]["details"]["replications"]
    wanted = [score(sets, name, "fd-kinetic")["fd-kinetic"].value for name in ("alike", "quick")]
    assert each == pytest.approx(wanted, rel=1e-9)
    again = score_samples("motion", [sets["quick"]], ["fd-kinetic"], real=kept).metrics["fd-kinetic"]
    assert again.value == pytest.approx(wanted[1], rel=1e-9) and again.reference.split == "statistics"


def test_features_of_the_reference_are_kept_and_renewed_with_the_file(tmp_path: Path, sets: dict[str, Path]) -> None:
    real = tmp_path / "real.npy"
    np.save(real, motions(64, 5))
    first, again = (
        score_samples("motion", [sets["alike"]], ["fd-kinetic"], real=real).metrics["fd-kinetic"].value
        for _ in range(2)
    )
    np.save(real, motions(64, 5, speed=2.0))
    changed = score_samples("motion", [sets["alike"]], ["fd-kinetic"], real=real).metrics["fd-kinetic"].value
    assert again == pytest.approx(first, rel=1e-9) and changed != pytest.approx(first, rel=1e-3)


def test_real_samples_are_read_once_for_metrics_of_rows_and_of_statistics(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order they are asked for, which is that of the scores."""
    monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path))
    names = ["fd-kinetic", "kd-kinetic"]
    scores = score_samples("motion", [sets["alike"]], names, real=sets["real"]).metrics
    assert list(scores) == names
    (kept,) = (tmp_path / "features").iterdir()
    assert not kept.stem.endswith("statistics")


def test_a_cache_that_is_full_costs_no_score(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been drawn and read for hours is scored all the same."""

    def full(path: Path, _: object, *, rows: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    real = tmp_path / "real.npy"
    np.save(real, motions(64, 6))
    monkeypatch.setattr(reference, "save_features", full)
    with pytest.warns(UserWarning, match="features are not kept there \\(No space left on device\\)"):
        found = score_samples("motion", [sets["alike"]], ["fd-kinetic"], real=real).metrics["fd-kinetic"]
    monkeypatch.undo()
    again = score_samples("motion", [sets["alike"]], ["fd-kinetic"], real=real).metrics["fd-kinetic"]
    assert found.value == pytest.approx(again.value, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--generated", "{alike}", "--metrics", "fd-kinetic"], "needs --real"),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetik"], "did you mean 'fd-kinetic'?"),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetic.pool"], "a stream 'pool'; extr"),
        (
            ["--generated", "{alike}", "--metrics", "is-kinetic"],
            "needs class scores, a stream 'logits'",
        ),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetic,fd-kinetic"], "given twice"),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "label-agreement"], "needs a run"),
        (["--generated", "{missing}", "--real", "{real}", "--metrics", "fd-kinetic"], "missing.npy does not exist"),
        (["--generated", "{alike}", "--real", "{missing}", "--metrics", "fd-kinetic"], "missing.npy does not exist"),
        (["--generated", "{one}", "--real", "{real}", "--metrics", "fd-kinetic"], "one.npy holds 1 sample"),
        (["--generated", "{empty}", "--real", "{real}", "--metrics", "fd-kinetic"], "no motion samples in it"),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetic", "--extractor", "x=y"], "'x' is no"),
        (["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetic", "--extractor", "x"], "NAME=PATH"),
        (["--generated", "{huge}", "--real", "{real}", "--metrics", "fd-kinetic"], "not finite numbers, the first of"),
        (["--generated", "{alike}", "--metrics", "similarity-kinetic"], "extractor kinetic reads no texts"),
        (["--generated", "{alike}", "--metrics", "multimodality-kinetic"], "has no text"),
        (["--generated", "{alike}", "--metrics", ""], "unknown to modality motion"),
        (
            ["--generated", "{alike}", "--metrics", "diversity-kinetic", "--save-statistics", "{kept}"],
            "--save-statistics: needs --real and metrics of one extractor, not of 1 (kinetic)",
        ),
        (
            ["--generated={alike}", "--real={real}", "--metrics=fd-kinetic,fd-geometric", "--save-statistics={kept}"],
            "--save-statistics: needs --real and metrics of one extractor, not of 2 (kinetic, geometric)",
        ),
        (
            ["--generated", "{alike}", "--real", "{real}", "--metrics", "fd-kinetic", "--save-statistics", "{missing}"],
            "missing.npy does not end in .npz",
        ),
    ],
)
def test_bad_input_gets_one_line(
    command: Make, sets: dict[str, Path], tmp_path: Path, arguments: list[str], says: str
) -> None:
    np.save(tmp_path / "one.npy", motions(1, 0))
    np.save(tmp_path / "huge.npy", motions(4, 0) * np.float32(1e30))
    (tmp_path / "empty").mkdir()
    files = {**sets, **{name: tmp_path / f"{name}.npy" for name in ("one", "huge", "missing")}}
    files |= {"empty": tmp_path / "empty", "kept": tmp_path / "kept.npz"}
    status, out, err = command("score", "--modality", "motion", *(part.format(**files) for part in arguments))
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert status == 2 and out == "" and len(lines) == 1 and says in lines[0], err


def test_rates_that_differ_are_said_again_of_features_that_are_kept(
    sets: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "quick.npz", joints=motions(96, 5), lengths=np.full(96, 40), fps=60.0)
    for _ in range(2):
        caplog.clear()
        score({**sets, "quick": tmp_path / "quick.npz"}, "quick", "fd-kinetic")
        assert sum("frames a second" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metrics": ["fd-kinetic"], "extractors": {"geometric": "22"}}, "--extractor geometric has no effect"),
        ({"metrics": ["diversity-kinetic"]}, "--real has no effect: no metric compares samples with others"),
    ],
)
def test_what_no_metric_needs_is_said(sets: dict[str, Path], options: dict[str, Any], says: str) -> None:
    with pytest.warns(UserWarning, match=says):
        found = score_samples("motion", [sets["alike"]], real=sets["real"], **options)
    assert (found.real is None) == ("--real" in says)


def test_weights_that_are_missing_are_said_with_the_file_and_the_place(command: Make, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    where = ["--real", tmp_path / "images.npy", "--generated", tmp_path / "images.npy"]
    wrong = tmp_path / "weights.pth"
    wrong.write_bytes(b"no weights at all")
    status, _, err = command(
        "score", "--modality", "image", *where, "--metrics", "fid", "--extractor", f"inception-v3={wrong}"
    )
    assert status == 2 and "is not what its checksum says" in err and str(wrong) in err
    status, _, err = command(
        "score", "--modality", "image", *where, "--metrics", "fid", "--extractor", "inception-v3=x"
    )
    assert status == 2 and "there is no such file" in err


@pytest.mark.parametrize(
    "kind",
    [kind for kind, (needs, _, _) in KINDS.items() if needs in (Needs.BOTH, Needs.BOTH_ROWS) and kind != "fd-each"],
)
def test_every_kind_scores_two_sets(sets: dict[str, Path], kind: str) -> None:
    name = f"{kind}-kinetic"
    found = score(sets, "quick", name)[name]
    assert np.isfinite(found.value) and found.extractor == "kinetic"
    assert found.value != pytest.approx(score(sets, "alike", name)[name].value, rel=1e-6)


def test_each_sample_by_itself_needs_rows_of_its_own(sets: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="fd-each needs 2 of each sample"):
        score(sets, "quick", "fd-each-kinetic")


BETTER = {
    "lower": {"fd", "fd-inf", "fd-each", "kd", "kad", "matching", "fd-classifier"},
    "higher": {
        "precision", "recall", "density", "coverage", "is", "similarity", "r-precision-1", "r-precision-2",
        "r-precision-3", "label-agreement",
    },
    None: {"diversity", "multimodality", "nearest-training"},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, *DOMAIN_METRICS])
def test_every_kind_has_a_name_of_its_own_and_a_way_to_improve(kind: str) -> None:
    found = parse_metric("motion", kind if kind in DOMAIN_METRICS else f"{kind}-kinetic.features")
    parts = (None, None) if kind in DOMAIN_METRICS else ("kinetic", "features")
    assert (found.kind, found.extractor, found.stream) == (kind, *parts)
    assert kind in BETTER[found.better]
