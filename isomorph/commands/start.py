"""`isomorph start`: start a training run on a deployed cluster."""

from pathlib import Path

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError

_POSITIVE, _WHOLE = click.IntRange(1), click.IntRange(0)


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--config", default="tiny", show_default=True, help="Name, or a .json file.")
@click.option("--steps", default=100, show_default=True, type=_POSITIVE, help="The last step.")
@click.option("--name", "run", help="Of the run and its checkpoints; left out, moe-CONFIG.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="UTF-8 text to learn from, more than once for more; left out, Python's own reference.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json.")
@click.option("--data", help="A folder of shards or texts below the cluster's data folder.")
@click.option("--nodes", type=_POSITIVE, help="Left out, all workers.")
@click.option("--ranks-per-node", type=_POSITIVE, help="Left out, one an accelerator.")
@click.option("--expert-parallel", type=_POSITIVE, help="Ranks that share the experts.")
@click.option("--batch", default=0, type=_WHOLE, help="Sequences a step; 0: as the config has it.")
@click.option("--held-out", default=2000, show_default=True, type=_WHOLE, help="Tokens.")
@click.option("--checkpoint-every", default=50, show_default=True, type=_POSITIVE)
@click.option("--restarts", default=3, show_default=True, type=_WHOLE, help="Of ranks that died.")
@click.option("--seed", default=0, show_default=True, type=_WHOLE)
@click.option("--team", help="On EKS: the team whose quota the run takes.")
@click.option(
    "--manifests", is_flag=True, help="On EKS: print what would be submitted; start nothing."
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def start(slug: str, name: str, json_: bool, **given: object) -> None:
    """Train SLUG (moe) on ENV's cluster; a run of the same name goes on from its checkpoint.

    On EKS, Kubernetes is asked with your AWS credentials. It answers inside of the VPC alone; who
    is not there gets with --manifests what `kubectl apply -f -` takes.
    """
    from isomorph.training.starting import start_run

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    started = start_run(load(name), **given)  # type: ignore[arg-type]  # checked by click
    if started.manifests is not None:
        click.echo(started.manifests, nl=False)
        return
    if json_:
        output.as_json(started.job)
        return
    output.say(
        f"job {started.job['job']}, {started.job['name']}, on {started.job['nodes']} nodes, by "
        f"{started.by}; "
        f"see it with `isomorph logs moe --env {name} --follow`"
    )
