"""The machines that a group wants are booted, watched, replaced and ended."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from botocore.exceptions import ClientError

from tests.local_aws import fleet
from tests.local_aws.conftest import Emulator, alive, until
from tests.local_aws.fleet import Fleet


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
        fleet.boot(more=more), group={"LifecycleHookSpecificationList": [fleet.DRAIN]}
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
    [staying] = [one for one in web.machines() if one["id"] != leaving["id"]]
    assert leaving["id"] == first["id"]  # the oldest goes
    assert {web.ask()["pid"] for _ in range(4)} == {staying["pid"]}
    endpoint = f"http://127.0.0.1:{web.emulator.running.port}/_isomorph/imds/{leaving['id']}/"
    assert metadata(endpoint, "meta-data/autoscaling/target-lifecycle-state") == "Terminated"
    autoscaling.record_lifecycle_action_heartbeat(
        AutoScalingGroupName=web.group, LifecycleHookName="drain", InstanceId=leaving["id"]
    )
    assert alive(leaving["pid"])  # it may still finish what it has begun
    autoscaling.complete_lifecycle_action(
        AutoScalingGroupName=web.group,
        LifecycleHookName="drain",
        InstanceId=leaving["id"],
        LifecycleActionResult="CONTINUE",
    )
    web.ready(1)
    assert not alive(leaving["pid"])
    assert not Path(leaving["console"]).exists()
    with pytest.raises(ClientError, match=f"No active Lifecycle Action found .* {leaving['id']}"):
        autoscaling.complete_lifecycle_action(
            AutoScalingGroupName=web.group,
            LifecycleHookName="drain",
            InstanceId=leaving["id"],
            LifecycleActionResult="CONTINUE",
        )


def test_a_machine_whose_init_dies_is_replaced_and_leaves_no_process(web: Fleet) -> None:
    [before] = web.machines()
    init = Path(before["console"]).with_name("run") / "init.pid"
    os.kill(int(init.read_text()), signal.SIGKILL)
    until(
        lambda: any(one["ready"] and one["id"] != before["id"] for one in web.machines()),
        "another machine",
    )
    if sys.platform == "linux":  # elsewhere its services live until they are asked to end
        assert not alive(before["pid"])
    [reason] = {one["reason"] for one in web.machines() if one["id"] == before["id"]}
    assert reason == "the machine's init died"


def test_fails_when_the_capacity_is_out_of_bounds(web: Fleet) -> None:
    with pytest.raises(ClientError, match="value 5 is above max value 4"):
        web.scale(5)


def test_an_unhealthy_machine_is_replaced(web: Fleet) -> None:
    [sick] = [one for one in web.machines() if one["ready"]]
    Path(sick["console"]).with_name("broken").touch()
    until(lambda: web.pid() is None, "the end of traffic to it")
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        web.ask()
    until(
        lambda: any(one["ready"] and one["id"] != sick["id"] for one in web.machines()),
        "another machine",
    )
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

    leaving = until(
        lambda: [one for one in web.machines() if one["state"] == "Terminating:Wait"],
        "the hook",
    )[0]
    assert leaving["id"] in before
    # Nobody answers the hook any more: what waits for it goes on.
    autoscaling.delete_lifecycle_hook(AutoScalingGroupName=web.group, LifecycleHookName="drain")
    until(done, "the refresh")
    after = {one["id"] for one in web.machines() if one["ready"]}
    assert len(after) == 1
    assert not before & after
