"""What commands print: steps while they work, a table at the end, or JSON for programs."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

_errors = Console(stderr=True, highlight=False)


@contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Show `what` while the body works, then how long it took.

    The body may append to the list that it gets; the last entry is shown beside the time.
    Steps go to standard error, so that `--json` leaves standard output to the JSON alone.
    """
    notes: list[str] = []
    start = time.monotonic()
    live = _errors.status(f"{what} ...") if _errors.is_terminal else None
    if live:
        live.start()
    try:
        yield notes
    except BaseException:
        if live:
            live.stop()
        _errors.print(f"  [red]failed[/]  {what} ({time.monotonic() - start:.1f} s)")
        raise
    if live:
        live.stop()
    note = f": {notes[-1]}" if notes else ""
    _errors.print(
        f"  [green]ok[/]  {what}{note} ({time.monotonic() - start:.1f} s)", soft_wrap=True
    )


def say(line: str) -> None:
    """Print one line for the person, not for a program."""
    _errors.print(line, soft_wrap=True, markup=False)


def as_json(value: Any) -> None:
    """Print `value` as JSON on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column heads; without a terminal, as wide as the content needs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
