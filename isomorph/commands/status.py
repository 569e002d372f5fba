"""`isomorph status`: what is deployed in an environment, and how it fares."""

from typing import Any

import click

from isomorph import output
from isomorph.environments import Environment, load


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
    return found


@click.command()
@click.argument("name", metavar="[ENV]", default="local")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def status(name: str, json_: bool) -> None:
    """Show the stacks of ENV (local, if left out), their machines and what they serve."""
    environment = load(name)
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


def _machines(row: dict[str, Any]) -> str:
    """Return how many machines serve of how many are wanted."""
    if "machines" not in row:
        return ""
    serving = sum(machine["state"] == "InService" for machine in row["machines"])
    return f"{serving} of {row['desired']} in service"
