"""The health checks of a target group."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from local_aws.machines.cloud import TargetGroup
from local_aws.machines.health import HealthCheck
from tests.local_aws.conftest import free_port, until


class Target(http.server.HTTPServer):
    status = 503


class Handler(http.server.BaseHTTPRequestHandler):
    server: Target

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def group(**different: object) -> TargetGroup:
    usual = {
        "codes": "200",
        "interval": 0.1,
        "timeout": 1,
        "healthy_threshold": 2,
        "unhealthy_threshold": 2,
    }
    return TargetGroup(arn="tg", path="/health", **{**usual, **different})  # type: ignore[arg-type]


@pytest.fixture
def target() -> Iterator[Target]:
    server = Target(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def check(target: Target) -> Iterator[HealthCheck]:
    made = HealthCheck(group(), target.server_port)
    made.start()
    yield made
    made.stop()
    made.join()


def test_a_target_is_initial_until_its_first_good_answer(
    target: Target, check: HealthCheck
) -> None:
    until(lambda: check.detail == "/health answered 503", "an answer")
    assert check.state == "initial"
    target.status = 200
    until(lambda: check.state == "healthy", "health")


def test_a_target_is_unhealthy_after_as_many_bad_answers_as_the_group_says(
    target: Target, check: HealthCheck
) -> None:
    target.status = 200
    until(lambda: check.state == "healthy", "health")
    assert not check.overdue(grace=0)
    target.status = 500
    until(lambda: check.state == "unhealthy", "its end")
    until(lambda: check.overdue(grace=60), "too long a time")  # the grace is for the first time
    target.status = 200
    until(lambda: check.state == "healthy", "health")


def test_one_bad_answer_between_good_ones_says_nothing() -> None:
    check = HealthCheck(group(), 1)
    for good in (True, False, True, False, True):
        check._note(good)
    assert check.state == "healthy"


def test_nobody_listening_is_a_bad_answer() -> None:
    check = HealthCheck(group(), free_port())
    assert not check._ask()
    assert check.detail == "/health did not answer: Connection refused"


@pytest.mark.parametrize(("codes", "status"), [("200,202", 202), ("200-299", 204), ("418", 418)])
def test_the_codes_of_the_group_are_good(target: Target, codes: str, status: int) -> None:
    target.status = status
    assert HealthCheck(group(codes=codes), target.server_port)._ask()
    target.status = 300
    assert not HealthCheck(group(codes=codes), target.server_port)._ask()


def test_a_new_target_has_the_grace_of_its_group() -> None:
    check = HealthCheck(group(), free_port())
    check.since -= 30
    assert not check.overdue(grace=60)
    assert check.overdue(grace=10)
