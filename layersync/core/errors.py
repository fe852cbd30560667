"""The ways in which a command ends badly, told apart by whose turn it is to act."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class InputError(ValueError):
    """What the user gave is wrong; raised before any work is done. The command line exits with status 2.

    The message is one line: what is wrong, where it stands, and what would be right.
    """


class TrainingError(RuntimeError):
    """A run that had started could not go on. The command line exits with status 1."""


class Interrupted(Exception):
    """Training was stopped by a signal, after its state was saved. The command line exits with status 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which of ``known`` the writer of ``name`` probably meant, then all there are."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are: {', '.join(known) or 'none'}"


def complaint(error: ErrorDetails) -> str:
    """What one of pydantic's errors says, and of what value; of a whole section the message itself names the key."""
    problem = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{problem[:1].lower()}{problem[1:]}{given}"
