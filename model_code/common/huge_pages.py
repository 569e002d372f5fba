"""Memory in pages of 2 MB: whoever reads weights or caches out of memory looks up fewer pages.

Where /sys/kernel/mm/transparent_hugepage/enabled says "madvise", Linux gives them to whom asks:
https://docs.kernel.org/admin-guide/mm/transhuge.html. Fleets' nodes are set to "always" (boot.sh);
containers, endpoints and a developer's machine are as their owner has them.
"""

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

SIZE = 2 << 20
_MADV_HUGEPAGE = 14


def advise(tensor: Tensor) -> Tensor:
    """Ask for huge pages wherever one fits into a tensor that has not been written yet.

    Nothing but the speed depends on it: a system that has none gives the usual pages.
    """
    start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // SIZE) * SIZE, stop // SIZE * SIZE
    if sys.platform == "linux" and tensor.device.type == "cpu" and first < last:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE
        )
    return tensor


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros in such pages."""
    return advise(torch.empty(*shape, dtype=dtype)).zero_()
