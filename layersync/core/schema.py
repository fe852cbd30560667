"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from layersync.core.adapter import SECTIONS, Section, installed_adapters
from layersync.core.plugin import FAILURES, reason
from layersync.core.recipe import Recipe
from layersync.core.recipe_reading import PLUGGED
from layersync.core.regularizer.base import installed_regularizers


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe: what an editor needs to complete keys and underline mistakes.

    Plug-ins that do not load are left out with a warning; a section that has no schema may hold anything.
    """
    definitions: dict[str, Any] = {}

    def variants(scope: str, kinds: Mapping[str, type[Section]], default: str | None) -> dict[str, Any]:
        """One of ``kinds``, which has to be named unless it is the ``default``."""
        options: list[dict[str, Any]] = []
        for name, kind in kinds.items():
            try:
                schema = kind.model_json_schema(ref_template=f"#/$defs/{scope}.{name}.{{model}}")
                models = dict(schema.pop("$defs", {}))
                schema["properties"]["name"] = {"const": name}
                json.dumps([schema, models])
            except FAILURES as error:  # a plug-in may write its schema by code of its own
                where = f"{kind.__module__}.{kind.__name__}"
                warnings.warn(f"{scope}.{name}: {where} has no schema: {reason(error)}", stacklevel=3)
                schema, models = {"type": "object", "properties": {"name": {"const": name}}}, {}
            for model, definition in models.items():
                definitions[f"{scope}.{name}.{model}"] = definition
            if name != default:
                schema["required"] = sorted({*schema.get("required", ()), "name"})
            options.append(schema)
        return {"anyOf": options}

    core = {name: Recipe.model_fields[name].annotation for name in Recipe.model_fields if name not in PLUGGED}
    properties: dict[str, Any] = {}
    for name, annotation in core.items():
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            properties[name] = annotation.model_json_schema()
    adapters, broken = installed_adapters()
    regularizers, broken_regularizers = installed_regularizers()
    for error in (*broken.values(), *broken_regularizers.values()):
        warnings.warn(f"left out: {error}", stacklevel=2)
    configs = {name: kind.Config for name, kind in regularizers.items()}
    properties["regularizer"] = variants("regularizer", configs, "none")
    properties["seed"] = {"type": "integer", "minimum": 0}
    properties["modality"] = {"enum": list(adapters)}
    for section in SECTIONS:
        properties[section] = {"type": "object"}
    rules = []
    for modality, adapter in adapters.items():
        sections = {
            section: variants(f"{modality}.{section}", kinds, None if section == "data" else next(iter(kinds)))
            for section, kinds in ((section, adapter.sections[section]) for section in SECTIONS)
        }
        rules.append({"if": {"properties": {"modality": {"const": modality}}}, "then": {"properties": sections}})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "layersync recipe",
        "type": "object",
        "properties": properties,
        "required": ["modality", "data"],
        "additionalProperties": False,
        "allOf": rules,
        "$defs": definitions,
    }
