"""Captions made from file names: where what a motion shows is in its name, rules turn it into sentences.

A rules file is YAML: ``pattern``, a regular expression with named groups that is searched in a file's name; ``words``,
for each group and each of its values the phrases of one or more slots; ``templates``, sentences with slots in braces.
A caption is a template with a phrase in each slot; a template that names a slot without a phrase is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import product
from pathlib import Path
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from layersync.core.errors import InputError, nearest
from layersync.core.recipe_reading import read_yaml

SHIPPED = ("bandai-namco",)
Words = Mapping[str, Mapping[str, Mapping[str, list[str]]]]


class CaptionRules(BaseModel):
    """Rules as read from their file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    templates: list[str] = Field(min_length=1)
    words: dict[str, dict[str, dict[str, list[str]]]]

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from error
        if not groups:
            raise ValueError("has no named group, such as (?P<content>[a-z]+)")
        return pattern

    @field_validator("templates")
    @classmethod
    def _have_plain_slots(cls, templates: list[str]) -> list[str]:
        for template in templates:
            try:
                parts = list(Formatter().parse(template))
            except ValueError as error:
                raise ValueError(f"{template!r} is no template ({error})") from error
            for _, slot, form, conversion in parts:
                if slot is not None and (not slot.isidentifier() or form or conversion):
                    raise ValueError(f"{template!r} is no template; slots are names in braces, such as {{action}}")
        return templates

    @model_validator(mode="after")
    def _knows_every_slot(self) -> CaptionRules:
        known = {slot for values in self.words.values() for slots in values.values() for slot in slots}
        for template in self.templates:
            for _, slot, _, _ in Formatter().parse(template):
                if slot is not None and slot not in known:
                    raise ValueError(f"templates: {template!r}: no words have a slot {slot!r}; {nearest(slot, known)}")
        return self

    def captions(self, name: str) -> tuple[str, ...]:
        """All captions of the file called ``name``. InputError where the rules do not know it."""
        found = re.search(self.pattern, name)
        if found is None:
            raise InputError(f"data.captions: {self.pattern!r} does not match the file name {name}")
        slots: dict[str, list[str]] = {}
        for group, values in self.words.items():
            value = found.groupdict().get(group)
            if value not in values:
                raise InputError(
                    f"data.captions: {group} {value!r} of {name} has no words; there are: {', '.join(values)}"
                )
            for slot, phrases in values[value].items():
                slots.setdefault(slot, []).extend(phrases)
        texts: dict[str, None] = {}
        for template in self.templates:
            wanted = [slot for _, slot, _, _ in Formatter().parse(template) if slot]
            for chosen in product(*(slots.get(slot, ()) for slot in wanted)):
                texts[template.format(**dict(zip(wanted, chosen, strict=True)))] = None
        if not texts:
            raise InputError(f"data.captions: no template fits the file name {name}")
        return tuple(texts)


def read_rules(source: str) -> CaptionRules:
    """Rules of a file, or of those that ship (``bandai-namco``). InputError for what is neither, or makes no sense."""
    if source in SHIPPED:
        text = (files(__package__) / f"{source}.yaml").read_text()
    else:
        path = Path(os.path.expandvars(source)).expanduser()
        if not path.is_file():
            raise InputError(f"data.captions: {source!r} is no file of caption rules; {nearest(source, SHIPPED)}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"data.captions: {source} cannot be read as text ({error})") from None
    content = read_yaml(text, f"data.captions: {source}", "rules are a mapping of pattern, templates and words")
    try:
        return CaptionRules.model_validate(content)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = "".join(f"{part}: " for part in (".".join(str(part) for part in first["loc"]),) if part)
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(f"data.captions: {source}: {where}{problem}") from None
