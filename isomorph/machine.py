"""What this machine must have besides Python's and Node's packages."""

import ctypes
import sys
from collections.abc import Callable

from isomorph.errors import UserError

_OPENMP = "libgomp.so.1"


def need_openmp(load: Callable[[str], object] = ctypes.CDLL) -> None:
    """Refuse to begin where llama.cpp's wheel would not load: slim images have no OpenMP.

    Raises:
        UserError: The library is not there; the message says what installs it.
    """
    if sys.platform != "linux":
        return  # its wheels bring theirs
    try:
        load(_OPENMP)
    except OSError as error:
        raise UserError(
            f"llama.cpp needs {_OPENMP}, which this machine does not have; install it "
            f"(`apt-get install libgomp1`, or `dnf install libgomp`) and run the command again"
        ) from error
