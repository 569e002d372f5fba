"""What `isomorph status` and `isomorph refresh` make of a stack's fleets."""

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

from isomorph import fleets
from isomorph.commands.refresh import refresh
from isomorph.commands.status import status
from isomorph.environments import load
from isomorph.errors import UserError

REGION = load("dev").config.region
IMAGE = "ami-12c6146b"  # one of moto's; to ask it for all takes seconds each time
POOLS = {"Fleets": "code=group-code,code-canary=group-canary,prose=group-prose"}


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield


def deploy(stack: str, outputs: dict[str, str]) -> None:
    """Deploy a stack that puts this out, and nothing else."""
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    cloudformation = boto3.client("cloudformation", REGION)
    cloudformation.create_stack(StackName=stack, TemplateBody=json.dumps(template))


def make(group: str, machines: int) -> None:
    client = boto3.client("autoscaling", REGION)
    client.create_launch_configuration(
        LaunchConfigurationName=group, ImageId=IMAGE, InstanceType="m5.large"
    )
    client.create_auto_scaling_group(
        AutoScalingGroupName=group,
        LaunchConfigurationName=group,
        AvailabilityZones=[f"{REGION}a"],
        MinSize=machines,
        MaxSize=machines,
    )


@pytest.fixture
def pools() -> None:
    deploy("dev-moe-serving", POOLS)
    for group, machines in (("group-code", 2), ("group-canary", 1), ("group-prose", 3)):
        make(group, machines)


def run(command: Any, *words: str) -> str:
    done = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    if done.exception:
        raise done.exception
    return str(done.stdout)


def line_of(stack: str) -> str:
    [line] = [line for line in run(status, "dev").splitlines() if line.startswith(f"{stack} ")]
    return line


def test_status_shows_the_machines_of_every_pool_and_canary(pools: None) -> None:
    said = line_of("dev-moe-serving")
    assert "code 2 of 2 in service, code-canary 1 of 1 in service, prose 3 of 3 in serv" in said
    rows = {row["stack"]: row for row in json.loads(run(status, "dev", "--json"))}
    shown = rows["dev-moe-serving"]["fleets"]
    assert {name: len(fleet["machines"]) for name, fleet in shown.items()} == {
        "code": 2,
        "code-canary": 1,
        "prose": 3,
    }
    assert shown["prose"]["group"] == "group-prose"
    assert {each["state"] for each in shown["prose"]["machines"]} == {"InService"}


def test_status_shows_an_only_fleet_without_a_name() -> None:
    deploy("dev-gqa", {"Fleet": "group-gqa"})
    make("group-gqa", 2)
    assert line_of("dev-gqa").split("COMPLETE")[1].strip() == "2 of 2 in service"


def test_a_fleet_that_someone_deleted_is_said_in_one_line() -> None:
    deploy("dev-gqa", {"Fleet": "group-gqa"})
    wanted = "the Auto Scaling group group-gqa of dev is gone, though its stack names it; deploy"
    with pytest.raises(UserError, match=wanted):
        run(status, "dev")


@pytest.mark.parametrize(
    ("words", "refreshed"),
    [
        (("moe",), ["group-code", "group-canary", "group-prose"]),
        (("moe-serving", "--pool", "code-canary"), ["group-canary"]),
    ],
)
def test_refresh_replaces_the_machines_of_pools_in_turn(
    pools: None, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], refreshed: list[str]
) -> None:
    api = Refreshes(monkeypatch)
    told = json.loads(run(refresh, "dev", *words, "--json"))
    told = told if isinstance(told, list) else [told]
    assert [each["fleet"] for each in told] == refreshed
    assert {each["status"] for each in told} == {"Successful"}
    assert api.calls == [f"{verb} {group}" for group in refreshed for verb in ("start", "look")]


class Refreshes:
    """Instance refreshes, which moto does not know."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        call = boto3.client("autoscaling", REGION).__class__._make_api_call

        def answer(client: Any, operation: str, given: dict[str, Any]) -> Any:
            group = given.get("AutoScalingGroupName")
            if operation == "StartInstanceRefresh":
                self.calls.append(f"start {group}")
                return {"InstanceRefreshId": f"id-{group}"}
            if operation == "DescribeInstanceRefreshes":
                self.calls.append(f"look {group}")
                row = {"InstanceRefreshId": f"id-{group}", "Status": "Successful"}
                return {"InstanceRefreshes": [row]}
            return call(client, operation, given)

        monkeypatch.setattr("botocore.client.BaseClient._make_api_call", answer)
        monkeypatch.setattr("time.sleep", lambda _: None)


def test_a_pool_that_is_none_is_refused_by_name(pools: None) -> None:
    wanted = "no pool 'math'; dev-moe-serving has: code, code-canary, prose"
    with pytest.raises(UserError, match=wanted):
        run(refresh, "dev", "moe", "--pool", "math")


def test_a_stack_without_a_fleet_has_nothing_to_refresh() -> None:
    deploy("dev-foundation", {})
    with pytest.raises(UserError, match="dev-foundation has no fleet to refresh"):
        run(refresh, "dev", "foundation")


def test_one_fleet_and_several_are_read_from_the_outputs() -> None:
    assert fleets.groups({"Fleet": "g"}) == {"fleet": "g"}
    assert list(fleets.groups(POOLS)) == ["code", "code-canary", "prose"]
    assert fleets.groups({}) == {}
