"""The fleets of a deployed stack: its only one, or one for each pool and canary."""

import time
from collections.abc import Mapping
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.paths import state


def groups(outputs: Mapping[str, str]) -> dict[str, str]:
    """Return the Auto Scaling groups that a stack put out, by the names of its fleets."""
    if "Fleets" in outputs:
        pairs = [each.partition("=") for each in outputs["Fleets"].split(",")]
        return {name: group for name, _, group in pairs}
    return {"fleet": outputs["Fleet"]} if "Fleet" in outputs else {}


def describe(environment: Environment, group: str) -> dict[str, Any]:
    """Return an Auto Scaling group as AWS describes it.

    Raises:
        UserError: it is not there any more, or AWS refuses the caller.
    """
    with environment.aws_errors():
        found = environment.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[group]
        )["AutoScalingGroups"]
    if not found:
        raise UserError(
            f"the Auto Scaling group {group} of {environment.name} is gone, though its stack names "
            f"it; deploy the stack again"
        )
    described: dict[str, Any] = found[0]
    return described


def wait_until_served(environment: Environment, stack: str, *, seconds: float = 120) -> list[str]:
    """Wait until as many machines of each fleet are in service as it wants, and return their ids.

    Raises:
        UserError: not in time, or a machine that gave up; the message has the machine's own words.
    """
    deadline = time.monotonic() + seconds
    return [
        machine
        for group in groups(environment.outputs(stack)).values()
        for machine in _wait_for(environment, stack, group, deadline, seconds)
    ]


def _wait_for(
    environment: Environment, stack: str, group: str, deadline: float, seconds: float
) -> list[str]:
    while True:
        fleet = describe(environment, group)
        served: list[str] = [
            row["InstanceId"]
            for row in fleet["Instances"]
            if row["LifecycleState"] == "InService" and row["HealthStatus"] == "Healthy"
        ]
        if fleet["DesiredCapacity"] and len(served) >= fleet["DesiredCapacity"]:
            return served
        if time.monotonic() > deadline:
            raise UserError(
                f"{environment.stack(stack)}: {len(served)} of {fleet['DesiredCapacity']} machines "
                f"serve after {seconds:.0f} s; {machines_say(environment, group)}"
            )
        time.sleep(0.25)


def machines_say(environment: Environment, group: str) -> str:
    """Return the last machine's own reason for not serving, as far as it can be known from here."""
    if not environment.embedded:
        return f"see the instances' system log, and the activity history of {group}"
    from local_aws import daemon

    running = daemon.status(state())
    rows = [row for row in running.machines() if row["group"] == group] if running else []
    reasons = [row["reason"] for row in rows if row["reason"]]
    return reasons[-1] if reasons else "no machine has given a reason"
