"""The health checks of a load balancer on one of its targets."""

import http.client
import threading
import time

from local_aws.machines.cloud import TargetGroup
from local_aws.settings import HOST

_PERIOD = 1.0  # seconds between checks, if the target group does not ask for more often


def _matches(codes: str, status: int) -> bool:
    """Tell whether a status is one of `200`, `200,202` or `200-299`."""
    for part in codes.split(","):
        first, _, last = part.partition("-")
        if int(first) <= status <= int(last or first):
            return True
    return False


class HealthCheck(threading.Thread):
    """Asks a target again and again, and knows its state in the words of a target group.

    A check comes every second at the latest, so that nobody waits for a local machine; how many of
    them count, and how long an instance may stay unhealthy, is what the target group says.
    """

    def __init__(self, group: TargetGroup, port: int) -> None:
        super().__init__(daemon=True, name=f"health-{port}")
        self.group = group
        self.state = "initial"
        self.detail = "not checked yet"
        self.since = time.monotonic()
        self._port = port
        self._streak = 0  # of answers that contradict the state
        self._stopped = threading.Event()

    def run(self) -> None:
        """Check until stopped."""
        period = min(_PERIOD, self.group.interval)
        while not self._stopped.is_set():
            self._note(self._ask())
            self._stopped.wait(period / 4 if self.state == "initial" else period)

    def stop(self) -> None:
        """Check no more."""
        self._stopped.set()

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=self.group.timeout)
        try:
            connection.request("GET", self.group.path)
            status = connection.getresponse().status
            self.detail = f"{self.group.path} answered {status}"
            return _matches(self.group.codes, status)
        except OSError as error:
            self.detail = f"{self.group.path} did not answer: {error.strerror or error}"
        except http.client.HTTPException as error:
            self.detail = f"{self.group.path} answered no HTTP: {error!r}"
        finally:
            connection.close()
        return False

    def _note(self, good: bool) -> None:
        if good == (self.state == "healthy"):
            self._streak = 0
            return
        self._streak += 1
        if self.state == "initial":  # the first good answer counts, a bad one says nothing yet
            needed = 1 if good else None
        else:
            needed = self.group.healthy_threshold if good else self.group.unhealthy_threshold
        if needed is not None and self._streak >= needed:
            self.state = "healthy" if good else "unhealthy"
            self.since = time.monotonic()
            self._streak = 0

    def overdue(self, grace: float) -> bool:
        """Tell whether the target has been without health for longer than it may."""
        allowed = self.group.interval * self.group.unhealthy_threshold
        if self.state == "initial":
            allowed = max(allowed, grace)
        return self.state != "healthy" and time.monotonic() - self.since > allowed
