"""Figures on their way to CloudWatch."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import boto3
import pytest

from model_code.common.server.logs import set_up_logs
from model_code.common.server.metrics import Metrics, Window, memory_headroom_mib
from model_code.common.server.publisher import Publisher
from tests.model_code.test_service import ScriptedEngine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_between_two_looks_counts_for_as_long_as_it_lasted() -> None:
    clock = Clock()
    window = Window(clock)
    clock.now = 2
    window.level(10, 4)
    clock.now = 4
    window.level(0, 0)
    window.tokens += 50
    clock.now = 10
    assert window.take() == {
        "RequestsInFlight": [2.0], "QueueDepth": [0.8], "TokensPerSecond": [5.0],
        "WindowOccupancy": [0.0],
    }  # fmt: skip
    clock.now = 20
    assert window.take()["RequestsInFlight"] == [0.0]


def test_a_level_that_holds_goes_on_counting_after_a_look() -> None:
    clock = Clock()
    window = Window(clock)
    window.level(3, 0)
    clock.now = 5
    assert window.take()["RequestsInFlight"] == [3.0]
    clock.now = 6
    assert window.take()["RequestsInFlight"] == [3.0]


def test_the_windows_share_is_averaged_over_time_like_the_other_levels() -> None:
    clock = Clock()
    window = Window(clock)
    window.fill(0.5)
    clock.now = 5
    window.level(1, 0)  # another level's change does not touch it
    window.fill(1)
    clock.now = 10
    assert window.take()["WindowOccupancy"] == [75.0]
    clock.now = 20
    assert window.take()["WindowOccupancy"] == [100.0]


def test_only_an_engine_with_windows_has_an_occupancy() -> None:
    engine = ScriptedEngine([])
    metrics = Metrics()
    metrics.loaded(engine, "m")
    assert "WindowOccupancy" not in metrics.take()
    engine.window = 20
    metrics.loaded(engine, "m")
    metrics.hold(0, 10)
    assert metrics.take()["WindowOccupancy"][0] > 0


def test_the_headroom_is_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4096 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\n")
    assert memory_headroom_mib(meminfo) == 2.0
    meminfo.write_text("MemTotal:  4096 kB\n")
    assert memory_headroom_mib(meminfo) is None
    assert memory_headroom_mib(tmp_path / "none") is None


@pytest.mark.usefixtures("aws")
def test_five_metrics_reach_cloudwatch_with_the_fleet_s_name() -> None:
    metrics = Metrics()
    metrics.wrote_first_token(0.5)
    asyncio.run(Publisher(metrics, namespace="Isomorph/gqa", fleet="local-gqa").publish())
    found = boto3.client("cloudwatch").list_metrics(Namespace="Isomorph/gqa")["Metrics"]
    assert {metric["MetricName"] for metric in found} == {
        "RequestsInFlight", "QueueDepth", "TokensPerSecond", "TimeToFirstToken", "MemoryHeadroom",
    }  # fmt: skip
    assert {str(metric["Dimensions"]) for metric in found} == {
        "[{'Name': 'Fleet', 'Value': 'local-gqa'}]"
    }


def test_cloudwatch_out_of_reach_is_logged_once_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(Metrics(), namespace="N", fleet="F")
    outcomes = [OSError("no route"), OSError("no route"), None, OSError("again")]

    def put(_: Any) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(publisher, "_put", put)

    async def work() -> None:
        for _ in range(4):
            await publisher.publish()

    asyncio.run(work())
    assert [record.message for record in caplog.records] == [
        "metrics cannot be published to CloudWatch: no route",
        "metrics cannot be published to CloudWatch: again",
    ]


@pytest.fixture
def root_logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    return root


@pytest.mark.usefixtures("aws")
def test_log_lines_reach_the_log_group(root_logger: logging.Logger) -> None:
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName="fleet")
    set_up_logs("fleet")
    logging.getLogger("model_code.test").info("hello")
    for handler in root_logger.handlers:
        handler.flush()
        handler.close()
    [stream] = logs.describe_log_streams(logGroupName="fleet")["logStreams"]
    events = logs.get_log_events(logGroupName="fleet", logStreamName=stream["logStreamName"])
    assert [event["message"] for event in events["events"]] == ["INFO model_code.test: hello"]


@pytest.mark.usefixtures("root_logger")
def test_without_credentials_or_region_logging_goes_on_locally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    set_up_logs("fleet")
    assert "no logs go to fleet: You must specify a region." in capsys.readouterr().err
