"""A deployment of `local` of its own: another port and another state folder than a person's."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from isomorph.environments import Environment, load
from local_aws import daemon
from local_aws.daemon import Running
from local_aws.settings import KERNELS, UNPACKED

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


def eventually(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true answer of `what`, or fail after some time."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.25)
    return answer


def bring_up(isomorph: Command, *slugs: str, seconds: float = 280) -> Iterator[dict[str, Any]]:
    """Yield what `isomorph up SLUG ...` reports; the deployment stays up until the next step."""
    try:
        done = isomorph("up", *slugs, "--port", str(free_port()), "--json", timeout=seconds)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)
    finally:
        isomorph("down")


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands and of the module's own calls: no credentials, its own state."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("AWS_ACCESS", "AWS_SECRET")):
            patch.delenv(name)
    patch.setenv("ISOMORPH_STATE", str(tmp_path_factory.mktemp("embedded") / "local"))
    patch.setenv("NO_COLOR", "1")
    # What one file's machines, or the tests of the kernels, compiled or unpacked serves all.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    patch.setenv(KERNELS, str(caches / "isomorph" / "kernels"))
    patch.setenv(UNPACKED, str(ROOT / ".isomorph/cache/unpacked"))
    yield dict(os.environ)
    patch.undo()


@pytest.fixture(scope="module")
def isomorph(variables: dict[str, str]) -> Command:
    """Run `isomorph ARGUMENTS` and return what it did."""

    def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "isomorph", *arguments]
        given = {"timeout": 280, **options}
        return subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, **given
        )

    return run


@pytest.fixture(scope="module")
def local(up: dict[str, Any]) -> Environment:
    """The deployed environment, as commands see it; a module says with `up` what is in it."""
    return load("local")


@pytest.fixture(scope="module")
def running(up: dict[str, Any], variables: dict[str, str]) -> Running:
    """The embedded AWS that it is deployed to."""
    found = daemon.status(Path(variables["ISOMORPH_STATE"]))
    assert found is not None
    return found
