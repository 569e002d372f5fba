"""`isomorph weights push`: put a model's weights where a fleet fetches them."""

from pathlib import Path

import click

from isomorph import output
from isomorph.deployment import push_weights
from isomorph.environments import load
from isomorph.errors import UserError


@click.group()
def weights() -> None:
    """Weights in the model bucket."""


@weights.command()
@click.argument("name", metavar="ENV")
@click.argument("slug")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def push(name: str, slug: str, folder: Path, json_: bool) -> None:
    """Put the files of FOLDER into ENV's model bucket, with a manifest of their digests.

    The next deployment of ENV/SLUG serves them: its launch template pins the manifest's digest.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder that holds the model's files")
    environment = load(name)
    with output.step(f"push {folder.name} to {name}/{slug}") as notes:
        pointer = push_weights(environment, slug, folder)
        notes.append(pointer)
    if json_:
        output.as_json({"environment": name, "innovation": slug, "weights": pointer})
    else:
        output.say(f"serve them with `npx cdk deploy -c env={name} {name}/{slug}`")
