"""Runs one command and ends with its code; takes everything that it started down with it.

What `slurmstepd` is to Slurm. It listens to its standard input: a number is a signal for the
command's process group, with a minus for the command alone; the end of the input means that slurmd
is gone, and all is killed. On Linux processes that left the group (torchrun's workers) are found as
descendants.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`; empty where there is no /proc."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            # As bytes: where this folder has been deleted, Python 3.13.0 fails to look for a codec.
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    return found


def kill_all(child: "subprocess.Popen[bytes] | None" = None) -> None:
    """Kill the command's group, and whatever else this process has started."""
    if child is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for _ in range(50):
        left = descendants(os.getpid())
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.02)


def main(command: list[str]) -> int:
    """Run the command, and return its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    except OSError as error:
        print(f"slurmstepd: error: {error}", file=sys.stderr, flush=True)
        return 127
    orders = selectors.DefaultSelector()
    orders.register(0, selectors.EVENT_READ)
    while child.poll() is None:
        if not orders.select(timeout=0.05):
            continue
        told = os.read(0, 4096)
        if not told:
            kill_all(child)
            return 137
        for number in told.split():
            with contextlib.suppress(ProcessLookupError):
                send = os.kill if int(number) < 0 else os.killpg
                send(child.pid, abs(int(number)))
    kill_all(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
