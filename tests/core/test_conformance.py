"""``layersync check``: what is wrong with an adapter is found by the check of that name, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from plugins import QUICK, Installer
from safetensors.torch import load_file

from layersync import InputError, testing
from layersync.core.adapter import protocol_members
from layersync.core.conformance.subject import Subject
from layersync.core.conformance.suite import CHECKS, open_subject, run_check, run_checks
from layersync.modalities.motion.mdm import MDM
from layersync.testing import AdapterConformance

Command = Callable[..., tuple[int, str, str]]
METHODS = sorted(name for name, member in protocol_members().items() if not isinstance(member, property))


class Shipped(AdapterConformance):
    """With the checks for which there is nothing to look at: no other may be skipped, and these are."""

    not_applicable: ClassVar[frozenset[str]] = frozenset()

    @pytest.mark.parametrize("check", CHECKS)
    def test_conforms(self, check: str) -> None:
        try:
            super().test_conforms(check)
        except pytest.skip.Exception as skipped:
            assert check in self.not_applicable, skipped
            raise
        assert check not in self.not_applicable


class TestImage(Shipped):
    recipe = "image/quick"
    not_applicable = frozenset({"backbone-mask", "features", "metrics"})


class TestAudio(Shipped):
    recipe = "audio/quick"
    not_applicable = frozenset({"features", "metrics"})


class TestMotion(Shipped):
    recipe = "motion/quick"


class TestMdm(Shipped):
    recipe = "motion/quick"
    overrides = ("backbone.name=mdm", "backbone.depth=3", "backbone.hidden_size=32", "backbone.mask_frames=true")


def test_overrides_of_a_class_of_tests_reach_what_it_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Subject] = []
    monkeypatch.setattr(testing, "run_check", lambda _, subject: seen.append(subject))
    for tests in (TestMdm(), TestMotion()):
        tests.test_conforms("backbone")
    assert [isinstance(subject.backbone, MDM) for subject in seen] == [True, False]
    assert seen[0].backbone.depth == 3


def test_an_adapter_of_unlabelled_data_passes(installer: Installer, command: Command) -> None:
    name = installer.strokes(
        ('Example(sample, {"label": label}, f"{self.split}', 'Example(sample, {}, f"{self.split}'),
        ('    classes = ("circle", "zigzag")\n', ""),
    )
    out = command("check", name, "--json")[1]
    assert {check["name"]: check["status"] for check in json.loads(out)["checks"]}["archive"] == "ok", out


def test_a_state_is_kept_however_its_tensors_lie_in_memory(installer: Installer, command: Command) -> None:
    state = '{"scale": self.scale.repeat_interleave(2)[::2], "flat": self.scale[:1].expand(3), "tied": self.scale}'
    old, known = 'return {"scale": self.scale}', ('if set(state) != {"scale"}', 'if "scale" not in state')
    name, broken = installer.strokes((old, f"return {state}"), known), installer.strokes((old, "1 / 0"))
    run_check("tokenizer-state", open_subject(name))
    run = installer.folder / "run"
    assert command("train", f"{name}/quick", "--out", run)[0] == 0
    kept = load_file(run / "tokenizer.safetensors")
    assert torch.equal(kept["flat"], kept["scale"][:1].expand(3)) and torch.equal(kept["tied"], kept["scale"])
    status, _, err = command("train", f"{broken}/quick", "--out", installer.folder / "none")
    assert status == 2 and "Offsets.state raised ZeroDivisionError" in err and "Traceback" not in err


def test_a_whole_adapter_passes_every_check(installer: Installer, command: Command) -> None:
    name = installer.strokes()
    status, out, _ = command("check", name, "--json")
    found = json.loads(out)
    assert status == 0 and found["ok"] and (found["modality"], found["recipe"]) == (name, f"{name}/quick")
    assert {check["name"]: check["status"] for check in found["checks"]} == dict.fromkeys(CHECKS, "ok")
    status, out, _ = command("check", name, "--recipe", f"{name}/quick", "--set", "backbone.depth=3")
    assert status == 0 and [line.split()[:2] for line in out.splitlines()] == [["ok", check] for check in CHECKS]


@pytest.mark.parametrize("member", sorted(protocol_members()))
def test_a_member_taken_out_is_named(member: str, installer: Installer, command: Command) -> None:
    status, out, err = command("check", installer.strokes(without=member))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "package plugged" in err and ("no api number" if member == "api" else f"StrokesAdapter.{member}") in err


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_raises_is_named(method: str, installer: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CHECKS, "hash-seed")  # a process of its own, of data that is not broken here
    name = installer.strokes(
        ("class StrokesAdapter:", "class Whole:"),
        (
            "        return files\n",
            f"        return files\n\n\nclass StrokesAdapter(Whole):\n    def {method}(self, *_): 1 / 0\n",
        ),
    )
    failed = [outcome for outcome in run_checks(open_subject(name)) if outcome.status == "failed"]
    assert f"StrokesAdapter.{method}" in failed[0].message and "ZeroDivisionError" in failed[0].message
    assert len({outcome.message for outcome in failed}) == len(failed)


def test_a_method_that_a_recipe_needs_is_named_too(installer: Installer, command: Command) -> None:
    name = installer.strokes(('return {"fod": "fd-outline"}', "raise KeyError('fod')"))
    recipe = installer.folder / "scored.yaml"
    recipe.write_text(QUICK.format(name=name).replace("fd-classifier", "fod"))
    status, out, err = command("check", name, "--recipe", recipe)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "StrokesAdapter" in err and "KeyError" in err and "in aliases)" in err
    status, out, again = command("check", name, "--set", "evaluate.metrics=[fod]")
    assert status == 2 and out == "" and again == err.replace(str(recipe), f"{name}/quick")


BREAKS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (
        "recipe-sections",
        "OffsetsConfig.model_config: expected tokenizer.no_such_key to be refused",
        [
            (
                '    name: Literal["offsets"] = "offsets"',
                '    model_config = {"extra": "allow"}\n    name: Literal["offsets"] = "offsets"',
            )
        ],
    ),
    ("metric-names", "StrokesAdapter.aliases: 'fod' stands for 'fd-shape'", [('"fd-outline"', '"fd-shape"')]),
    (
        "dataset",
        "Strokes.__len__: expected examples in the training split; got 0",
        [('return self.size if self.split == "train" else', 'return 0 if self.split == "train" else')],
    ),
    (
        "dataset",
        "Strokes.__getitem__(0): raised IndexError: no (adapter.py, line",
        [
            (
                "        label, frames = index % 2",
                "        if not index:\n            raise IndexError('no')\n        label, frames = index % 2",
            )
        ],
    ),
    (
        "dataset-labels",
        "expected a label below 2, the number of classes; got 2",
        [
            ("label, frames = index % 2,", "label, frames = index % 2 + (index > 60),"),
            ("(circle, zigzag)[label]", "(circle, zigzag)[index % 2]"),
        ],
    ),
    (
        "dataset-labels",
        "Strokes.classes: expected names, strings all; got (np.int64(0), np.int64(1))",
        [('classes = ("circle", "zigzag")', "classes = np.arange(2)")],
    ),
    (
        "dataset-repeats",
        "Strokes.__getitem__(0): expected the same example again",
        [('np.random.default_rng([index, int(self.split == "test")])', "np.random.default_rng()")],
    ),
    (
        "dataset-repeats",
        "Strokes.fingerprint: expected the same for the same data",
        [('f"strokes-1-{size}-{split}"', 'f"strokes-1-{id(self)}-{split}"')],
    ),
    (
        "dataset-splits",
        "the same sample, of 'stroke 0', in both",
        [('[index, int(self.split == "test")]', "[index, 0]"), ('f"{self.split} stroke {index}"', 'f"stroke {index}"')],
    ),
    (
        "dataset-splits",
        "expected examples that are not in the training split; got training examples, all 32 that were looked at",
        [('[index, int(self.split == "test")]', "[index, 0]")],
    ),
    (
        "dataset-splits",
        "Strokes.fingerprint: expected another for each split",
        [('f"strokes-1-{size}-{split}"', 'f"strokes-1-{size}"')],
    ),
    (
        "dataset-workers",
        "Strokes, pickled: raised",
        [
            (
                "        self.size, self.split = size, split",
                "        self.size, self.split, self.reader = size, split, lambda: None",
            )
        ],
    ),
    (
        "dataset-workers",
        "expected the same example in a worker process",
        [
            (
                "source = np.random.default_rng([index, int(",
                "source = np.random.default_rng([index, os.getpid() - PARENT, int(",
            ),
            ("Stroke = NDArray", "import os\nPARENT = os.getpid()\nStroke = NDArray"),
        ],
    ),
    (
        "dataset-workers",
        "expected the same example where threads read, as concurrent says they may",
        [
            (
                "        source = np.random.default_rng([index, int(",
                "        self.index = index\n        time.sleep(0.005)\n"
                "        source = np.random.default_rng([self.index, int(",
            ),
            (
                "    def __init__(self, size: int, split: Split):",
                "    concurrent = True\n\n    def __init__(self, size: int, split: Split):",
            ),
            ("Stroke = NDArray", "import time\nStroke = NDArray"),
        ],
    ),
    (
        "tokenizer-encode",
        "Offsets.encode: expected float32 of sample 0 (train stroke 0); got torch.float64",
        [("[torch.from_numpy(sample) for", "[torch.from_numpy(sample).double() for")],
    ),
    (
        "tokenizer-encode",
        "expected one shape besides frames for every sample, [3] as of sample 0; got [2] of sample 6",
        [("[torch.from_numpy(sample) for", "[torch.from_numpy(np.pad(sample, ((0, 0), (0, len(sample) > 30)))) for")],
    ),
    (
        "tokenizer-encode",
        "Offsets.encode: expected a sample alone to be encoded as beside others",
        [("[torch.from_numpy(sample) for", "[torch.from_numpy(sample) / len(samples) for")],
    ),
    (
        "tokenizer-encode",
        "Offsets.encode: expected the same stored values once fitted: normalise in latents",
        [
            ("[torch.from_numpy(sample) for", "[torch.from_numpy(sample) / self.scale for"),
            ("return stored / self.scale", "return stored"),
        ],
    ),
    (
        "tokenizer-latents",
        "OffsetsConfig.latent_spec: expected",
        [
            (
                "self.latent = config.latent_spec()",
                "self.latent = LatentSpec(2, (config.num_frames - 4,), sequence=True, variable=True)",
            )
        ],
    ),
    (
        "tokenizer-latents",
        "Offsets.latents: expected float32; got torch.float64",
        [("return stored / self.scale", "return (stored / self.scale).double()")],
    ),
    (
        "tokenizer-latents",
        "Offsets.latents and fit: expected latents of order 1, as noise is; got a root mean square of",
        [("return stored / self.scale", "return stored / self.scale * 100")],
    ),
    (
        "tokenizer-latents",
        "expected [6, 24, 2], a batch of LatentSpec's [24, 2]; got [6, 24, 4]",
        [("return stored / self.scale", "return (stored / self.scale).repeat(1, 1, 2)")],
    ),
    (
        "tokenizer-window",
        "Offsets.window(sample",
        [("return sample[first : first + self.num_frames]", "return sample[first:]")],
    ),
    (
        "tokenizer-state",
        "Offsets.state and load_state: expected the latents of the tokenizer that was fitted",
        [('return {"scale": self.scale}', 'return {"scale": self.scale * 2}')],
    ),
    (
        "tokenizer-round-trip",
        "Offsets.decode and encode: expected latents again with a relative error of at most 1e-05",
        [
            (
                "strokes = (latents.float() * self.scale).numpy()",
                "strokes = (latents.float() * self.scale * 1.01).numpy()",
            )
        ],
    ),
    (
        "tokenizer-round-trip",
        "Offsets.decode: expected 19 real frames; got 24 encoded again",
        [("if mask is None:\n            return list(strokes)", "if True:\n            return list(strokes)")],
    ),
    (
        "backbone",
        "expected 4, the recipe's backbone.depth; got 5",
        [
            (
                "return config.build(latent, condition)",
                "net = config.build(latent, condition)\n        net.depth = 5\n        return net",
            )
        ],
    ),
    ("backbone", "expected a prediction [6, 24, 2]; got [6, 2, 24]", "prediction=out.prediction.transpose(1, 2)"),
    (
        "backbone-taps",
        "expected no features with taps=(); got those of blocks [1]",
        "features={1: torch.zeros(6, 12, 32), **out.features}",
    ),
    (
        "backbone-taps",
        "features[1]: expected the output of block 1",
        "features={k: (v * 1.1 if k == 1 else v) for k, v in out.features.items()}",
    ),
    (
        "backbone-taps",
        "that of block 2",
        "features={k: out.features[k % 4 + 1] if len(out.features) == 4 else v for k, v in out.features.items()}",
    ),
    ("backbone-bad-taps", "expected ValueError for taps=(0,) of 4 blocks (check_taps); got no error", "clip"),
    ("backbone-mask", "expected a prediction of real frames that padding leaves alone (mask)", "unmasked"),
    (
        "backbone-mask",
        "token_mask: expected a boolean [6, 12], True on real tokens, where there is a mask; got None",
        "token_mask=None",
    ),
    ("backbone-condition", "expected a prediction that depends on condition['label']", "unlabelled"),
    (
        "backbone-deterministic",
        "expected the same prediction twice in evaluation",
        "prediction=out.prediction + torch.randn(1)",
    ),
    (
        "backbone-batch",
        "expected a sample alone to be predicted as in a batch",
        "prediction=out.prediction + out.prediction.mean()",
    ),
    (
        "backbone-batch",
        "module beside: expected a norm of each sample by itself, such as LayerNorm; got BatchNorm",
        [
            (
                "return config.build(latent, condition)",
                "net = config.build(latent, condition)\n        net.beside = torch.nn.BatchNorm1d(3)\n"
                "        return net",
            )
        ],
    ),
    (
        "backbone-gradients",
        "in training with bfloat16 (torch.autocast): raised RuntimeError",
        "prediction=torch.zeros(x_t.shape).index_put((torch.arange(len(x_t)),), out.prediction)",
    ),
    (
        "backbone-gradients",
        "weight unused: expected a gradient of the flow loss; got none",
        [
            (
                "return config.build(latent, condition)",
                "net = config.build(latent, condition)\n        net.unused = torch.nn.Parameter(torch.zeros(3))\n"
                "        return net",
            )
        ],
    ),
    (
        "backbone-layersync",
        "expected features with a gradient; got detached ones",
        "features={k: v.detach() if len(out.features) == 2 else v for k, v in out.features.items()}",
    ),
    (
        "backbone-layersync",
        "expected LayerSync to change no block behind 1, the student; got gradients in blocks.1.",
        "features={k: v + out.features[2] if len(out.features) == 2 else v for k, v in out.features.items()}",
    ),
    (
        "features",
        "Outline.__call__, features: expected 8 features of every sample, as of sample 0",
        [
            (
                "parts = [stroke.mean(0), stroke.std(0), np.abs(np.diff(stroke, axis=0)).mean(0)]",
                "parts = [stroke.mean(0), stroke.std(0), stroke[0], stroke[0] if len(stroke) > 20 else stroke[0, :1]]",
            )
        ],
    ),
    (
        "features",
        "expected finite features of sample",
        [("np.abs(np.diff(stroke, axis=0)).mean(0)]", "np.log(np.maximum(stroke[0], 0))]")],
    ),
    (
        "classifier-input",
        "expected 2 channels of every sample, as of sample 0",
        [("        return values, mask", "        return (values, mask) if longest > 20 else (values[:, :1], mask)")],
    ),
    (
        "classifier-input",
        "StrokesAdapter.classifier_input: expected a mask, as lengths differ; got None",
        [("        return values, mask", "        return values, None")],
    ),
    (
        "feature-distance",
        "expected two halves of the data closer than half of the distance",
        [
            (
                "rows.append(np.concatenate(parts)[None].astype(np.float32))",
                "source = np.random.default_rng(int(1e6 * abs(stroke[0, 0])))\n"
                "            rows.append(source.normal(size=(1, 6)).astype(np.float32))",
            )
        ],
    ),
    (
        "metrics",
        "StrokesAdapter.metrics()['reach']: expected 4 values, one a sample; got []",
        [
            (
                "[np.linalg.norm(example.sample, axis=1).max() for example in examples], dtype=np.float64",
                "1.0",
            )
        ],
    ),
    (
        "render",
        "expected exactly the files that it returns; got 0000.csv, which it did not write",
        [
            (
                'np.savetxt(path, sample, delimiter=",", fmt="%.4f")',
                'if number:\n                np.savetxt(path, sample, delimiter=",", fmt="%.4f")',
            )
        ],
    ),
    (
        "render",
        "0000.csv, which it did not return",
        [("            files.append(path)", "            files += [path] if number else []")],
    ),
    (
        "render",
        "expected files with content; got empty",
        [('np.savetxt(path, sample, delimiter=",", fmt="%.4f")', "path.touch()")],
    ),
    (
        "render",
        "StrokesAdapter.render: raised IndexError",
        [("        files = []\n", "        files, _ = [], samples[1]\n")],
    ),
    (
        "archive",
        "StrokesAdapter.open_samples: expected the 4 samples of the archive; got 3",
        [("return len(self.values)", "return len(self.values) - 1")],
    ),
    (
        "archive",
        "StrokesAdapter.archive and open_samples: expected the samples again",
        [
            (
                "values[row, : len(sample)] = sample\n        np.savez",
                "values[row, : len(sample)] = sample + 1\n        np.savez",
            )
        ],
    ),
]
"""The check that finds it, what it says, and what is broken: text of strokes.py, or what the backbone returns."""


def broken_backbone(how: str) -> tuple[str, str]:
    """The backbone's ``forward`` with something done to its arguments, or to a part of its output."""
    before = {
        "clip": "taps = [min(max(tap, 1), 4) for tap in taps]",
        "unmasked": "hidden, mask = mask, None",
        "unlabelled": "condition = {**condition, 'label': condition['label'] * 0}",
    }.get(how, "pass")
    after = {"unmasked": "token_mask=None if hidden is None else net.tokens_of(hidden)"}.get(how, how)
    lines = [
        "net = config.build(latent, condition)",
        "forward = net.forward",
        "def changed(x_t, t, condition, *, taps=(), mask=None):",
        f"    {before}",
        "    out = forward(x_t, t, condition, taps=taps, mask=mask)",
        f"    return out._replace({after if '=' in after else ''})",
        "net.forward = changed",
        "return net",
    ]
    return "return config.build(latent, condition)", "\n        ".join(lines)


@pytest.mark.parametrize(("check", "said", "how"), BREAKS)
def test_what_is_broken_is_found_by_name(
    check: str, said: str, how: str | list[tuple[str, str]], installer: Installer
) -> None:
    changes = [broken_backbone(how)] if isinstance(how, str) else how
    checks = run_checks(open_subject(installer.strokes(*changes)))
    first = next(outcome for outcome in checks if outcome.status == "failed")
    assert first.name == check, first
    assert said in first.message and "\n" not in first.message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('f"strokes-1-{size}-{split}"', 'f"{hash(split)}"'), r"Strokes\.fingerprint: expected the same in another"),
        (("label, frames = index % 2,", "label, frames = hash(str(index)) % 2,"), r"Strokes\.__getitem__: expected"),
    ],
)
def test_what_hashes_of_strings_decide_is_found(change: tuple[str, str], said: str, installer: Installer) -> None:
    with pytest.raises(InputError, match=said):
        run_check("hash-seed", open_subject(installer.strokes(change)))


def test_a_failure_is_told_once_and_the_command_ends_with_2(installer: Installer, command: Command) -> None:
    name = installer.strokes(("[torch.from_numpy(sample) for", "[torch.from_numpy(sample).half() for"))
    status, out, _ = command("check", name, "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert status == 2 and not json.loads(out)["ok"]
    assert checks["dataset-workers"]["status"] == "ok" and checks["tokenizer-encode"]["status"] == "failed"
    status, out, _ = command("check", name)
    assert status == 2 and "FAILED   tokenizer-encode" in out and out.count("torch.float16") == 1


def test_a_class_of_tests_fails_where_the_command_does(installer: Installer) -> None:
    name = installer.strokes(("            files.append(path)", "            files = [path]"))

    class OfTheBroken(AdapterConformance):
        recipe = f"{name}/quick"

    OfTheBroken().test_conforms("metrics")
    with pytest.raises(
        InputError, match=r"StrokesAdapter.render: expected exactly the files that it returns; got 0000"
    ):
        OfTheBroken().test_conforms("render")


def test_a_recipe_of_another_modality_is_refused(installer: Installer, command: Command) -> None:
    name = installer.strokes()
    status, out, err = command("check", name, "--recipe", "image/quick")
    assert status == 2 and out == "" and "image" in err and err.count("\n") == 1
    status, _, err = command("check", "strok")
    assert status == 2 and "'strok' is unknown" in err
