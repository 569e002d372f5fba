"""Servers that tests start, each forked off a process that has imported torch, and no server yet.

To import it takes as long as most of them live. Those that tests of the start itself start, and all
that are deployed, begin as processes of their own.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from model_code.common.imports import kept

with kept():
    import torch  # noqa: F401  for those that are forked

from tests.model_code.conftest import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
# Read when torch is imported; servers set the second themselves.
_VARIABLES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


class Forked:
    """`python -m MODULE` in these variables alone; what tests use of `subprocess.Popen`.

    Args:
        module: What is run.
        env: Its variables.
        log: A file for its standard error.
    """

    def __init__(self, module: str, env: Mapping[str, str], log: Path) -> None:
        with mock.patch.dict(os.environ, _VARIABLES):
            forkserver.ensure_running()
        self._process = _CONTEXT.Process(target=_run, args=(module, dict(env), log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run(module: str, env: Mapping[str, str], log: Path) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
