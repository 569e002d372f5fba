"""What a machine says to AWS about itself."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model_code.common.errors import SettingsError
from model_code.common.node import __main__ as command
from model_code.common.node import lifecycle
from model_code.common.node.imds import Metadata
from model_code.common.node.lifecycle import Node, NotReadyError
from tests.model_code.cloud import MACHINE, serve
from tests.model_code.conftest import ROOT


class Cloud:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"

    def calls(self) -> list[tuple[str, str]]:
        """Return each call's action with what it said."""
        path = self.folder / "calls"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        keys = ("Status", "LifecycleActionResult", "LifecycleHookName")
        return [
            (call["Action"], "/".join(call[key] for key in keys if key in call)) for call in calls
        ]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    server = serve(0, tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Cloud(tmp_path, server.server_port)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", found.url + "/imds/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setattr(lifecycle, "_POLL_S", 0.01)
    monkeypatch.setattr(lifecycle, "_DRAIN_POLL_S", 0.01)
    yield found
    server.shutdown()
    server.server_close()


class Health(BaseHTTPRequestHandler):
    codes: list[int]

    def do_GET(self) -> None:
        self.send_response(self.codes.pop(0) if len(self.codes) > 1 else self.codes[0])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def health() -> Iterator[Any]:
    """Start a server that answers with these codes, one after the other."""
    servers = []

    def start(*codes: int) -> str:
        handler = type("Bound", (Health,), {"codes": list(codes)})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return str(servers[-1].server_port)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands for systemctl; `code` is what it returns, `calls` what it was asked."""
    played: dict[str, Any] = {"code": 0, "calls": []}

    def play(*arguments: str) -> int:
        played["calls"].append(arguments)
        code: int = played["code"]
        return code

    monkeypatch.setattr(lifecycle, "_systemctl", play)
    return played


def env(port: str) -> dict[str, str]:
    return {
        "ISOMORPH_PORT": "8080",
        "ISOMORPH_PORT_OVERRIDE": port,
        "ISOMORPH_STACK": "local-gqa",
        "ISOMORPH_SIGNAL_RESOURCE": "Fleet",
        "ISOMORPH_LAUNCH_HOOK": "launch",
        "ISOMORPH_DRAIN_HOOK": "drain",
    }


@pytest.mark.usefixtures("systemctl")
def test_a_healthy_server_is_signalled_and_the_launch_goes_on(cloud: Cloud, health: Any) -> None:
    Node(env(health(503, 503, 200)), Metadata()).ready()
    assert cloud.calls() == [
        ("SignalResource", "SUCCESS"),
        ("DescribeAutoScalingInstances", ""),
        ("CompleteLifecycleAction", "CONTINUE/launch"),
    ]


@pytest.mark.usefixtures("systemctl")
def test_a_stack_that_does_not_wait_is_no_failure(cloud: Cloud, health: Any) -> None:
    for action in ("SignalResource", "CompleteLifecycleAction"):
        (cloud.folder / f"refuse-{action}").touch()
    Node(env(health(200)), Metadata()).ready()
    assert len(cloud.calls()) == 3


def test_fails_when_the_server_keeps_ending_and_abandons_the_launch(
    cloud: Cloud, systemctl: dict[str, Any]
) -> None:
    systemctl["code"] = 3
    with pytest.raises(NotReadyError, match=r"isomorph.service keeps ending; `journalctl -u"):
        Node(env("9"), Metadata()).ready()
    assert cloud.calls() == [
        ("SignalResource", "FAILURE"),
        ("DescribeAutoScalingInstances", ""),
        ("CompleteLifecycleAction", "ABANDON/launch"),
    ]


@pytest.mark.usefixtures("systemctl")
def test_fails_when_the_server_does_not_get_healthy_in_time(cloud: Cloud, health: Any) -> None:
    with pytest.raises(NotReadyError, match=r"/health was not healthy within 0.1 s"):
        Node(env(health(503)), Metadata()).ready(timeout_s=0.1)
    assert cloud.calls()[0] == ("SignalResource", "FAILURE")


@pytest.mark.usefixtures("systemctl", "cloud")
def test_fails_when_a_setting_is_missing(health: Any) -> None:
    settings = env(health(200))
    del settings["ISOMORPH_STACK"]
    with pytest.raises(SettingsError, match=r"ISOMORPH_STACK is missing; boot.sh takes it from"):
        Node(settings, Metadata()).ready()


def test_a_machine_that_is_to_end_stops_its_server_and_then_agrees(
    cloud: Cloud, systemctl: dict[str, Any]
) -> None:
    (cloud.folder / "state").write_text("InService")
    node = Node(env("9"), Metadata())
    waiting = threading.Thread(target=node.drain)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    assert systemctl["calls"] == []
    (cloud.folder / "state").write_text("Terminated")
    waiting.join(10)
    assert systemctl["calls"] == [("stop", "isomorph.service")]
    assert cloud.calls()[-1] == ("CompleteLifecycleAction", "CONTINUE/drain")


@pytest.mark.usefixtures("cloud")
def test_metadata_needs_a_token_no_proxy_and_knows_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    metadata = Metadata()
    assert metadata.instance_id == MACHINE
    assert metadata.get("autoscaling/target-lifecycle-state") is None
    metadata._token = "expired"
    assert metadata.instance_id == MACHINE


def test_fails_when_nothing_answers_where_metadata_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9/")
    with pytest.raises(OSError, match="Connection refused"):
        Metadata().get("instance-id")


def test_who_waits_for_the_end_of_a_machine_has_not_loaded_aws_s_libraries() -> None:
    code = (
        "import sys, model_code.common.node.__main__\n"
        "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_fails_with_usage_when_the_command_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["redy"]) == 2
    assert capsys.readouterr().err == (
        "isomorph: usage: python -m model_code.common.node ready|drain\n"
    )
