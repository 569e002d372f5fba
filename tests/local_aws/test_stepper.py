import logging
import threading

import pytest

from local_aws.stepper import Stepper


def test_a_step_that_fails_is_logged_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    third, calls = threading.Event(), []

    def step() -> None:
        calls.append(1)
        if len(calls) == 3:
            third.set()
        raise ValueError("broken")

    stepper = Stepper("tests", step, 0.001)
    assert not stepper.alive
    with caplog.at_level(logging.ERROR):
        stepper.start()
        assert third.wait(5)
        stepper.stop()
    assert not stepper.alive
    assert "a step of tests failed" in caplog.text
    assert "ValueError: broken" in caplog.text


def test_it_stops_in_the_middle_of_a_pause_and_before_it_began() -> None:
    stepper = Stepper("tests", lambda: None, 3600)
    stepper.stop()
    again = Stepper("tests", lambda: None, 3600)
    again.start()
    again.stop()
    assert not again.alive
