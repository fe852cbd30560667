"""Progress on stderr: a bar for a person at a terminal, nothing where stderr is a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(description: str, total: int, *, columns: tuple[str, ...] = (), shown: bool = True) -> Iterator[Any]:
    """Yield ``advance(count, **fields)``; ``columns`` name fields shown at the right, such as ``loss``."""
    if not (shown and sys.stderr.isatty()):
        yield lambda count=1, **fields: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    extra = [TextColumn(f"{name} {{task.fields[{name}]}}") for name in columns]
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *extra,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=total, **{name: "-" for name in columns})  # type: ignore[arg-type]  # noqa: C420

        def advance(count: int = 1, **fields: Any) -> None:
            bar.update(task, advance=count, **fields)

        yield advance
