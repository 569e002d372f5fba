"""Whether latents are worth making smaller: what it takes to restore them against what it saves.

A request waits for its blocks to come and to be restored. With a share s of the bytes left, that is
shorter only on a network slower than (1 - s) x the speed at which blocks are restored. Latents are
those of real text; where speed depends on their width, in rows as wide as DeepSeek-V3's.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench import apart
from bench.row import Row, interleaved
from isomorph import output
from model_code.common.architecture import read
from model_code.common.cache import KVCache
from model_code.common.layers import Attention
from model_code.common.model_folder import Model, load_folder
from model_code.common.span import Span
from model_code.common.text import text_of_python
from model_code.mla.store.fp8 import Fp8Codec

_MODELS = Path(__file__).parents[1] / "config" / "models"
_ZSTD = "zstandard==0.25.0"
_TOKENS, _CHUNK = 4096, 64
# Bytes that vLLM's FlashMLA keeps of such a token and layer in fp8: 512 numbers, 4 scales, the key.
# https://docs.vllm.ai/en/v0.11.0/api/vllm/v1/attention/backends/mla/flashmla_sparse.html
_VLLM = 656
# Gbit/s of one connection outside of a placement group, whatever the node's size:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-network-bandwidth.html
_NETWORK = 5.0


class Deviation(NamedTuple):
    """How far a model that reads its own rounded latents is from one that reads them as they are.

    Args:
        logits: Norm of their difference over their norm, mean of all tokens.
        greedy: Share of tokens whose most likely next token is the same.
        perplexity: The one over the other, of the text itself.
        tokens: How many were looked at.
    """

    logits: float
    greedy: float
    perplexity: float
    tokens: int


def rows(weights: Path) -> Iterator[Row]:
    """fp8 and byte-shuffled zstd on the latents of real text: what they save, cost and change.

    Args:
        weights: A model's with latent attention.
    """
    model = load_folder(weights, context=_TOKENS, dtype=torch.float32)
    tokens = model.tokenizer.encode(text_of_python()[300_000:500_000])[:_TOKENS]
    latents = _read(model, tokens, lambda data: data)[1].bfloat16()
    yield from _fp8(read(_MODELS / "deepseek-v3.json").layers[0].attention, latents)
    ours, keys_too = (deviation(model, tokens, rounded_keys=each) for each in (False, True))
    yield Row(
        name=f"tiny-deepseek behind latents in fp8, {ours.tokens} tokens of text",
        ours=f"logits differ by {ours.logits:.2%}, {ours.greedy:.1%} of greedy tokens are the "
        f"same, perplexity x {ours.perplexity:.4f}",
        peer=f"rotated keys in fp8 too: {keys_too.logits:.2%}, {keys_too.greedy:.1%}, "
        f"x {keys_too.perplexity:.4f}",
        ratio=keys_too.logits / ours.logits, target=2.0,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        try:
            sys.path.insert(0, str(apart.install(_ZSTD, Path(folder))))
            yield _zstd(import_module("zstandard"), latents)
        except apart.NotInstallableError as error:
            output.say(f"no row for zstd: {error}")
        finally:
            sys.path.remove(folder)


def deviation(model: Model, tokens: list[int], *, rounded_keys: bool) -> Deviation:
    """Return what rounding each block of latents does to all that comes after it.

    Args:
        model: In float32, with latent attention.
        tokens: Real text, in whole chunks.
        rounded_keys: Whether the rotated keys are rounded to fp8 as well.
    """
    attention = model.decoder.architecture.layers[0].attention
    width = attention.cached_values
    if rounded_keys:  # as if they were the end of the latent
        attention = dataclasses.replace(attention, latent_rank=width, rope_dim=0)
    codec = Fp8Codec(attention, torch.float32)

    def rounded(data: Tensor) -> Tensor:
        payload = bytearray(data.numel() // width * attention.fp8_latent_bytes)
        if not codec.encode(data, payload):
            raise RuntimeError("the model's latents are not finite")
        return codec.decode(payload)

    exact, _ = _read(model, tokens, lambda data: data)
    found, _ = _read(model, tokens, rounded)
    after, following = slice(_CHUNK, None), torch.tensor(tokens[1:])
    difference = (found - exact)[after].norm(dim=-1) / exact[after].norm(dim=-1)
    same = found[after].argmax(-1) == exact[after].argmax(-1)
    losses = [functional.cross_entropy(each[:-1], following) for each in (found, exact)]
    return Deviation(
        logits=float(difference.mean()), greedy=float(same.float().mean()),
        perplexity=float((losses[0] - losses[1]).exp()), tokens=len(same),
    )  # fmt: skip


@torch.inference_mode()
def _read(
    model: Model, tokens: list[int], change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the logits of a text [S, V] read in chunks, and the latents of all layers, flat.

    `change` makes of a chunk's latents what the chunks behind it read.
    """
    decoder = model.decoder
    cache = KVCache(decoder.architecture, slots=1, context=len(tokens), dtype=torch.float32)
    said = []
    for start in range(0, len(tokens), _CHUNK):
        chunk = torch.tensor([tokens[start : start + _CHUNK]])
        states = decoder(chunk, cache, Span(0, torch.tensor([start]), chunk.shape[1]))
        said.append(decoder.logits(states[0]))
        data = cache.export_tokens(0, start, start + chunk.shape[1])
        cache.import_tokens(0, start, change(data))
    return torch.cat(said), cache.export_tokens(0, 0, len(tokens))


def _fp8(attention: Attention, latents: Tensor) -> Iterator[Row]:
    """The option `cache: {dtype: fp8}` of mla: what it keeps of a token, and how fast it is."""
    width, kept = attention.cached_values, attention.fp8_latent_bytes
    raw = 2 * width
    yield Row(
        name=f"latents in fp8, bytes of a token and layer of DeepSeek-V3: {kept / raw:.0%} of bf16",
        ours=f"{kept} B", peer=f"vLLM's FlashMLA in fp8: {_VLLM} B", ratio=_VLLM / kept, target=1.0,
    )  # fmt: skip
    data = latents[: latents.numel() // width * width]
    codec = Fp8Codec(attention, torch.bfloat16)
    payload = bytearray(data.numel() // width * kept)
    took = interleaved(
        {"write": lambda: codec.encode(data, payload), "restore": lambda: codec.decode(payload)},
        rounds=7,
    )
    pays_below = _pays_below(data.nbytes, len(payload), took["restore"])
    yield Row(
        name=f"latents in fp8: restored at {data.nbytes / took['restore'] / 1e9:.2f} GB/s, "
        f"written at {data.nbytes / took['write'] / 1e9:.2f}",
        ours=f"fp8 pays on networks below {pays_below:.1f} Gbit/s",
        peer=f"one connection in EC2: up to {_NETWORK:g} Gbit/s",
        ratio=pays_below / _NETWORK, target=1.0,
    )  # fmt: skip


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
    took = interleaved({"restore": restore}, rounds=7)["restore"]
    pays_below = _pays_below(latents.nbytes, len(packed), took)
    return Row(
        name=f"latents raw, not in zstd 1 with bytes shuffled: {len(packed) / latents.nbytes:.0%} "
        f"of the bytes, restored at {latents.nbytes / took / 1e9:.2f} GB/s",
        ours=f"raw pays on networks above {pays_below:.1f} Gbit/s",
        peer=f"one connection in EC2: up to {_NETWORK:g} Gbit/s",
        ratio=_NETWORK / pays_below, target=1.0,
    )  # fmt: skip


def _pays_below(raw: int, packed: int, seconds: float) -> float:
    """Return the Gbit/s below which fewer bytes come soon enough to be restored."""
    return 8 * (raw - packed) / seconds / 1e9
