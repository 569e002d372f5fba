"""The signals that a group's instances send to CloudFormation while their stack waits for them."""

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from ministack.services.cloudformation import wait_conditions


class SignalError(Exception):
    """Too few instances said that they work."""


class Signals:
    """Takes signals for one resource as long as it is open.

    Args:
        stack_id: Of the stack that waits.
        stack: Its name.
        logical_id: The resource that the signals name.
        kind: Its type.
        explain: Returns why the instance of that id failed, if that is known.
    """

    def __init__(
        self,
        *,
        stack_id: str,
        stack: str,
        logical_id: str,
        kind: str,
        explain: Callable[[str], str | None],
    ) -> None:
        self._key = (stack_id, logical_id)
        self._waiter = {"stack_name": stack, "resource_type": kind}
        self._explain = explain

    def __enter__(self) -> Self:
        """Begin to take signals."""
        self._token = wait_conditions.register_slot(self._key[0])
        with wait_conditions._changed:
            wait_conditions._waiting[self._key] = {"token": self._token, **self._waiter}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take no more signals."""
        with wait_conditions._changed:
            wait_conditions._waiting.pop(self._key, None)
            wait_conditions._handles.pop(self._token, None)

    def _received(self, status: str) -> list[str]:
        with wait_conditions._changed:
            signals: Mapping[str, Any] = wait_conditions._handles[self._token]["signals"]
            return [sender for sender, said in signals.items() if said["Status"] == status]

    def wait(
        self,
        *,
        count: int,
        percent: int,
        seconds: float,
        also: Callable[[], bool] = lambda: True,
        given_up: Callable[[], str | None],
    ) -> None:
        """Return once enough instances succeeded, or raise what became of them.

        Args:
            count: How many signals are expected.
            percent: How many of a hundred have to be good.
            seconds: How long to wait.
            also: What has to be true besides.
            given_up: Returns why no more instances will come, if so.
        """
        needed = math.ceil(count * percent / 100)
        deadline = time.monotonic() + seconds
        while True:
            good, bad = self._received("SUCCESS"), self._received("FAILURE")
            if len(good) >= needed and also():
                return
            if count - len(bad) < needed:
                reasons = {name: self._explain(name) for name in bad}
                raise SignalError(
                    f"Received {len(bad)} FAILURE signal(s) out of {count}. Unable to satisfy "
                    f"{percent}% MinSuccessfulInstancesPercent requirement"
                    + "".join(f"; {name}: {told}" for name, told in reasons.items() if told)
                )
            if reason := given_up():
                raise SignalError(f"no instance came up: {reason}")
            if time.monotonic() > deadline:
                raise SignalError(
                    f"Failed to receive {needed} resource signal(s) within the specified duration"
                )
            time.sleep(0.1)


def seconds(duration: str, logical_id: str) -> float:
    """Return a duration such as `PT15M` in seconds."""
    return float(wait_conditions.validate_resource_signal_timeout(duration, logical_id))
