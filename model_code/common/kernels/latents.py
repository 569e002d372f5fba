"""One token's attention on latents in C++; model_code/mla does the same with torch's operations.

torch's fused kernel gives one thread a sequence's heads, and reads a latent twice, as a key and as
a value. Here threads share out the positions, and a latent is both while it is in a core's cache.

Shape letters: B sequences, T cached positions, N heads, W width of what a position keeps, R of its
latent, which comes first.
"""

import torch
from torch import Tensor

from model_code.common import kernels
from model_code.common.kernels import KINDS

_STORED = (torch.float32, torch.bfloat16)


def fit(kept_BTW: Tensor) -> bool:
    """Whether `attend` can read this cache: on the CPU, each sequence's positions side by side."""
    plain = kept_BTW.dtype in _STORED and kept_BTW.stride()[1:] == (kept_BTW.shape[2], 1)
    return plain and kernels.usable(kept_BTW)


def attend(
    query_BNW: Tensor, kept_BTW: Tensor, lengths_B: Tensor, *, rank: int, scale: float
) -> Tensor:
    """Return what the heads of one token each see of their sequence: [B, N, R] float32.

    Args:
        query_BNW: Any floats.
        kept_BTW: What `fit` accepts.
        lengths_B: How many positions each sees, from the first on; int64.
        rank: R.
        scale: What scores are multiplied by.

    Raises:
        ValueError: A shape or a length is not these.
    """
    (B, N, W), positions = query_BNW.shape, kept_BTW.shape[1]
    right = kept_BTW.shape == (B, positions, W) and lengths_B.shape == (B,) and 0 < rank <= W
    if not right or not 0 < int(lengths_B.min()) <= int(lengths_B.max()) <= positions:
        raise ValueError(
            f"queries {tuple(query_BNW.shape)}, latents {tuple(kept_BTW.shape)} of rank {rank} and "
            f"lengths {lengths_B.tolist()} do not go together"
        )
    queries_BNW, lengths_B = query_BNW.float().contiguous(), lengths_B.contiguous()
    out_BNR = torch.empty(B, N, rank)
    library = kernels.loaded()
    assert library is not None  # noqa: S101  the caller asked fit()
    library.isomorph_attend_latents(
        *(KINDS[kept_BTW.dtype], queries_BNW.data_ptr(), kept_BTW.data_ptr()),
        *(lengths_B.data_ptr(), out_BNR.data_ptr(), B, N, W, rank, kept_BTW.stride(0)),
        *(scale, torch.get_num_threads()),
    )
    return out_BNR
