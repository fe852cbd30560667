"""What the report says and shows, what it leaves out, and what bad input gets."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.textpath import TextPath
from PIL import Image, ImageSequence

import layersync
from layersync.core.errors import InputError
from layersync.core.results import Comparison, Curve, Gain, RunRecord, SpeedUp, Variant, read_comparison
from layersync.report import check_target, comparison_table, figures, write_report
from layersync.report.text import number, percent, score

Words = Callable[[Path], str]
Changed = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]
viridis = colormaps["viridis"]
LAYERSYNC = "domains.0.variants.layersync"


def _with(variant: str = "layersync", **changes: Any) -> Callable[[Comparison], Comparison]:
    """A change of one variant of a comparison's only domain."""

    def change(found: Comparison) -> Comparison:
        (domain,) = found.domains
        variants = {**domain.variants, variant: dataclasses.replace(domain.variants[variant], **changes)}
        return dataclasses.replace(found, domains=(dataclasses.replace(domain, variants=variants),))

    return change


def _without_scores(run: RunRecord, status: Literal["failed", "waiting"], error: str = "") -> RunRecord:
    """A run that has not come to its end."""
    return RunRecord(run.seed, status, run.path, error=error)


def _end(curve: Curve) -> Curve:
    return Curve(curve.mean[-1:], curve.interval and curve.interval[-1:])


def _with_null(found: Comparison) -> Comparison:
    """With the reference again, from seeds of its own; the samples of ``layersync`` of another run than the others'."""
    found = _with(samples_seed=2)(found)
    (domain,) = found.domains
    before = domain.variants["baseline"]
    runs = tuple(dataclasses.replace(run, seed=1_000_000 + run.seed) for run in before.runs)
    null = dataclasses.replace(
        before, runs=runs, samples_seed=1_000_000, gain=Gain(0.01, (-0.02, 0.04), 3, 0.03), recipe="recipes/null.yaml"
    )
    variants = {**domain.variants, "null": null}
    return dataclasses.replace(found, domains=(dataclasses.replace(domain, variants=variants),))


class Drawn:
    """A figure's SVG, and where in it something of a name is, in the units of the axes, which the ticks tell."""

    def __init__(self, svg: str, panel: int = 1, *, log: bool = False) -> None:
        parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
        self.root, self.log = ElementTree.fromstring(svg, parser=parser), log
        self.axes = self.named(f"axes_{panel}")

    def named(self, name: str) -> ElementTree.Element:
        found = [part for part in self.root.iter() if part.get("id") == name]
        assert len(found) == 1, (name, len(found))
        return found[0]

    def scale(self, axis: str) -> np.ndarray:
        """From places to values; ticks with words are counted from 0, and panels share the labels of the lowest."""
        for part in (self.axes, self.root):
            ticks = [tick for tick in part.iter() if re.fullmatch(rf"{axis}tick_\d+", tick.get("id") or "")]
            labelled = [(tick, node.text) for tick in ticks for node in tick.iter() if node.tag is ElementTree.Comment]
            if labelled:
                break
        marks = [next(node for node in tick.iter() if str(node.tag).endswith("}use")) for tick, _ in labelled]
        numbers = [str(label).strip().replace(",", "") for _, label in labelled]
        words = any(re.search("[a-z]{3}", label) for label in numbers)
        values = np.arange(len(numbers)) if words else np.array(numbers, dtype=float)
        places = [float(mark.get(axis) or "nan") for mark in marks]
        fitted: np.ndarray = np.polyfit(places, np.log10(values) if self.log and axis == "y" else values, 1)
        return fitted

    def points(self, name: str) -> np.ndarray:
        """(points, 2) of the outline of ``name``."""
        return self.outlines(name)[0]

    def outlines(self, name: str) -> list[np.ndarray]:
        """Of every path of ``name``, as :meth:`points`."""
        group = self.named(name)
        own = [node for node in group if str(node.tag).endswith("}path")]
        paths = own or [node for node in group.iter() if str(node.tag).endswith("}path")]
        uses = [] if own else [node for node in group.iter() if str(node.tag).endswith("}use")]
        moved = [float(uses[0].get(axis) or "nan") if uses else 0.0 for axis in "xy"]
        outlines = []
        for path in paths:
            numbers = np.array(re.findall(r"-?[\d.]+", path.get("d") or ""), dtype=float).reshape(-1, 2) + moved
            x, y = (np.polyval(self.scale(axis), numbers[:, column]) for column, axis in enumerate("xy"))
            outlines.append(np.stack([x, 10**y if self.log else y], axis=1))
        return outlines

    def fills(self, name: str) -> list[str]:
        """The colour of every path of ``name``."""
        return re.findall(r"(?<=fill: )#[0-9a-f]{6}", ElementTree.tostring(self.named(name), "unicode"))


def _arrow(drawn: str) -> list[list[float]]:
    """Where the arrow of the speed-up starts and ends, in the units of the axes, from a figure as SVG."""
    points = Drawn(drawn).points("speed-up-1").tolist()
    return [points[0], points[-1]]


def _is_at(found: np.ndarray, *wanted: Any) -> None:
    """``found`` (points, 2) are where ``wanted``, the x and the y, say."""
    np.testing.assert_allclose(found, np.stack(wanted, axis=1), rtol=2e-3, atol=1e-6)


def _addresses(page: Path, media_type: str) -> list[bytes]:
    """What the page's data addresses of this type hold, figures left out."""
    body = re.sub(r"<svg .*?</svg>", "", page.read_text(), flags=re.DOTALL)
    return [base64.b64decode(found) for found in re.findall(f'src="data:{media_type};base64,([^"]+)"', body)]


@pytest.fixture
def damaged(comparison_folder: Path, tmp_path: Path) -> Callable[[str, Any], Path]:
    """``damaged("domains.0.name", value)``: a folder with the comparison, in which one place holds something else."""

    def make(where: str, value: Any) -> Path:
        content = json.loads((comparison_folder / "compare.json").read_text())
        *way, last = where.split(".")
        place = content
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
        folder = tmp_path / "damaged"
        folder.mkdir()
        (folder / "compare.json").write_text(json.dumps(content))
        return folder

    return make


class TestNumbers:
    def test_gains_are_said_with_their_intervals_and_what_they_mean(self, page: Path, words: Words) -> None:
        said = words(page)
        assert "layersync against baseline in 3 domains, every variant trained with 3 seeds" in said
        assert "Indicative: 3 seeds, fewer than 5." in said
        assert "7.0 % better than baseline in fd-classifier at the last step (95 % interval +5.0 % to +9.0 %" in said
        assert (
            "no gain seen in fd-classifier: +1.0 % (95 % interval -1.0 % to +3.0 %, 3 seeds; gains below 2.0 % could "
            "not have been told from none;" in said
        )
        assert "would have been" not in said and "as a gain: smaller gains could not have been told from none" in said
        assert "4.0 % worse than baseline" in said
        assert "neither higher nor lower is better" in said
        assert "not reached: the mean at no evaluation is as good" in said
        assert "the curves were still falling at the last step" in said

    def test_commands_settings_and_recipes_are_there(self, page: Path, comparison_folder: Path, words: Words) -> None:
        said = words(page)
        assert "layersync compare image/quick audio/quick motion/quick --variants baseline,layersync --seeds 3" in said
        recipes = re.findall(r"layersync train (\S+) --set seed=0", said)
        assert len(recipes) == 6 and all((comparison_folder / shlex.split(line)[0]).is_file() for line in recipes)
        assert said.count("layersync train ") == 6
        assert "a relative path (data.path, train.init), it starts from the folder that the comparison was" in said
        assert "sampling.guidance 2" in said and "metrics.fd-classifier.reference.count 359" in said
        assert "AMD EPYC" in said and "2.14.1" in said
        recipe = (comparison_folder / "motion-quick" / "layersync" / "recipe.yaml").read_text()
        assert " ".join(recipe.split()) in said

    def test_one_seed_has_no_error_bar_and_that_is_said(self, changed: Changed, words: Words) -> None:
        one = Gain(0.031, None, 1, note="one seed: no error bar")

        def cut(found: Comparison) -> Comparison:
            for name, variant in found.domains[0].variants.items():
                found = _with(name, runs=variant.runs[:1])(found)
            return dataclasses.replace(_with(gain=one)(found), seeds=(0,))

        folder = changed(cut)
        said = words(write_report(folder))
        assert "One seed: no error bar. No difference on this page can be told from chance." in said
        assert "3.1 % better" in said and "this is no evidence of a gain or a loss" in said
        assert "hollow: one seed, no error bar" in (folder / "figures" / "gain.svg").read_text()

    def test_a_gain_by_each_classifier_stands_beside_their_mean(self, changed: Changed, words: Words) -> None:
        """Of any metric that averages over classifiers, the domain's first or not."""
        several = {
            "fd-classifier": Gain(0.04, (0.03, 0.05), 3, 0.01, by_classifier=(0.031, 0.052, -0.001)),
            "fd-other": Gain(0.04, None, 1, by_classifier=(0.1, 0.2, 0.3)),
        }
        said = words(write_report(changed(_with(gains=several))))
        of_each = (
            "gain in fd-classifier: +3.1 %, +5.2 %, -0.1 % by each classifier alone; the interval is over seeds only"
        )
        assert said.count(f"layersync: {of_each}.") == 1
        assert "layersync: gain in fd-other: +10.0 %, +20.0 %, +30.0 % by each classifier alone." in said

    def test_what_cannot_be_said_is_said_in_words(self, changed: Changed, words: Words) -> None:
        nothing = Gain(None, None, 3, note="a score is not above 0: no ratio can be taken")
        unsaid = SpeedUp(None, None, None, None, note="a score is not above 0: its logarithm cannot be interpolated")
        folder = changed(_with(gain=nothing, gains={"fd-classifier": nothing}, speed_up=unsaid, overhead=None))
        said = words(write_report(folder))
        assert "layersync: gain: a score is not above 0: no ratio can be taken." in said
        assert "no gain can be stated (a score is not above 0: no ratio can be taken)" in said
        assert "its logarithm cannot be interpolated" in said
        assert "cannot be stated" in (folder / "figures" / "gain.svg").read_text()

    def test_a_failed_run_is_shown_as_failed(self, changed: Changed, words: Words) -> None:
        def fail(found: Comparison) -> Comparison:
            runs = found.domains[0].variants["layersync"].runs
            return _with(runs=(runs[0], _without_scores(runs[1], "failed", "loss is nan"), runs[2]))(found)

        said = words(write_report(changed(fail)))
        assert "Failed: layersync, seed 1. loss is nan" in said
        assert "layersync 1 failed – – –" in said

    def test_a_comparison_without_a_finished_run_has_a_page(self, changed: Changed, words: Words) -> None:
        def waiting(found: Comparison) -> Comparison:
            for name, variant in found.domains[0].variants.items():
                runs = tuple(_without_scores(run, "waiting") for run in variant.runs)
                cut: dict[str, Any] = {"curves": {}, "gain": None, "gains": {}, "speed_up": None, "similarity": {}}
                cut |= {"held_out_loss": None, "held_out_gain": None}
                found = _with(name, runs=runs, **cut)(found)
            return found

        said = words(write_report(changed(waiting)))
        assert "No run of this domain has finished" in said and "waiting" in said

    def test_the_held_out_loss_is_a_row_of_the_metrics(self, comparison_folder: Path, words: Words) -> None:
        before = Comparison.from_mapping(json.loads((comparison_folder / "compare.json").read_text()))
        loss = before.domains[0].variants["layersync"].held_out_loss
        assert loss is not None
        said = words(comparison_folder / "report.html")
        row = f"layersync {score(loss)} +3.5 [+5.0, +9.0] 3 2.0 %"
        assert said.count("All metrics, and the held-out loss, at the last step") == 3 and row in said

    def test_a_comparison_of_before_there_was_a_gain_in_loss(self, changed: Changed, words: Words) -> None:
        def older(found: Comparison) -> Comparison:
            for name in found.domains[0].variants:
                found = _with(name, held_out_loss=None, held_out_gain=None)(found)
            return found

        folder = changed(older)
        said = words(write_report(folder))
        assert "All metrics at the last step" in said and "held-out loss lower is better" not in said
        table = comparison_table(Comparison.from_mapping(json.loads((folder / "compare.json").read_text())))
        assert "held-out loss" not in table

    def test_table_for_terminals(self, comparison_folder: Path) -> None:
        found = Comparison.from_mapping(json.loads((comparison_folder / "compare.json").read_text()))
        image, audio, motion, beside = comparison_table(found).split("\n\n")
        assert image.startswith("image/quick: fd-classifier (lower is better), at step 1,500; 95 % intervals\n")
        (row,) = [line for line in image.splitlines() if line.startswith("  layersync ")]
        assert re.search(r"\+7\.0 \[\+5\.0, \+9\.0\] +3 +2\.0 % +1\.09× \[1\.02, 1\.15\]", row)
        assert "1.01× [not reached, 1.07]" in audio
        assert "note: the curves were still falling" in audio and "note:" not in image
        assert "layersync: speed-up: not reached: the mean at no evaluation" in motion
        assert "  held-out loss, gain: layersync +3.5 % [+5.0, +9.0], resolution 2.0 %" in image.splitlines()
        assert image.splitlines()[1] == (
            "  1500 training steps; samples by heun in 12 steps, guidance 2; 256 samples; extractor classifier; "
            "reference split test of digits"
        )
        assert "a true gain of this size is told in about half of such comparisons" in beside
        assert "only as good as the machine was quiet" in beside

    def test_the_reference_again_with_other_seeds_is_called_that(self, changed: Changed, words: Words) -> None:
        folder = changed(_with_null)
        found = Comparison.from_mapping(json.loads((folder / "compare.json").read_text()))
        said = words(write_report(folder))
        sentence = (
            "null is baseline again, trained with other seeds (1000000 to 1000002): its initial weights and "
            "draws are others, only its sampling noise is the same."
        )
        assert "same sampling noise, but for null." in said
        assert sentence in said and sentence in comparison_table(found)
        commands = re.findall(r"layersync train (\S+) --set seed=(\d+)", said)
        variants = found.domains[0].variants
        assert commands == [(v.recipe, str(v.runs[0].seed)) for v in variants.values()]
        assert [seed for _, seed in commands] == ["0", "0", "1000000"]
        assert (
            "Of the run with seed 0 of baseline, the run with seed 2 of layersync and the run with seed 1000000 of null"
        ) in said

    def test_samples_of_one_seed_or_of_unknown_ones(self, changed: Changed, page: Path, words: Words) -> None:
        assert words(page).count("Of the run with seed 0 of each variant, at the last step.") == 3
        folder = changed(_with(samples_seed=None))
        assert "Of the run with seed 0 of baseline and a run of unknown seed of layersync, at the last" in words(
            write_report(folder)
        )

    def test_settings_that_differ_stand_beside_each_other(self, changed: Changed, words: Words) -> None:
        def guide(found: Comparison) -> Comparison:
            own = found.domains[0].settings
            return _with(settings={**own, "sampling": {**own["sampling"], "guidance": 3.5}})(found)

        folder = changed(guide)
        found = Comparison.from_mapping(json.loads((folder / "compare.json").read_text()))
        said = words(write_report(folder))
        assert "setting baseline layersync sampling.guidance 2 3.5" in said
        assert said.count("sampling.solver heun") == 1 and said.count("sampling.guidance") == 1
        lines = [line.strip() for line in comparison_table(found).splitlines() if "training steps;" in line]
        assert [line.partition(":")[0] for line in lines] == ["baseline", "layersync"]
        assert "guidance 2;" in lines[0] and "guidance 3.5;" in lines[1] and all(line in said for line in lines)

    def test_a_variant_without_a_finished_run_has_no_other_settings(self, changed: Changed, words: Words) -> None:
        """A recipe's section of sampling, which has keys of its own, is not set against what scores say."""
        sample = {"solver": "heun", "steps": 12, "guidance": 2.0, "batch_size": 8, "guidance_interval": [0.0, 1.0]}

        def wait(found: Comparison) -> Comparison:
            own = found.domains[0].settings | {"sample": sample}
            sampling = {key: sample[key] for key in ("solver", "steps", "guidance")} | {"precision": "float32"}
            found = _with("baseline", settings={**own, "sampling": sampling})(found)
            runs = tuple(_without_scores(run, "waiting") for run in found.domains[0].variants["layersync"].runs)
            cut: dict[str, Any] = {"curves": {}, "gain": None, "gains": {}, "speed_up": None, "similarity": {}}
            cut |= {"held_out_loss": None, "held_out_gain": None, "overhead": None}
            return _with(runs=runs, settings={"steps": own["steps"], "sample": sample}, **cut)(found)

        folder = changed(wait)
        said = words(write_report(folder))
        assert "setting of all variants" not in said and "sampling.precision float32" in said
        table = comparison_table(Comparison.from_mapping(json.loads((folder / "compare.json").read_text())))
        baseline, layersync = (line for line in table.splitlines() if "training steps;" in line)
        by = "1500 training steps; samples by heun in 12 steps, guidance 2;"
        assert by in baseline and by in layersync and "precision" not in table and "batch_size" not in table

    def test_times_that_cannot_be_said_are_said_to_be_missing(self, changed: Changed, words: Words) -> None:
        def untimed(found: Comparison) -> Comparison:
            before = found.domains[0].variants["layersync"].speed_up
            assert before is not None
            speed_up = dataclasses.replace(before, seconds=None, seconds_interval=None)
            return _with(overhead=None, speed_up=speed_up)(found)

        folder = changed(untimed)
        said = words(write_report(folder))
        why = "layersync: time of a step, speed-up in seconds: –, a run logged too few times of steps"
        assert why in said and "1.09× [1.02, 1.15] – –" in said
        table = comparison_table(Comparison.from_mapping(json.loads((folder / "compare.json").read_text())))
        assert why in table and re.search(r"1\.09× \[1\.02, 1\.15\] +– +–", table)

    def test_one_evaluation_has_no_speed_up_and_that_is_said(self, changed: Changed, words: Words) -> None:
        note = "one evaluation: no curve to read it off (evaluate.every)"
        folder = changed(_with(speed_up=SpeedUp(None, None, None, None, note=note)))
        said = words(write_report(folder))
        assert f"layersync: speed-up: {note}." in said and "one evaluation one evaluation 1.010×" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"), (0.0, "0"), (0.123456, "0.1235"), (-12.3456, "-12.35"), (1e-7, "1e-07"), (9999.4, "9999"),
        (10_000.0, "10,000"), (-1_234_567.8, "-1,234,568"),
    ],
)  # fmt: skip
def test_numbers_have_four_digits_and_large_ones_commas(value: float | None, said: str) -> None:
    assert number(value) == said


@pytest.mark.parametrize(
    ("value", "sign", "said"),
    [
        (None, True, "–"), (0.042, True, "+4.2 %"), (0.042, False, "4.2 %"), (-0.0006, True, "-0.1 %"),
        (-0.125, False, "-12.5 %"), (0.99949, True, "+99.9 %"), (1.0, True, "+100 %"), (-2.5, False, "-250 %"),
    ],
)  # fmt: skip
def test_fractions_are_percent_with_one_digit_below_100(value: float | None, sign: bool, said: str) -> None:
    assert percent(value, sign) == said


class TestFigures:
    def test_every_setting_of_sampling_that_differs_is_said_beside_the_numbers(self, changed: Changed) -> None:
        def guide(found: Comparison) -> Comparison:
            own = found.domains[0].settings
            return _with(settings={**own, "sampling": {**own["sampling"], "guidance_interval": [0.3, 1.0]}})(found)

        found = Comparison.from_mapping(json.loads((changed(guide) / "compare.json").read_text()))
        lines = [line.strip() for line in comparison_table(found).splitlines() if "training steps;" in line]
        assert [line.partition(":")[0] for line in lines] == ["baseline", "layersync"]
        assert lines[1].endswith("guidance_interval [0.3, 1.0]") and "guidance_interval" in lines[0]

    def test_figures_for_papers_are_whole_and_the_same_each_time(
        self, comparison_folder: Path, changed: Changed
    ) -> None:
        first = comparison_folder / "figures"
        again = changed()
        write_report(again)
        names = sorted(file.name for file in first.iterdir())
        assert len(names) == 2 * (1 + 3 * 7) and "gain.svg" in names and "1-image-quick-score.png" in names
        of_images = [name for name in names if name.startswith("1-image-quick-")]
        assert len(of_images) == 2 * 7
        for name in of_images:
            assert (first / name).read_bytes() == (again / "figures" / name).read_bytes(), name
        for file in first.glob("*.svg"):
            assert ElementTree.parse(file).getroot().get("width") == "252pt"  # 3.5 inches
        for file in first.glob("*.png"):
            with Image.open(file) as picture:
                assert picture.width == 1050

    def test_figures_of_an_earlier_report_go_and_others_stay(self, changed: Changed) -> None:
        folder = changed()
        write_report(folder)
        written = {file.name for file in (folder / "figures").iterdir()}
        earlier = ("9-image-quick-score.svg", "1-image-quick-map-7-gone.png", "2-audio-held-out-loss.png")
        for name in (*earlier, "my-own.png", "1-score.txt"):
            (folder / "figures" / name).write_bytes(b"")
        write_report(folder)
        assert {file.name for file in (folder / "figures").iterdir()} == written | {"my-own.png", "1-score.txt"}

    def test_many_variants_and_long_names_have_room(self, comparison_folder: Path) -> None:
        """A legend below the curves, which keep their height; headings and labels that end before the right edge."""
        (domain, *_) = read_comparison(comparison_folder).domains
        baseline, variant = domain.variants.values()
        many = {"baseline": baseline} | {f"pair-{n}-9-weight-100": variant for n in range(7)}
        name, metric = "spoken-digits-of-speak", "fd-inception-v3.pool-x"
        better = {metric: domain.better["fd-classifier"]}
        wide = dataclasses.replace(domain, name=name, metric=metric, better=better, variants=many)
        drawn = figures.gain_figure([wide]).svg
        for said, size in ((f"{name}  ·  {metric}", 7.5), ("gain over the reference variant, %  (right is better)", 8)):
            start = re.search(rf"<!-- {re.escape(said)} -->\s*<g [^>]*translate\(([\d.]+) ", drawn)
            assert start is not None
            assert float(start[1]) + TextPath((0, 0), said, size=size).get_extents().width < 252, said
        loss = figures.loss_figure(wide)
        assert loss is not None
        height = re.search(r'height="([\d.]+)pt"', loss.svg)
        assert height is not None and float(height[1]) > 2.5 * 72 + 4 * 11
        assert loss.svg.index('id="legend_1"') > loss.svg.rindex('id="axes_1"')

    def test_what_is_drawn_follows_the_numbers(self, changed: Changed, comparison_folder: Path) -> None:
        folder = changed(_with(gain=Gain(0.20, (0.15, 0.25), 3, 0.05)))
        write_report(folder)
        differing = {
            file.name
            for file in (folder / "figures").glob("*.svg")
            if file.read_bytes() != (comparison_folder / "figures" / file.name).read_bytes()
        }
        assert differing == {"gain.svg"}  # 20 % instead of 7 %, and one domain instead of three
        assert re.search(r"<!-- \+20 -->", (folder / "figures" / "gain.svg").read_text())

    def test_one_evaluation_is_drawn_as_columns_of_seeds(self, changed: Changed, words: Words) -> None:
        """A curve of one step shows neither its seeds nor its interval; seeds that are no pairs are not joined."""

        def last(found: Comparison) -> Comparison:
            (domain,) = _with_null(found).domains
            variants = {}
            for name, variant in domain.variants.items():
                runs = tuple(
                    dataclasses.replace(
                        run,
                        steps=run.steps[-1:],
                        scores={metric: values[-1:] for metric, values in run.scores.items()},
                        seconds=run.seconds[-1:],
                        held_out_loss=run.held_out_loss[-1:],
                        similarity=run.similarity[-1:],
                    )
                    for run in variant.runs
                )
                curves = {metric: _end(curve) for metric, curve in variant.curves.items()}
                similarity = {
                    pair: {kind: _end(curve) for kind, curve in kinds.items()}
                    for pair, kinds in variant.similarity.items()
                }
                loss = None if variant.held_out_loss is None else _end(variant.held_out_loss)
                variants[name] = dataclasses.replace(
                    variant, runs=runs, curves=curves, similarity=similarity, held_out_loss=loss, speed_up=None
                )
            return dataclasses.replace(found, domains=(dataclasses.replace(domain, variants=variants),))

        folder = changed(last)
        assert "A dot for each seed, joined where seeds are pairs." in words(write_report(folder))
        for name in ("score", "held-out-loss"):
            figure = (folder / "figures" / f"1-image-quick-{name}.svg").read_text()
            assert all(f"<!-- {variant} -->" in figure for variant in ("baseline", "layersync", "null"))
            assert "training steps" not in figure and "at step" in figure
            loss, drawn = name != "score", Drawn(figure)

            def last_of(run: RunRecord, loss: bool = loss) -> float:
                return (run.held_out_loss if loss else run.scores["fd-classifier"])[-1]

            variants = list(read_comparison(folder).domains[0].variants.values())
            for row, pair in enumerate(zip(*(variant.runs for variant in variants[:2]), strict=True)):
                _is_at(drawn.points(f"pair-{row}"), [0, 1], [last_of(run) for run in pair])
                _is_at(drawn.points(f"alone-{row}-2"), [2], [last_of(variants[2].runs[row])])
            for place, variant in enumerate(variants):
                curve = variant.held_out_loss if loss else variant.curves["fd-classifier"]
                assert curve is not None and curve.interval is not None
                _is_at(drawn.points(f"mean-{place}"), [place], curve.mean)
                _is_at(drawn.points(f"interval-{place}"), [place, place], curve.interval[-1])

    def test_curves_lie_where_the_numbers_say(self, comparison_folder: Path) -> None:
        """Every seed thin, the mean bold in its band, the reference's last score as a line."""
        domain = read_comparison(comparison_folder).domains[0]
        for name in ("score", "held-out-loss"):
            loss = name != "score"
            drawn = Drawn((comparison_folder / "figures" / f"1-image-quick-{name}.svg").read_text())
            for place, variant in enumerate(domain.variants.values()):
                curve = variant.held_out_loss if loss else variant.curves["fd-classifier"]
                steps = variant.runs[0].steps
                assert curve is not None and curve.interval is not None and len(variant.runs) == 3
                _is_at(drawn.points(f"mean-{place}"), steps, curve.mean)
                for row, run in enumerate(variant.runs):
                    values = run.held_out_loss if loss else run.scores["fd-classifier"]
                    _is_at(drawn.points(f"seed-{place}-{row}"), steps, values)
                band = drawn.points(f"band-{place}")
                last = band[np.abs(band[:, 0] - steps[-1]) < 1, 1]
                assert (last.min(), last.max()) == pytest.approx(curve.interval[-1], rel=2e-3)
            if not loss:
                level = domain.variants["baseline"].curves["fd-classifier"].mean[-1]
                assert drawn.points("level")[:, 1] == pytest.approx(level, rel=2e-3)

    def test_scores_that_span_much_are_on_a_logarithmic_axis(self, changed: Changed) -> None:
        def spread(found: Comparison) -> Comparison:
            first, *others = found.domains[0].variants["layersync"].runs
            scores = {**first.scores, "fd-classifier": (4000.0, *first.scores["fd-classifier"][1:])}
            return _with(runs=(dataclasses.replace(first, scores=scores), *others))(found)

        folder = changed(spread)
        write_report(folder)
        variant = read_comparison(folder).domains[0].variants["layersync"]
        drawn = Drawn((folder / "figures" / "1-image-quick-score.svg").read_text(), log=True)
        _is_at(drawn.points("seed-1-0"), variant.runs[0].steps, variant.runs[0].scores["fd-classifier"])
        _is_at(drawn.points("mean-1"), variant.runs[0].steps, variant.curves["fd-classifier"].mean)

    def test_similarities_are_of_their_blocks_and_maps_of_the_last_step(self, changed: Changed) -> None:
        """No two pairs of blocks are alike here."""

        def tilt(found: Comparison) -> Comparison:
            slope = 1 - 0.01 * np.add.outer(np.arange(6), np.arange(6))
            runs = []
            for run in found.domains[0].variants["layersync"].runs:
                maps = [
                    dataclasses.replace(
                        one,
                        cosine=tuple(map(tuple, (slope * one.cosine).tolist())),
                        centred=tuple(map(tuple, (slope * one.centred).tolist())),
                    )
                    for one in run.similarity
                ]
                runs.append(dataclasses.replace(run, similarity=tuple(maps)))
            return _with(runs=tuple(runs))(found)

        folder = changed(tilt)
        write_report(folder)
        domain = read_comparison(folder).domains[0]
        variant = domain.variants["layersync"]
        lowest = 1.0
        for panel, kind in enumerate(("cosine", "centred"), 1):
            (file,) = (folder / "figures").glob("1-image-quick-similarity-*.svg")
            drawn = Drawn(file.read_text(), panel)
            for row, run in enumerate(variant.runs):
                values = [getattr(found, kind)[1][3] for found in run.similarity]
                _is_at(drawn.points(f"{kind}-seed-1-{row}"), run.steps, values)
            _is_at(drawn.points(f"{kind}-mean-1"), variant.runs[0].steps, variant.similarity["2-4"][kind].mean)
            maps = [
                np.mean([getattr(run.similarity[-1], kind) for run in one.runs], axis=0)
                for one in domain.variants.values()
            ]
            lowest = min(float(found.min()) for found in maps)
            drawn = Drawn((folder / "figures" / "1-image-quick-map-2-layersync.svg").read_text(), panel)
            cells, colours = drawn.outlines(f"{kind}-map"), drawn.fills(f"{kind}-map")
            assert len(cells) == len(colours) == 36
            for row, column in ((1, 3), (5, 0), (4, 4)):
                assert cells[6 * row + column][:4].mean(axis=0) == pytest.approx((column + 1, row + 1), abs=0.01)
                shade = viridis((maps[1][row, column] - lowest) / (1 - lowest))
                assert colours[6 * row + column] == to_hex(shade), (kind, row, column)

    def test_the_speed_up_is_marked_where_it_is_read_off(self, comparison_folder: Path) -> None:
        image, motion = (
            (comparison_folder / "figures" / f"{name}-quick-score.svg").read_text() for name in ("1-image", "3-motion")
        )
        assert "<!-- layersync, 1.09× in steps -->" in image and "in steps" not in motion
        assert 'id="speed-up-1"' in image and "speed-up-" not in motion

    def test_the_arrow_is_of_the_seeds_that_finished_in_both(self, changed: Changed) -> None:
        level = 0.0

        def change(found: Comparison) -> Comparison:
            nonlocal level
            reference, other = found.domains[0].variants.values()
            worse = tuple(1.3 * score for score in reference.runs[0].scores["fd-classifier"])
            scores = {**reference.runs[0].scores, "fd-classifier": worse}
            before = (dataclasses.replace(reference.runs[0], scores=scores), *reference.runs[1:])
            mean = np.mean([run.scores["fd-classifier"] for run in before], axis=0)
            curves = {**reference.curves, "fd-classifier": Curve(tuple(mean.tolist()), None)}
            level = float(np.mean([run.scores["fd-classifier"][-1] for run in before[1:]]))
            assert mean[-1] - level > 4
            found = _with("baseline", runs=before, curves=curves)(found)
            speed_up = SpeedUp(1.5, None, None, None, reference_step=1350.0, variant_step=900.0)
            return _with(runs=(_without_scores(other.runs[0], "failed"), *other.runs[1:]), speed_up=speed_up)(found)

        folder = changed(change)
        write_report(folder)
        start, end = _arrow((folder / "figures" / "1-image-quick-score.svg").read_text())
        assert start == pytest.approx((1350, level), rel=0.01) and end == pytest.approx((900, level), rel=0.01)

    def test_names_are_no_formulas(self, changed: Changed) -> None:
        def rename(found: Comparison) -> Comparison:
            domain = found.domains[0]
            named = {"baseline": domain.variants["baseline"], "_$x^2$": domain.variants["layersync"]}
            return dataclasses.replace(found, domains=(dataclasses.replace(domain, variants=named),))

        folder = changed(rename)
        write_report(folder)
        for figure in ("gain", "1-image-quick-score", "1-image-quick-held-out-loss"):
            drawn = (folder / "figures" / f"{figure}.svg").read_text()
            assert "<!--  _$x^2$" in drawn and "Oblique" not in drawn  # the letters of a formula are slanted


class TestSamples:
    def test_sounds_are_the_files_as_they_are(self, page: Path, comparison_folder: Path, words: Words) -> None:
        folder = comparison_folder / "audio-quick"
        files = [folder / name / "samples" / f"00{n}.wav" for n in range(6) for name in ("baseline", "layersync")]
        assert _addresses(page, "audio/wav") == [file.read_bytes() for file in files]
        assert "6 of 7 files of each variant are shown" in words(page)

    def test_a_spectrogram_has_low_tones_low(self, page: Path) -> None:
        lowest = []
        for content in _addresses(page, "image/png")[2::2]:  # the baseline's, after two grids
            with Image.open(io.BytesIO(content)) as picture:
                levels = np.asarray(picture.convert("L")).astype(float).mean(axis=1)[::-1]
            lowest.append(int(np.argmax(levels > 0.7 * levels.max())))
        assert len(lowest) == 6 and lowest == sorted(lowest) and lowest[0] < lowest[-1] < 16

    def test_missing_folders_and_damaged_files_are_said(self, changed: Changed, words: Words) -> None:
        folder = changed(_with(samples=""))
        samples = folder / "image-quick" / "baseline" / "samples"
        (samples / "grid.png").write_bytes(b"no picture")
        said = words(write_report(folder))
        assert "No samples of layersync: none were drawn." in said
        assert "grid.png: cannot be read" in said
        samples.rename(samples.with_name("elsewhere"))
        assert "No samples of baseline: image-quick/baseline/samples is not there." in words(write_report(folder))

    def test_nothing_outside_of_the_folder_is_read(self, changed: Changed, words: Words) -> None:
        folder = changed(_with(samples="../secret", recipe="../secret/recipe.yaml"))
        secret = folder.parent / "secret"
        secret.mkdir()
        (secret / "recipe.yaml").write_text("password")
        Image.new("RGB", (3, 3)).save(secret / "grid.png")
        page = write_report(folder)
        assert "password" not in words(page) and "../secret is not there" in words(page)

    def test_links_out_of_the_folder_are_not_followed(self, changed: Changed, words: Words) -> None:
        folder = changed(_with(samples="linked", recipe="recipe.yaml"))
        secret = folder.parent / "secret"
        secret.mkdir()
        (secret / "recipe.yaml").write_text("password")
        (folder / "recipe.yaml").symlink_to(secret / "recipe.yaml")
        (folder / "linked").symlink_to(secret)
        Image.new("RGB", (3, 3)).save(secret / "grid.png")
        samples = folder / "image-quick" / "baseline" / "samples"
        (samples / "grid.png").unlink()
        (samples / "grid.png").symlink_to(secret / "grid.png")
        said = words(write_report(folder))
        assert "password" not in said and "recipe.yaml is not there" in said and "linked is not there" in said
        assert "No samples of baseline" in said or "grid.png" not in said

    def test_large_files_are_made_smaller_and_stay_what_they_are(self, changed: Changed) -> None:
        folder = changed()
        samples = folder / "image-quick" / "baseline" / "samples"
        noise = np.random.default_rng(0).integers(256, size=(24, 900, 900), dtype=np.uint8)
        Image.fromarray(np.tile(noise[0], (2, 2))).save(samples / "grid.png")
        frames = [Image.fromarray(frame) for frame in noise]
        frames[0].save(samples / "large.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
        assert (samples / "large.gif").stat().st_size > 8 * 2**20
        page = write_report(folder)
        grid = max(_addresses(page, "image/png"), key=len)
        with Image.open(io.BytesIO(grid)) as picture:
            assert len(grid) <= 2**20 and 600 < picture.width == picture.height < 1600
        (animation,) = _addresses(page, "image/gif")
        with Image.open(io.BytesIO(animation)) as picture:
            assert len(animation) <= 2 * 2**20 and picture.info["loop"] == 0
            assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(picture)) == 2400

    def test_long_sounds_are_shown_as_far_as_there_is_room(self, changed: Changed, words: Words) -> None:
        folder = changed(domain=1)
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (44100 * 8, 2)).astype(np.float32)
        for name in ("baseline", "layersync"):
            for file in range(7):
                soundfile.write(folder / "audio-quick" / name / "samples" / f"{file:03d}.wav", noise, 44100)
        page = write_report(folder)
        assert "1 of 7 files of each variant are shown" in words(page)
        assert len(_addresses(page, "audio/wav")) == 2 and page.stat().st_size < 8 * 2**20


class TestCommand:
    def test_prints_where_the_page_is(self, changed: Changed, command: Command) -> None:
        folder = changed()
        assert command("report", folder) == (0, f"{folder / 'report.html'}\n", "")
        left = {file.name for file in folder.iterdir()}
        assert {"report.html", "figures"} < left and not any(name.startswith(".") for name in left)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (None, "holds no compare.json; give the folder that layersync compare wrote"),
            (b'{"seeds": [0', "cannot be read as JSON"),
            (b"\xff\xfe", "cannot be read as JSON"),
            (b"[1, 2]", "is no comparison that layersync compare wrote"),
            (b'{"run": "runs/x", "step": 3}', "is no comparison that layersync compare wrote"),
        ],
    )
    def test_what_is_no_comparison_gets_one_line(
        self, content: bytes | None, expected: str, tmp_path: Path, command: Command
    ) -> None:
        if content is not None:
            (tmp_path / "compare.json").write_bytes(content)
        before = sorted(tmp_path.iterdir())
        status, out, err = command("report", tmp_path)
        assert (status, out) == (2, "") and err.count("\n") == 1 and str(tmp_path) in err and expected in err
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("where", "value", "expected"),
        [
            ("seeds", [], "its seeds [] are not one or more different numbers"),
            ("seeds", [0, 1, 1], "its seeds [0, 1, 1] are not one or more different numbers"),
            ("seeds", [0, 1], "baseline: has 3 runs for 2 seeds"),
            ("domains", [], "it has no domains"),
            ("domains.0.name", "\ud800", "is half a character"),
            ("domains.0.settings", {"\udc00": 1}, "is half a character"),
            ("domains.0.metric", "fid", "does not say which way its metric 'fid' improves"),
            ("domains.0.better.fd-classifier", "sideways", "Input should be 'lower' or 'higher'"),
            (f"{LAYERSYNC}.gain.mean", -math.inf, "Input should be a finite number"),
            (f"{LAYERSYNC}.gain.resolution", math.nan, "Input should be a finite number"),
            (f"{LAYERSYNC}.runs.0.status", "done", "Input should be 'finished', 'failed' or 'waiting'"),
            (
                f"{LAYERSYNC}.runs.0.scores.fd-classifier",
                [3.0],
                "seed 0: has 1 scores of fd-classifier for 3 evaluated",
            ),
            (f"{LAYERSYNC}.runs.1.scores", {}, "fd-classifier is not in its curves and in all of its finished runs"),
            (f"{LAYERSYNC}.runs.1.held_out_loss", [0.5], "seed 1: has 1 held-out losses for 3 evaluated steps"),
            (f"{LAYERSYNC}.held_out_loss.mean", [0.5], "curve of held-out loss is not of 3 evaluated steps"),
            (f"{LAYERSYNC}.runs.1.seconds", [], "seed 1: has 0 times for 3 evaluated steps"),
            (f"{LAYERSYNC}.runs.1.similarity", [], "seed 1: has 0 maps for 3 evaluated steps"),
            (f"{LAYERSYNC}.runs.1.steps", [500, 500, 1500], "its steps [500, 500, 1500] are not ascending"),
            (f"{LAYERSYNC}.runs.1.steps", [500, 900, 1500], "were evaluated at different steps"),
            (f"{LAYERSYNC}.runs.1.similarity.0.cosine", [[1.0, 0.5]], "maps of similarity are not square"),
            (f"{LAYERSYNC}.curves.fd-classifier.mean", [3.0], "curve of fd-classifier is not of 3 evaluated steps"),
            (f"{LAYERSYNC}.curves.fd-classifier.interval", [], "curve of fd-classifier is not of 3 evaluated steps"),
            (f"{LAYERSYNC}.curves", {}, "fd-classifier is not in its curves and in all of its finished runs"),
            (f"{LAYERSYNC}.similarity.2-4", {}, "the similarity of 2-4 is of [], not of cosine and centred"),
            (f"{LAYERSYNC}.similarity.2-4.cosine.mean", [1.0], "curve of 2-4, cosine is not of 3 evaluated steps"),
            (f"{LAYERSYNC}.similarity.2-9", {}, "it has no pair of blocks 2-9: its maps are of 6 blocks"),
            (f"{LAYERSYNC}.similarity.0-4", {}, "'0-4' is no pair of blocks such as 4-7"),
        ],
    )
    def test_what_does_not_fit_together_gets_one_line(
        self, where: str, value: Any, expected: str, damaged: Callable[[str, Any], Path], command: Command
    ) -> None:
        folder = damaged(where, value)
        status, out, err = command("report", folder)
        assert (status, out) == (2, "") and err.count("\n") == 1 and f"{folder / 'compare.json'}: is " in err
        assert expected in err and [file.name for file in folder.iterdir()] == ["compare.json"]

    def test_nesting_without_end_gets_one_line(self, tmp_path: Path, command: Command) -> None:
        (tmp_path / "compare.json").write_text("[" * 100_000)
        status, out, err = command("report", tmp_path)
        assert (status, out) == (2, "") and err.count("\n") == 1 and "cannot be read as JSON" in err

    def test_where_no_report_can_go_is_known_before_the_work(self, tmp_path: Path) -> None:
        check_target(tmp_path / "not" / "made" / "yet")
        check_target(tmp_path)
        assert list(tmp_path.iterdir()) == []
        file = tmp_path / "file"
        file.write_text("")
        with pytest.raises(InputError, match="file: is a file, and a report goes into a folder of that name"):
            check_target(file)
        (tmp_path / "figures").write_text("")
        with pytest.raises(InputError, match="figures: is a file"):
            check_target(tmp_path)
        (tmp_path / "figures").unlink()
        (tmp_path / "report.html").mkdir()
        with pytest.raises(InputError, match=r"report\.html: is a folder"):
            check_target(tmp_path)

    def test_a_folder_that_is_not_writable_is_known_before_the_work(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def may(place: Path, mode: int) -> bool:
            return place.stat().st_mode >> 6 & mode == mode  # as for anybody but root, who may everywhere

        monkeypatch.setattr(os, "access", may)
        (tmp_path / "figures").mkdir()
        check_target(tmp_path)
        for place in (tmp_path / "figures", tmp_path):
            place.chmod(0o555)
            with pytest.raises(InputError) as refused:
                check_target(tmp_path)
            place.chmod(0o755)
            assert str(refused.value) == f"{place}: is not writable, so that no report can go there"

    def test_no_folder_a_wrong_reference_a_file_in_the_way(
        self, tmp_path: Path, changed: Changed, command: Command
    ) -> None:
        status, _, err = command("report", tmp_path / "nothing")
        assert status == 2 and "there is no such folder" in err
        folder = changed()
        (folder / "figures").write_text("")
        status, _, err = command("report", folder)
        assert status == 2 and "is a file" in err and not (folder / "report.html").exists()
        content = (folder / "compare.json").read_text()
        (folder / "compare.json").write_text(content.replace('"reference": "baseline"', '"reference": "other"'))
        status, _, err = command("report", folder)
        assert status == 2 and "the reference 'other' of image/quick is none of its variants" in err


def test_a_comparison_made_for_real(tmp_path: Path, words: Words) -> None:
    """Two variants of a small motion recipe, trained, scored and sampled by ``compare``."""
    overrides = [
        "backbone.hidden_size=32", "backbone.depth=4", "optimizer.warmup=0", "train.steps=2", "train.batch_size=8",
        "train.log_every=1", "sample.steps=2", "evaluate.metrics=[fd-kinetic]", "evaluate.num_samples=16",
        "evaluate.every=1",
    ]  # fmt: skip
    found = layersync.compare(["motion/quick"], seeds=[5], out=tmp_path / "out", overrides=overrides, jobs=2)
    page = write_report(tmp_path / "out")
    said = words(page)
    variant: Variant = found.domains[0].variants["layersync"]
    assert [run.status for run in variant.runs] == ["finished"]
    assert variant.gain is not None and variant.gain.mean is not None
    assert f"{100 * variant.gain.mean:+.1f}" in said and "One seed: no error bar." in said
    assert len(_addresses(page, "image/gif")) == 2
    assert (tmp_path / "out" / "figures" / "1-motion-quick-map-2-layersync.svg").is_file()
    assert found.command in said and "sampling.solver heun" in said
