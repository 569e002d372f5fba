"""`isomorph status`: what is deployed in an environment, and how it fares."""

from typing import Any

import click

from isomorph import fleets, output
from isomorph.environments import Environment, load
from isomorph.errors import UserError
from isomorph.training.cluster import TrainingCluster


def _stack(environment: Environment, stack: str) -> dict[str, Any]:
    """Return one stack's state, with its machines if it has any."""
    described = environment.describe(stack)
    found: dict[str, Any] = {"stack": environment.stack(stack)}
    if described is None:
        return {**found, "status": "not deployed", "outputs": {}}
    found.update(described)
    if there := fleets.groups(found["outputs"]):
        found["fleets"] = {name: _fleet(environment, group) for name, group in there.items()}
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


def _fleet(environment: Environment, group: str) -> dict[str, Any]:
    """Return how many machines a fleet wants, and each that it has."""
    described = fleets.describe(environment, group)
    return {
        "group": group,
        "desired": described["DesiredCapacity"],
        "machines": [
            {
                "id": row["InstanceId"],
                "state": row["LifecycleState"],
                "health": row["HealthStatus"],
                "zone": row["AvailabilityZone"],
            }
            for row in described["Instances"]
        ],
    }


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
    there = jobs.all()
    if json_:
        output.as_json(there)
        return
    rows = [tuple(str(job.get(column, "")) for column in jobs.columns) for job in there]
    output.table(jobs.columns, rows)


def _machines(row: dict[str, Any]) -> str:
    """Return how many machines serve, or nodes run, of how many are wanted."""
    if "nodes" in row:
        running = sum(node["state"] == "Running" for node in row["nodes"])
        return f"{running} of {len(row['nodes'])} nodes run"
    there = row.get("fleets", {})
    return ", ".join(
        (f"{name} " if len(there) > 1 else "") + _in_service(fleet) for name, fleet in there.items()
    )


def _in_service(fleet: dict[str, Any]) -> str:
    serving = sum(machine["state"] == "InService" for machine in fleet["machines"])
    return f"{serving} of {fleet['desired']} in service"
