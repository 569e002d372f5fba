"""Networks of loopback addresses: clusters of two embedded AWSs on one machine share none."""

import errno
import socket
from dataclasses import dataclass

_FIRST, _LAST = 1, 254
_PORT = 6817  # any: it only marks the address, which no node gets


@dataclass(frozen=True)
class Network:
    """The addresses 127.number.x.x, held until it is released or the process ends."""

    number: int
    _mark: socket.socket

    def release(self) -> None:
        """Let others have it."""
        self._mark.close()


def claim() -> Network:
    """Return the first network that no cluster of this machine has.

    Raises:
        RuntimeError: all are taken.
    """
    for number in range(_FIRST, _LAST + 1):
        mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mark.bind((f"127.{number}.255.254", _PORT))
        except OSError as error:
            # Where loopback is a single address, as on macOS, there is nothing to mark.
            if error.errno == errno.EADDRINUSE:
                mark.close()
                continue
        return Network(number, mark)
    raise RuntimeError(
        f"all networks from 127.{_FIRST}.0.0 to 127.{_LAST}.0.0 have a cluster; delete one"
    )
