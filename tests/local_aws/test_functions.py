"""Lambda as it is played: the deployed zip, under the real client, within its memory and time."""

import io
import json
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import local_aws.clients
from tests.local_aws.conftest import Emulator, alive, until
from tests.local_aws.samples_functions import FUNCTIONS
from tests.local_aws.templates import attribute

STACK = "functions"
STREAM = """#!/bin/sh
exec "${1:-python3}" "$LAMBDA_TASK_ROOT/stream.py"
"""
STREAM_PY = """
import base64, http.client, json, os, time
api = os.environ["AWS_LAMBDA_RUNTIME_API"]
while True:
    c = http.client.HTTPConnection(api)
    c.request("GET", "/2018-06-01/runtime/invocation/next")
    r = c.getresponse(); event = json.loads(r.read())
    id = r.headers["Lambda-Runtime-Aws-Request-Id"]
    body = json.loads(event["body"])
    c = http.client.HTTPConnection(api)
    c.putrequest("POST", f"/2018-06-01/runtime/invocation/{id}/response")
    kind = "application/vnd.awslambda.http-integration-response"
    for n, v in (("Content-Type", kind), ("Lambda-Runtime-Function-Response-Mode", "streaming"),
                 ("Transfer-Encoding", "chunked")):
        c.putheader(n, v)
    c.endheaders()
    head = json.dumps({"statusCode": 201, "headers": {"x-own": "yes"}}).encode() + bytes(8)
    for part in (head, b"one ", b"two ", b"three"):
        c.send(f"{len(part):x}\\r\\n".encode() + part + b"\\r\\n"); time.sleep(body["pause"])
    trailers = ""
    if body.get("fail"):
        said = base64.b64encode(json.dumps({"errorType": "E", "errorMessage": "m"}).encode())
        trailers = ("Lambda-Runtime-Function-Error-Type: E\\r\\n"
                    f"Lambda-Runtime-Function-Error-Body: {said.decode()}\\r\\n")
    c.send(f"0\\r\\n{trailers}\\r\\n".encode()); c.getresponse().read()
"""


@pytest.fixture(scope="module")
def deployed(emulator: Emulator) -> Iterator[Emulator]:
    outputs = {"Url": {"Value": attribute("FunctionUrl", "FunctionUrl")}}
    template = {"Resources": FUNCTIONS, "Outputs": outputs}
    assert emulator.create(STACK, template) == "CREATE_COMPLETE", emulator.failure(STACK)
    yield emulator
    before = emulator.running.functions()
    assert emulator.delete(STACK) == "DELETE_COMPLETE"
    assert emulator.running.functions() == []
    assert not any(alive(row["pid"]) for row in before)


def name(deployed: Emulator) -> str:
    return deployed.resources(STACK)["Function"].physical_id


def invoke(deployed: Emulator, **event: Any) -> tuple[Any, str | None]:
    answer = deployed.client("lambda").invoke(
        FunctionName=name(deployed), Payload=json.dumps(event)
    )
    return json.loads(answer["Payload"].read()), answer.get("FunctionError")


def test_what_the_control_plane_drops_is_seen_all_the_same(deployed: Emulator) -> None:
    seen = deployed.client("lambda").get_function_configuration(FunctionName=name(deployed))
    assert seen["VpcConfig"]["SubnetIds"] == ["subnet-1"]
    assert seen["VpcConfig"]["SecurityGroupIds"] == ["sg-1"]
    assert seen["DeadLetterConfig"]["TargetArn"].startswith("arn:aws:sqs:")


def test_the_real_client_calls_the_handler_with_its_event_and_its_time(deployed: Emulator) -> None:
    said, error = invoke(deployed, say="hello")
    assert error is None
    assert said["got"] == {"say": "hello"}
    assert said["given"] == "this"
    assert 0 < said["left"] <= 5000


def test_an_environment_is_used_again(deployed: Emulator) -> None:
    first, second = invoke(deployed)[0], invoke(deployed)[0]
    assert first["pid"] == second["pid"]


def test_two_at_once_get_an_environment_each_and_the_third_is_throttled(
    deployed: Emulator,
) -> None:
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(invoke, deployed, sleep=2) for _ in range(2)]
        until(lambda: len(deployed.running.functions()) == 2, "a second environment")
        once = local_aws.clients.client(
            "lambda", deployed.running.endpoint, deployed.account, deployed.region
        )
        with pytest.raises(once.exceptions.TooManyRequestsException):
            once.invoke(FunctionName=name(deployed), Payload="{}")
        pids = {one.result()[0]["pid"] for one in running}
    assert len(pids) == 2


def test_what_a_handler_raises_is_the_functions_error(deployed: Emulator) -> None:
    said, error = invoke(deployed, fail="no luck")
    assert error == "Unhandled"
    assert (said["errorType"], said["errorMessage"]) == ("ValueError", "no luck")


def test_an_event_that_takes_too_long_is_ended_and_the_next_gets_a_new_environment(
    deployed: Emulator,
) -> None:
    said, error = invoke(deployed, sleep=60)
    assert error == "Unhandled"
    assert said["errorType"] == "Sandbox.Timedout"
    assert said["errorMessage"].endswith("Task timed out after 5.00 seconds")
    assert invoke(deployed, say="again")[1] is None


def test_more_memory_than_the_functions_ends_it(deployed: Emulator) -> None:
    said, _ = invoke(deployed, eat=400)
    assert said["errorType"] == "Runtime.OutOfMemory"
    assert "MemorySize is 256" in said["errorMessage"]


def test_a_payload_over_6_mb_is_refused(deployed: Emulator) -> None:
    said, error = invoke(deployed, say="x" * (6 * 2**20))
    assert error == "Unhandled"
    assert said["errorType"] == "RequestTooLargeException"


def test_what_it_prints_is_in_its_log_group(deployed: Emulator) -> None:
    invoke(deployed, say="words for the log")
    events = deployed.client("logs").filter_log_events(logGroupName="/contract/function")["events"]
    assert any("said words for the log" in event["message"] for event in events)


def test_a_function_sees_neither_the_checkout_nor_a_library_it_did_not_bring(
    deployed: Emulator,
) -> None:
    code = "def handle(event, context):\n    __import__(event['name'])\n    return 'there'\n"
    replace_code(deployed, {"index.py": code})
    for module in ("model_code", "pydantic", "xllamacpp"):
        said, error = invoke(deployed, name=module)
        assert (said["errorType"], error) == ("ModuleNotFoundError", "Unhandled"), module


def test_a_module_that_does_not_import_is_an_error_of_the_function(deployed: Emulator) -> None:
    replace_code(deployed, {"index.py": "raise OSError('no disk')"})
    said, error = invoke(deployed)
    assert error == "Unhandled"
    assert "no disk" in said["errorMessage"]


def replace_code(deployed: Emulator, files: dict[str, str]) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for file, content in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, content)
    deployed.client("lambda").update_function_code(
        FunctionName=name(deployed), ZipFile=made.getvalue()
    )


@pytest.fixture(scope="module")
def url(deployed: Emulator) -> str:
    replace_code(deployed, {"bootstrap": STREAM, "stream.py": STREAM_PY})
    variables = {"GIVEN": "this", "AWS_LAMBDA_EXEC_WRAPPER": "/var/task/bootstrap"}
    deployed.client("lambda").update_function_configuration(
        FunctionName=name(deployed), Environment={"Variables": variables}
    )
    config = deployed.client("lambda").get_function_url_config(FunctionName=name(deployed))
    return str(config["FunctionUrl"])


def open_url(deployed: Emulator, url: str, *, sign: bool = True, **body: Any) -> Any:
    request = urllib.request.Request(  # noqa: S310
        deployed.running.endpoint + "/", json.dumps(body).encode(), method="POST"
    )
    request.add_header("Host", url.removeprefix("https://").rstrip("/"))
    request.add_header("Content-Type", "application/json")
    if sign:
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x")
    return urllib.request.urlopen(request, timeout=20)  # noqa: S310


def open_when_free(deployed: Emulator, url: str, **body: Any) -> Any:
    """Open the URL as soon as it is not throttled: an answer's end is not an invocation's."""

    def look() -> Any:
        try:
            return open_url(deployed, url, **body)
        except urllib.error.HTTPError as refused:
            if refused.code != 429:
                raise
            return None

    return until(look, "an environment that is free")


def test_the_prelude_is_status_and_headers_and_the_rest_comes_as_it_is_written(
    deployed: Emulator, url: str
) -> None:
    with open_url(deployed, url, pause=0.3) as answer:
        assert (answer.status, answer.headers["x-own"]) == (201, "yes")
        parts = [answer.read1(), answer.read1(), answer.read1()]
    assert parts == [b"one ", b"two ", b"three"]


def test_an_unsigned_request_is_forbidden(deployed: Emulator, url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_url(deployed, url, sign=False, pause=0)
    assert refused.value.code == 403


def test_a_body_over_6_mb_is_refused(deployed: Emulator, url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_url(deployed, url, pause=0, filling="x" * (6 * 2**20))
    assert refused.value.code == 413


def test_a_client_that_goes_away_leaves_the_function_to_its_work(
    deployed: Emulator, url: str
) -> None:
    open_when_free(deployed, url, pause=0.5).close()
    with open_when_free(deployed, url, pause=0) as answer:
        assert answer.read() == b"one two three"


def test_what_fails_in_mid_answer_breaks_the_answer_off(deployed: Emulator, url: str) -> None:
    with open_when_free(deployed, url, pause=0, fail=True) as answer:
        assert answer.read() == b"one two three"


def test_an_answer_ends_though_its_function_was_deleted_meanwhile(
    deployed: Emulator, url: str
) -> None:
    with open_when_free(deployed, url, pause=0.3) as answer:
        for folder in (deployed.running.state_dir / "functions").glob("functions-*"):
            shutil.rmtree(folder)  # as it is done by then, unless a thread was slow
        assert answer.read() == b"one two three"
