"""`isomorph logs`: what a training run prints."""

import json
import time

import click

from isomorph.environments import load
from isomorph.errors import UserError

_PAUSE_S = 1.0


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--job", type=click.IntRange(1), help="Left out, the newest.")
@click.option("--follow", is_flag=True, help="Until the run has ended; exit code 1 if it failed.")
@click.option("--json", "json_", is_flag=True, help="Print JSON: a line for each part of the log.")
def logs(slug: str, name: str, job: int | None, follow: bool, json_: bool) -> None:
    """Print the log of a run of SLUG (moe) on ENV's cluster."""
    from isomorph.training.cluster import ENDED, TrainingCluster

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    cluster = TrainingCluster(load(name))
    number = str(cluster.job(job)["job"])
    first, state = 0, ""
    while True:
        [part] = cluster.ask("logs", number, str(first))
        click.echo(json.dumps({"job": int(number), **part}) if json_ else part["text"], nl=json_)
        nothing, first, state = part["next"] == first, part["next"], part["state"]
        if nothing and (not follow or state in ENDED):
            break
        if nothing:
            time.sleep(_PAUSE_S)
    if follow and state != "done":
        raise UserError(f"job {number} has ended: {state}")
