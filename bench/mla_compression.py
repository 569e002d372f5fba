"""Whether latents are worth making smaller: what it takes to restore them against what it saves.

A request waits for its blocks to come and to be restored. With a share s of the bytes left, that is
shorter only on a network slower than (1 - s) x the speed at which blocks are restored.
"""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bench import apart
from bench.row import Row, interleaved
from isomorph import output
from model_code.common.cache import KVCache
from model_code.common.model_folder import load_folder
from model_code.common.span import Span
from model_code.common.text import text_of_python

_ZSTD = "zstandard==0.25.0"
_TOKENS, _CHUNK = 4096, 512
# Gbit/s of one connection outside of a placement group, whatever the node's size:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-network-bandwidth.html
_NETWORK = 5.0


def rows(weights: Path) -> Iterator[Row]:
    """fp8 and byte-shuffled zstd on the latents of real text: up to which network they pay.

    Args:
        weights: A model's with latent attention.
    """
    latents = _latents(weights)
    yield _fp8(latents)
    with TemporaryDirectory() as folder:
        try:
            sys.path.insert(0, str(apart.install(_ZSTD, Path(folder))))
            yield _zstd(import_module("zstandard"), latents)
        except apart.NotInstallableError as error:
            output.say(f"no row for zstd: {error}")
        finally:
            sys.path.remove(folder)


@torch.inference_mode()
def _latents(weights: Path) -> Tensor:
    """Return what the tokens of a text leave in all layers, in bfloat16, flat."""
    model = load_folder(weights, context=_TOKENS, dtype=torch.float32)
    tokens = torch.tensor([model.tokenizer.encode(text_of_python()[:100_000])[:_TOKENS]])
    cache = KVCache(model.decoder.architecture, slots=1, context=_TOKENS, dtype=torch.float32)
    for start in range(0, tokens.shape[1], _CHUNK):
        chunk = tokens[:, start : start + _CHUNK]
        model.decoder(chunk, cache, Span(0, torch.tensor([start]), chunk.shape[1]))
    return cache.export_tokens(0, 0, tokens.shape[1]).bfloat16()


def _fp8(latents: Tensor) -> Row:
    """float8_e4m3fn with one scale for all: half of the bytes, and another answer."""
    scale = latents.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
    packed = (latents / scale).to(torch.float8_e4m3fn)
    # By a table of all 256 numbers: several times faster than torch's own conversion.
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    table = (numbers.bfloat16() * scale.bfloat16()).view(torch.int16).numpy()
    indices = packed.view(torch.uint8).numpy()
    took = interleaved({"restore": lambda: table.take(indices)}, rounds=7)
    restored = torch.from_numpy(table.take(indices)).view(torch.bfloat16)
    error = float((restored - latents).float().norm() / latents.float().norm())
    return _row(f"not in fp8, which changes them by {error:.1%}", latents, packed.nbytes,
                took["restore"])  # fmt: skip


def _zstd(zstandard: Any, latents: Tensor) -> Row:
    """Byte-shuffled zstd at its quickest level: all first bytes, then all second bytes."""
    shuffled = latents.view(torch.uint8).view(-1, 2).t().contiguous()
    packed = zstandard.ZstdCompressor(level=1).compress(shuffled.numpy().tobytes())
    decompressor = zstandard.ZstdDecompressor()

    def restore() -> Tensor:
        planes = torch.frombuffer(bytearray(decompressor.decompress(packed)), dtype=torch.uint8)
        return planes.view(2, -1).t().contiguous().view(-1).view(torch.bfloat16)

    if not torch.equal(restore().view(torch.int16), latents.view(torch.int16)):
        raise RuntimeError("zstd does not give back what it was given")
    took = interleaved({"restore": restore}, rounds=7)
    return _row("not in zstd 1 with bytes shuffled", latents, len(packed), took["restore"])


def _row(name: str, latents: Tensor, nbytes: int, seconds: float) -> Row:
    left, speed = nbytes / latents.nbytes, latents.nbytes / seconds / 1e9
    pays_below = 8 * (1 - left) * speed
    return Row(
        name=f"latents raw, {name}: {left:.0%} of the bytes, restored at {speed:.2f} GB/s",
        ours=f"raw pays on networks above {pays_below:.1f} Gbit/s",
        peer=f"one connection in EC2: up to {_NETWORK:g} Gbit/s",
        ratio=_NETWORK / pays_below, target=1.0,
    )  # fmt: skip
