"""The whole way: a real `cdk deploy` to the embedded AWS, and a real model behind it.

The tests share one deployment and run in the order of this file; the last ones take it down.
"""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from isomorph.ask import ask, request_to
from isomorph.environments import Environment, load
from isomorph.errors import UserError
from local_aws import daemon
from local_aws.describe import DESCRIBE
from tests.e2e.conftest import ROOT, Command

pytestmark = pytest.mark.e2e
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def local(up: dict[str, Any], variables: dict[str, str]) -> Environment:
    """The deployed environment, as commands see it."""
    return load("local")


def cdk(local: Environment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the pinned CDK CLI against the embedded AWS."""
    return subprocess.run(
        [str(ROOT / "node_modules/.bin/cdk"), *arguments],
        cwd=ROOT,
        env={**os.environ, **local.variables, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def machines(variables: dict[str, str]) -> list[dict[str, Any]]:
    """The machines that serve, as the embedded AWS lists them."""
    from pathlib import Path

    running = daemon.status(Path(variables["ISOMORPH_STATE"]))
    assert running is not None
    return [row for row in running.machines() if row["state"] == "InService"]


def eventually(what: Callable[[], Any], *, seconds: float = 60) -> Any:
    """Return the first true answer of `what`, or fail after some time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.25)
    return answer


def test_the_deployed_model_knows_paris(up: dict[str, Any]) -> None:
    [row] = up["innovations"]
    assert (row["innovation"], row["stack"]) == ("gqa", "local-gqa")
    assert "Paris" in row["answer"]["text"]


def test_run_asks_through_the_load_balancer(up: dict[str, Any], isomorph: Command) -> None:
    done = isomorph("run", "gqa", PROMPT)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_only_the_innovation_and_its_foundation_are_deployed(local: Environment) -> None:
    stacks = local.client("cloudformation").describe_stacks()["Stacks"]
    names = {row["StackName"] for row in stacks}
    assert names == {"CDKToolkit", "local-foundation", "local-gqa"}


def test_every_resource_of_the_templates_is_visible(local: Environment) -> None:
    pages = local.client("cloudformation").get_paginator("list_stack_resources")
    seen: Counter[str] = Counter()
    for slug in ("foundation", "gqa"):
        for page in pages.paginate(StackName=local.stack(slug)):
            for resource in page["StackResourceSummaries"]:
                kind = resource["ResourceType"]
                if kind == "AWS::CDK::Metadata":
                    continue
                assert kind in DESCRIBE, f"{kind}: local_aws/describe.py cannot tell if it is there"
                assert DESCRIBE[kind](local.client, resource["PhysicalResourceId"]), resource
                seen[kind] += 1
    assert seen["AWS::AutoScaling::AutoScalingGroup"] == 1
    assert seen["AWS::S3::Bucket"] >= 3


def test_a_second_deployment_changes_nothing(local: Environment) -> None:
    done = cdk(local, "diff", "-c", "env=local", "--fail", "local/foundation", "local/gqa")
    assert done.returncode == 0, done.stdout + done.stderr


def test_many_requests_at_once_are_answered_or_told_to_come_back(local: Environment) -> None:
    endpoint = local.outputs("gqa")["Endpoint"]
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4, "temperature": 0}).encode()

    def one(_: int) -> int:
        request = request_to(local, endpoint, "/v1/completions")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, body, timeout=120) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    with ThreadPoolExecutor(200) as threads:
        codes = Counter(threads.map(one, range(200)))
    assert set(codes) <= {200, 429}
    assert codes[200] >= 8 + 64, codes  # those that run and those that wait, at least


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(local: Environment) -> None:
    with pytest.raises(UserError, match=r"gqa answered 400: .*\d{4}.* tokens"):
        ask(local, "gqa", "word " * 5000, max_tokens=1)


def test_a_killed_server_is_started_again(local: Environment, variables: dict[str, str]) -> None:
    [machine] = machines(variables)
    os.kill(machine["pid"], signal.SIGKILL)

    def restarted() -> bool:
        rows = machines(variables)
        return bool(rows) and rows[0]["pid"] not in (None, machine["pid"])

    eventually(restarted)

    def answers() -> bool:
        try:
            return "Paris" in ask(local, "gqa", PROMPT, max_tokens=8).text
        except UserError:
            return False

    eventually(answers)


def test_refresh_replaces_every_machine(
    local: Environment, isomorph: Command, variables: dict[str, str]
) -> None:
    before = {row["id"] for row in machines(variables)}
    done = isomorph("refresh", "local", "gqa", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "Successful"
    assert before.isdisjoint({row["id"] for row in machines(variables)})


def test_a_changed_setting_updates_the_group(local: Environment) -> None:
    done = cdk(
        local,
        *("deploy", "-c", "env=local", "-c", "gqa.max_capacity=2"),
        *("--require-approval", "never", "local/gqa"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    group = local.outputs("gqa")["Fleet"]
    [found] = local.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[group]
    )["AutoScalingGroups"]
    assert found["MaxSize"] == 2


def test_an_altered_code_asset_is_refused_by_the_machine(
    local: Environment, isomorph: Command, variables: dict[str, str]
) -> None:
    bucket, key = code_asset(local)
    s3 = local.client("s3")
    original = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.put_object(Bucket=bucket, Key=key, Body=original + b"\0")
    try:
        isomorph("refresh", "local", "gqa", "--no-wait")
        running = eventually(
            lambda: [r for r in all_machines(variables) if "digest" in (r["reason"] or "")]
        )
        assert running[-1]["state"] != "InService"
        assert "Paris" in ask(local, "gqa", PROMPT, max_tokens=8).text  # the old one still serves
    finally:
        s3.put_object(Bucket=bucket, Key=key, Body=original)


def code_asset(local: Environment) -> tuple[str, str]:
    """Where the launch template's user data fetches the code from."""
    import base64
    import re

    [template] = [
        row
        for row in local.client("ec2").describe_launch_templates()["LaunchTemplates"]
        if "gqa" in row["LaunchTemplateName"]
    ]
    [version] = local.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=template["LaunchTemplateId"], Versions=["$Latest"]
    )["LaunchTemplateVersions"]
    script = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
    [(bucket, key)] = re.findall(r"s3://([^/\s]+)/(\S+\.zip)\S*\s+\S*code\.zip", script)
    return bucket, key
