"""`isomorph stop`: end a training run."""

import time

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError

_PAUSE_S = 1.0


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--job", type=click.IntRange(1), help="Left out, the newest that runs.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def stop(slug: str, name: str, job: int | None, wait: bool, json_: bool) -> None:
    """Stop a run of SLUG (moe) on ENV's cluster; its ranks save a checkpoint first."""
    from isomorph.training.cluster import ENDED, TrainingCluster

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    cluster = TrainingCluster(load(name))
    found = cluster.job(job, running=job is None)
    with output.step(f"stop job {found['job']}, {found['name']}") as notes:
        cluster.ask("stop", str(found["job"]))
        while wait and found["state"] not in ENDED:
            time.sleep(_PAUSE_S)
            found = cluster.job(int(found["job"]))
        notes.append(str(found["state"]))
    if json_:
        output.as_json(found)
