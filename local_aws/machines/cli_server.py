"""The AWS CLI, loaded once for all machines: each call is a copy of this process.

Started by path with `-ISB FOLDER NUMBER`: the packages' folder, and the number of an open file, the
socket that `aws` on machines connects to. It ends when its standard input does.

A call brings its words, variables, folder and open files, and gets the CLI's exit code. Whoever
called is the process that a machine knows: when that is killed, the copy ends as well.
"""

import array
import contextlib
import gc
import io
import marshal
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

_INTS = array.array("i")
_STREAMS = 3


def main() -> None:
    """Load the CLI, and answer."""
    gc.disable()  # a call makes little that could be garbage, and ends soon
    sys.path.append(sys.argv[1])
    listener = socket.socket(fileno=int(sys.argv[2]))
    run = _load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for copies
    gc.freeze()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # its end: nothing is ever said there
            return
        if listener in ready:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection, run)
            connection.close()


def _load() -> Callable[[], int]:
    """Import the CLI with what calls import, and let sessions share the descriptions they read."""
    from awscli import clidriver

    session = clidriver.botocore.session  # the CLI's own, which may be another than boto3's
    models = session.create_loader(os.environ["AWS_DATA_PATH"])
    session.create_loader = lambda search_path_string=None: models
    with contextlib.redirect_stderr(io.StringIO()):  # there is no such file: it only imports
        clidriver.create_clidriver().main(["s3", "cp", "no-file", "s3://bucket/key"])
    for service in ("cloudformation", "logs", "s3", "ssm"):
        models.load_service_model(service, "service-2")
    run: Callable[[], int] = clidriver.main
    return run


def _answer(connection: socket.socket, run: Callable[[], int]) -> None:
    """Be `aws` for the one that called; does not return."""
    code = 255
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        words, variables, folder, mask = _receive(connection)
        connection.sendall(b"\0")  # taken
        os.chdir(folder)
        os.umask(mask)
        kept = os.environ["AWS_DATA_PATH"]  # where the CLI's own descriptions are
        os.environ.clear()
        os.environ.update(variables, AWS_DATA_PATH=kept)
        sys.argv = ["aws", *words]
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        code = run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        with contextlib.suppress(OSError, ValueError):  # a pipe may have lost its reader
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall((code & 255).to_bytes(4, "little"))
        os._exit(0)


def _receive(connection: socket.socket) -> tuple[list[str], dict[str, str], str, int]:
    """Take over the caller's streams, and return what it was called with."""
    size = 4
    first, control, _, _ = connection.recvmsg(size, socket.CMSG_SPACE(_STREAMS * _INTS.itemsize))
    streams = array.array("i", control[0][2])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    rest = connection.makefile("rb").read(int.from_bytes(first, "little"))
    given: tuple[list[str], dict[str, str], str, int] = marshal.loads(rest)  # noqa: S302 - ours
    return given


def _end_with(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # "reset": the caller had not read that it was taken
        connection.recv(1)  # nothing comes but the end
    os._exit(0)


if __name__ == "__main__":
    main()
