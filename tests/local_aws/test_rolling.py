"""A stack waits for its machines: new versions roll, and what does not come up is rolled back."""

import re
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.local_aws import fleet
from tests.local_aws.conftest import Emulator, until
from tests.local_aws.fleet import Fleet

ROLLING = {
    "AutoScalingRollingUpdate": {
        "MaxBatchSize": 1,
        "PauseTime": "PT20S",
        "WaitOnResourceSignals": True,
    }
}


def test_a_new_version_rolls_without_a_failed_request(emulator: Emulator) -> None:
    first = fleet.template(fleet.boot("1"), UpdatePolicy=ROLLING)
    assert emulator.create("rolling", first) == "CREATE_COMPLETE"
    web = Fleet(emulator, "rolling")
    web.ready()
    host, over, seen = web.host, threading.Event(), []

    def keep_asking() -> None:
        while not over.wait(0.02):
            try:
                seen.append(web.ask(host=host)["version"])
            except httpx.HTTPError as error:
                seen.append(repr(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        until(lambda: seen, "an answer of the first version")
        signals = fleet.ID + fleet.SIGNAL.format(stack="rolling", status="SUCCESS")
        changed = fleet.template(fleet.boot("2", more=signals), UpdatePolicy=ROLLING)
        assert emulator.update("rolling", changed) == "UPDATE_COMPLETE"
    finally:
        over.set()
        asking.join()
    assert set(seen) == {"1", "2"}
    assert web.ask()["version"] == "2"

    broken = fleet.template(
        "#!/bin/sh\necho 'isomorph: no wheels' >&2\nexit 3\n", UpdatePolicy=ROLLING
    )
    assert emulator.update("rolling", broken) == "UPDATE_ROLLBACK_COMPLETE"
    assert "isomorph: no wheels" in emulator.failure("rolling")
    assert web.ask()["version"] == "2"
    [machine] = [one for one in web.machines() if one["state"] == "InService"]
    assert machine["ready"]
    assert emulator.delete("rolling") == "DELETE_COMPLETE"


@pytest.mark.parametrize(
    ("status", "user_data", "outcome", "said"),
    [
        ("SUCCESS", "", "CREATE_COMPLETE", None),
        ("FAILURE", "", "ROLLBACK_COMPLETE", "i-[0-9a-f]+: isomorph: digest of code.zip differs"),
        (None, "exit 1", "ROLLBACK_COMPLETE", "no instance came up: isomorph: digest of code.zip"),
    ],
)
def test_a_stack_waits_for_the_signals_of_its_machines(
    emulator: Emulator, status: str | None, user_data: str, outcome: str, said: str | None
) -> None:
    stack = f"signal-{status or 'none'}"
    complaint = "true" if status == "SUCCESS" else "echo 'isomorph: digest of code.zip differs'"
    signals = fleet.ID + fleet.SIGNAL.format(stack=stack, status=status) if status else ""
    more = "\n".join([complaint, signals, user_data])
    creation = {"ResourceSignal": {"Count": 1, "Timeout": "PT30S"}}
    template = fleet.template(fleet.boot(more=more), CreationPolicy=creation)
    assert emulator.create(stack, template) == outcome
    if said:
        assert re.search(said, emulator.failure(stack))
    assert emulator.delete(stack) == "DELETE_COMPLETE"


def test_a_group_that_grows_from_nothing_waits_for_the_signals_too(emulator: Emulator) -> None:
    nothing = {"DesiredCapacity": "0", "LifecycleHookSpecificationList": [fleet.DRAIN]}
    empty = fleet.template(fleet.boot(), group=nothing, UpdatePolicy=ROLLING)
    assert emulator.create("growing", empty) == "CREATE_COMPLETE"
    signal_failure = fleet.SIGNAL.format(stack="growing", status="FAILURE")
    failing = "\n".join(["echo isomorph: no weights", fleet.ID, signal_failure, "exit 1"])
    grown = fleet.template(
        fleet.boot(more=failing), group={**nothing, "DesiredCapacity": "1"}, UpdatePolicy=ROLLING
    )
    assert emulator.update("growing", grown) == "UPDATE_ROLLBACK_COMPLETE"
    assert re.match(
        r"Received 1 FAILURE signal\(s\) out of 1\. .*; i-\w+: isomorph: no weights",
        emulator.failure("growing"),
    )
    fleet_of_none = Fleet(emulator, "growing")
    until(
        lambda: all(one["state"] == "Terminated" for one in fleet_of_none.machines()),
        "the end of its machine, for which no hook is waited",
    )
    assert emulator.delete("growing") == "DELETE_COMPLETE"


def test_a_group_stops_after_three_failed_boots_and_says_why(emulator: Emulator) -> None:
    user_data = "#!/bin/sh\necho 'isomorph: disk full'\nexit 1\n"
    assert emulator.create("hopeless", fleet.template(user_data)) == "CREATE_COMPLETE"
    hopeless = Fleet(emulator, "hopeless")

    def failed() -> list[str] | None:
        found = hopeless.machines()
        ended = [one["reason"] for one in found if one["state"] == "Terminated"]
        return ended if len(ended) == len(found) == 3 else None

    assert until(failed, "the third failure") == ["isomorph: disk full"] * 3
    activities = emulator.client("autoscaling").describe_scaling_activities(
        AutoScalingGroupName=hopeless.group
    )["Activities"]
    launches = [one for one in activities if "Launching" in one["Description"]]
    assert [one["StatusMessage"] for one in launches] == ["isomorph: disk full"] * 3
    time.sleep(1)
    assert len(hopeless.machines()) == 3
    console = Path(hopeless.machines()[0]["console"])
    assert "isomorph: disk full" in console.read_text()
    assert emulator.delete("hopeless") == "DELETE_COMPLETE"


def test_an_abandoned_launch_is_a_failed_boot(emulator: Emulator) -> None:
    hook = {
        "LifecycleHookName": "launch",
        "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
        "HeartbeatTimeout": 30,
        "DefaultResult": "ABANDON",
    }
    template = fleet.template(fleet.boot(), group={"LifecycleHookSpecificationList": [hook]})
    assert emulator.create("hooked", template) == "CREATE_COMPLETE"
    hooked = Fleet(emulator, "hooked")

    def complete(result: str) -> str:
        waiting = until(
            lambda: [one for one in hooked.machines() if one["state"] == "Pending:Wait"],
            "the hook",
        )[0]
        emulator.client("autoscaling").complete_lifecycle_action(
            AutoScalingGroupName=hooked.group,
            LifecycleHookName="launch",
            InstanceId=waiting["id"],
            LifecycleActionResult=result,
        )
        return str(waiting["id"])

    abandoned = complete("ABANDON")
    until(
        lambda: [
            one
            for one in hooked.machines()
            if one["id"] == abandoned and one["reason"] and one["state"] == "Terminated"
        ],
        "its end",
    )
    continued = complete("CONTINUE")
    until(lambda: [one for one in hooked.machines() if one["ready"]], "the one that goes on")
    assert [one["id"] for one in hooked.machines() if one["ready"]] == [continued]
    assert emulator.delete("hooked") == "DELETE_COMPLETE"
