"""The bound of whatever waits for memory: all threads read as many bytes once, as fast as they can.

torch's sum reads at one place a thread, and memory gives more to four: so that this is a
bound, it is C++ in the manner of the kernels, in huge pages as they are.
"""

import ctypes
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from model_code.common import huge_pages
from model_code.common.kernels import build


def reader(size: float) -> Callable[[], object]:
    """Return what reads so many bytes of its own."""
    values = huge_pages.advise(torch.empty(max(1, int(size) // 4))).fill_(1)
    return partial(read, values)


def read(values: torch.Tensor) -> float:
    """Read a contiguous float32 tensor."""
    return float(_library().isomorph_read(values.data_ptr(), len(values), torch.get_num_threads()))


@functools.cache
def _library() -> ctypes.CDLL:
    library = build.compiled(Path(__file__).with_name("reading.cpp"))
    library.isomorph_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.isomorph_read.restype = ctypes.c_float
    return library
