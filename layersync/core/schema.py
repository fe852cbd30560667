"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import BaseModel

from layersync.core.adapter import MODALITY_GROUP, Section, load_adapter, registered
from layersync.core.recipe import PLUGGED, Recipe
from layersync.core.regularizer.base import REGULARIZER_GROUP, load_regularizer


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe: what an editor needs to complete keys and underline mistakes."""
    definitions: dict[str, Any] = {}

    def variants(scope: str, kinds: Mapping[str, type[Section]]) -> dict[str, Any]:
        options = []
        for name, kind in kinds.items():
            schema = kind.model_json_schema(ref_template=f"#/$defs/{scope}.{name}.{{model}}")
            for model, definition in schema.pop("$defs", {}).items():
                definitions[f"{scope}.{name}.{model}"] = definition
            schema["properties"]["name"] = {"const": name}
            options.append(schema)
        return {"anyOf": options}

    core = {name: Recipe.model_fields[name].annotation for name in Recipe.model_fields if name not in PLUGGED}
    properties: dict[str, Any] = {}
    for name, annotation in core.items():
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            properties[name] = annotation.model_json_schema()
    points: dict[str, EntryPoint] = registered(REGULARIZER_GROUP)
    properties["regularizer"] = variants("regularizer", {name: load_regularizer(name).Config for name in points})
    properties["seed"] = {"type": "integer", "minimum": 0}
    modalities = sorted(registered(MODALITY_GROUP))
    properties["modality"] = {"enum": modalities}
    for section in ("data", "tokenizer", "backbone"):
        properties[section] = {"type": "object"}
    rules = []
    for modality in modalities:
        sections = load_adapter(modality).sections
        then = {
            "properties": {
                section: variants(f"{modality}.{section}", sections[section])
                for section in ("data", "tokenizer", "backbone")
            }
        }
        rules.append({"if": {"properties": {"modality": {"const": modality}}}, "then": then})
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
