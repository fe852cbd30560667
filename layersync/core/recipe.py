"""The recipe: one typed, complete description of a training run, read from YAML and checked before any work.

A recipe names a modality and fills ten sections. The keys of ``data``, ``tokenizer`` and ``backbone`` belong to the
modality's adapter, those of ``regularizer`` to the regularizer's class; the rest is here. Every default is written
out in ``RUN/recipe.yaml``.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import ErrorDetails

from layersync.core.adapter import MODALITY_GROUP, DataConfig, ModalityAdapter, Section, load_adapter
from layersync.core.errors import InputError, nearest
from layersync.core.interpolant import INTERPOLANTS, DdpmCosine, Interpolant, Prediction
from layersync.core.metric import parse_metrics
from layersync.core.plugin import OURS, package, registered, top_folders
from layersync.core.regularizer.base import RegularizerConfig, load_regularizer
from layersync.core.solver import ANCESTRAL
from layersync.core.text import Pooling

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
YAML_FAILURES = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, content: Any) -> Any:
        """YAML's yes and true are no numbers, although Python counts them as 1."""
        for name, value in content.items() if isinstance(content, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name}: input should be a number or a word, not {value}")
        return content


class Objective(_Part):
    """What is regressed: interpolant, prediction, and how training times are drawn."""

    interpolant: Literal["linear", "trigonometric", "variance-preserving", "ddpm-cosine"] = "linear"
    prediction: Prediction = "velocity"
    time: Literal["uniform", "logit-normal"] = "uniform"
    time_mean: float = Field(0.0, description="Mean of the normal behind logit-normal times.")
    time_std: float = Field(1.0, gt=0, description="Deviation of the normal behind logit-normal times.")
    shift: float = Field(1.0, gt=0, description="Above 1 moves training times towards noise (SD3, eq. 23).")
    num_timesteps: int = Field(1000, ge=2, description="Steps of ddpm-cosine.")

    @property
    def discrete(self) -> bool:
        """Whether the path is one of separate steps."""
        return self.interpolant == DdpmCosine.name

    @model_validator(mode="after")
    def _has_prediction(self) -> Objective:
        if self.discrete and self.prediction not in DdpmCosine.predictions:
            raise ValueError(
                f"prediction: {self.prediction} is none of {self.interpolant}, which has "
                f"{' and '.join(DdpmCosine.predictions)} (MDM's is data)"
            )
        return self

    def build(self) -> Interpolant:
        """The interpolant with its prediction."""
        if self.discrete:
            return DdpmCosine(self.prediction, self.num_timesteps)
        return INTERPOLANTS[self.interpolant](self.prediction)


class Condition(_Part):
    """What the network is conditioned on. Whatever it is, ``train.condition_dropout`` drops it for guidance."""

    labels: Literal["auto", "required", "ignored"] = Field(
        "auto", description="auto: class labels where the data has them and no text is read."
    )
    text_encoder: str | None = Field(
        None,
        min_length=1,
        description="minilm, or a text encoder of transformers (hub id, folder); null: texts are not read.",
    )
    text_pooling: Pooling = Field("tokens", description="tokens: one embedding a token; pooled: one a text.")
    max_tokens: int = Field(32, ge=3, description="Longer texts are cut; begin and end of the text count too.")


class Optimizer(_Part):
    """AdamW and its learning rate over time."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1.0e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up from 0.")
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null leaves it as it is.")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) out of ``steps``."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return self.lr * rise
        done = max(0, step - self.warmup) / max(1, steps - self.warmup)
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Train(_Part):
    """Length, batch, averaging, precision and bookkeeping of the training."""

    steps: Count = 1000
    batch_size: Count = Field(64, description="Samples a step over all processes and micro-batches.")
    accumulate: Count = Field(1, description="Micro-batches that a step is split into.")
    condition_dropout: Fraction = Field(0.1, description="Share of samples trained without their condition.")
    ema_decay: Fraction = 0.9999
    ema_ramp: bool = Field(True, description="Let the decay rise as (1 + n) / (10 + n) up to ema_decay.")
    precision: Literal["auto", "bf16", "tf32", "float32"] = Field(
        "auto", description="tf32: float32 throughout, products in TF32 on CUDA. auto: bf16 where there is hardware."
    )
    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every: Count = 1000
    keep: Count | None = Field(None, description="How many checkpoints stay; null keeps all.")
    log_every: Count = 10
    init: str | None = Field(None, description="A run or checkpoint whose weights the training starts from.")


class Sample(_Part):
    """How samples are drawn; nothing here changes training."""

    solver: Literal["euler", "heun", "midpoint", "rk4", "dopri5", "euler-maruyama", "ddpm"] = "heun"
    steps: Count = Field(25, description="Intervals; dopri5 chooses its own.")
    guidance: float = Field(1.0, ge=0, description="1 is none: v = v_none + guidance (v_condition - v_none).")
    guidance_interval: tuple[Fraction, Fraction] = Field((0.0, 1.0), description="Guided for t in [low, high].")
    guidance_channels: Count | None = Field(None, description="Guide the first channels only; null guides all.")
    diffusion: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma"
    diffusion_scale: float = Field(1.0, gt=0)
    last_step: Literal["none", "mean", "tweedie", "euler"] = "mean"
    last_step_size: float = Field(0.04, gt=0, lt=1)
    atol: float = Field(1.0e-6, gt=0)
    rtol: float = Field(1.0e-3, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    batch_size: Count = 64

    @model_validator(mode="after")
    def _ordered(self) -> Sample:
        low, high = self.guidance_interval
        if low >= high:
            raise ValueError(f"guidance_interval: {[low, high]} is empty")
        if self.solver == "euler-maruyama" and self.last_step != "none" and self.steps < 2:
            raise ValueError("steps: euler-maruyama with a last_step takes at least 2")
        return self


class Evaluate(_Part):
    """What is measured, on how many samples, how often during training."""

    metrics: list[str] = Field(["fd-classifier"], min_length=1)
    num_samples: int = Field(1000, ge=2)
    every: Count | None = Field(
        None, description="Steps between held-out losses, and scores of a comparison; null: at the ends only."
    )
    reference: Literal["train", "test"] = "train"
    conditions: Literal["train", "test", "stratified"] = Field(
        "train",
        description="The split whose labels, texts and lengths the samples are drawn for; stratified: the training "
        "data's, each label exactly as often as its share says.",
    )
    seed: int = Field(0, ge=0, lt=2**63)


class Recipe(_Part):
    """A complete description of a run. Made by :func:`load_recipe`; ``adapter`` is the modality it is for."""

    modality: str
    seed: int = Field(0, ge=0, lt=2**63)
    data: SerializeAsAny[DataConfig]
    tokenizer: SerializeAsAny[Section]
    backbone: SerializeAsAny[Section]
    condition: Condition = Condition()
    objective: Objective = Objective()
    regularizer: SerializeAsAny[RegularizerConfig]
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @property
    def adapter(self) -> ModalityAdapter:
        """The modality's adapter."""
        return load_adapter(self.modality)

    def to_mapping(self) -> dict[str, Any]:
        """Plain YAML types, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """As written to ``RUN/recipe.yaml``."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, default_flow_style=None, width=110)


PLUGGED = ("data", "tokenizer", "backbone", "regularizer")
UNGUIDED = "sample.guidance has no effect: the network is conditioned on nothing, neither labels nor texts"


class _Loader(yaml.SafeLoader):
    """Safe loading that also refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str, wanted: str = "a recipe is a mapping of sections") -> dict[str, Any]:
    """A mapping from YAML text. Tags are never executed. Raises :class:`InputError` naming ``where``."""
    try:
        content = yaml.load(text, Loader=_Loader)
    except YAML_FAILURES as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: no valid YAML{at}: {problem}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: {wanted}, this is a {type(content).__name__}")
    return content


def shipped_recipes() -> dict[str, str]:
    """Text of every recipe in an installed package by name, ``modality/name``.

    Ours lie in ``layersync/recipes/MODALITY``; a plug-in's in the folder ``recipes`` of its top package, of which no
    code is run. Of a package with several modalities, a recipe belongs to the one that it names. Our names come first.
    """
    found = {}
    for folder in (files("layersync") / "recipes").iterdir():
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.name.endswith(".yaml"):
                    found[f"{folder.name}/{entry.name.removesuffix('.yaml')}"] = entry.read_text()
    for name, text in _recipes_of_plugins():
        found.setdefault(name, text)
    return dict(sorted(found.items()))


def _recipes_of_plugins() -> Iterator[tuple[str, str]]:
    points = registered(MODALITY_GROUP)
    plugged = {name: point for name, point in points.items() if package(point) != OURS}
    for modality, point in plugged.items():
        siblings = {name for name, other in plugged.items() if package(other) == package(point)} - {modality}
        for folder in top_folders(point):
            for path in sorted((folder / "recipes").glob("*.yaml")):
                try:
                    if not path.is_file():
                        raise FileNotFoundError("is no file")
                    text = path.read_bytes().decode(errors="replace")  # no text is refused when it is read as YAML
                except OSError as error:
                    warnings.warn(f"left out: recipe {path} of package {package(point)}: {error}", stacklevel=3)
                    continue
                declared = re.search(r"^modality:\s*[\"']?([\w.-]+)", text, re.MULTILINE)
                if declared is None or declared[1] not in siblings:
                    yield f"{modality}/{path.stem}", text


def recipe_text(source: str | os.PathLike[str]) -> tuple[str, str]:
    """Text and display name of a recipe file, or of a shipped recipe such as ``image/quick``."""
    try:
        path = Path(source).expanduser()
        if path.is_file():
            return path.read_text(), str(source)
    except (UnicodeDecodeError, OSError, RuntimeError) as error:
        raise InputError(f"recipe {str(source)!r}: cannot be read as a text file ({error})") from None
    shipped = shipped_recipes()
    name = str(source)
    if name in shipped:
        return shipped[name], name
    if path.is_dir():
        raise InputError(f"recipe {name!r}: is a folder; a recipe is a YAML file")
    raise InputError(f"recipe {name!r}: no such file or shipped recipe; {nearest(name, shipped)}")


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), *, modality: str | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML file, the name of a shipped recipe, or a mapping of sections.
        overrides: ``section.key=value`` strings, the value in YAML. ``section.name=other`` replaces the section.
        modality: what the caller takes the recipe's modality to be; refused when it differs.

    Raises:
        InputError: for anything that is not a valid recipe, naming the key and what would be right.
    """
    if isinstance(source, Mapping):
        content, where = dict(source), "recipe"
    else:
        text, where = recipe_text(source)
        content = read_yaml(text, where)
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    if modality is not None:
        if modality not in registered(MODALITY_GROUP):
            raise InputError(f"--modality: {modality!r} is unknown; {nearest(modality, registered(MODALITY_GROUP))}")
        content.setdefault("modality", modality)
    return _resolve(_overridden(content, overrides), where, modality)


def _overridden(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    parsed = []
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise InputError(f"--set {override!r}: is not KEY=VALUE, such as train.steps=500")
        try:
            value = yaml.load(text, Loader=_Loader) if text.strip() else ""
        except YAML_FAILURES:
            raise InputError(f"--set {override!r}: the value is no valid YAML") from None
        parsed.append((keys, value))
    names = {keys[0]: value for keys, value in parsed if keys[1:] == ["name"] and keys[0] in PLUGGED}
    for section, name in names.items():
        _rename_section(content, section, name)
    for keys, value in parsed:
        target = content
        for key in keys[:-1]:
            if target.get(key) is None:
                target[key] = {}
            target[key] = dict(target[key]) if isinstance(target[key], dict) else target[key]
            if not isinstance(target[key], dict):
                raise InputError(f"--set {'.'.join(keys)}: {key} is no section, it is {target[key]!r}")
            target = target[key]
        target[keys[-1]] = value
    return content


def _rename_section(content: dict[str, Any], section: str, name: Any) -> None:
    """Drop keys that a section's new name does not have, with one warning; of ``none`` nothing else is expected.

    Another regularizer keeps none of them: a weight of one loss is no weight of another.
    """
    present = content.get(section)
    if not isinstance(present, dict) or not isinstance(content.get("modality"), str):
        return
    known: Collection[str] = _section_class(content["modality"], section, name).model_fields
    if section == "regularizer" and present.get("name", name) != name:
        known = ("name",)
    dropped = [key for key in present if key not in known]
    content[section] = {key: value for key, value in present.items() if key in known}
    if dropped and name != "none":
        listed = ", ".join(dropped)
        what = (
            f": {listed} of {present['name']!r} dropped"
            if section == "regularizer"
            else f", which has no {listed}: dropped"
        )
        warnings.warn(f"{section}.name is now {name!r}{what}", stacklevel=5)


def _section_class(modality: str, section: str, name: Any) -> type[Section]:
    if section == "regularizer":
        return load_regularizer(str(name)).Config
    known = load_adapter(modality).sections[section]
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{section}.name: {name!r} is unknown to modality {modality}; {nearest(str(name), known)}")
    return known[name]


def _resolve(content: dict[str, Any], where: str, modality: str | None) -> Recipe:
    for key in content:
        if key not in Recipe.model_fields:
            raise InputError(f"{where}: {key!r} is no section; {nearest(str(key), Recipe.model_fields)}")
    declared = content.get("modality")
    if not isinstance(declared, str):
        raise InputError(f"{where}: modality is missing; {nearest('', registered(MODALITY_GROUP))}")
    if modality is not None and declared != modality:
        raise InputError(f"{where}: is a recipe for {declared}, --modality says {modality}")
    adapter = load_adapter(declared)
    sections = dict(content)
    for section in PLUGGED:
        given = content.get(section)
        if given is None and section != "data":
            given = {}
        if not isinstance(given, dict):
            raise InputError(f"{where}: {section} must be a mapping with a name, not {given!r}")
        default = "none" if section == "regularizer" else next(iter(adapter.sections[section]))
        if section == "data" and "name" not in given:
            raise InputError(f"{where}: data.name is missing; {nearest('', adapter.sections['data'])}")
        kind = _section_class(declared, section, given.get("name", default))
        sections[section] = _validated(kind, {"name": default, **given}, where, section)
    recipe = _validated(Recipe, {key: value for key, value in sections.items() if value is not None}, where, "")
    _check_together(recipe, where)
    return recipe


def _validated(kind: Any, content: dict[str, Any], where: str, section: str) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as failure:
        errors = failure.errors()
        of_first = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
        error = of_first[-1]  # of a value that may be a word or something else, the complaint about something else
        named = [str(part) for part in error["loc"] if "[" not in str(part)]
        path = ".".join([section, *named] if section else named)
        if error["type"] == "extra_forbidden":
            name = str(error["loc"][-1])
            raise InputError(f"{where}: {path}: unknown key; {nearest(name, _keys(kind, error['loc'][:-1]))}") from None
        raise InputError(f"{where}: {path}: {complaint(error)}") from None


def complaint(error: ErrorDetails) -> str:
    """What one of pydantic's errors says, and of what value; of a whole section the message itself names the key."""
    problem = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{problem[:1].lower()}{problem[1:]}{given}"


def _keys(kind: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        kind = field.annotation
    return list(kind.model_fields)


def _check_together(recipe: Recipe, where: str) -> None:
    train, depth = recipe.train, getattr(recipe.backbone, "depth", None)
    if depth is not None:
        try:
            recipe.regularizer.check(depth)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if train.batch_size % train.accumulate:
        raise InputError(
            f"{where}: train.batch_size: {train.batch_size} is no multiple of accumulate {train.accumulate}"
        )
    try:
        recipe.regularizer.check_batch(train.batch_size // train.accumulate)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        check_sampling(recipe.objective, recipe.sample)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    counted = getattr(recipe.backbone, "num_timesteps", None)
    if recipe.objective.discrete and counted not in (None, recipe.objective.num_timesteps):
        raise InputError(
            f"{where}: backbone.num_timesteps: {counted}, but objective.num_timesteps is "
            f"{recipe.objective.num_timesteps}; both count the same steps"
        )
    try:
        parse_metrics(recipe.modality, recipe.evaluate.metrics)
    except InputError as error:
        raise InputError(f"{where}: evaluate.metrics: {error}") from None
    for warning in (*recipe.regularizer.warnings(), *ineffective(recipe)):
        warnings.warn(warning, stacklevel=4)


def check_sampling(objective: Objective, sample: Sample) -> None:
    """Raise :class:`InputError` for a solver that cannot follow the objective's path."""
    discrete = objective.discrete
    if discrete != (sample.solver == ANCESTRAL):
        kind = "one of separate steps" if discrete else "continuous"
        right = ANCESTRAL if discrete else "heun, euler, midpoint, rk4, dopri5 or euler-maruyama"
        raise InputError(
            f"sample.solver: {sample.solver}, but the path {objective.interpolant} is {kind}; take {right}"
        )
    if discrete and not 2 <= sample.steps <= objective.num_timesteps:
        raise InputError(
            f"sample.steps: {sample.steps}; {ANCESTRAL} takes 2 to objective.num_timesteps, {objective.num_timesteps}"
        )


def ineffective(recipe: Recipe) -> list[str]:
    """One line for each setting of the core's sections that is set and can have no effect where it stands."""
    lines = []
    objective, sample, train, optimizer = recipe.objective, recipe.sample, recipe.train, recipe.optimizer
    if objective.time == "uniform" and (objective.time_mean, objective.time_std) != (0.0, 1.0):
        lines.append("objective.time_mean and time_std have no effect with time: uniform")
    if not objective.discrete and objective.num_timesteps != Objective().num_timesteps:
        lines.append(f"objective.num_timesteps has no effect with interpolant {objective.interpolant}")
    if sample.guidance == 1.0 and (sample.guidance_interval != (0.0, 1.0) or sample.guidance_channels is not None):
        lines.append("sample.guidance is 1: guidance_interval and guidance_channels have no effect")
    if sample.guidance != 1.0 and recipe.condition.labels == "ignored" and recipe.condition.text_encoder is None:
        lines.append(UNGUIDED)
    elif sample.guidance != 1.0 and train.condition_dropout == 0:
        lines.append("sample.guidance needs a network trained without conditions too: train.condition_dropout is 0")
    defaults = Sample()
    stochastic = ("diffusion", "diffusion_scale", "last_step", "last_step_size")
    if sample.solver != "euler-maruyama":
        changed = [key for key in stochastic if getattr(sample, key) != getattr(defaults, key)]
        if changed:
            lines.append(f"sample.{', sample.'.join(changed)}: no effect with solver {sample.solver}")
    if sample.solver != "dopri5" and (sample.atol, sample.rtol) != (defaults.atol, defaults.rtol):
        lines.append(f"sample.atol and sample.rtol have no effect with solver {sample.solver}")
    if sample.solver == "dopri5" and sample.steps != defaults.steps:
        lines.append("sample.steps has no effect with solver dopri5, which chooses its own by sample.atol and rtol")
    condition, without = recipe.condition, Condition()
    if condition.text_encoder is None:
        unread = [key for key in ("text_pooling", "max_tokens") if getattr(condition, key) != getattr(without, key)]
        if unread:
            lines.append(f"condition.{', condition.'.join(unread)}: no effect without condition.text_encoder")
    if recipe.evaluate.conditions == "stratified" and condition.labels == "ignored":
        lines.append("evaluate.conditions: stratified evens out lengths alone where condition.labels is ignored")
    delay = getattr(getattr(recipe.regularizer, "schedule", None), "delay", 0)
    if delay >= train.steps:
        lines.append(f"regularizer.schedule.delay: {delay} is not below train.steps, {train.steps}: a baseline run")
    if optimizer.warmup > train.steps:
        lines.append(f"optimizer.warmup: {optimizer.warmup} steps are more than train.steps, {train.steps}")
    return lines
