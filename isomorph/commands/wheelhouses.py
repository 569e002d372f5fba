"""`isomorph wheelhouses`: download what nodes install, before synthesis."""

import click

from isomorph import output


@click.command()
@click.option("--env", "name", help="Only this environment; without it, all of them.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def wheelhouses(name: str | None, json_: bool) -> None:
    """Build the wheelhouse of every fleet that the environments turn on (cached)."""
    from config import load_environments
    from isomorph.deployment import ensure_wheelhouses

    paths = [path for config in load_environments(name) for path in ensure_wheelhouses(config)]
    if json_:
        output.as_json([str(path) for path in dict.fromkeys(paths)])
