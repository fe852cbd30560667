"""Plug-ins: what is wrong with one is said in one line that names package, class and method, and stops no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugins import QUICK, STROKES, Installer

from layersync import InputError, load_recipe, train
from layersync.core.adapter import MODALITY_GROUP, load_adapter, protocol_members
from layersync.core.catalogue import packaged_data
from layersync.core.classifier import Windows
from layersync.core.parallel import Processes
from layersync.core.plugin import load_class
from layersync.core.recipe_reading import shipped_recipes
from layersync.core.reference import RunData
from layersync.core.regularizer.base import REGULARIZER_GROUP, load_regularizer
from layersync.core.schema import recipe_schema
from layersync.core.trainer import Trainer, build_parts

BUILT_IN = ("audio", "image", "motion")
Command = Callable[..., tuple[int, str, str]]
MEMBERS = sorted(protocol_members())
REGULARIZER = """
from layersync.core.regularizer.base import Regularizer, RegularizerConfig, RegularizerOutput

class Config(RegularizerConfig):
    weight: float = 0.5

class Quiet(Regularizer):
    Config = Config

    @classmethod
    def from_config(cls, config, depth, hidden_size):
        return cls()

    def taps(self, step):
        return (1,)

    def forward(self, context):
        return RegularizerOutput(context.features[1].float().square().mean(), {})

class Untapped(Quiet):
    taps = Regularizer.taps

class Unsettled(Quiet):
    Config = dict

class Meta(type(Quiet)):
    def __getattribute__(cls, name):
        if name == "Config":
            raise RuntimeError("no Config here")
        return super().__getattribute__(name)

class Unreadable(Quiet, metaclass=Meta):
    pass
"""
RAISE = "        raise RuntimeError('two\\nlines')"
BROKEN_NETWORK = f"""        network = config.build(latent, condition)
        class Broken(type(network)):
            def forward(self, *given, **named):
        {RAISE}
        network.__class__ = Broken
        return network"""
METACLASS = """class Meta(type):
    def __getattribute__(cls, name):
        if name == "api":
            raise RuntimeError("no api here")
        return super().__getattribute__(name)

"""


def failure(name: str) -> str:
    with pytest.raises(InputError) as raised:
        load_adapter(name)
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_a_whole_plug_in_loads(installer: Installer) -> None:
    name = installer.strokes()
    assert load_adapter(name).name == name
    assert load_recipe(f"{name}/quick").backbone.model_dump()["depth"] == 4


@pytest.mark.parametrize("member", MEMBERS)
def test_a_missing_member_is_named_with_its_purpose(member: str, installer: Installer) -> None:
    name = installer.strokes(without=member)
    said = failure(name)
    assert f"modality {name!r} of package plugged" in said and ".adapter:StrokesAdapter)" in said
    if member == "api":
        assert "StrokesAdapter says no api number; this layersync has api 1" in said
        return
    assert f"StrokesAdapter.{member} is missing" in said
    purpose = (protocol_members()[member].__doc__ or "").splitlines()[0]
    assert purpose and said.endswith(purpose)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("from pathlib import Path", "import no_such_module"), "cannot be imported: ModuleNotFoundError: No module"),
        (
            ("from pathlib import Path", "raise RuntimeError('two\\nlines')"),
            "cannot be imported: RuntimeError: two lines",
        ),
        (("from pathlib import Path", "from pathlib import Path ("), "cannot be imported: SyntaxError"),
        (("class StrokesAdapter:", "class Renamed:"), "has no attribute 'StrokesAdapter'"),
        (
            ("class StrokesAdapter:", "def StrokesAdapter():\n  pass\nclass Renamed:"),
            "is a function; an entry point of",
        ),
        (("    api = 1", "    def __init__(self, path): pass\n    api = 1"), "StrokesAdapter() cannot be made without"),
        (("    api = 1", "    api = 2"), "StrokesAdapter is written for api 2; this layersync has api 1"),
        (('    name = "NAME"', '    name = "other"'), "StrokesAdapter.name is 'other'; its entry point is called"),
        (
            ("    def render(self, samples", "    render = 3\n    def _no(self, samples"),
            "StrokesAdapter.render is 3, not",
        ),
        (
            ("    def dataset(self, data: StrokesConfig, split: Split)", "    def dataset(self, data: StrokesConfig)"),
            "cannot be called as dataset(data, split): Raw samples",
        ),
        (('        "data": {"strokes": StrokesConfig},', ""), "StrokesAdapter.sections: 'data' is missing"),
        (
            ('"data": {"strokes": StrokesConfig}', '"data": {"strokes": OffsetsConfig}'),
            "sections: data.strokes is <class",
        ),
        (
            ('"data": {"strokes": StrokesConfig}', '"data": {"strokes": StrokesConfig, 3: StrokesConfig}'),
            "StrokesAdapter.sections: data has the name 3; a name is a string",
        ),
        (("from pathlib import Path", "raise SystemExit(3)"), "cannot be imported: SystemExit: 3"),
        (
            ("    api = 1", "    def __init__(self): raise SystemExit\n    api = 1"),
            "StrokesAdapter() cannot be made without arguments: SystemExit",
        ),
        (
            ('    name = "NAME"\n', "    @property\n    def name(self): raise SystemExit(4)\n"),
            "StrokesAdapter.name raised SystemExit: 4",
        ),
        (
            ("    def aliases(self)", "    aliases = dict\n    def _no(self)"),
            "StrokesAdapter.aliases is <class 'dict'>, which does not say its arguments; a method aliases()",
        ),
        (
            ("class StrokesAdapter:", f"{METACLASS}class StrokesAdapter(metaclass=Meta):"),
            "reading its attributes raised RuntimeError: no api here (adapter.py, line",
        ),
    ],
)
def test_what_is_wrong_is_said(change: tuple[str, str], said: str, installer: Installer) -> None:
    name = installer.strokes(change)
    found = failure(name)
    assert said in found and f"modality {name!r} of package plugged" in found


def test_what_is_inherited_from_the_protocol_counts_as_missing(installer: Installer) -> None:
    name = installer.strokes(
        (
            "class StrokesAdapter:",
            "from layersync.core.adapter import ModalityAdapter\nclass StrokesAdapter(ModalityAdapter):",
        ),
        without="archive",
    )
    assert "StrokesAdapter.archive is missing, method archive(samples, labels, path)" in failure(name)


def test_a_name_of_two_packages_is_unusable_and_both_are_named(installer: Installer, command: Command) -> None:
    name = installer.strokes()
    other = installer.package(STROKES, {name: "StrokesAdapter"})
    said = failure(name)
    assert "registered by 2 packages, plugged" in said and f"{other} ({other}.adapter:StrokesAdapter)" in said
    status, out, _ = command("modalities", "--json")
    found = json.loads(out)
    assert status == 0 and found[name] == {"error": said} and "fid" in found["image"]["metrics"]


def test_a_name_of_ours_stays_ours(installer: Installer) -> None:
    other = installer.package(STROKES, {"image": "StrokesAdapter"}, {"layersync": "StrokesAdapter"})
    for group, name in ((MODALITY_GROUP, "image"), (REGULARIZER_GROUP, "layersync")):
        with pytest.warns(UserWarning, match=rf"{name!r} is layersync's own; left out: that of {other} \({other}"):
            found = load_class(group, name, "asked")
        assert found.loaded.__module__.startswith("layersync.") and not found.foreign
    with_another = subprocess.run(
        [sys.executable, "-m", "layersync.cli", "modalities", "--json"], capture_output=True, text=True, check=True
    )
    assert "fid" in json.loads(with_another.stdout)["image"]["metrics"] and other in with_another.stderr


class TestABrokenOneBesideOthers:
    @pytest.fixture
    def broken(self, installer: Installer) -> list[str]:
        """One that cannot be imported and one whose method fails; a regularizer without a method; a whole one."""
        installer.package(
            "raise OSError('gone')", {"absent": "Adapter"}, {"absent": "Loss"}, {"quick": "modality: absent"}
        )
        installer.package(REGULARIZER, {}, {"untapped": "Untapped"})
        change = ('return {"outline": Outline}', "raise KeyError('nothing here')")
        return [installer.strokes(change), installer.strokes()]

    def test_modalities_shows_its_error_and_the_others(self, broken: list[str], command: Command) -> None:
        status, out, _ = command("modalities", "--json")
        found = json.loads(out)
        assert status == 0 and set(found) == {*BUILT_IN, *broken, "absent"}
        assert "plugged" in found["absent"]["error"] and "OSError: gone" in found["absent"]["error"]
        assert "StrokesAdapter" in found[broken[0]]["error"] and "nothing here" in found[broken[0]]["error"]
        assert found[broken[1]]["extractors"] == ["outline"] and "error" not in found["image"]
        status, out, _ = command("modalities")
        assert status == 0 and "OSError: gone" in out and "fd-outline" in out

    def test_schema_and_data_go_on_with_a_warning(self, broken: list[str]) -> None:
        with pytest.warns(UserWarning, match="OSError: gone"):
            schema = recipe_schema()
        assert schema["properties"]["modality"]["enum"] == sorted({*BUILT_IN, *broken})
        names = [option["properties"]["name"]["const"] for option in schema["properties"]["regularizer"]["anyOf"]]
        assert names == ["layersync", "none"]
        with pytest.warns(UserWarning, match="OSError: gone"):
            data = packaged_data()
        assert data["digits"][0] == "image" and data["strokes"][0] in broken

    def test_recipes_are_listed_without_its_code(self, broken: list[str], command: Command) -> None:
        status, out, _ = command("recipes", "list")
        assert status == 0 and "absent/quick" in out and "image/quick" in out and f"{broken[1]}/quick" in out
        status, _, err = command("train", "absent/quick")
        assert status == 2 and err.count("\n") == 1 and "OSError: gone" in err


@pytest.mark.parametrize(
    "broken",
    ["def model_json_schema(cls, **_): raise RuntimeError('no schema')", "def model_json_schema(cls, **_): return {1}"],
)
def test_a_config_without_a_schema_leaves_the_others_theirs(broken: str, installer: Installer) -> None:
    name = installer.strokes(("    size: int = Field(96", f"    @classmethod\n    {broken}\n    size: int = Field(96"))
    with pytest.warns(UserWarning, match=rf"{name}\.data\.strokes: plugged\d+\.adapter\.StrokesConfig has no schema"):
        schema = recipe_schema()
    (rule,) = (rule for rule in schema["allOf"] if rule["if"]["properties"]["modality"]["const"] == name)
    (data,), (tokenizer,) = (rule["then"]["properties"][section]["anyOf"] for section in ("data", "tokenizer"))
    assert data == {"type": "object", "properties": {"name": {"const": "strokes"}}, "required": ["name"]}
    assert "num_frames" in tokenizer["properties"] and json.dumps(schema)


def test_a_check_of_the_networks_depth_that_raises_is_named(installer: Installer, tmp_path: Path) -> None:
    check = "    def check(self, depth):\n        1 / (len(CHECKED) - 1)\n        CHECKED.append(depth)\n"
    source = REGULARIZER.replace("    weight: float = 0.5\n", f"    weight: float = 0.5\n\n{check}")
    installer.package(f"CHECKED = []\n{source}", {}, {"checked": "Quiet"})
    recipe = load_recipe("image/quick", ["regularizer.name=checked"])  # the first of the two checks
    with pytest.raises(InputError, match=r"package plugged\d+: Config\.check raised ZeroDivisionError"):
        build_parts(recipe, directory=tmp_path)


class TestDataOfPlugIns:
    def test_what_needs_more_than_its_name_is_refused_in_one_line(self, installer: Installer, command: Command) -> None:
        installer.strokes(("    size: int = Field(96, ge=2)", "    size: int"))
        status, out, err = command("data", "prepare", "strokes")
        assert status == 2 and out == "" and err.count("\n") == 1
        assert "adapter.StrokesConfig" in err and "size: Field required" in err

    def test_what_raises_while_it_is_fetched_is_named(self, installer: Installer, command: Command) -> None:
        installer.strokes(("    size: int = Field(96", "    def prepare(self): 1 / 0\n    size: int = Field(96"))
        status, _, err = command("data", "prepare", "strokes")
        assert status == 2 and err.count("\n") == 1
        assert "package plugged" in err and "StrokesConfig.prepare raised ZeroDivisionError" in err

    def test_a_description_that_is_no_text_is_left_out(self, installer: Installer, command: Command) -> None:
        installer.strokes(
            ('ClassVar[str] = "drawn when they are read: circles and zigzags, 2 classes"', "ClassVar[int] = 5")
        )
        status, out, err = command("data", "list")
        assert status == 0 and "digits" in out and "strokes" not in out
        assert "adapter.StrokesConfig.packaged is 5, not a line of text" in err


class TestAMethodThatRaises:
    """In the ordinary commands, as in ``check``: one line with package, class and method; nothing is left behind."""

    @pytest.mark.parametrize(
        ("method", "change"),
        [
            ("StrokesAdapter.dataset", ("        return data.build(split)", RAISE)),
            ("StrokesAdapter.tokenizer", ("        return Offsets(config)", RAISE)),
            ("StrokesAdapter.backbone", ("        return config.build(latent, condition)", RAISE)),
            (
                "Strokes.__getitem__",
                ("        label, frames = index % 2", f"{RAISE}\n        label, frames = index % 2"),
            ),
            ("Offsets.encode", ("        return [torch.from_numpy(sample) for sample in samples]", RAISE)),
            ("Offsets.fit", ("        self.scale = torch.cat(list(stored)).std(0)", RAISE)),
            ("Offsets.latents", ("        return stored / self.scale", RAISE)),
        ],
    )
    def test_train(
        self,
        method: str,
        change: tuple[str, str],
        installer: Installer,
        command: Command,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))  # another test may have left these latents
        name = installer.strokes(change)
        status, out, err = command("train", f"{name}/quick", "--out", tmp_path / "run")
        assert status == 2 and out == "" and err.count("\n") == 1
        assert "package plugged" in err and f"{method} raised RuntimeError: two lines (adapter.py, line" in err
        assert method.rpartition(".")[2] in err.rpartition(", in ")[2] and not (tmp_path / "run").exists()

    def test_a_network_in_training(self, installer: Installer, command: Command, tmp_path: Path) -> None:
        name = installer.strokes(("        return config.build(latent, condition)", BROKEN_NETWORK))
        status, _, err = command("train", f"{name}/quick", "--out", tmp_path / "run")
        assert status == 2 and err.count("\n") == 1
        assert "package plugged" in err and "Broken.forward raised RuntimeError: two lines (adapter.py, line" in err

    def test_its_traceback_is_the_cause(self, installer: Installer, caplog: pytest.LogCaptureFixture) -> None:
        name = installer.strokes(("        return Offsets(config)", RAISE))
        with caplog.at_level("DEBUG", "layersync"), pytest.raises(InputError) as raised:
            load_adapter(name).tokenizer(None)
        assert isinstance(raised.value.__cause__, RuntimeError) and str(raised.value.__cause__) == "two\nlines"
        assert "StrokesAdapter.tokenizer raised" in caplog.text and "Traceback" in caplog.text

    def test_an_input_error_of_its_own_passes_unchanged(self, installer: Installer) -> None:
        name = installer.strokes(("        return Offsets(config)", "        raise InputError('offsets: as it is')"))
        with pytest.raises(InputError, match=r"^offsets: as it is$"):
            load_adapter(name).tokenizer(None)

    def test_ours_keep_their_tracebacks(self) -> None:
        with pytest.raises(AttributeError):
            load_adapter("image").tokenizer(None)

    @pytest.mark.parametrize(
        ("said", "change"),
        [
            ("Outline.__call__ raised RuntimeError: two lines", ("        rows = []", f"{RAISE}\n        rows = []")),
            (
                "StrokesAdapter.metrics()['reach'] raised RuntimeError: two lines",
                ("    return np.array([", f"{RAISE[4:]}\n    return np.array(["),
            ),
            (
                "StrokesAdapter.classifier_input raised RuntimeError",
                ("        longest = max", f"{RAISE}\n        longest = max"),
            ),
            (
                "Offsets.window raised RuntimeError: two lines",
                ("        room = max(0, len(sample)", f"{RAISE}\n        room = max(0, len(sample)"),
            ),
            (
                "Offsets.decode raised RuntimeError: two lines",
                ("        strokes = (latents", f"{RAISE}\n        strokes = (latents"),
            ),
            (
                "Outline.__call__: expected an array [n, 6] of features; got [1, 5] of generated sample 1",
                ("np.concatenate(parts)[None]", "np.concatenate(parts)[None, len(rows) % 2 :]"),
            ),
            (
                "Outline.__call__: expected an array [n, d] of features; got [6] of generated sample 0",
                ("np.concatenate(parts)[None]", "np.concatenate(parts)"),
            ),
            (
                "Outline.__call__: expected features of 16 samples, an array each; got 15",
                ('{"features": rows}', '{"features": rows[1:]}'),
            ),
            (
                "StrokesAdapter.classifier_input: expected a tensor (batch, channels, *grid) with a 1-D or 2-D grid",
                ("        return values, mask", "        return values[..., None, None], mask"),
            ),
        ],
    )
    def test_evaluate(
        self, said: str, change: tuple[str, str], installer: Installer, command: Command, tmp_path: Path
    ) -> None:
        name = installer.strokes(change)
        train(load_recipe(f"{name}/quick", ["train.steps=1"]), tmp_path / "run")
        status, out, err = command(
            "evaluate", tmp_path / "run", "--metrics", "fd-classifier" if "classifier_input" in said else "fod,reach"
        )
        errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert status == (1 if out else 2) and errors
        assert all("package plugged" in error for error in errors) and said in errors[0]

    def test_what_fails_loses_nothing_of_the_others(
        self, installer: Installer, command: Command, tmp_path: Path
    ) -> None:
        name = installer.strokes(("    return np.array([np.linalg", "    return np.nan * np.array([np.linalg"))
        run = train(load_recipe(f"{name}/quick", ["train.steps=1"]), tmp_path / "run")
        status, out, err = command("evaluate", run.path, "--metrics", "fod,reach", "--json")
        assert status == 1 and err.splitlines()[-1] == "error: metric reach: 16 of 16 are not finite"
        kept = run.records("evaluation.jsonl")[-1]
        assert json.loads(out)["metrics"].keys() == kept["metrics"].keys() == {"fod"} and set(kept["failed"]) == {
            "reach"
        }

    @pytest.mark.parametrize(("given", "got"), [("max()", "[]"), ("max()[None]", "[1]")])
    def test_a_metric_gives_a_number_a_sample(
        self, given: str, got: str, installer: Installer, command: Command, tmp_path: Path
    ) -> None:
        change = ("for example in examples], dtype=np.float64)", f"for example in examples], dtype=np.float64).{given}")
        name = installer.strokes(change)
        run = train(load_recipe(f"{name}/quick", ["train.steps=1"]), tmp_path / "run")
        status, out, err = command("evaluate", run.path, "--metrics", "reach")
        assert (status, out) == (2, "") and "package plugged" in err
        assert f"metrics()['reach']: expected a number for each of 16 samples, an array [16]; got {got}" in err

    @pytest.mark.parametrize("edited", [False, True])
    def test_features_that_are_kept_are_those_of_its_code(self, edited: bool, installer: Installer) -> None:
        """An extractor that is edited keeps its name; what was kept of the data is of the code before."""
        adapter = load_adapter(installer.strokes())
        module = sys.modules[type(adapter).__module__]
        data, tokenizer, extractor = (
            module.Strokes(96, "train"),
            module.Offsets(module.OffsetsConfig()),
            module.Outline(),
        )

        def mean() -> Any:
            real = RunData(data, tokenizer, "strokes", "train", Processes())
            return real.features(extractor, rows=True).per_sample(None).mean()

        before, own = mean(), module.Outline.__call__
        if edited:
            source = Path(module.__file__)
            source.write_text(source.read_text().replace("stroke.std(0),", "stroke.std(0) * 2,"))
        module.Outline.__call__ = lambda self, examples: {
            "features": [1 + rows for rows in own(self, examples)["features"]]
        }
        assert mean() == pytest.approx(before + edited)


def test_a_data_name_that_two_modalities_have_stays_ours(installer: Installer) -> None:
    name = installer.strokes(('"data": {"strokes": StrokesConfig}', '"data": {"digits": StrokesConfig}'))
    found = packaged_data()
    assert found["digits"][0] == "image" and found[f"{name}/digits"][0] == name


class TestRegularizers:
    def failure(self, name: str) -> str:
        with pytest.raises(InputError) as raised:
            load_regularizer(name)
        return str(raised.value)

    def test_one_of_a_plug_in_goes_into_a_recipe(self, installer: Installer, tiny_mapping: dict[str, Any]) -> None:
        installer.package(REGULARIZER, {}, {"quiet": "Quiet"})
        recipe = load_recipe({**tiny_mapping, "regularizer": {"name": "quiet"}}, ["regularizer.weight=0.25"])
        assert recipe.regularizer.model_dump() == {"name": "quiet", "weight": 0.25}

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("Absent", "cannot be imported: AttributeError"),
            ("Config", "Config is no subclass of layersync.core.regularizer.base.Regularizer"),
            ("Untapped", "Untapped.taps is missing, method taps(step): Blocks whose outputs are wanted"),
            ("Unreadable", "reading its attributes raised RuntimeError: no Config here (adapter.py, line"),
            ("Unsettled", "Unsettled.Config is <class 'dict'>; it is the RegularizerConfig of its recipe section"),
        ],
    )
    def test_what_is_wrong_is_said(self, kind: str, said: str, installer: Installer) -> None:
        module = installer.package(REGULARIZER, {}, {f"plugged-{kind}": kind})
        found = self.failure(f"plugged-{kind}")
        assert said in found and f"package {module} ({module}.adapter:{kind})" in found

    def test_one_that_raises_in_training_is_named(
        self, installer: Installer, tiny_mapping: dict[str, Any], command: Command, tmp_path: Path
    ) -> None:
        source = REGULARIZER.replace("        return RegularizerOutput(", f"{RAISE}\n        return RegularizerOutput(")
        module = installer.package(source, {}, {"loud": "Quiet"})
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**tiny_mapping, "regularizer": {"name": "loud"}}))
        status, _, err = command("train", recipe, "--out", tmp_path / "run")
        assert status == 2 and err.count("\n") == 1
        assert f"package {module}: Quiet.forward raised RuntimeError: two lines (adapter.py, line" in err

    def test_a_name_of_two_packages_is_unusable(self, installer: Installer) -> None:
        for _ in range(2):
            installer.package(REGULARIZER, {}, {"twice": "Quiet"})
        assert "'twice' is registered by 2 packages" in self.failure("twice")


class TestRecipesOfPlugIns:
    def test_ours_win(self, installer: Installer) -> None:
        ours = shipped_recipes()["image/quick"]
        installer.package("", {"image": "Adapter"}, recipes={"quick": "modality: image", "mine": "modality: image"})
        found = shipped_recipes()
        assert found["image/quick"] == ours and "image/mine" not in found

    def test_no_code_is_run(self, installer: Installer) -> None:
        module = installer.package("raise SystemExit(7)", {"heavy": "Adapter"}, recipes={"quick": "modality: heavy"})
        (installer.folder / module / "__init__.py").write_text("raise SystemExit(7)")
        assert shipped_recipes()["heavy/quick"] == "modality: heavy" and module not in sys.modules

    def test_of_two_modalities_each_has_its_own(self, installer: Installer) -> None:
        installer.package(
            "", {"one": "A", "two": "B"}, recipes={"a": "modality: one", "b": "modality: 'two'", "c": "modality: three"}
        )
        found = {name for name in shipped_recipes() if name.startswith(("one/", "two/"))}
        assert found == {"one/a", "two/b", "one/c", "two/c"}

    def test_what_is_no_text_is_refused_when_it_is_used(self, installer: Installer, command: Command) -> None:
        module = installer.package("", {"noise": "Adapter"}, recipes={"quick": "modality: noise"})
        (installer.folder / module / "recipes" / "bytes.yaml").write_bytes(bytes(range(128, 256)))
        assert command("recipes", "list")[0] == 0
        status, _, err = command("recipes", "show", "noise/bytes")
        assert status == 2 and err.count("\n") == 1 and "noise/bytes" in err

    def test_what_cannot_be_read_is_left_out(self, installer: Installer, command: Command) -> None:
        module = installer.package("", {"torn": "Adapter"}, recipes={"quick": "modality: torn"})
        recipes = installer.folder / module / "recipes"
        (recipes / "folder.yaml").mkdir()
        (recipes / "gone.yaml").symlink_to(recipes / "nowhere")
        os.mkfifo(recipes / "pipe.yaml")  # reading it would wait for ever
        status, out, err = command("recipes", "list")
        assert status == 0 and "torn/quick" in out and "image/quick" in out
        for name in ("folder", "gone", "pipe"):
            assert f"torn/{name}" not in out and f"{name}.yaml of package {module}" in err
        assert command("recipes", "show", "image/quick")[0] == 0

    @pytest.mark.parametrize("metadata", ["dist-info", "egg-info"])
    def test_a_folder_on_the_path_is_enough(self, metadata: str, installer: Installer) -> None:
        name = f"on-path-{metadata}"
        source = STROKES.replace('name = "strokes"\n    sections', f'name = "{name}"\n    sections')
        installer.package(
            source, {name: "StrokesAdapter"}, recipes={"quick": QUICK.format(name=name)}, metadata=metadata
        )
        shown = subprocess.run(
            [sys.executable, "-m", "layersync.cli", "recipes", "show", f"{name}/quick", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(shown.stdout)["tokenizer"]["name"] == "offsets"


LABEL = '{"label": label}'
"""Of strokes.py: what an example is conditioned on."""


class TestDataThatIsWrong:
    """Found before anything is trained, in one line that names the sample or the attribute."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                (LABEL, '{"label": label + 1}'),
                "Strokes.__getitem__: expected a label from 0 to 1, an index into classes, or -1 for none; got 2 of "
                "train stroke 1",
            ),
            ((LABEL, '{"label": "ab"[label]}'), "train stroke 0: has the label 'a'; a label is an integer"),
            ((LABEL, '{"label": None}'), "train stroke 0: has the label None; a label is an integer"),
            ((LABEL, '{"label": label / 1}'), "train stroke 0: has the label 0.0; a label is an integer"),
            ((LABEL, '{"text": 3}'), "Strokes.__getitem__ raised TypeError"),
            (
                (
                    "[torch.from_numpy(sample) for sample in samples]",
                    "[torch.from_numpy(sample).log() for sample in samples]",
                ),
                "Offsets.encode: expected finite numbers; got",
            ),
            (('classes = ("circle", "zigzag")', "classes = np.arange(2)"), "Strokes.classes: expected names, strings"),
            (
                ('        self.fingerprint = f"strokes-1-{size}-{split}"\n', ""),
                "Strokes.fingerprint is missing; a text",
            ),
            (('self.fingerprint = "offsets-1"', "self.fingerprint = 1"), "Offsets.fingerprint is 1; a text"),
        ],
    )
    def test_tokenize(
        self,
        change: tuple[str, str],
        said: str,
        installer: Installer,
        command: Command,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LAYERSYNC_CACHE", str(tmp_path / "cache"))  # no latents of strokes are in it yet
        name = installer.strokes(change)
        status, out, err = command("data", "tokenize", f"{name}/quick")
        errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert status == 2 and out == "" and len(errors) == 1 and said in errors[0], err

    def test_labels_are_refused_where_samples_are_to_be_skipped(self, installer: Installer, tmp_path: Path) -> None:
        name = installer.strokes(
            (LABEL, '{"label": label + 1}'), ('classes = ("circle", "zigzag")', 'classes, on_error = "ab", "skip"')
        )
        with pytest.raises(InputError, match="expected a label from 0 to 1"):
            build_parts(load_recipe(f"{name}/quick"), directory=tmp_path)

    def test_reading_captions_and_windows_names_the_method(self, installer: Installer) -> None:
        name = installer.strokes(
            ("        label, frames = index % 2", f"{RAISE}\n        label, frames = index % 2"),
            ('classes = ("circle", "zigzag")', 'classes, on_error = "ab", "skip"'),
        )
        recipe = load_recipe(f"{name}/quick", ["condition.text_encoder=minilm"])
        dataset = recipe.adapter.dataset(recipe.data, "train")
        for reading in (Windows(dataset, recipe.adapter.tokenizer(recipe.tokenizer)).read, lambda: build_parts(recipe)):
            with pytest.raises(InputError, match=r"package plugged\d+: Strokes\.__getitem__ raised RuntimeError"):
                reading()

    def test_without_a_held_out_split_the_log_says_so(
        self, installer: Installer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        name = installer.strokes(("self.size // 3", "0"))
        with caplog.at_level("INFO", "layersync"):
            train(load_recipe(f"{name}/quick", ["train.steps=1"]), tmp_path / "run")
        assert "step 1 of 1: none held out, loss of training examples" in caplog.text
        assert "held-out loss" not in caplog.text


class TestSectionsOfPlugIns:
    SIZE = "    size: int = Field(96"

    def test_yes_is_no_number_and_stays_a_truth_where_one_is_wanted(self, installer: Installer) -> None:
        name = installer.strokes((self.SIZE, f"    jitter: bool | str = 'some'\n    speed: float = 1\n{self.SIZE}"))
        assert load_recipe(f"{name}/quick", ["data.jitter=yes"]).data.model_dump()["jitter"] is True
        with pytest.raises(InputError, match=r"data: speed: input should be a number or a word, not True"):
            load_recipe(f"{name}/quick", ["data.speed=yes"])

    def test_a_validator_that_raises_is_named(self, installer: Installer) -> None:
        name = installer.strokes((self.SIZE, f"    def model_post_init(self, _): raise KeyError('no')\n{self.SIZE}"))
        with pytest.raises(
            InputError, match=r"/quick: package \w+: StrokesConfig\.model_validate raised KeyError: 'no'"
        ):
            load_recipe(f"{name}/quick")

    def test_two_packages_of_one_name_are_said_of_its_recipes_too(self, installer: Installer, command: Command) -> None:
        packages = [installer.package(STROKES, {"twin": "StrokesAdapter"}) for _ in range(2)]
        status, _, err = command("train", "twin/quick")
        assert status == 2 and err.count("\n") == 1 and "'twin' is registered by 2 packages" in err
        assert all(package in err for package in packages)


class TestWhatRegularizersGive:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                ("return (1,)", "return (99,)"),
                "Quiet.taps: expected block numbers from 1 to 4, such as (1, 4); got (99,)",
            ),
            (("return (1,)", "return 1"), "Quiet.taps: expected block numbers from 1 to 4, such as (1, 4); got 1"),
            (("return (1,)", RAISE.strip()), "Quiet.taps raised RuntimeError: two lines"),
        ],
    )
    def test_taps_are_checked_before_a_run_is_made(
        self, change: tuple[str, str], said: str, installer: Installer, tiny_mapping: dict[str, Any], tmp_path: Path
    ) -> None:
        module = installer.package(REGULARIZER.replace(*change), {}, {f"odd-{tmp_path.name}": "Quiet"})
        recipe = load_recipe({**tiny_mapping, "regularizer": {"name": f"odd-{tmp_path.name}"}})
        with pytest.raises(InputError) as raised:
            train(recipe, tmp_path / "run")
        assert f"package {module}: {said}" in str(raised.value) and not (tmp_path / "run").exists()

    def test_other_losses_and_logs_are_refused(
        self, installer: Installer, tiny_mapping: dict[str, Any], tmp_path: Path
    ) -> None:
        wrong = {
            "context.t.sum()": "forward: expected a RegularizerOutput, a loss and logs by name; got a tensor []",
            "RegularizerOutput(0.5, {})": "forward, the loss: expected a scalar tensor; got a float",
            "RegularizerOutput(context.t, {})": "forward, the loss: expected a scalar tensor; got a tensor [16]",
            "RegularizerOutput(context.t.sum(), {'size': 1.0})": "forward, logs['size']: expected a scalar tensor; got",
        }
        source = "".join(
            f"\nclass Quiet{n}(Quiet):\n    def forward(self, context):\n        return {found}\n"
            for n, found in enumerate(wrong)
        )
        installer.package(REGULARIZER + source, {}, {f"quiet{n}": f"Quiet{n}" for n in range(len(wrong))})
        parts = build_parts(load_recipe(tiny_mapping))
        for n, said in enumerate(wrong.values()):
            trainer = Trainer(load_recipe({**tiny_mapping, "regularizer": {"name": f"quiet{n}"}}), parts)
            with pytest.raises(InputError, match=re.escape(f"Quiet{n}.{said}")):
                trainer.train_step(0)
