"""Tests that every modality passes, for packages that plug one in. Two lines in a test file are enough::

    class TestMine(AdapterConformance):
        recipe = "mine/quick"

``layersync check mine`` runs the same checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

import pytest

from layersync.core.conformance.subject import NotApplicable, Subject
from layersync.core.conformance.suite import CHECKS, open_subject, run_check

__all__ = ["AdapterConformance"]


@cache
def _subject(recipe: str, overrides: tuple[str, ...]) -> Subject:
    return open_subject(recipe.partition("/")[0], recipe, overrides)


class AdapterConformance:
    """One test for each check of :mod:`layersync.core.conformance.suite`; subclass it and name a recipe.

    ``recipe`` is a shipped name, ``MODALITY/NAME``. ``overrides`` are ``section.key=value`` as ``--set`` takes them.
    """

    recipe: ClassVar[str]
    overrides: ClassVar[Sequence[str]] = ()

    @pytest.mark.parametrize("check", CHECKS)
    def test_conforms(self, check: str) -> None:
        """The adapter does what the core asks; a failure says what was expected, what came, and where to look."""
        try:
            run_check(check, _subject(self.recipe, tuple(self.overrides)))
        except NotApplicable as why:
            pytest.skip(str(why))
