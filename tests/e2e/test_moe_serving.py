"""Both halves of moe-serving on the embedded AWS: pools behind one balancer, and the endpoint."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isomorph.ask import request_to
from isomorph.environments import Environment
from local_aws.daemon import Running
from local_aws.describe import DESCRIBE, NOTHING_TO_SEE, resources
from tests.e2e.conftest import ROOT, Command, bring_up, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(1800)]  # trains at first
STACK = "moe-serving"
PROMPT = "def main(arguments):"


@pytest.fixture(scope="module")
def up(isomorph: Command) -> Iterator[dict[str, Any]]:
    """The training cluster comes up beside it, as `isomorph up moe` says; it has its own tests."""
    yield from bring_up(isomorph, "moe", seconds=1500)


def run(isomorph: Command, *arguments: str) -> dict[str, Any]:
    done = isomorph("run", "moe", PROMPT, "--max-tokens", "16", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_both_stacks_of_moe_come_up_in_one_go(
    isomorph: Command, up: dict[str, Any], running: Running
) -> None:
    training, serving = up["innovations"]
    assert (training["innovation"], training["stack"]) == ("moe", "local-moe-training")
    assert (serving["innovation"], serving["stack"]) == ("moe", "local-moe-serving")
    assert sorted(node["group"] for node in running.nodes()) == ["controller", "workers", "workers"]
    assert {node["state"] for node in running.nodes()} == {"Running"}
    said = isomorph("status", "local").stdout
    assert "3 of 3 nodes run" in said
    assert "code 1 of 1 in service, prose 1 of 1 in service" in said


def test_pools_and_endpoint_answer_and_say_the_same(up: dict[str, Any]) -> None:
    _, row = up["innovations"]
    assert row["answer"]["text"].strip()
    assert row["endpoint"]["text"] == row["answer"]["text"]
    assert row["runs_in"].count("i-") == 2
    assert "endpoint (pid" in row["runs_in"]


def test_run_asks_both_and_shows_which_experts_worked(
    isomorph: Command, local: Environment
) -> None:
    said = run(isomorph)
    assert set(said) == {"pools", "endpoint"}
    assert said["pools"]["text"] == said["endpoint"]["text"]
    assert said["pools"]["pool"] == "code"  # the router's choice for a line of Python
    for half in said.values():
        layers = half["experts"]["layers"]
        assert layers
        assert all(0 <= int(name) < 16 for visits in layers.values() for name in visits)


def test_a_person_is_told_in_words(isomorph: Command, local: Environment) -> None:
    done = isomorph("run", "moe", PROMPT, "--max-tokens", "4", "--on", "endpoint")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)
    assert "visits: layer 1: " in done.stderr


def test_a_pool_can_be_asked_for_and_an_unknown_one_is_refused(
    isomorph: Command, local: Environment
) -> None:
    assert run(isomorph, "--on", "pools", "--pool", "prose")["pool"] == "prose"
    done = isomorph("run", "moe", PROMPT, "--pool", "math")
    assert done.returncode == 1
    assert "no pool 'math'; local-moe-serving has: code, prose" in done.stderr


def post(local: Environment, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    request = request_to(local, local.outputs(STACK)["Endpoint"], path)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        request.add_header(name, value)
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0}).encode()
    try:
        with urllib.request.urlopen(request, body, 60) as answer:  # noqa: S310
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {}


def test_the_deployed_rules_choose_the_pool(local: Environment) -> None:
    pools = {"x-isomorph-pool": "code"}
    assert post(local, "/v1/completions", **pools)[1]["x-isomorph-pool"] == "code"
    assert post(local, "/v1/completions")[1]["x-isomorph-pool"] == "prose"
    assert post(local, "/pools/code/v1/completions")[1]["x-isomorph-pool"] == "code"
    status, headers = post(local, "/v1/completions")
    assert status == 200
    assert "AWSALB=" in headers["set-cookie"]


def test_a_server_refuses_a_pool_that_is_none(local: Environment) -> None:
    assert post(local, "/v1/completions", **{"x-isomorph-pool": "math"})[0] == 404


def test_every_resource_is_seen_by_its_service(local: Environment) -> None:
    found = resources("local-moe-serving", local.client)
    assert {resource.kind for resource in found} <= {*DESCRIBE, *NOTHING_TO_SEE}
    assert [resource for resource in found if not resource.visible(local.client)] == []


def test_the_endpoint_runs_from_the_deployed_archive_and_not_from_the_checkout(
    running: Running,
) -> None:
    [row] = running.containers()
    maps = Path(f"/proc/{row['pid']}/maps").read_text()
    root = Path(row["log"]).parent
    assert f"{ROOT}/model_code" not in maps
    assert (root / "opt/ml/model/code/model_code/moe/serve/hosting.py").is_file()
    assert not (root / "opt/ml/model/config.json").exists()  # weights come by their pointer


def test_the_endpoint_streams(local: Environment) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
    answer = local.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName=local.outputs(STACK)["SageMakerEndpoint"],
        ContentType="application/json",
        Accept="text/event-stream",
        Body=json.dumps(body),
    )
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    assert len(parts) > 1  # not all at once
    assert b"".join(parts).rstrip().endswith(b"data: [DONE]")


def test_a_killed_endpoint_comes_back(
    isomorph: Command, local: Environment, running: Running
) -> None:
    [before] = running.containers()
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: running.containers()[0]["pid"] != before["pid"])

    def answers() -> bool:
        return (
            isomorph("run", "moe", PROMPT, "--on", "endpoint", "--max-tokens", "1").returncode == 0
        )

    eventually(answers, 120)


def test_what_is_wrong_is_told_in_one_line(isomorph: Command, local: Environment) -> None:
    done = isomorph("run", "moe", "x" * 40000, "--on", "endpoint")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert "answered 4" in line
    done = isomorph("run", "moe", PROMPT, "--on", "function")
    assert "local-moe-serving has no function; it has: pools, endpoint" in done.stderr


def test_it_is_destroyed_alone(isomorph: Command, local: Environment, running: Running) -> None:
    # The last test of the module: it takes away what the others look at.
    done = isomorph("destroy", "local", STACK, "--yes")
    assert done.returncode == 0, done.stderr
    assert local.describe(STACK) is None
    assert local.describe("foundation") is not None
    assert running.containers() == []
    assert running.machines() == []
    assert {node["state"] for node in running.nodes()} == {"Running"}  # the other half's
