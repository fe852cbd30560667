"""Recipes: complete, checked, refused with a word of what would be right."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

import layersync
from layersync import InputError, load_recipe
from layersync.core.adapter import SECTIONS, load_adapter
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import PLUGGED, read_yaml, shipped_recipes
from layersync.core.regularizer.base import installed_regularizers
from layersync.core.regularizer.layersync import LayerSyncOutput
from layersync.core.schema import recipe_schema
from layersync.metrics import PrecisionRecall

Make = Callable[..., Any]
NAMES = sorted(shipped_recipes())


def quietly(source: Any, *overrides: str, **keywords: Any) -> Recipe:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_recipe(source, overrides, **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes_are_complete_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = quietly(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert quietly(path) == recipe
    written = yaml.safe_load(recipe.to_yaml())
    for section in (
        "data",
        "tokenizer",
        "backbone",
        "condition",
        "objective",
        "regularizer",
        "optimizer",
        "train",
        "sample",
        "evaluate",
    ):
        assert set(written[section]) == set(type(getattr(recipe, section)).model_fields), section
    assert recipe.modality == name.split("/")[0]
    assert json.loads(json.dumps(written)) == recipe.to_mapping()


TINIER = ["train.steps=1", "train.batch_size=4", "evaluate.num_samples=4"]


@pytest.mark.parametrize("name", [name for name in NAMES if quietly(name).data.packaged])
def test_every_recipe_on_packaged_data_takes_a_step(name: str, tmp_path: Path) -> None:
    from layersync.core.session import dry_run

    widths = ["backbone.hidden_size=32", "backbone.num_heads=4"]
    needs = dry_run(quietly(name, *TINIER, *widths))
    assert needs.parameters > 0


@pytest.mark.parametrize("modality", ["image", "audio", "motion"])
def test_there_is_a_quick_and_a_small_recipe(modality: str) -> None:
    assert {f"{modality}/quick", f"{modality}/small"} <= set(NAMES)


def test_a_mapping_and_a_file_say_the_same(tiny_mapping: dict, tiny_file: Path) -> None:
    assert load_recipe(tiny_mapping) == load_recipe(tiny_file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stps=3", ["train.stps", "unknown key", "did you mean 'steps'?"]),
        ("backbone.dept=3", ["backbone.dept", "did you mean 'depth'?"]),
        ("tokenizer.image_sise=8", ["tokenizer.image_sise", "did you mean 'image_size'?"]),
        ("regularizer.weigth=1", ["regularizer.weigth", "did you mean 'weight'?"]),
        ("regularizer.schedule.warmpu=3", ["regularizer.schedule.warmpu", "did you mean 'warmup'?"]),
        ("optimiser.lr=3", ["optimiser", "did you mean 'optimizer'?"]),
        ("train.steps=many", ["train.steps", "integer", "'many'"]),
        ("train.steps=2.5", ["train.steps", "2.5"]),
        ("train.steps=0", ["train.steps", "1", "0"]),
        ("train.batch_size=-4", ["train.batch_size", "-4"]),
        ("train.ema_decay=1.5", ["train.ema_decay", "1.5"]),
        ("train.condition_dropout=.nan", ["train.condition_dropout", "nan"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "inf"]),
        ("optimizer.lr=0", ["optimizer.lr", "0"]),
        ("data.name=digit", ["data.name", "did you mean 'digits'?", "folder"]),
        ("tokenizer.name=pixel", ["tokenizer.name", "did you mean 'pixels'?", "vae"]),
        ("backbone.name=unet", ["backbone.name", "unet", "sit"]),
        ("regularizer.name=layersink", ["regularizer.name", "did you mean 'layersync'?", "none"]),
        ("modality=images", ["modality", "did you mean 'image'?", "audio", "motion"]),
        ("sample.solver=hein", ["sample.solver", "'heun'", "'hein'"]),
        ("objective.interpolant=cosine", ["objective.interpolant", "'linear'", "'cosine'"]),
        ("objective.prediction=v", ["objective.prediction", "'velocity'", "'v'"]),
        ("regularizer.weight=-0.1", ["regularizer.weight", "-0.1"]),
        ("regularizer.weight=.nan", ["regularizer.weight", "nan"]),
        ("regularizer.pairs=[[2, 2]]", ["regularizer.pairs", "[2, 2]", "4"]),
        ("regularizer.pairs=[[3, 1]]", ["regularizer.pairs", "[3, 1]", "4"]),
        ("regularizer.pairs=[[1, 5]]", ["regularizer.pairs", "[1, 5]", "only 4 blocks"]),
        ("regularizer.pairs=[[0, 2]]", ["regularizer.pairs", "[0, 2]", "numbered from 1"]),
        ("regularizer.pairs=[]", ["regularizer.pairs", "empty"]),
        ("regularizer.pairs=[[1, 2], [1, 2]]", ["regularizer.pairs", "twice"]),
        ("regularizer.t_range=[0.6, 0.4]", ["regularizer.t_range", "0.6"]),
        ("sample.guidance_interval=[0.6, 0.4]", ["sample", "guidance_interval", "0.6"]),
        ("train.accumulate=3", ["train.batch_size", "16", "accumulate 3"]),
        ("evaluate.metrics=[fad]", ["fad", "did you mean 'fid'", "fd-classifier"]),
        ("seed=-1", ["seed", "-1"]),
        ("train=fast", ["train"]),
        ("train", ["KEY=VALUE"]),
        ("=3", ["KEY=VALUE"]),
        ("train.steps=[1", ["no valid YAML"]),
        ("train.steps.deep=3", ["steps is no section"]),
    ],
)
def test_what_is_wrong_is_named(tiny: Make, override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        tiny(override)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- modality\n- image", ["mapping", "list"]),
        ("image", ["mapping", "str"]),
        ("", ["mapping", "NoneType"]),
        ("modality: image\ndata: {name: digits\n", ["no valid YAML", "line"]),
        ("modality: image\nmodality: audio\n", ["'modality' stands twice", "line 2"]),
        ("modality: image\ndata: {name: digits, name: idx}\n", ["'name' stands twice"]),
        ("modality: image\n", ["data"]),
        ("data: {name: digits}\n", ["modality"]),
        ("modality: image\ndata: {flip: true}\n", ["data.name is missing", "digits"]),
        ("modality: image\ndata: digits\n", ["data must be a mapping"]),
        ("modality: [image]\ndata: {name: digits}\n", ["modality is a name, not ['image']"]),
        ("modality: 5\ndata: {name: digits}\n", ["modality is a name, not 5; there are: audio, image, motion"]),
        ("modality: image\ndata: {name: digits, '<<': {a: 1, a: 2}}\n", ["'a' stands twice"]),
        ("modality: image\ndata: {name: digits}\n? [a, b]\n: 3\n", ["no valid YAML", "line 3"]),
        (
            "modality: image\ndata: {name: digits}\nbackbone: {depth: 2}\nregularizer: {name: layersync}\n",
            ["at least 3"],
        ),
        ("\x00\x01", ["no valid YAML"]),
    ],
)
def test_files_that_are_no_recipe(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_recipe(path)
    for word in ["recipe.yaml", *words]:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["file", "override"])
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!anything"])
def test_yaml_tags_are_never_executed(tag: str, place: str, tmp_path: Path, tiny: Make) -> None:
    canary = tmp_path / "executed"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"modality: image\ndata: {{name: digits}}\nseed: {tag} ['touch {canary}']\n")
    with pytest.raises(InputError, match="no valid YAML"):
        load_recipe(path) if place == "file" else tiny(f"seed={tag} ['touch {canary}']")
    assert not canary.exists()


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'image/quik': no such file or shipped recipe; did you mean 'image/quick'"):
        load_recipe("image/quik")
    with pytest.raises(InputError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="text file"):
        load_recipe(tmp_path / "binary.yaml")


def test_modality_given_twice_must_agree(tiny_mapping: dict) -> None:
    assert load_recipe(tiny_mapping, modality="image").modality == "image"
    with pytest.raises(InputError, match=r"modality.*audio"):
        load_recipe(tiny_mapping, modality="audio")
    with pytest.raises(InputError, match=r"'images' is unknown; did you mean 'image'"):
        load_recipe(tiny_mapping, modality="images")
    without = {key: value for key, value in tiny_mapping.items() if key != "modality"}
    assert load_recipe(without, modality="image").modality == "image"


class TestAnotherName:
    def test_keys_it_does_not_have_are_dropped_with_one_warning(self, tiny_mapping: dict, tmp_path: Path) -> None:
        mapping = {**tiny_mapping, "data": {"name": "tiles", "tile_size": 32, "bands": 4, "flip": True}}
        with pytest.warns(UserWarning) as warned:
            recipe = load_recipe(mapping, ["data.name=folder", f"data.path={tmp_path}"])
        assert [str(w.message) for w in warned] == ["data.name is now 'folder', which has no tile_size, bands: dropped"]
        assert recipe.data.model_dump()["flip"] is True

    def test_none_drops_the_others_without_a_word(self, tiny_mapping: dict) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recipe = load_recipe(tiny_mapping, ["regularizer.name=none"])
        assert recipe.regularizer.model_dump() == {"name": "none"}

    def test_keys_that_it_has_stay(self, tiny_mapping: dict, tmp_path: Path) -> None:
        mapping = {**tiny_mapping, "data": {"name": "digits", "flip": True}}
        recipe = quietly(mapping, "data.name=folder", f"data.path={tmp_path}")
        assert recipe.data.model_dump()["flip"] is True and recipe.data.model_dump()["path"] == str(tmp_path)

    def test_keys_of_a_section_without_a_name_are_the_new_ones(self, tiny_mapping: dict) -> None:
        recipe = quietly({**tiny_mapping, "regularizer": {"weight": 0.4}}, "regularizer.name=layersync")
        assert recipe.regularizer.model_dump()["weight"] == 0.4

    def test_order_does_not_matter(self, tiny_mapping: dict) -> None:
        orders = (["data.path=/x", "data.name=folder"], ["data.name=folder", "data.path=/x"])
        assert quietly(tiny_mapping, *orders[0]) == quietly(tiny_mapping, *orders[1])

    def test_unknown_keys_of_set_itself_are_refused(self, tiny_mapping: dict) -> None:
        with pytest.raises(InputError, match=r"regularizer\.weight: unknown key"):
            quietly(tiny_mapping, "regularizer.name=none", "regularizer.weight=0.5")


def test_the_last_override_wins(tiny: Make) -> None:
    assert tiny("train.steps=7", "train.steps=9").train.steps == 9


def test_overrides_leave_the_callers_mapping_alone(tiny_mapping: dict) -> None:
    before = json.dumps(tiny_mapping)
    load_recipe(tiny_mapping, ["train.steps=7", "regularizer.schedule.warmup=3"])
    assert json.dumps(tiny_mapping) == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.time_mean=0.5"], "objective.time_mean and time_std have no effect with time: uniform"),
        (["sample.guidance_interval=[0.2, 0.8]"], "guidance is 1: guidance_interval"),
        (["sample.guidance_channels=1"], "guidance is 1: guidance_interval and guidance_channels"),
        (["sample.guidance=2", "train.condition_dropout=0"], "train.condition_dropout is 0"),
        (["sample.diffusion=linear"], "sample.diffusion: no effect with solver euler"),
        (["sample.last_step=none", "sample.diffusion_scale=2"], "sample.diffusion_scale, sample.last_step: no effect"),
        (["regularizer.schedule.delay=5"], "regularizer.schedule.delay: 5 is not below train.steps, 5"),
        (["sample.guidance=2", "condition.labels=ignored"], "sample.guidance has no effect"),
        (["sample.guidance=2", "condition.labels=ignored", "train.condition_dropout=0"], "conditioned on nothing"),
        (["sample.solver=dopri5", "sample.steps=50"], "sample.steps has no effect with solver dopri5"),
        (
            ["sample.solver=euler-maruyama", "sample.last_step=none", "sample.last_step_size=0.1"],
            "sample.last_step_size: no effect with last_step none",
        ),
        (["sample.rtol=0.1"], "sample.atol and sample.rtol have no effect"),
        (["optimizer.warmup=50"], "optimizer.warmup: 50 steps are more than train.steps, 5"),
        (["regularizer.weight=0"], "regularizer.weight is 0"),
        (["evaluate.conditions=stratified", "condition.labels=ignored"], "stratified evens out lengths alone"),
    ],
)
def test_options_without_effect_are_said_once(tiny: Make, overrides: list[str], words: str) -> None:
    with pytest.warns(UserWarning) as warned:
        tiny(*overrides)
    assert len(warned) == 1 and words in str(warned[0].message)


def test_a_healthy_recipe_warns_of_nothing(tiny: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(
            "objective.time=logit-normal", "objective.time_mean=0.5", "sample.guidance=2", "sample.guidance_channels=1"
        )
        tiny("sample.solver=dopri5", "sample.steps=25")


def test_recipes_are_immutable(tiny: Make) -> None:
    with pytest.raises(Exception, match="frozen"):
        tiny().train.steps = 3


class TestSchema:
    @pytest.fixture(scope="class")
    def valid(self) -> Callable[[Any], bool]:
        return jsonschema.Draft202012Validator(recipe_schema()).is_valid

    @pytest.mark.parametrize("name", NAMES)
    def test_shipped_recipes_are_valid(self, valid: Any, name: str) -> None:
        assert valid(yaml.safe_load(shipped_recipes()[name]))
        assert valid(quietly(name).to_mapping())

    def test_a_misspelt_key_is_not(self, valid: Any, tiny_mapping: dict) -> None:
        assert valid(tiny_mapping)
        for section, key in (("train", "stps"), ("backbone", "dept"), ("data", "flipp"), ("regularizer", "wieght")):
            assert not valid({**tiny_mapping, section: {**tiny_mapping[section], key: 1}}), section

    def test_a_kind_is_named_unless_it_is_the_default(self, valid: Any, tiny_mapping: dict) -> None:
        """As recipes are read."""
        for section in ("data", "tokenizer", "backbone", "regularizer"):
            given = {key: value for key, value in tiny_mapping[section].items() if key != "name"}
            mapping = {**tiny_mapping, section: given}
            try:
                load_recipe(mapping)
            except InputError:
                assert not valid(mapping), section
            else:
                assert valid(mapping), section

    def test_every_key_is_in_it(self) -> None:
        """Of every section, of every kind that a section can be of, of every modality."""
        schema = recipe_schema()
        properties = schema["properties"]
        assert set(properties) == set(Recipe.model_fields) and schema["additionalProperties"] is False
        sections = {name: field.annotation for name, field in Recipe.model_fields.items() if name not in PLUGGED}
        core = {name: kind for name, kind in sections.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
        assert set(core) == {"condition", "objective", "optimizer", "train", "sample", "evaluate"}
        found = [(properties[name], kind) for name, kind in core.items()]
        kinds = {name: kind.Config for name, kind in installed_regularizers()[0].items()}
        found += self.kinds(properties["regularizer"], kinds)
        rules = {rule["if"]["properties"]["modality"]["const"]: rule["then"]["properties"] for rule in schema["allOf"]}
        assert {"image", "audio", "motion"} <= set(rules)
        for modality, described in rules.items():
            assert set(described) == set(SECTIONS)
            for section in SECTIONS:
                found += self.kinds(described[section], load_adapter(modality).sections[section])
        inner = 0
        for described, kind in found:
            assert set(described["properties"]) == set(kind.model_fields), kind
            assert described["additionalProperties"] is False, kind
            for key, field in kind.model_fields.items():
                if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                    reference = described["properties"][key]
                    name = (reference.get("$ref") or reference["allOf"][0]["$ref"]).removeprefix("#/$defs/")
                    assert set(schema["$defs"][name]["properties"]) == set(field.annotation.model_fields), name
                    inner += 1
        assert len(found) > 25 and inner >= 2, "the weight's schedule, scans of patients"

    @staticmethod
    def kinds(described: dict, kinds: Any) -> list[tuple[dict, Any]]:
        """What the schema says of each kind of a section, beside its class."""
        options = {option["properties"]["name"]["const"]: option for option in described["anyOf"]}
        assert set(options) == set(kinds)
        return [(options[name], kind) for name, kind in kinds.items()]

    def test_references_lead_somewhere(self) -> None:
        schema = recipe_schema()
        text = json.dumps(schema)
        for reference in {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}:
            assert reference in schema["$defs"], reference


def test_commands_show_what_load_recipe_gives(command: Make) -> None:
    status, out, _ = command("recipes", "show", "image/quick", "--set", "train.steps=7")
    assert status == 0 and yaml.safe_load(out) == quietly("image/quick", "train.steps=7").to_mapping()
    status, out, _ = command("recipes", "list")
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == NAMES
    status, out, _ = command("recipes", "schema")
    assert json.loads(out) == recipe_schema()


PUBLIC = {
    "layersync:LayerSync": (
        "pairs='auto', weight=0.2, *, depth=None, schedule=None, t_range=(0.0, 1.0), similarity='cosine', "
        "stop_gradient=True"
    ),
    "layersync:LayerSync.forward": "self, features, *, t=None, mask=None, step=None",
    "layersync:attach": "blocks, pairs, weight, select=None, *, layout=None, **options",
    "layersync.core.regularizer.attach:Attachment.loss": "self, t=None, mask=None, step=None",
    "layersync.core.regularizer.attach:Attachment.remove": "self",
    "layersync:load_recipe": "source, overrides=(), *, modality=None",
    "layersync:train": "recipe, out, *, resume=False",
    "layersync:load": "path, *, step=None, weights='ema', device=None",
    "layersync.core.generation:GenerativeModel.sample": (
        "self, n, *, labels=None, prompts=None, frames=None, noise=None, seed=0, **settings"
    ),
    "layersync:evaluate": (
        "run, metrics=None, *, num_samples=None, step=None, weights='ema', reference=None, extractors=None, "
        "classifiers=None, replications=1, overrides=(), shown=False"
    ),
    "layersync:score_samples": (
        "modality, generated, metrics, *, real=None, extractors=None, save_statistics=None, shown=False"
    ),
    "layersync:compare": (
        "recipes, variants=('baseline', 'layersync'), seeds=3, *, out, overrides=(), jobs=None, resume=False, "
        "shown=False"
    ),
    "layersync.core.interpolant:Linear": "prediction='velocity'",
    "layersync.core.interpolant:Trigonometric": "prediction='velocity'",
    "layersync.core.interpolant:VariancePreserving": "prediction='velocity'",
    "layersync.core.interpolant:Interpolant.sample": "self, x1, x0, t",
    "layersync.core.interpolant:Interpolant.velocity": "self, prediction, x_t, t",
    "layersync.metrics:frechet_distance": "x, y",
    "layersync.metrics:kernel_distance": "x, y, subsets=None, *, seed=0",
    "layersync.metrics:precision_recall": "generated, real, k=3",
    "layersync.metrics:inception_score": "probabilities, splits=10, *, shuffle=True, seed=0",
    "layersync.metrics:r_precision": "text, motion, top_k=3",
    "layersync.metrics:matching_score": "text, motion",
    "layersync.metrics:diversity": "x, *, pairs=300, seed=0",
    "layersync.metrics:multimodality": "x, *, pairs=10, seed=0",
    "layersync.modalities.image:SiT": (
        "input_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0, "
        "num_classes=1000, learn_sigma=True, class_dropout_prob=0.1, qk_norm=False, dropout=0.0, text_channels=0"
    ),
    "layersync.modalities.motion:humanml3d_to_joints": "features",
    "layersync.modalities.motion:joints_to_humanml3d": "joints, fps=20.0, *, target_offsets=None",
}
"""The stable names of the design, and what each takes: a name that goes, or a default that changes, breaks users."""


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_take_what_they_always_took(name: str) -> None:
    parameters = list(inspect.signature(pkgutil.resolve_name(name)).parameters.values())
    stars = ["**" if p.kind is p.VAR_KEYWORD else "" for p in parameters]
    named = [
        f"{star}{p.name}" if p.default is p.empty else f"{p.name}={p.default!r}"
        for star, p in zip(stars, parameters, strict=True)
    ]
    first = next((n for n, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    assert ", ".join(named if first is None else [*named[:first], "*", *named[first:]]) == PUBLIC[name]


def test_public_results_are_in_the_order_that_is_promised() -> None:
    assert LayerSyncOutput._fields == ("loss", "similarity")
    assert PrecisionRecall._fields == ("precision", "recall")


def test_public_names_are_there() -> None:
    assert {name for name in layersync.__all__ if f"layersync:{name}" not in PUBLIC} == {"InputError", "Recipe", "Run"}
    for name in layersync.__all__:
        assert getattr(layersync, name) is not None
    with pytest.raises(AttributeError):
        layersync.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"name": "nope"}}, "data.name: 'nope' is unknown to modality image"),
        ({"tokenizer": {"name": "nope"}}, "tokenizer.name: 'nope' is unknown to modality image"),
        ({"regularizer": {"name": "nope"}}, "regularizer.name: 'nope' is unknown"),
        ({"modality": "images"}, "modality: 'images' is unknown"),
        ({"regularizer": {"name": "layersync", "weight": True}}, "regularizer: weight: input should be a number"),
        ({"regularizer": {"name": "layersync", "t_range": [False, True]}}, "regularizer: t_range: input should be"),
        ({"regularizer": {"name": "layersync", "schedule": {"warmup": True}}}, "regularizer.schedule: warmup: input"),
        ({"backbone": {"name": "sit", "depth": True}}, "backbone: depth: input should be a number or a word, not True"),
    ],
)
def test_the_file_is_named(sections: dict, said: str, tiny_mapping: dict, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**tiny_mapping, **sections}))
    with pytest.raises(InputError) as refused:
        load_recipe(file)
    assert str(refused.value).startswith(f"{file}: {said}")


def test_a_name_that_is_set_is_refused_of_the_file(tiny_file: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tiny_file}: regularizer\.name: 'nope' is unknown"):
        load_recipe(tiny_file, ["regularizer.name=nope"])


def test_a_key_that_is_set_twice_is_said(command: Make) -> None:
    sets = [word for change in ("train.steps=5", "train.batch_size=8", "train.steps=600") for word in ("--set", change)]
    status, out, err = command("recipes", "show", "image/quick", *sets, "--json")
    assert status == 0 and json.loads(out)["train"]["steps"] == 600
    assert err == "warning: --set train.steps=5: has no effect, train.steps=600 comes after it\n"


def test_a_mapping_that_overrides_what_it_merges_is_merged_elsewhere() -> None:
    text = "a: &a {x: 1, z: 1}\nnested: {b: &b {<<: *a, x: 2}}\nc: {<<: *b, y: 3}\n"
    found = read_yaml(text, "merged")
    assert found == {"a": {"x": 1, "z": 1}, "nested": {"b": {"x": 2, "z": 1}}, "c": {"x": 2, "z": 1, "y": 3}}


def test_a_recipe_is_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[load_recipe("image/quick").to_yaml()], daemon=True)
    writer.start()
    assert load_recipe(pipe) == load_recipe("image/quick")
    writer.join()
