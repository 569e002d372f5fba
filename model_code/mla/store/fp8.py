"""A block's latents in fp8: half of their bytes, and 3% of each number.

Latents become float8_e4m3fn, each with a power of two of its own, so that nothing is rounded twice.
Rotated keys stay in 16 bits: rounding them to fp8 moves logits four times as far as rounding the
latents does (`isomorph bench mla`). vLLM's FlashMLA keeps both in the same two formats:
https://docs.vllm.ai/en/v0.11.0/api/vllm/v1/attention/backends/mla/flashmla_sparse.html

A payload is the keys [N, E] in bfloat16, the latents [N, R] in fp8, and an exponent [N] for each,
biased by 127 (OCP's E8M0). Shape letters: N layers x tokens of a block, R width of a latent, E of
its rotated key.
"""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_code.common.layers import Attention

Payload: TypeAlias = memoryview | bytearray

_FP8 = torch.float8_e4m3fn
_BIAS, _LEAST = 127, -126  # 2 to the power of -_LEAST is still finite
_LARGEST = torch.finfo(_FP8).max


class Fp8Codec:
    """Writes and reads payloads of one model's blocks. One thread at a time may use it.

    Args:
        attention: Of all its layers, with latents.
        dtype: What the model computes in: bfloat16 or float32.
    """

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        assert attention.latent_rank is not None  # noqa: S101
        self._rank, self._rope_dim, self._dtype = attention.latent_rank, attention.rope_dim, dtype
        self._row_bytes = attention.fp8_latent_bytes
        # By a table of all pairs of numbers: several times faster than torch's own conversion.
        pairs = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8)
        self._pairs: NDArray[np.int32] = pairs.view(_FP8).bfloat16().view(torch.int32).numpy()

    def encode(self, data: Tensor, payload: Payload) -> bool:
        """Write what `KVCache.export_tokens` gave; False if a number of it is not finite."""
        rows_NW = data.view(-1, self._rank + self._rope_dim)
        latents_NR, keys_NE = rows_NW.split([self._rank, self._rope_dim], dim=-1)
        kept_NE, packed_NR, exponents_N = self._planes(payload)
        kept_NE.copy_(keys_NE)
        largest_N = latents_NR.abs().amax(dim=-1).float()
        if not (largest_N.isfinite().all() and kept_NE.isfinite().all()):
            return False
        # The least power with which the largest number is at most fp8's.
        fraction_N, power_N = torch.frexp(largest_N / _LARGEST)
        power_N = (power_N - (fraction_N == 0.5).int()).clamp(min=_LEAST)
        inverses_N = ((_BIAS - power_N) << 23).view(torch.float32).to(self._dtype)
        packed_NR.view(_FP8).copy_(latents_NR * inverses_N[:, None])
        exponents_N.copy_(power_N + _BIAS)
        return True

    def decode(self, payload: Payload) -> Tensor:
        """Return what `KVCache.import_tokens` takes, in the model's dtype."""
        kept_NE, packed_NR, exponents_N = self._planes(payload)
        pairs = self._pairs.take(packed_NR.view(-1).numpy().view(np.uint16))
        scales_N = (exponents_N.short() << 7).view(torch.bfloat16)
        rows_NW = torch.empty(len(exponents_N), self._rank + self._rope_dim, dtype=self._dtype)
        latents_NR, keys_NE = rows_NW.split([self._rank, self._rope_dim], dim=-1)
        numbers_NR = torch.from_numpy(pairs).view(torch.bfloat16).view(-1, self._rank)
        torch.mul(numbers_NR, scales_N[:, None], out=latents_NR)
        keys_NE.copy_(kept_NE)
        return rows_NW.view(-1)

    def _planes(self, payload: Payload) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three parts of a payload, as they lie in its memory."""
        flat = torch.frombuffer(payload, dtype=torch.uint8)
        rows = len(flat) // self._row_bytes
        keys, latents, exponents = flat.split([2 * rows * self._rope_dim, rows * self._rank, rows])
        return keys.view(torch.bfloat16).view(rows, -1), latents.view(rows, -1), exponents
