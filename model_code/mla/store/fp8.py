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

import torch
from torch import Tensor

from model_code.common.layers import Attention

Payload: TypeAlias = memoryview | bytearray

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max
_BIAS = 127  # of bfloat16's exponent, and of the one beside each latent
# The bits of a number in fp8, as an int8 that was moved up by 4, are those of a bfloat16 that is
# smaller by 2^120: sign, exponent and fraction are where they belong, below the copies of the sign.
_SHIFT, _KEPT, _SMALLER = 4, ~0x7800, 120
_LEAST, _MOST = -126, _BIAS - _SMALLER  # powers of two whose inverse and whose product are finite


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
        self._bits_NR = torch.empty(0, self._rank, dtype=torch.int16)
        self._rows_NW = torch.empty(0, self._rank + self._rope_dim, dtype=dtype)

    def encode(self, data: Tensor, payload: Payload) -> bool:
        """Write what `KVCache.export_tokens` gave.

        Returns False if a number of it is not finite, or a latent's is above 57,344: latents come
        out of a norm, so that such a model is broken, and none of its blocks shall be shared.
        """
        rows_NW = data.view(-1, self._rank + self._rope_dim)
        latents_NR, keys_NE = rows_NW.split([self._rank, self._rope_dim], dim=-1)
        kept_NE, packed_NR, exponents_N = self._planes(payload)
        kept_NE.copy_(keys_NE)
        # The least power with which the largest number is at most fp8's.
        largest_N = _largest(latents_NR).float()
        fraction_N, power_N = torch.frexp(largest_N / _LARGEST)
        power_N = (power_N - (fraction_N == 0.5).int()).clamp(min=_LEAST)
        finite_N = largest_N.isfinite() & (power_N <= _MOST)
        if not (finite_N.all() and kept_NE.isfinite().all()):
            return False
        inverses_N = ((_BIAS - power_N) << 23).view(torch.float32).to(self._dtype)
        packed_NR.view(_FP8).copy_(latents_NR * inverses_N[:, None])
        exponents_N.copy_(power_N + _BIAS)
        return True

    def decode(self, payload: Payload) -> Tensor:
        """Return what `KVCache.import_tokens` takes; the next call writes over it."""
        kept_NE, packed_NR, exponents_N = self._planes(payload)
        if len(self._rows_NW) != len(exponents_N):
            self._bits_NR = self._bits_NR.new_empty(packed_NR.shape)
            self._rows_NW = self._rows_NW.new_empty(len(exponents_N), self._rows_NW.shape[1])
        latents_NR, keys_NE = self._rows_NW.split([self._rank, self._rope_dim], dim=-1)
        self._bits_NR.copy_(packed_NR.view(torch.int8))  # torch's own conversion is slower
        self._bits_NR.bitwise_left_shift_(_SHIFT).bitwise_and_(_KEPT)
        scales_N = ((exponents_N.short() + _SMALLER) << 7).view(torch.bfloat16)
        torch.mul(self._bits_NR.view(torch.bfloat16), scales_N[:, None], out=latents_NR)
        keys_NE.copy_(kept_NE)
        return self._rows_NW.view(-1)

    def _planes(self, payload: Payload) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three parts of a payload, as they lie in its memory."""
        flat = torch.frombuffer(payload, dtype=torch.uint8)
        rows = len(flat) // self._row_bytes
        keys, latents, exponents = flat.split([2 * rows * self._rope_dim, rows * self._rank, rows])
        keys_NE = keys.view(torch.bfloat16).view(rows, self._rope_dim)
        return keys_NE, latents.view(rows, self._rank), exponents


def _largest(x_NR: Tensor) -> Tensor:
    """Return the largest magnitude of each row, NaN if there is one: [N].

    By halves, as torch goes along rows one number at a time.
    """
    largest = x_NR.abs()
    while (width := largest.shape[1]) > 1:
        half = (width + 1) // 2
        largest = torch.maximum(largest[:, :half], largest[:, -half:])
    return largest[:, 0]
