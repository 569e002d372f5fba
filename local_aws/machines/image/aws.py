"""`aws` on a machine: the real AWS CLI, called where it is loaded already, or loaded here.

Started by path with `-ISB PACKAGES WORD ...`: the folder where the CLI is, and its own words. To
import the CLI is most of a call's time. A process of the embedded AWS has done so for all machines:
it makes a copy of itself for the call, which gets this process's streams, variables and folder, and
lives as long as this process does.
"""

import marshal
import os
import sys
from _signal import SIG_DFL, SIGINT, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

FOLDER = "ISOMORPH_AWS_CLI"  # the variable that names the folder of that process's socket
SOCKET = "aws.sock"
_STREAMS = b"".join(stream.to_bytes(4, sys.byteorder) for stream in range(3))


def call(place: str, words: list[str]) -> int | None:
    """Return the exit code of a call that was made there; None when nobody took it."""
    os.umask(mask := os.umask(0o077))
    there = socket(AF_UNIX, SOCK_STREAM)
    try:
        said = marshal.dumps((words, dict(os.environ), os.getcwd(), mask))
        _connect(there, place)
        head = [len(said).to_bytes(4, "little")]
        there.sendmsg(head, [(SOL_SOCKET, SCM_RIGHTS, _STREAMS)])
        there.sendall(said)
        if not there.recv(1):
            return None
    except OSError:
        return None
    signal(SIGINT, SIG_DFL)
    code = there.recv(4)
    return int.from_bytes(code, "little") if code else 255


def _connect(there: socket, place: str) -> None:
    """Connect by a short name: the whole one may be longer than a socket's."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(place)
        there.connect(SOCKET)
    finally:
        os.fchdir(here)
        os.close(here)


def main() -> int:
    """Be the CLI."""
    packages, *words = sys.argv[1:]
    place = os.environ.pop(FOLDER, "")
    if place and (code := call(place, words)) is not None:
        return code
    import gc

    gc.disable()  # there is none to find
    sys.argv = ["aws", *words]
    sys.path.append(packages)
    from awscli.clidriver import main as run

    return int(run())


if __name__ == "__main__":
    sys.exit(main())
