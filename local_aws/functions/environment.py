"""One execution environment: the unpacked zip, its process, and the runtime API that feeds it."""

import contextlib
import io
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

from local_aws.errors import EmulatorError
from local_aws.functions import managed_runtime
from local_aws.functions.invocation import Failure, Invocation
from local_aws.functions.runtime_api import RuntimeApi

_TASK = "/var/task"
_INIT_SECONDS = 10.0  # Lambda's; what takes longer goes on within the first event's time
_LOOK_SECONDS = 0.05
_MIB = 2**20


class ExecutionEnvironment:
    """Takes one event at a time.

    Args:
        folder: Made for it: `task` for the zip, `tmp` for /tmp, `log`.
        runtime: Folder of the managed runtime.
        config: The function's configuration, as GetFunction returns it.
        code: The zip.
        given: Endpoint, region and keys.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Path,
        config: dict[str, Any],
        code: bytes,
        given: dict[str, str],
    ) -> None:
        self.folder, self.config = folder, config
        self._runtime, self._given = runtime, given
        self._task, self._tmp = folder / "task", folder / "tmp"
        for each in (self._task, self._tmp):
            each.mkdir(parents=True)
        _unpack(code, self._task)
        self.api = RuntimeApi()
        self.started = time.monotonic()
        self._read = 0
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - what the function's package names
                self._command(),
                cwd=self._task,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def _command(self) -> list[str]:
        name, variables = self.config["Runtime"], self._own_variables()
        if name.startswith("provided"):
            return [str(self._task / "bootstrap")]
        if not name.startswith("python"):
            raise EmulatorError(f"runtime {name!r} is not played; played: python*, provided*")
        command = managed_runtime.command(self._runtime, self.config["Handler"])
        wrapper = variables.get("AWS_LAMBDA_EXEC_WRAPPER")
        return [self._inside(wrapper), *command] if wrapper else command

    def _inside(self, path: str) -> str:
        """Return where a path of Lambda's file system is here."""
        return str(self._task) + path[len(_TASK) :] if path.startswith(f"{_TASK}/") else path

    def _own_variables(self) -> dict[str, str]:
        found = (self.config.get("Environment") or {}).get("Variables") or {}
        return {name: str(value) for name, value in found.items()}

    def _variables(self) -> dict[str, str]:
        config, task = self.config, str(self._task)
        runtime = config["Runtime"]
        return {
            "PATH": f"{self._runtime / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "HOME": str(self._tmp),
            "TMPDIR": str(self._tmp),
            "LD_LIBRARY_PATH": f"{task}:{task}/lib",
            "PYTHONPATH": str(self._runtime / "packages") if runtime.startswith("python") else "",
            "PYTHONDONTWRITEBYTECODE": "1",  # the task's folder is read-only on Lambda
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{runtime}",
            "AWS_LAMBDA_FUNCTION_NAME": config["FunctionName"],
            "AWS_LAMBDA_FUNCTION_VERSION": config.get("Version", "$LATEST"),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(config["MemorySize"]),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_RUNTIME_API": self.api.address,
            "LAMBDA_TASK_ROOT": task,
            "LAMBDA_RUNTIME_DIR": str(self._runtime),
            "_HANDLER": config.get("Handler", ""),
            **self._given,
            **self._own_variables(),
        }

    def run(self, invocation: Invocation) -> None:
        """Let the function have an event, and end both when it takes too long or too much.

        This returns when there is no more of its answer to come.
        """
        if failure := self._initialized():
            invocation.put(failure)
            return
        self.api.give(invocation)
        while not invocation.ended.wait(_LOOK_SECONDS):
            if failure := self._trouble(invocation):
                self.stop()
                invocation.put(failure)

    def _initialized(self) -> Failure | None:
        """Wait for the runtime's first question, and return what went wrong before it."""
        end = self.started + _INIT_SECONDS
        while not self.api.ready.wait(_LOOK_SECONDS):
            if not self.alive:
                return self._exited()
            if time.monotonic() > end:
                return None
        return self.api.init_failure

    def _trouble(self, invocation: Invocation) -> Failure | None:
        if invocation.taken and time.time() > invocation.deadline:
            return invocation.timed_out
        if not invocation.taken and time.monotonic() > self.started + _INIT_SECONDS:
            late = time.monotonic() - self.started - _INIT_SECONDS
            if late > invocation.timeout_s:
                return invocation.timed_out
        if not self.alive:
            return self._exited()
        if (used := self.memory_mib()) > self.config["MemorySize"]:
            return Failure(
                "Runtime.OutOfMemory",
                f"RequestId: {invocation.id} Error: Runtime exited with error: signal: killed: "
                f"{used:.0f} MiB used, MemorySize is {self.config['MemorySize']}",
            )
        return None

    def _exited(self) -> Failure:
        code = self.process.poll()
        last = self.log_lines()[-1:] or ["it said nothing"]
        return Failure(
            "Runtime.ExitError", f"Runtime exited with error: exit status {code}: {last[0]}"
        )

    def memory_mib(self) -> float:
        """Return the memory of the process that cannot be given back, mapped files left out."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
            return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") / _MIB
        return 0.0

    def log_lines(self) -> list[str]:
        """Return what the function has printed."""
        return self._printed().decode(errors="replace").splitlines()

    def new_log(self) -> str:
        """Return what the function has printed since this was last asked."""
        content = self._printed()
        fresh, self._read = content[self._read :], len(content)
        return fresh.decode(errors="replace")

    def _printed(self) -> bytes:
        try:
            return self._log.read_bytes()
        except FileNotFoundError:  # the function was deleted while it ran
            return b""

    def stop(self) -> None:
        """End the process and everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.api.close()


def _unpack(code: bytes, folder: Path) -> None:
    """Unpack a function's zip with its modes; a name that leads elsewhere is refused."""
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, folder))  # drops drives, roots and ..
            mode = entry.external_attr >> 16
            if mode and path.is_file():
                path.chmod(mode & 0o755)
