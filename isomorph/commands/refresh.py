"""`isomorph refresh`: replace a fleet's machines."""

import time
from typing import Any

import click

from isomorph import fleets, output
from isomorph.ask_halves import answers
from isomorph.environments import Environment, load
from isomorph.errors import UserError

_ENDED = {"Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed"}


@click.command()
@click.argument("name", metavar="ENV")
@click.argument("slug")
@click.option("--pool", help="Only this pool's machines, or its canary's.")
@click.option(
    "--healthy", default=90, show_default=True, type=click.IntRange(0, 100), metavar="PERCENT",
    help="How much of the fleet must stay in service.",
)  # fmt: skip
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it ends.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def refresh(name: str, slug: str, pool: str | None, healthy: int, wait: bool, json_: bool) -> None:
    """Replace the machines of ENV/SLUG, a part at a time, each after its successor is healthy.

    The fleets of pools take turns, one after the other is done.
    """
    environment = load(name)
    there = _groups(environment, slug, pool)
    done = []
    for fleet, group in there.items():
        which = f"{name}/{slug}" + (f", {fleet}" if len(there) > 1 else "")
        done.append(_refresh(environment, group, which, healthy=healthy, wait=wait))
    if json_:
        output.as_json(done if len(done) > 1 else done[0])


def _groups(environment: Environment, slug: str, pool: str | None) -> dict[str, str]:
    """Return the Auto Scaling groups to refresh, by the names of their fleets.

    Raises:
        UserError: there is no fleet, or none of this name.
    """
    stacks = [stack for stack in environment.stacks_of(slug) if answers(stack)]
    stack = stacks[0] if stacks else slug
    there = fleets.groups(environment.outputs(stack))
    if not there:
        raise UserError(f"{environment.stack(stack)} has no fleet to refresh")
    if pool is None:
        return there
    if pool not in there:
        raise UserError(f"no pool {pool!r}; {environment.stack(stack)} has: {', '.join(there)}")
    return {pool: there[pool]}


def _refresh(
    environment: Environment, group: str, which: str, *, healthy: int, wait: bool
) -> dict[str, Any]:
    """Replace one group's machines and return how that stands."""
    from botocore.exceptions import ClientError

    client = environment.client("autoscaling")
    preferences = {"MinHealthyPercentage": healthy, "MaxHealthyPercentage": max(110, healthy)}
    try:
        started = client.start_instance_refresh(AutoScalingGroupName=group, Preferences=preferences)
    except ClientError as error:
        message = error.response["Error"]["Message"]
        raise UserError(f"AWS refused to refresh {group}: {message}") from None
    state = {"InstanceRefreshId": started["InstanceRefreshId"], "Status": "Pending"}
    if wait:
        with output.step(f"refresh the machines of {which}") as notes:
            while state["Status"] not in _ENDED:
                time.sleep(1)
                [state] = client.describe_instance_refreshes(
                    AutoScalingGroupName=group, InstanceRefreshIds=[started["InstanceRefreshId"]]
                )["InstanceRefreshes"]
            notes.append(state["Status"])
        if state["Status"] != "Successful":
            why = state.get("StatusReason", "no reason given")
            raise UserError(f"the refresh of {group} ended as {state['Status']}: {why}")
    return {"fleet": group, "id": state["InstanceRefreshId"], "status": state["Status"]}
