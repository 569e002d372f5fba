"""The machines that a group wants are booted, watched, replaced and ended."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.local_aws import fleet
from tests.local_aws.conftest import Emulator, until

DRAIN = {
    "LifecycleHookName": "drain",
    "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
    "HeartbeatTimeout": 30,
    "DefaultResult": "CONTINUE",
}
ROLLING = {
    "AutoScalingRollingUpdate": {
        "MaxBatchSize": 1,
        "PauseTime": "PT20S",
        "WaitOnResourceSignals": True,
    }
}


@dataclass
class Fleet:
    """A deployed fleet."""

    emulator: Emulator
    stack: str

    @property
    def group(self) -> str:
        return self.emulator.resources(self.stack)["Group"].physical_id

    @property
    def host(self) -> str:
        found = self.emulator.client("cloudformation").describe_stacks(StackName=self.stack)
        return str(found["Stacks"][0]["Outputs"][0]["OutputValue"])

    def ask(self, path: str = "/v1/models", host: str | None = None) -> dict[str, Any]:
        answer = httpx.get(
            self.emulator.running.endpoint + path, headers={"Host": host or self.host}
        )
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def pid(self) -> int | None:
        """Return the process that answers, if one does."""
        try:
            return int(self.ask()["pid"])
        except httpx.HTTPError:
            return None

    def machines(self) -> list[dict[str, Any]]:
        group = self.group
        return [one for one in self.emulator.running.machines() if one["group"] == group]

    def ready(self, count: int = 1) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            found = self.machines()
            good = [one for one in found if one["ready"]]
            return good if len(good) == count == len(found) else None

        return until(look, f"{count} machines that serve")

    def scale(self, count: int) -> None:
        self.emulator.client("autoscaling").set_desired_capacity(
            AutoScalingGroupName=self.group, DesiredCapacity=count
        )


def metadata(endpoint: str, path: str) -> str:
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = httpx.put(f"{endpoint}latest/api/token", headers=seconds).raise_for_status()
    headers = {"X-aws-ec2-metadata-token": token.text}
    return httpx.get(f"{endpoint}latest/{path}", headers=headers).raise_for_status().text


@pytest.fixture(scope="module")
def web(emulator: Emulator) -> Iterator[Fleet]:
    """A fleet that every test leaves with one machine that serves."""
    more = 'aws sts get-caller-identity --query Account --output text > "$ISOMORPH_ROOT/account"'
    template = fleet.template(
        fleet.boot(more=more), group={"LifecycleHookSpecificationList": [DRAIN]}
    )
    assert emulator.create("web", template) == "CREATE_COMPLETE"
    made = Fleet(emulator, "web")
    made.ready()
    yield made
    assert emulator.delete("web") == "DELETE_COMPLETE"
    assert emulator.running.machines() == []


def test_the_server_answers_through_the_load_balancer(web: Fleet) -> None:
    assert web.ask("/v1/models?limit=2")["path"] == "/v1/models?limit=2"
    assert web.ask("/health")["version"] == "1"  # the control plane does not take it


def test_a_machine_knows_nothing_of_the_repository(web: Fleet) -> None:
    [machine] = web.machines()
    root = str(Path(machine["console"]).parent)
    about = web.ask()
    environment = about["environment"]
    assert about["cwd"] == f"{root}/srv"
    assert environment["HOME"] == environment["ISOMORPH_ROOT"] == root
    assert environment["PATH"] == f"{root}/bin:/usr/bin:/bin"
    assert "PYTHONPATH" not in environment
    repository = str(Path(__file__).parents[2])
    assert repository not in json.dumps(about)


def test_a_unit_gets_its_variables_and_its_state_folder(web: Fleet) -> None:
    environment = web.ask()["environment"]
    assert environment["FROM_UNIT"] == "yes"
    assert environment["FROM_FILE"] == "a value"
    assert Path(environment["STATE_DIRECTORY"]).is_dir()


def test_a_machine_has_the_real_aws_cli(web: Fleet) -> None:
    [machine] = web.machines()
    account = Path(machine["console"]).with_name("account")
    assert until(lambda: account.exists() and account.read_text(), "the CLI's answer") == (
        "000000000000\n"
    )


def test_a_machine_is_an_instance_to_every_api(web: Fleet) -> None:
    [machine] = web.machines()
    client = web.emulator.client
    [member] = client("autoscaling").describe_auto_scaling_instances(InstanceIds=[machine["id"]])[
        "AutoScalingInstances"
    ]
    assert member["AutoScalingGroupName"] == web.group
    assert (member["LifecycleState"], member["HealthStatus"]) == ("InService", "HEALTHY")
    [group] = client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[web.group])[
        "AutoScalingGroups"
    ]
    assert [one["InstanceId"] for one in group["Instances"]] == [machine["id"]]
    [made] = client("ec2").describe_instances(InstanceIds=[machine["id"]])["Reservations"]
    assert made["Instances"][0]["State"]["Name"] == "running"
    assert made["Instances"][0]["InstanceType"] == "c7i.large"
    targets = web.emulator.resources("web")["Targets"].physical_id
    [target] = client("elbv2").describe_target_health(TargetGroupArn=targets)[
        "TargetHealthDescriptions"
    ]
    assert target["Target"] == {"Id": machine["id"], "Port": 8080}
    assert target["TargetHealth"]["State"] == "healthy"


def test_instance_metadata_want_a_token(web: Fleet) -> None:
    [machine] = web.machines()
    endpoint = web.ask()["environment"]["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    assert metadata(endpoint, "meta-data/instance-id") == machine["id"]
    assert metadata(endpoint, "meta-data/placement/availability-zone") == "us-east-1c"
    assert metadata(endpoint, "meta-data/placement/region") == "us-east-1"
    assert metadata(endpoint, "meta-data/autoscaling/target-lifecycle-state") == "InService"
    document = json.loads(metadata(endpoint, "dynamic/instance-identity/document"))
    assert document["accountId"] == "000000000000"
    asked = f"{endpoint}latest/meta-data/instance-id"
    assert httpx.get(asked).status_code == 401
    assert httpx.get(asked, headers={"X-aws-ec2-metadata-token": "guessed"}).status_code == 401
    assert httpx.put(f"{endpoint}latest/api/token").status_code == 400


def test_a_killed_server_is_restarted(web: Fleet) -> None:
    [before] = web.machines()
    os.kill(before["pid"], signal.SIGKILL)

    def restarted() -> bool:
        [now] = web.machines()
        return bool(now["ready"] and now["pid"] not in (None, before["pid"]))

    until(restarted, "the restart of the server")
    [after] = web.machines()
    assert (after["id"], after["restarts"]) == (before["id"], before["restarts"] + 1)
    assert until(lambda: web.pid(), "its answer") == after["pid"]


def test_scaling_out_and_in_with_a_hook_that_drains(web: Fleet) -> None:
    autoscaling = web.emulator.client("autoscaling")
    [first] = web.machines()
    web.scale(2)
    both = web.ready(2)
    assert {web.ask()["pid"] for _ in range(4)} == {one["pid"] for one in both}

    web.scale(1)
    leaving = until(
        lambda: [one for one in web.machines() if one["state"] == "Terminating:Wait"],
        "the hook",
    )[0]
    [staying] = [one for one in web.machines() if one != leaving]
    assert leaving["id"] == first["id"]  # the oldest goes
    assert {web.ask()["pid"] for _ in range(4)} == {staying["pid"]}
    endpoint = f"http://127.0.0.1:{web.emulator.running.port}/_isomorph/imds/{leaving['id']}/"
    assert metadata(endpoint, "meta-data/autoscaling/target-lifecycle-state") == "Terminated"
    autoscaling.record_lifecycle_action_heartbeat(
        AutoScalingGroupName=web.group, LifecycleHookName="drain", InstanceId=leaving["id"]
    )
    os.kill(leaving["pid"], 0)  # it may still finish what it has begun
    autoscaling.complete_lifecycle_action(
        AutoScalingGroupName=web.group,
        LifecycleHookName="drain",
        InstanceId=leaving["id"],
        LifecycleActionResult="CONTINUE",
    )
    web.ready(1)
    with pytest.raises(ProcessLookupError):
        os.kill(leaving["pid"], 0)
    assert not Path(leaving["console"]).exists()
    with pytest.raises(ClientError, match=f"No active Lifecycle Action found .* {leaving['id']}"):
        autoscaling.complete_lifecycle_action(
            AutoScalingGroupName=web.group,
            LifecycleHookName="drain",
            InstanceId=leaving["id"],
            LifecycleActionResult="CONTINUE",
        )


def test_fails_when_the_capacity_is_out_of_bounds(web: Fleet) -> None:
    with pytest.raises(ClientError, match="value 5 is above max value 4"):
        web.scale(5)


def test_an_unhealthy_machine_is_replaced(web: Fleet) -> None:
    [sick] = web.machines()
    web.emulator.client("autoscaling").delete_lifecycle_hook(
        AutoScalingGroupName=web.group, LifecycleHookName="drain"
    )
    Path(sick["console"]).with_name("broken").touch()
    until(lambda: web.pid() is None, "the end of traffic to it")
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        web.ask()
    until(lambda: any(one["ready"] for one in web.machines()), "another machine")
    [reason] = [one["reason"] for one in web.machines() if one["id"] == sick["id"]]
    assert "/health answered 500" in reason or reason == "isomorph: drained"


def test_an_instance_refresh_replaces_every_machine(web: Fleet) -> None:
    autoscaling = web.emulator.client("autoscaling")
    before = {one["id"] for one in web.machines() if one["ready"]}
    refresh = autoscaling.start_instance_refresh(AutoScalingGroupName=web.group)
    with pytest.raises(ClientError, match="already in progress"):
        autoscaling.start_instance_refresh(AutoScalingGroupName=web.group)

    def done() -> bool:
        [found] = autoscaling.describe_instance_refreshes(
            AutoScalingGroupName=web.group, InstanceRefreshIds=[refresh["InstanceRefreshId"]]
        )["InstanceRefreshes"]
        return bool(found["Status"] == "Successful" and found["PercentageComplete"] == 100)

    until(done, "the refresh")
    after = {one["id"] for one in web.machines() if one["ready"]}
    assert len(after) == 1
    assert not before & after


def test_a_new_version_rolls_without_a_failed_request(emulator: Emulator) -> None:
    first = fleet.template(fleet.boot("1"), UpdatePolicy=ROLLING)
    assert emulator.create("rolling", first) == "CREATE_COMPLETE"
    web = Fleet(emulator, "rolling")
    web.ready()
    host, over, seen = web.host, threading.Event(), []

    def keep_asking() -> None:
        while not over.is_set():
            try:
                seen.append(web.ask(host=host)["version"])
            except httpx.HTTPError as error:
                seen.append(repr(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
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
