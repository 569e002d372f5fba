"""`isomorph bench`: measurements beside a named peer or limit."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isomorph import output
from isomorph.errors import UserError

if TYPE_CHECKING:
    from bench.row import Row


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME ...]")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    help="Leave what it found here. common: renew the table of engines in this document; "
    "moe_training: draw the curves of the losses to this .svg file.",
)
def bench(names: tuple[str, ...], json_: bool, write: Path | None) -> None:
    """Run the measurements NAME ..., or all of them, and print the ratios.

    Each row goes to standard error as soon as it is there; all of them are on standard output at
    the end, as a table or as one JSON document.
    """
    from bench import BENCHES, WRITERS

    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise UserError(f"no measurement {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    if write is not None and not (len(names) == 1 and names[0] in WRITERS):
        allowed = " or ".join(f"`isomorph bench {name}`" for name in WRITERS)
        raise UserError(f"--write goes with {allowed}, one at a time")
    rows = [(name, row) for name in names or BENCHES for row in _said(name)]
    if write is not None:
        WRITERS[names[0]](write)
    if json_:
        output.as_json([{"bench": name, **asdict(row)} for name, row in rows])
        return
    output.table(
        ["bench", "what", "ours", "beside", "ratio", "to reach", "reached"],
        [
            (
                *(name, row.name, row.ours, row.peer, f"{row.ratio:.2f}"),
                f"{row.target:.2f}",
                "yes" if row.reached else "NO",
            )
            for name, row in rows
        ],
    )


def _said(name: str) -> Iterator["Row"]:
    """Yield the rows of a measurement, each of them shown as it comes."""
    from bench import BENCHES

    with output.step(f"bench {name}"):
        for row in BENCHES[name]():
            reached = "reached" if row.reached else "NOT reached"
            output.say(
                f"  {row.name}: {row.ours}; beside {row.peer}; ratio {row.ratio:.2f}, "
                f"{row.target:.2f} {reached}"
            )
            yield row
