"""One embedded AWS for all tests, and what they do with it."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest

from local_aws import daemon, describe
from local_aws.daemon import Running
from local_aws.describe import Resource

Found = TypeVar("Found")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(look: Callable[[], Found | None], what: str, seconds: float = 20) -> Found:
    """Look again and again until there is something to see; a fifth of the time at most."""
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if found := look():
            return found
        now = time.monotonic()
        assert now < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(max(0.1, 4 * (now - begun)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    # A child that nobody waited for is dead as well, and gone when starting ps has waited for it.
    return bool(state := done.stdout.strip()) and "Z" not in state


@dataclass
class Emulator:
    running: Running
    account: str = "000000000000"
    region: str = "us-east-1"
    _clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        if service not in self._clients:
            given = daemon.environment(self.running, account=self.account, region=self.region)
            self._clients[service] = boto3.Session().client(
                service,
                endpoint_url=given["AWS_ENDPOINT_URL"],
                aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
                region_name=given["AWS_REGION"],
            )
        return self._clients[service]

    def begin(self, stack: str, template: dict[str, Any], *, update: bool = False) -> None:
        operation = "update_stack" if update else "create_stack"
        getattr(self.client("cloudformation"), operation)(
            StackName=stack,
            TemplateBody=json.dumps(template),
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )

    def settled(self, stack: str, seconds: float = 30) -> str:
        def status() -> str | None:
            found = self.client("cloudformation").list_stacks()["StackSummaries"]
            [latest] = [one for one in found if one["StackName"] == stack][:1]
            now = str(latest["StackStatus"])
            return None if now.endswith("IN_PROGRESS") else now

        return until(status, f"the end of the change of {stack}", seconds)

    def create(self, stack: str, template: dict[str, Any]) -> str:
        self.begin(stack, template)
        return self.settled(stack)

    def update(self, stack: str, template: dict[str, Any]) -> str:
        self.begin(stack, template, update=True)
        return self.settled(stack)

    def delete(self, stack: str) -> str:
        self.client("cloudformation").delete_stack(StackName=stack)
        return self.settled(stack)

    def resources(self, stack: str) -> dict[str, Resource]:
        found = describe.resources(stack, self.client)
        return {resource.logical_id: resource for resource in found}

    def failure(self, stack: str) -> str:
        """Return the first reason for which a resource of the stack failed."""
        events = self.client("cloudformation").describe_stack_events(StackName=stack)
        reasons = [
            event["ResourceStatusReason"]
            for event in events["StackEvents"]
            if event["ResourceStatus"].endswith("_FAILED")
        ]
        return str(reasons[-1])


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The embedded AWS of all modules."""
    folder: Path = tmp_path_factory.mktemp("aws") / "state"
    yield daemon.start(folder, free_port())
    daemon.stop(folder)


@pytest.fixture(scope="module")
def emulator(running: Running) -> Iterator[Emulator]:
    """The embedded AWS; what a test that failed left in it is deleted before the next module."""
    given = Emulator(running)
    yield given
    for stack in given.client("cloudformation").list_stacks()["StackSummaries"]:
        if stack["StackStatus"] != "DELETE_COMPLETE":
            given.delete(stack["StackName"])
