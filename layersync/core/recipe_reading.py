"""From YAML, names of shipped recipes and overrides to a :class:`Recipe`, checked before any work."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from layersync.core.adapter import MODALITY_GROUP, Section, load_adapter
from layersync.core.errors import InputError, complaint, nearest
from layersync.core.metric import parse_metrics
from layersync.core.plugin import OURS, calling, package, registered, top_folders
from layersync.core.recipe import Recipe, check_sampling, ineffective
from layersync.core.regularizer.base import load_regularizer

YAML_FAILURES = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError)
PLUGGED = ("data", "tokenizer", "backbone", "regularizer")


class _Loader(yaml.SafeLoader):
    """Safe loading that also refuses a key written twice."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _refuse_repeated(node, set())  # as written: merging (<<) puts keys beside those that override them
        return node


def _refuse_repeated(node: yaml.Node, seen: set[int]) -> None:
    """Raise a ConstructorError for a key that stands twice in a mapping at or below ``node``, or is no word."""
    if id(node) in seen:  # an anchor's
        return
    seen.add(id(node))
    keys = set()
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        if isinstance(node, yaml.MappingNode):
            key, entry = entry
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key.start_mark)
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            keys.add(key.value)
        _refuse_repeated(entry, seen)


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
                    found[f"{folder.name}/{entry.name.removesuffix('.yaml')}"] = entry.read_text(encoding="utf-8")
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
        if path.exists() and not path.is_dir():  # a file, or a pipe of the shell's
            return path.read_text(encoding="utf-8"), str(source)
    except (UnicodeDecodeError, OSError, RuntimeError) as error:
        raise InputError(f"recipe {str(source)!r}: cannot be read as a text file ({error})") from None
    shipped = shipped_recipes()
    name = str(source)
    if name in shipped:
        return shipped[name], name
    if path.is_dir():
        raise InputError(f"recipe {name!r}: is a folder; a recipe is a YAML file")
    modality, slash, _ = name.partition("/")
    if slash and modality in registered(MODALITY_GROUP):
        load_adapter(modality)  # of two packages, or of one that is broken, this says what is wrong
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
    return _resolve(_overridden(content, overrides, where), where, modality)


def _overridden(content: dict[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
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
        _rename_section(content, section, name, where)
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


def _rename_section(content: dict[str, Any], section: str, name: Any, where: str) -> None:
    """Drop keys that a section's new name does not have, with one warning; of ``none`` nothing else is expected.

    Another regularizer keeps none of them: a weight of one loss is no weight of another.
    """
    present = content.get(section)
    if not isinstance(present, dict) or not isinstance(content.get("modality"), str):
        return
    known: Collection[str] = _section_class(content["modality"], section, name, where).model_fields
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


def _section_class(modality: str, section: str, name: Any, where: str) -> type[Section]:
    with _of_recipe(where):
        if section == "regularizer":
            return load_regularizer(str(name)).Config
        known = load_adapter(modality).sections[section]
        if not isinstance(name, str) or name not in known:
            raise InputError(f"{section}.name: {name!r} is unknown to modality {modality}; {nearest(str(name), known)}")
        return known[name]


@contextmanager
def _of_recipe(where: str) -> Iterator[None]:
    """Put the recipe's name before an :class:`InputError` that says nothing of it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _resolve(content: dict[str, Any], where: str, modality: str | None) -> Recipe:
    for key in content:
        if key not in Recipe.model_fields:
            raise InputError(f"{where}: {key!r} is no section; {nearest(str(key), Recipe.model_fields)}")
    declared = content.get("modality")
    if not isinstance(declared, str):
        what = "is missing" if declared is None else f"is a name, not {declared!r}"
        raise InputError(f"{where}: modality {what}; {nearest('', registered(MODALITY_GROUP))}")
    if modality is not None and declared != modality:
        raise InputError(f"{where}: is a recipe for {declared}, --modality says {modality}")
    with _of_recipe(where):
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
        kind = _section_class(declared, section, given.get("name", default), where)
        sections[section] = _validated(kind, {"name": default, **given}, where, section)
    recipe = _validated(Recipe, {key: value for key, value in sections.items() if value is not None}, where, "")
    _check_together(recipe, where)
    return recipe


def _validated(kind: Any, content: dict[str, Any], where: str, section: str) -> Any:
    with _of_recipe(where), calling(kind, "model_validate"):
        return _checked(kind, content, section)


def _checked(kind: Any, content: dict[str, Any], section: str) -> Any:
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
            raise InputError(f"{path}: unknown key; {nearest(name, _keys(kind, error['loc'][:-1]))}") from None
        raise InputError(f"{path}: {complaint(error)}") from None


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
        with _of_recipe(where), calling(recipe.regularizer, "check"):
            recipe.regularizer.check(depth)
    if train.batch_size % train.accumulate:
        raise InputError(
            f"{where}: train.batch_size: {train.batch_size} is no multiple of accumulate {train.accumulate}"
        )
    with _of_recipe(where), calling(recipe.regularizer, "check_batch"):
        recipe.regularizer.check_batch(train.batch_size // train.accumulate)
    with _of_recipe(where):
        check_sampling(recipe.objective, recipe.sample)
    counted = getattr(recipe.backbone, "num_timesteps", None)
    if recipe.objective.discrete and counted not in (None, recipe.objective.num_timesteps):
        raise InputError(
            f"{where}: backbone.num_timesteps: {counted}, but objective.num_timesteps is "
            f"{recipe.objective.num_timesteps}; both count the same steps"
        )
    with _of_recipe(f"{where}: evaluate.metrics"):
        parse_metrics(recipe.modality, recipe.evaluate.metrics)
    with _of_recipe(where), calling(recipe.regularizer, "warnings"):
        said = recipe.regularizer.warnings()
    for warning in (*said, *ineffective(recipe)):
        warnings.warn(warning, stacklevel=4)
