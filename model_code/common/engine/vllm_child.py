"""Runs a command for as long as its standard input is open: `python vllm_child.py COMMAND ...`.

vLLM is several processes. Whatever becomes of the server that started it, also SIGKILL, the pipe
closes, and all of them go.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_PATIENCE_S = 5.0


def main(command: list[str]) -> int:
    """Run `command` until it ends or nobody holds our standard input any more."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the server is told as well, and drains first
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(  # noqa: S603  the engine's own command
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_signals
    )
    watch = threading.Thread(target=_end_with_our_input, args=(process,), daemon=True)
    watch.start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # what is left of its group
    return code if code >= 0 else 128 - code


def _heed_signals() -> None:
    """What is ignored stays so in a new program: only SIGKILL would end what sets no handler."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _end_with_our_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1 << 10):
        pass
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    _signal(process, signal.SIGKILL)


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
