"""Both halves of sliding_window on the embedded AWS, with the real Gemma 3 270M."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isomorph.ask_function import signed
from isomorph.environments import Environment
from local_aws.describe import DESCRIBE, NOTHING_TO_SEE, resources
from tests.e2e.conftest import ROOT, Command, bring_up, published

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1300)]  # downloads the first time
PROMPT = "Water boils at"


@pytest.fixture(scope="module")
def variables(variables: dict[str, str]) -> dict[str, str]:
    """The project's CI accepts Gemma's terms by the variable."""
    return {**variables, "ISOMORPH_ACCEPT_GEMMA_TERMS": "1"}


@pytest.fixture(scope="module")
def up(isomorph: Command) -> Iterator[dict[str, Any]]:
    yield from bring_up(isomorph, "sliding_window", seconds=900)


def test_both_halves_answer_and_say_the_same(up: dict[str, Any]) -> None:
    [row] = up["innovations"]
    assert row["stack"] == "local-sliding-window"
    assert "France" in row["answer"]["text"]
    assert row["function"]["text"] == row["answer"]["text"]
    assert "function (pid" in row["runs_in"]


def test_run_asks_both_with_the_same_weights_and_the_text_is_the_same(
    isomorph: Command, local: Environment
) -> None:
    done = isomorph("run", "sliding_window", PROMPT, "--max-tokens", "24", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said) == {"fleet", "function"}
    assert said["fleet"]["text"] == said["function"]["text"]
    assert "100 degrees" in said["fleet"]["text"]


def test_one_half_can_be_asked(isomorph: Command, local: Environment) -> None:
    done = isomorph("run", "sliding_window", PROMPT, "--on", "function", "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)


def test_every_resource_is_seen_by_its_service(local: Environment) -> None:
    found = resources("local-sliding-window", local.client)
    assert {resource.kind for resource in found} <= {*DESCRIBE, *NOTHING_TO_SEE}
    assert [resource for resource in found if not resource.visible(local.client)] == []


def test_the_function_runs_from_the_deployed_zip_and_not_from_the_checkout(
    local: Environment,
) -> None:
    from isomorph.paths import state
    from local_aws import daemon

    name = local.outputs("sliding_window")["Function"]
    running = daemon.status(state())
    assert running is not None
    [row] = [each for each in running.functions() if each["function"] == name]
    maps = Path(f"/proc/{row['pid']}/maps").read_text()
    assert str(ROOT) not in maps
    assert "/task/xllamacpp/" in maps
    own_tmp = Path(row["log"]).with_name("tmp")
    assert f"{own_tmp}/isomorph/weights/" in maps  # mapped, not copied
    assert row["memory_mib"] < 1000


def test_invoke_reaches_it_under_the_lambda_api(local: Environment) -> None:
    client, name = local.client("lambda"), local.outputs("sliding_window")["Function"]
    event = json.dumps({"prompt": PROMPT, "max_tokens": 4, "temperature": 0})
    answer = client.invoke(FunctionName=name, Payload=event)
    assert "FunctionError" not in answer
    assert json.load(answer["Payload"])["usage"]["completion_tokens"] == 4
    refused = json.load(client.invoke(FunctionName=name, Payload=b'{"Records": []}')["Payload"])
    assert refused["statusCode"] == 400


def test_the_function_url_streams(local: Environment) -> None:
    url = local.outputs("sliding_window")["FunctionUrl"]
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0,
                       "stream": True}).encode()  # fmt: skip
    with urllib.request.urlopen(signed(local, url, "/v1/completions", body)) as answer:  # noqa: S310
        assert answer.headers["content-type"] == "text/event-stream"
        first = answer.read1()
        rest = answer.read()
    assert first.startswith(b"data: ")
    assert first.count(b"data: ") < 10  # not all at once
    assert rest.endswith(b"data: [DONE]\n\n")


def test_the_handler_answers_under_the_real_runtime_client(local: Environment) -> None:
    """The same zip without our own runtime: AWS's client calls the handler, answers at once."""
    client, name = local.client("lambda"), local.outputs("sliding_window")["Function"]
    before = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    plain = {key: value for key, value in before.items() if key != "AWS_LAMBDA_EXEC_WRAPPER"}
    event = json.dumps({"prompt": PROMPT, "max_tokens": 8, "temperature": 0})
    streamed = json.load(client.invoke(FunctionName=name, Payload=event)["Payload"])
    client.update_function_configuration(FunctionName=name, Environment={"Variables": plain})
    try:
        answer = client.invoke(FunctionName=name, Payload=event)
        assert "FunctionError" not in answer
        buffered = json.load(answer["Payload"])
    finally:
        client.update_function_configuration(FunctionName=name, Environment={"Variables": before})
    assert buffered["choices"][0]["text"] == streamed["choices"][0]["text"]


def test_its_figures_are_in_its_log_group(local: Environment) -> None:
    name = local.outputs("sliding_window")["Function"]
    config = local.client("lambda").get_function_configuration(FunctionName=name)
    events = local.client("logs").filter_log_events(
        logGroupName=config["LoggingConfig"]["LogGroup"]
    )["events"]
    assert any('"WindowOccupancy"' in event["message"] for event in events)
    assert not any(PROMPT in event["message"] for event in events)


def test_the_fleets_figures_are_in_cloudwatch(isomorph: Command, local: Environment) -> None:
    def seen() -> bool:
        headroom = published(local, "sliding_window", "MemoryHeadroom", "Minimum")
        filled = published(local, "sliding_window", "WindowOccupancy", "Maximum")
        return max(headroom, default=0) > 100 and 0 < max(filled, default=0) <= 100

    deadline = time.monotonic() + 60  # servers publish every ten seconds
    while not seen():
        assert time.monotonic() < deadline
        isomorph("run", "sliding_window", PROMPT, "--on", "fleet")


def test_the_fleet_serves_the_same_weights_with_our_own_engine(
    isomorph: Command, local: Environment
) -> None:
    """Last: the fleet stays with the engine it was told. Both engines read 4-bit numbers alike."""
    asked = ("run", "sliding_window", PROMPT, "--on", "fleet", "--max-tokens", "16", "--json")
    before = json.loads(isomorph(*asked).stdout)
    done = isomorph(*asked, "--engine", "native", timeout=600)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert (before["engine"], after["engine"]) == ("llama.cpp", "native")
    assert after["text"] == before["text"]
