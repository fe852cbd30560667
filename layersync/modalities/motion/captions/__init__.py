"""Captions made from file names: where what a motion shows is in its name, rules turn it into sentences.

A rules file is YAML: ``pattern``, a regular expression with named groups that is searched in a file's name; ``words``,
for each group and each of its values the phrases of one or more slots; ``templates``, sentences with slots in braces.
A caption is a template with a phrase in each slot; a template that names a slot without a phrase is left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import product
from pathlib import Path
from string import Formatter

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from layersync.core.errors import InputError, nearest

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

    @property
    def fingerprint(self) -> str:
        """Changes with any of the rules."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

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
        text = path.read_text()
    try:
        return CaptionRules.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"data.captions: {source} is no valid YAML ({str(error).splitlines()[0]})") from None
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(f"data.captions: {source}: {where}: {problem}") from None
