"""`isomorph stop`: end a training run."""

import time

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--job", help="A number on Slurm, a name on EKS; left out, the newest that runs.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def stop(slug: str, name: str, job: str | None, wait: bool, json_: bool) -> None:
    """Stop a run of SLUG (moe) on ENV's cluster; its ranks save a checkpoint first."""
    from isomorph.training.cluster import TrainingCluster
    from isomorph.training.jobs import ENDED, PAUSE_S, find

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    jobs = TrainingCluster(load(name)).jobs()
    found = find(jobs, job, running=True)
    with output.step(f"stop job {found['job']}, {found['name']}") as notes:
        jobs.stop(found)
        while wait and found["state"] not in ENDED:
            time.sleep(PAUSE_S)
            found = find(jobs, str(found["job"]))
        notes.append(str(found["state"]))
    if json_:
        output.as_json(found)
