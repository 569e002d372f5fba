"""A thread that takes one step after the other."""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Stepper:
    """Calls a function again and again until it is stopped; what one call met is only logged.

    Args:
        name: Of the thread, in logs.
        step: Is called.
        pause: Seconds between two calls.
    """

    def __init__(self, name: str, step: Callable[[], None], pause: float) -> None:
        self._name, self._step, self._pause = name, step, pause
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it steps."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float = 5) -> None:
        """End, and wait so long for the step that is being taken."""
        self._stopped.set()
        if self.alive:
            self._thread.join(timeout=seconds)

    def _run(self) -> None:
        while not self._stopped.wait(self._pause):
            try:
                self._step()
            except Exception:  # whatever one step met, the next one must come
                _log.exception("a step of %s failed", self._name)
