"""`isomorph plan`: from a model to a sized, priced and explained plan."""

import shutil
import tempfile
from pathlib import Path

import click

from isomorph import output
from isomorph.errors import UserError
from planner import Plan, PlanError, render, write
from planner import plan as make_plan
from planner.pricing import Foundation


@click.command()
@click.argument("model")
@click.option("--load", "load", multiple=True, metavar="NAME=VALUE", help="Such as concurrent=64.")
@click.option("--region", help="Where; the environment's with --write, else us-east-1.")
@click.option("--context", "contexts", multiple=True, type=int, help="Tell the cache at a length.")
@click.option("--write", "name", metavar="ENV", help="Write the sizes into config/ENV.yaml.")
@click.option("--json", "json_", is_flag=True, help="Print JSON (docs/plan-json.md).")
def plan(
    model: str,
    load: tuple[str, ...],
    region: str | None,
    contexts: tuple[int, ...],
    name: str | None,
    json_: bool,
) -> None:
    """Plan AWS for MODEL: a name in config/models, a config.json, or a folder that has one."""
    asked = [part for text in load for part in text.split(",")]
    try:
        if name is None:
            made = make_plan(model, asked, region=region or "us-east-1", contexts=contexts)
        else:
            made = _write(model, asked, region, contexts, name)
    except PlanError as error:
        raise UserError(str(error)) from None
    if json_:
        output.as_json(made.to_json())
    else:
        click.echo(render(made), nl=False)


def _write(
    model: str, load: list[str], region: str | None, contexts: tuple[int, ...], name: str
) -> Plan:
    """Make the plan for an environment and put its sizes into the environment's file."""
    from config import load_environments, loader
    from stacks.settings import SETTINGS

    [config] = load_environments(name, settings=SETTINGS, folder=loader.FOLDER)
    if region is not None and region != config.region:
        raise UserError(f"{name} is in {config.region}; leave out --region {region}")
    made = make_plan(
        model,
        load,
        region=config.region,
        contexts=contexts,
        foundation=Foundation(nat_gateways=config.nat_gateways),
    )
    path = loader.FOLDER / f"{name}.yaml"
    real = [slug for slug, settings in SETTINGS.items() if settings]
    with tempfile.TemporaryDirectory() as scratch:
        # Sizes that the environment's own rules refuse are refused before its file is touched.
        folder = Path(scratch) / loader.FOLDER.name
        folder.mkdir()
        trial = Path(shutil.copy(path, folder))
        write(made, trial, slugs=real)
        load_environments(name, settings=SETTINGS, folder=folder)
    changes = write(made, path, slugs=real)
    for change in changes:
        output.say(f"{path.name}: {change.key}: {change.before} -> {change.after}")
    if not changes:
        output.say(f"{path.name}: nothing to change")
    return made
