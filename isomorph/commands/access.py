"""`isomorph access`: what namespaces on EKS need before there are runs."""

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError


@click.command()
@click.argument("slug")
@click.option("--env", "name", default="local", show_default=True, help="The environment.")
@click.option("--manifests", is_flag=True, help="Print what would be applied; apply nothing.")
@click.option("--json", "json_", is_flag=True, help="Print JSON: what was applied.")
def access(slug: str, name: str, manifests: bool, json_: bool) -> None:
    """Let the roles of ENV's file run SLUG (moe) on its EKS cluster; for an admin, once.

    Makes in each namespace of runs the service account, the volume of the file system with its
    claim, and the rights of the group that the members' access entries name. It may run again.
    """
    from isomorph.training import places
    from isomorph.training.cluster import TrainingCluster
    from isomorph.training.eks_jobs import connect
    from isomorph.training.manifests import dump

    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    cluster = TrainingCluster(load(name))
    if "EksCluster" not in cluster.outputs:
        raise UserError(
            f"{cluster.name} is orchestrated by Slurm: whoever may start sessions on its "
            f"controller runs jobs (docs/training.md)"
        )
    wanted = places.access(
        cluster.outputs, places.published(cluster.environment, cluster.outputs).lustre
    )
    if manifests:
        click.echo(dump(wanted), nl=False)
        return
    api = connect(cluster.environment, cluster.outputs)
    for each in wanted:
        metadata = each["metadata"]
        where = f" in {metadata['namespace']}" if "namespace" in metadata else ""
        with output.step(f"{each['kind']} {metadata['name']}{where}"):
            api.apply(each)
    if json_:
        output.as_json([{"kind": each["kind"], **each["metadata"]} for each in wanted])
