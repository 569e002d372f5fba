"""Starts the process that has the AWS CLI loaded for the machines, when the first one calls."""

import os
import select
import shlex
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from local_aws.machines.image.aws import SOCKET

_SERVER = Path(__file__).with_name("cli_server.py")
_PACKAGES = sysconfig.get_path("purelib")
# The program `aws` of a machine.
AWS = f"""#!/bin/sh
packages={shlex.quote(_PACKAGES)}
exec {shlex.quote(sys.executable)} -ISB "$ISOMORPH_ROOT/sbin/image/aws.py" "$packages" "$@"
"""


class CliServer:
    """Listens for the machines.

    Args:
        folder: Where the socket is; nobody but this user can connect.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, where open files can be passed on and processes be copied without surprises."""
        if sys.platform != "linux":
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._folder, os.O_RDONLY)
        path = Path(f"/proc/self/fd/{folder}/{SOCKET}")  # the whole name may be too long
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        os.close(folder)
        listener.listen(128)
        threading.Thread(target=self._serve, args=(listener,), name="cli", daemon=True).start()

    def stop(self) -> None:
        """End the process. Calls end with the machines that made them."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()

    def _serve(self, listener: socket.socket) -> None:
        """Start the process on the first call. When it ends, machines load the CLI themselves."""
        select.select([listener], [], [])
        number = listener.fileno()
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-ISB", str(_SERVER), _PACKAGES, str(number)],
            # Nothing of the user's: a call brings its own.
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(self._folder)},
            stdin=subprocess.PIPE,
            pass_fds=[number],
            start_new_session=True,
        )
        listener.close()
