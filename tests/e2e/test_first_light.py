"""The whole way: a real `cdk deploy` to the embedded AWS, and a real model behind it.

The tests share one deployment and run in the order of this file; the last ones take it down.
"""

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isomorph.ask import ask, request_to
from isomorph.environments import Environment, slug_of
from isomorph.errors import UserError
from local_aws import daemon
from local_aws.describe import DESCRIBE, NOTHING_TO_SEE, resources
from tests.e2e.conftest import ROOT, Command, bring_up, eventually
from tests.model_code.oracle import GREEDY, PROMPT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def up(isomorph: Command) -> Iterator[dict[str, Any]]:
    yield from bring_up(isomorph, "gqa")


def cdk(local: Environment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the pinned CDK CLI against the embedded AWS."""
    return subprocess.run(
        [str(ROOT / "node_modules/.bin/cdk"), *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            **local.variables,
            "NO_COLOR": "1",
            "CDK_OUTPUT": f"{os.environ['ISOMORPH_STATE']}-cdk.out",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )


def machines(variables: dict[str, str]) -> list[dict[str, Any]]:
    """The machines that serve, as the embedded AWS lists them."""
    running = daemon.status(Path(variables["ISOMORPH_STATE"]))
    assert running is not None
    return [row for row in running.machines() if row["state"] == "InService"]


def test_the_deployed_model_knows_paris(up: dict[str, Any]) -> None:
    [row] = up["innovations"]
    assert (row["innovation"], row["stack"]) == ("gqa", "local-gqa")
    assert "Paris" in row["answer"]["text"]


def readme_commands() -> list[str]:
    """The README's own command lines, without those that other tests run."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert ".venv/bin/isomorph refresh local gqa" in lines
    elsewhere = r"make |\.venv/bin/isomorph (refresh|up|(run|start) (sliding_window|moe)) "
    return [line for line in lines if not re.match(elsewhere, line)]


def test_the_readmes_other_innovations_have_tests_of_their_own() -> None:
    up = re.findall(r"^\.venv/bin/isomorph up (\S+)", (ROOT / "README.md").read_text(), re.M)
    files = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    assert len(up) == 4
    for slug in up:
        calls = ('bring_up(isomorph, "{}"', 'isomorph("up", "{}"')
        whole = {call.format(name) for call in calls for name in (slug, slug_of(slug))}
        assert any(call in text for text in files.values() for call in whole), slug


@pytest.mark.parametrize("line", readme_commands())
def test_the_commands_of_the_readme_run(up: dict[str, Any], isomorph: Command, line: str) -> None:
    done = isomorph(*shlex.split(line)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_run_asks_through_the_load_balancer(up: dict[str, Any], isomorph: Command) -> None:
    done = isomorph("run", "gqa", PROMPT)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout + done.stderr


def test_only_the_innovation_and_its_foundation_are_deployed(local: Environment) -> None:
    stacks = local.client("cloudformation").describe_stacks()["Stacks"]
    names = {row["StackName"] for row in stacks}
    assert names == {"CDKToolkit", "local-foundation", "local-gqa"}


@pytest.mark.parametrize("stack", ["CDKToolkit", "local-foundation", "local-gqa"])
def test_every_resource_of_the_templates_is_really_there(local: Environment, stack: str) -> None:
    found = resources(stack, local.client)
    assert {resource.kind for resource in found} <= {*DESCRIBE, *NOTHING_TO_SEE}
    assert [resource for resource in found if not resource.visible(local.client)] == []


def test_a_second_deployment_changes_nothing(local: Environment) -> None:
    done = cdk(
        local,
        "diff",
        "-c",
        "env=local",
        "-c",
        "slugs=gqa",
        "--fail",
        "local/foundation",
        "local/gqa",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_many_requests_at_once_are_answered_or_told_to_come_back(local: Environment) -> None:
    endpoint = local.outputs("gqa")["Endpoint"]
    body = json.dumps({"prompt": PROMPT, "max_tokens": 4, "temperature": 0}).encode()

    def one(_: int) -> int:
        request = request_to(local, endpoint, "/v1/completions")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, body, timeout=120) as response:  # noqa: S310
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
    folder = Path(variables["ISOMORPH_STATE"]) / "instances" / machine["id"]
    [packages] = folder.glob("opt/isomorph/venv/lib/python*/site-packages")
    bytecode = Path(f"{folder}/var/lib/isomorph/bytecode{packages}")
    assert list(bytecode.glob("uvicorn/*.pyc"))  # not compiled anew
    os.kill(machine["pid"], signal.SIGKILL)

    def answers() -> bool:
        [row] = machines(variables) or [machine]
        try:
            answered = "Paris" in ask(local, "gqa", PROMPT, max_tokens=8).text
        except UserError:
            return False
        return answered and row["pid"] not in (None, machine["pid"])

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
        *("deploy", "-c", "env=local", "-c", "slugs=gqa", "-c", "gqa.max_capacity=2"),
        *("--require-approval", "never", "local/gqa"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    group = local.outputs("gqa")["Fleet"]
    [found] = local.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[group]
    )["AutoScalingGroups"]
    assert found["MaxSize"] == 2


def code_asset(local: Environment) -> tuple[str, str]:
    """Bucket and key that the newest launch template's user data fetches the code from."""
    group = local.outputs("gqa")["Fleet"]
    [found] = local.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[group]
    )["AutoScalingGroups"]
    [version] = local.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=found["LaunchTemplate"]["LaunchTemplateId"], Versions=["$Latest"]
    )["LaunchTemplateVersions"]
    script = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
    [(bucket, key)] = re.findall(r"fetch 's3://([^/]+)/([^']+)' [0-9a-f]{64} code", script)
    return bucket, key


def test_a_machine_refuses_an_altered_code_asset(
    local: Environment, isomorph: Command, variables: dict[str, str]
) -> None:
    bucket, key = code_asset(local)
    s3 = local.client("s3")
    original = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.put_object(Bucket=bucket, Key=key, Body=original + b"altered")
    try:
        done = isomorph("refresh", "local", "gqa")
        assert done.returncode == 1
        assert "does not have the sha256" in done.stderr
        assert "Paris" in ask(local, "gqa", PROMPT, max_tokens=8).text  # the old machine serves
    finally:
        s3.put_object(Bucket=bucket, Key=key, Body=original)


@pytest.mark.timeout(1500)  # its machine installs torch; and the file takes long: it goes early
def test_the_native_engine_serves_the_same_weights_from_the_same_code(
    local: Environment, isomorph: Command
) -> None:
    before = code_asset(local)
    asked = ("run", "gqa", PROMPT, "--engine", "native", "--max-tokens", "64", "--json")
    done = isomorph(*asked, timeout=600)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["engine"] == "native"
    assert answer["text"] == GREEDY
    assert code_asset(local) == before


def test_destroy_removes_everything(local: Environment, isomorph: Command) -> None:
    done = isomorph("destroy", "local", "--yes")
    assert done.returncode == 0, done.stderr
    stacks = local.client("cloudformation").list_stacks(
        StackStatusFilter=["CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_FAILED"]
    )["StackSummaries"]
    assert {row["StackName"] for row in stacks} == {"CDKToolkit"}
    assert local.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    buckets = [row["Name"] for row in local.client("s3").list_buckets()["Buckets"]]
    assert not [name for name in buckets if name.startswith("local-")]
    again = isomorph("destroy", "local", "--yes")
    assert again.returncode == 0, again.stderr
    assert "nothing to destroy: of moe-training" in again.stderr + again.stdout


def test_a_plain_deployment_without_weights_says_so_and_starts_no_machine(
    local: Environment, variables: dict[str, str]
) -> None:
    done = cdk(local, "deploy", "-c", "env=local", "--require-approval", "never", "local/gqa")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none yet: run `isomorph weights push local gqa FOLDER`" in done.stdout + done.stderr
    assert machines(variables) == []
    with pytest.raises(UserError, match="local-gqa has no weights: none yet: run `isomorph we"):
        ask(local, "gqa", PROMPT, max_tokens=1)


def test_down_leaves_no_process_and_no_state(isomorph: Command, variables: dict[str, str]) -> None:
    done = isomorph("down")
    assert done.returncode == 0, done.stderr
    assert not Path(variables["ISOMORPH_STATE"]).exists()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert variables["ISOMORPH_STATE"] not in listed.stdout
