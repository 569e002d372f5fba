"""`isomorph map`: the map of innovations and services."""

from pathlib import Path

import click

from isomorph import output
from isomorph.errors import UserError


@click.command("map")
@click.option("--write", type=click.Path(path_type=Path), help="Renew the map inside this file.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def map_(write: Path | None, json_: bool) -> None:
    """Print the flowchart and the mind map in Mermaid, with what is real, planned and measured."""
    from isomorph import themap
    from isomorph.blocks import renew

    if json_:
        output.as_json({"flowchart": themap.flowchart(), "mind_map": themap.mind_map()})
        return
    if write is None:
        click.echo(themap.markdown(), nl=False)
        return
    if not write.is_file():
        raise UserError(f"{write} is not a file; name one that holds the map's markers")
    text = write.read_text()
    renewed = renew(text, {"map": themap.markdown(), "innovations": themap.table()})
    if renewed != text:
        write.write_text(renewed)
    output.say(f"{write}: {'renewed' if renewed != text else 'up to date'}")
