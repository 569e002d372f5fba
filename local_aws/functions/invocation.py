"""One event on its way through an execution environment, and what comes back."""

import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Of a synchronous invocation, request and answer each (Lambda's developer guide, "Lambda quotas").
MAX_PAYLOAD_BYTES = 6 * 2**20


@dataclass(frozen=True)
class Failure:
    """What a function, or Lambda itself, says when an invocation fails."""

    kind: str
    message: str
    trace: tuple[str, ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that callers get."""
        said: dict[str, Any] = {"errorType": self.kind, "errorMessage": self.message}
        return {**said, "stackTrace": list(self.trace)} if self.trace else said


@dataclass(frozen=True)
class Head:
    """How the answer comes: streamed or whole, and as what."""

    streamed: bool
    content_type: str


Part = Head | bytes | Failure | None  # None ends the answer


@dataclass
class Invocation:
    """One event.

    Args:
        event: JSON.
        arn: Of the function, as it was called.
        timeout_s: After so long it is ended.
    """

    event: bytes
    arn: str
    timeout_s: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    taken: bool = False  # by the runtime, from when on its time counts
    deadline: float = 0.0
    log: str = ""  # what the function printed meanwhile
    ended: threading.Event = field(default_factory=threading.Event)
    _parts: "queue.Queue[Part]" = field(default_factory=queue.Queue)
    _last: Failure | None = None

    def begin(self) -> None:
        """Start the clock: the runtime has the event."""
        self.taken, self.deadline = True, time.time() + self.timeout_s

    def put(self, part: Part) -> None:
        """Take a part of the answer. The last one is held back until `finish`."""
        if self.ended.is_set():
            return
        if part is None or isinstance(part, Failure):
            self._last = part
            self.ended.set()
        else:
            self._parts.put(part)

    def finish(self) -> None:
        """Let readers have the last part: the environment can take another event."""
        self._parts.put(self._last)

    @property
    def failed(self) -> bool:
        """Whether it ended with a failure."""
        return self._last is not None

    @property
    def timed_out(self) -> Failure:
        """What Lambda says of one that took too long."""
        return Failure(
            "Sandbox.Timedout",
            f"RequestId: {self.id} Error: Task timed out after {self.timeout_s:.2f} seconds",
        )

    def read(self) -> Iterator[Head | bytes | Failure]:
        """Yield the answer's parts as they come; a failure is the last one."""
        while (part := self._parts.get()) is not None:
            yield part
            if isinstance(part, Failure):
                return


def failure_of(body: bytes) -> Failure:
    """Read what a runtime reports; it is the function's own words, so anything may be in it."""
    try:
        said = json.loads(body)
        return Failure(
            str(said.get("errorType", "Unknown")),
            str(said.get("errorMessage", "")),
            tuple(str(line) for line in said.get("stackTrace") or ()),
        )
    except (ValueError, AttributeError, TypeError):
        return Failure("Unknown", body[:500].decode(errors="replace"))
