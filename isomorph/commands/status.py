"""`isomorph status`: what is deployed in an environment, and how it fares."""

from typing import Any

import click

from isomorph import output
from isomorph.environments import Environment, load
from isomorph.errors import UserError
from isomorph.training.cluster import TrainingCluster


def _stack(environment: Environment, stack: str) -> dict[str, Any]:
    """Return one stack's state, with its fleet's machines if it has a fleet."""
    described = environment.describe(stack)
    found: dict[str, Any] = {"stack": environment.stack(stack)}
    if described is None:
        return {**found, "status": "not deployed", "outputs": {}}
    found.update(described)
    if "Fleet" in found["outputs"]:
        with environment.aws_errors():
            [group] = environment.client("autoscaling").describe_auto_scaling_groups(
                AutoScalingGroupNames=[found["outputs"]["Fleet"]]
            )["AutoScalingGroups"]
        found["desired"] = group["DesiredCapacity"]
        found["machines"] = [
            {
                "id": row["InstanceId"],
                "state": row["LifecycleState"],
                "health": row["HealthStatus"],
                "zone": row["AvailabilityZone"],
            }
            for row in group["Instances"]
        ]
    if "ClusterName" in found["outputs"]:
        found["nodes"] = [
            {
                "id": row["InstanceId"],
                "group": row["InstanceGroupName"],
                "type": row["InstanceType"],
                "state": row["InstanceStatus"]["Status"],
                "said": row["InstanceStatus"].get("Message", ""),
            }
            for row in TrainingCluster(environment).nodes()
        ]
    return found


@click.command()
@click.argument("name", metavar="[ENV]", default="local")
@click.argument("slug", required=False)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def status(name: str, slug: str | None, json_: bool) -> None:
    """Show the stacks of ENV (local, if left out), their machines and what they serve.

    With SLUG (moe), the runs on its training cluster.
    """
    environment = load(name)
    if slug is not None:
        _runs(environment, slug, json_=json_)
        return
    rows = [_stack(environment, stack) for stack in ("foundation", *environment.stack_ids())]
    if json_:
        output.as_json(rows)
        return
    output.table(
        ["stack", "status", "machines", "endpoint", "weights"],
        [
            (
                row["stack"],
                row["status"],
                _machines(row),
                row["outputs"].get("Endpoint", ""),
                row["outputs"].get("Weights", ""),
            )
            for row in rows
        ],
    )


def _runs(environment: Environment, slug: str, *, json_: bool) -> None:
    """Show the runs on a training cluster, the newest first."""
    if slug != "moe":
        raise UserError(f"{slug!r} has no training cluster; moe has one")
    jobs = TrainingCluster(environment).jobs()
    if json_:
        output.as_json(jobs)
        return
    columns = ["job", "name", "state", "config", "steps", "nodes", "slurm", "begun"]
    rows = [tuple(str(job.get(column, "")) for column in columns) for job in jobs]
    output.table(columns, rows)


def _machines(row: dict[str, Any]) -> str:
    """Return how many machines serve, or nodes run, of how many are wanted."""
    if "nodes" in row:
        running = sum(node["state"] == "Running" for node in row["nodes"])
        return f"{running} of {len(row['nodes'])} nodes run"
    if "machines" not in row:
        return ""
    serving = sum(machine["state"] == "InService" for machine in row["machines"])
    return f"{serving} of {row['desired']} in service"
