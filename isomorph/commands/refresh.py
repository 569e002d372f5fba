"""`isomorph refresh`: replace a fleet's machines."""

import time

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError

_ENDED = {"Successful", "Failed", "Cancelled", "RollbackSuccessful", "RollbackFailed"}


@click.command()
@click.argument("name", metavar="ENV")
@click.argument("slug")
@click.option(
    "--healthy", default=90, show_default=True, type=click.IntRange(0, 100), metavar="PERCENT",
    help="How much of the fleet must stay in service.",
)  # fmt: skip
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it ends.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def refresh(name: str, slug: str, healthy: int, wait: bool, json_: bool) -> None:
    """Replace the machines of ENV/SLUG, a part at a time, each after its successor is healthy."""
    from botocore.exceptions import ClientError

    environment = load(name)
    group = environment.outputs(slug).get("Fleet")
    if group is None:
        raise UserError(f"{environment.stack(slug)} has no fleet to refresh")
    client = environment.client("autoscaling")
    preferences = {"MinHealthyPercentage": healthy, "MaxHealthyPercentage": max(110, healthy)}
    try:
        started = client.start_instance_refresh(AutoScalingGroupName=group, Preferences=preferences)
    except ClientError as error:
        message = error.response["Error"]["Message"]
        raise UserError(f"AWS refused to refresh {group}: {message}") from None
    state = {"InstanceRefreshId": started["InstanceRefreshId"], "Status": "Pending"}
    if wait:
        with output.step(f"refresh the machines of {name}/{slug}") as notes:
            while state["Status"] not in _ENDED:
                time.sleep(1)
                [state] = client.describe_instance_refreshes(
                    AutoScalingGroupName=group, InstanceRefreshIds=[started["InstanceRefreshId"]]
                )["InstanceRefreshes"]
            notes.append(state["Status"])
        if state["Status"] != "Successful":
            why = state.get("StatusReason", "no reason given")
            raise UserError(f"the refresh of {group} ended as {state['Status']}: {why}")
    if json_:
        output.as_json(
            {"fleet": group, "id": state["InstanceRefreshId"], "status": state["Status"]}
        )
