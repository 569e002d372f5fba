"""Runs a command and adopts what it leaves behind: `python -m tests.reaper COMMAND ...`.

A daemon whose starter has ended belongs to the system's first process, and its CPU seconds with
it. Here (on Linux) they belong to this process, whose own parent is told them by the system.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run the command and return its exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.posix_spawnp(command[0], command, os.environ)
    signal.signal(signal.SIGINT, lambda *_: None)  # the command gets it, too, and says what to do
    while True:
        ended, status = os.wait()
        if ended == child:
            break
    end = time.monotonic() + 1
    with contextlib.suppress(ChildProcessError):  # those that end with it, after it
        while time.monotonic() < end:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.01)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
