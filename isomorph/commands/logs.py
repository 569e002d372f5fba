"""`isomorph logs`: what a training run prints."""

import json

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--job", help="A number on Slurm, a name on EKS; left out, the newest.")
@click.option("--follow", is_flag=True, help="Until the run has ended; exit code 1 if it failed.")
@click.option("--json", "json_", is_flag=True, help="Print JSON: a line for each part of the log.")
def logs(slug: str, name: str, job: str | None, follow: bool, json_: bool) -> None:
    """Print the log of a run of SLUG (moe) on ENV's cluster."""
    from isomorph.training.cluster import TrainingCluster
    from isomorph.training.jobs import find

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    jobs = TrainingCluster(load(name)).jobs()
    found = find(jobs, job)
    state, why = str(found["state"]), ""
    for part in jobs.log(found, follow=follow):
        click.echo(json.dumps({"job": found["job"], **part}) if json_ else part["text"], nl=json_)
        if part["why"] not in ("", why):
            output.say(f"job {found['job']} is {part['state']}: {part['why']}")
        state, why = part["state"], part["why"]
    if follow and state != "done":
        raise UserError(f"job {found['job']} has ended: {state}")
