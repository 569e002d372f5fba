"""Which process is which: questions to the operating system, without a library."""

import os
import socket
import subprocess
from pathlib import Path

from local_aws.settings import HOST


def started(pid: int) -> str | None:
    """Return when a process was started, to tell it from a later one with its number."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        # Not Linux, or no such process. Linux's own ps would be a second off now and then.
        return None if Path("/proc/self").exists() else _ps(pid, "lstart")
    return None if state in "ZX" else fields[18]


def command(pid: int) -> str | None:
    """Return the command line of a process."""
    return _ps(pid, "command")


def _ps(pid: int, column: str) -> str | None:
    listing = subprocess.run(  # noqa: S603 - a fixed program, found on the path as anywhere
        ["ps", "-ww", "-o", f"stat=,{column}=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, text = listing.stdout.strip().partition(" ")
    return text.strip() if text and not state.startswith("Z") else None


def port_is_free(port: int) -> bool:
    """Tell whether a server can listen on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def listener(port: int) -> int | None:
    """Return the process that listens on a port, if this is Linux and may see its files."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) in sockets for entry in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:
            continue
    return None
