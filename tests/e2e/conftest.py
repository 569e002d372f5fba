"""A deployment of `local` of its own: another port and another state folder than a person's."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from isomorph.environments import Environment

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def free_port() -> int:
    """Return a port that nothing uses, with a few free ones above it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def published(local: Environment, slug: str, metric: str, statistic: str = "Sum") -> list[float]:
    """Return what CloudWatch has of a metric that a fleet's servers published in the last hour."""
    now = datetime.now(UTC)
    fleet = f"local-{slug.replace('_', '-')}"
    query = {
        "Id": "m",
        "MetricStat": {
            "Metric": {
                "Namespace": f"Isomorph/{slug}",
                "MetricName": metric,
                "Dimensions": [{"Name": "Fleet", "Value": fleet}],
            },
            "Period": 60,
            "Stat": statistic,
        },
    }
    found = local.client("cloudwatch").get_metric_data(
        MetricDataQueries=[query],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
    )
    return [float(value) for value in found["MetricDataResults"][0]["Values"]]


@pytest.fixture(scope="session")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of commands: no credentials, no other state than the tests'."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_ACCESS", "AWS_SECRET"))}
    state = str(tmp_path_factory.mktemp("embedded") / "local")
    os.environ["ISOMORPH_STATE"] = state  # the tests' own calls see it too
    return {**kept, "ISOMORPH_STATE": state, "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def isomorph(variables: dict[str, str]) -> Command:
    """Run `isomorph ARGUMENTS` and return what it did."""

    def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "isomorph", *arguments]
        given = {"timeout": 280, **options}
        return subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, **given
        )

    return run


@pytest.fixture(scope="session")
def up(isomorph: Command) -> Iterator[dict[str, Any]]:
    """What `isomorph up` reports; the deployment stays up for the session."""
    done = isomorph("up", "gqa", "--port", str(free_port()), "--json")
    try:
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)
    finally:
        isomorph("down")
