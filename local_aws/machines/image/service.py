"""One supervised service of a machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from .units import UnitError, UnitFile, command_line, read_environment_file

_SOON = 10.0  # seconds: a service that ends sooner than this is crashing
_LONGEST_PAUSE = 60.0
_PR_SET_PDEATHSIG = 1


def _die_with_init() -> None:
    """On Linux, let the kernel kill a child when init dies in whatever way."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    command: list[str], environment: Mapping[str, str], folder: str, console: int
) -> subprocess.Popen[bytes]:
    """Start a process group that writes to the console and dies with this process."""
    return subprocess.Popen(  # noqa: S603 - what the machine was told to run
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        start_new_session=True,
        preexec_fn=_die_with_init,
    )


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and to all that it started."""
    # Gone already; macOS says PermissionError of a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Service:
    """A unit that was started at least once: its process, and when to start or kill it next."""

    def __init__(self, name: str, root: str, console: int) -> None:
        self.name = name
        self.root = root
        self.console = console
        self.state = "inactive"
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.due: float | None = None  # when to start again, or to kill what does not stop
        self._started = 0.0
        self._crashes = 0
        self._again = False

    @property
    def busy(self) -> bool:
        """Whether the answer to a caller of systemctl has to wait."""
        return self.state == "deactivating" or (self.state == "activating" and self.unit.oneshot)

    def start(self, unit: UnitFile) -> None:
        """Start the service unless it runs."""
        self.unit = unit
        if self.process is None:
            self._crashes = 0
            self._launch()
        elif self.state == "deactivating":
            self._again = True

    def stop(self, *, again: bool = False) -> None:
        """Ask the service to end; after its TimeoutStopSec it is killed."""
        self._again = again
        if self.process is None:
            self.due = None
            self.state = "inactive"
            if again:
                self._launch()
        elif self.state != "deactivating":
            self.state = "deactivating"
            self.due = time.monotonic() + self.unit.stop_seconds
            signal_group(self.process, self.unit.kill_signal)

    def kill(self) -> None:
        """End the service now."""
        if self.process is not None:
            signal_group(self.process, signal.SIGKILL)

    def tick(self, now: float) -> bool:
        """Do what is due; return whether anything changed."""
        if self.process is not None and self.process.poll() is not None:
            self._ended(self.process.returncode)
            return True
        if self.due is None or now < self.due:
            return False
        self.due = None
        if self.process is not None:
            self.kill()
            return False
        self.restarts += 1
        self._launch()
        return True

    def _launch(self) -> None:
        self.due = None
        self._again = False
        try:
            environment = dict(os.environ) | self.unit.environment
            for path in self.unit.environment_files:
                environment |= read_environment_file(path)
            for variable, folder in self.unit.folders:
                environment[variable] = os.path.join(self.root, folder)
                os.makedirs(environment[variable], exist_ok=True)
            words = command_line(self.unit.command, environment)
            folder = self.unit.working_directory or self.root
            self.process = spawn(words, environment, folder, self.console)
        except (OSError, UnitError) as error:
            self.write(f"{self.name}: {error}")
            self._ended(127)
            return
        self._started = time.monotonic()
        self.state = "activating" if self.unit.oneshot else "active"

    def _ended(self, code: int) -> None:
        if self.process is not None:
            signal_group(self.process, signal.SIGKILL)  # what it left behind
            self.write(f"{self.name}: ended with {code}")
            self.process = None
        asked, self.due = self.state == "deactivating", None
        if asked or code == 0:
            self.state = "inactive"
        else:
            self.state = "failed"
        if self._again:
            self._launch()
        elif not asked and self._wants_restart(code):
            lived = time.monotonic() - self._started
            self._crashes = self._crashes + 1 if lived < _SOON else 1
            pause = self.unit.restart_seconds * 2 ** (self._crashes - 1)
            self.due = time.monotonic() + min(pause, max(_LONGEST_PAUSE, self.unit.restart_seconds))
            self.state = "activating"

    def _wants_restart(self, code: int) -> bool:
        if self.unit.restart == "on-failure":
            return code != 0
        return self.unit.restart == "always" and not self.unit.oneshot

    def write(self, line: str) -> None:
        """Write a line of init's own to the console."""
        os.write(self.console, f"init: {line}\n".encode())
