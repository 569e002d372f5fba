"""The model code's rows: what few bits cost, what experts, latents and matrices take, which engine.

Everything runs in the dtype that the native engine would choose here, unless a row says otherwise.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.functional import scaled_dot_product_attention as sdpa

from bench import latent_decode, smollm2
from bench.reading import reader
from bench.row import Row, beside, in_turn, interleaved, seconds_of
from bench.vllm_experts import VLLM, choices, running
from isomorph import output
from model_code.common import huge_pages
from model_code.common.attention import grouped_attention
from model_code.common.engine.native import choose_dtype
from model_code.common.feed_forward import GatedFeedForward
from model_code.common.kernels.one_mixture import OneMixture
from model_code.common.layers import FeedForward, Router
from model_code.common.linear import Linear
from model_code.moe.model import MixtureOfExperts

EXPERTS, VISITED, WIDTH, INNER = 256, 8, 512, 128
# Tokens -> how many times faster than a dense part of the same size. Ideal: 256 / 9.
_FASTER_THAN_DENSE = {1: 25.0, 16: 3.5, 512: 10.0}
# Tokens -> calls of a turn, each with tokens of its own: as decoding calls, and so that one token's
# experts come out of memory and not out of a cache that the call before has filled.
_CALLS = {1: 16, 16: 4, 512: 1}


def rows() -> Iterator[Row]:
    """All rows but those of whole engines."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield from experts()
        yield from latent_decode.rows((16_384,))
        yield from grouped_queries()
        yield from matrices()
    yield load_peak()


def experts() -> Iterator[Row]:
    """A mixture of experts beside a dense part of the same size, and beside transformers'."""
    dtype = choose_dtype("auto")
    ours, theirs = mixtures(dtype)
    dense = GatedFeedForward(
        WIDTH, FeedForward(width=INNER * EXPERTS, activation="silu"), dtype
    ).requires_grad_(False)
    for matrix in (dense.gate_up.weight, dense.down.weight):
        assert matrix is not None  # noqa: S101
        matrix.normal_(0, 0.02)
    for tokens, target in _FASTER_THAN_DENSE.items():
        calls = torch.randn(_CALLS[tokens], 1, tokens, WIDTH, dtype=dtype).unbind()
        models = {"ours": ours, "dense": dense, **theirs}
        found = {name: partial(_each, model, calls) for name, model in models.items()}
        took = in_turn(found, rounds=7 if tokens < 512 else 3)
        name = f"{EXPERTS} experts, {tokens} tokens, {_kind(dtype)}"
        yield beside(name, took, "ours", "dense", "dense of equal size", target)
        for peer in theirs:
            yield beside(name, took, "ours", peer, f"transformers {peer}", 1.0)
    yield from beside_vllm(ours, dtype)


def beside_vllm(ours: MixtureOfExperts, dtype: torch.dtype) -> Iterator[Row]:
    """Our experts beside vLLM's kernel for them: both are told who visits whom."""
    if not VLLM.is_file():
        output.say("vllm: not measured, as it is not here; `make vllm` installs it")
        return
    kernel = ours.in_one_call(torch.empty(1, WIDTH))
    assert kernel is not None  # noqa: S101
    of_torch = str(dtype).removeprefix("torch.")
    with running(EXPERTS, VISITED, WIDTH, INNER, of_torch) as vllm:
        for tokens in _FASTER_THAN_DENSE:
            calls = [
                (torch.randn(tokens, WIDTH, dtype=dtype), choices(tokens, EXPERTS, VISITED))
                for _ in range(_CALLS[tokens])
            ]
            shares = torch.full((tokens, VISITED), 1 / VISITED)
            run = partial(_each, partial(_visit, kernel, shares), calls)
            took = in_turn(
                {"ours": run, "vllm": partial(vllm, tokens, len(calls))}, rounds=15, warmups=3
            )
            name = f"{EXPERTS} experts, {tokens} tokens, {_kind(dtype)}, without the router"
            yield beside(name, took, "ours", "vllm", "vLLM's kernel", 1.0)


def _each(run: Callable[[Any], object], calls: Sequence[Any]) -> float:
    """Return the seconds of a call, of several in a row."""
    return seconds_of(lambda: [run(each) for each in calls]) / len(calls)


def _visit(kernel: OneMixture, shares: Tensor, call: tuple[Tensor, Tensor]) -> Tensor:
    x, chosen = call
    return kernel.visit(x.float(), chosen, shares).to(x.dtype)


def mixtures(dtype: torch.dtype) -> tuple[MixtureOfExperts, dict[str, Any]]:
    """Return our mixture, and transformers' in both of its ways, with the same weights."""
    from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    part = FeedForward(
        width=INNER, experts=EXPERTS, active=VISITED, activation="silu",
        router=Router(scoring="softmax", normalize=True),
    )  # fmt: skip
    ours = MixtureOfExperts(WIDTH, part, dtype).requires_grad_(False)
    theirs: dict[str, Any] = {}
    for way in ("eager", "grouped_mm"):
        config: Any = Qwen3MoeConfig(
            hidden_size=WIDTH, moe_intermediate_size=INNER, num_experts=EXPERTS,
            num_experts_per_tok=VISITED, norm_topk_prob=True, experts_implementation=way,
        )  # fmt: skip
        theirs[way] = Qwen3MoeSparseMoeBlock(config).to(dtype).eval()
    for parameter in ours.parameters():
        huge_pages.advise(parameter).normal_(0, 0.02)  # as load_decoder has them
    assert ours.experts.gate_up is not None  # noqa: S101
    for model in theirs.values():
        model.gate.weight.copy_(ours.router.weight)
        model.experts.gate_up_proj.copy_(ours.experts.gate_up)
        model.experts.down_proj.copy_(ours.experts.down)
    return ours, theirs


def grouped_queries() -> Iterator[Row]:
    """One token's attention core in bfloat16, 16 query heads on 4 key/value heads."""
    heads, kv_heads, width, dtype = 16, 4, 128, torch.bfloat16
    for length in (4096, 16_384):
        query = torch.randn(1, 1, heads, width, dtype=dtype)
        keys, values = torch.randn(2, 1, kv_heads, length, width, dtype=dtype).unbind()
        all_keys, all_values = torch.randn(2, 1, heads, length, width, dtype=dtype).unbind()
        mask = torch.ones(1, 1, length, dtype=torch.bool)
        turned = query.transpose(1, 2)
        took = interleaved(
            {
                "ours": partial(grouped_attention, query, keys, values, mask, width**-0.5),
                "all": partial(sdpa, turned, all_keys, all_values),
                "groups": partial(sdpa, turned, keys, values, enable_gqa=True),
            },
            rounds=7,
        )
        name = f"attention core, {heads}:{kv_heads} heads, {length} tokens, bf16"
        yield beside(name, took, "ours", "all", "sdpa, all heads", 9.0)
        yield beside(name, took, "ours", "groups", "sdpa enable_gqa", 9.0)


def matrices() -> Iterator[Row]:
    """One token through 4 layers' matrices of a 1B-class model, beside reading them once.

    2048 wide, 8192 inside, 16:4 heads of 128: more than any cache of a CPU holds.
    """
    shapes = [(2048, 3072), (2048, 2048), (2048, 2 * 8192), (8192, 2048)] * 4
    floats = [Linear(i, o, bias=False, dtype=torch.bfloat16) for i, o in shapes]
    weights = []
    for layer in floats:
        assert layer.weight is not None  # noqa: S101
        weights.append(layer.weight.requires_grad_(False).normal_(0, 0.02))
    x = [torch.randn(1, i) for i, _ in shapes]
    x_bf16 = [each.bfloat16() for each in x]
    took = {"bf16": _beside_reading(floats, x_bf16, 2.0, stock=weights)}
    for kind, size in (("int8", 1.0), ("int4", 0.625)):
        packed = copy.deepcopy(floats)
        for layer in packed:
            layer.quantize("weight", kind)
        took[kind] = _beside_reading(packed, x, size)
    for kind, found in took.items():
        name = f"one token through 4 layers' matrices of a 1B-class model, {kind}"
        yield beside(name, found, "ours", "read", "reading them once", 0.85)
        if "torch" in found:
            yield beside(name, found, "ours", "torch", "torch's linear", 1.0)


def _beside_reading(
    layers: list[Linear], x: list[Tensor], size: float, stock: list[Tensor] | None = None
) -> dict[str, float]:
    """Time all layers, reading `size` bytes for each of their numbers, and torch's own product."""
    numbers = sum(
        each.numel() * layer_outputs(layer) for layer, each in zip(layers, x, strict=True)
    )
    found: dict[str, Callable[[], object]] = {
        "ours": lambda: [layer(each) for layer, each in zip(layers, x, strict=True)],
        "read": reader(numbers * size),
    }
    if stock:
        found["torch"] = lambda: [linear(e, w) for e, w in zip(x, stock, strict=True)]
    return interleaved(found, rounds=7)


def layer_outputs(layer: Linear) -> int:
    """Return how many outputs a layer has, whatever its weight is kept in."""
    if layer.packed is not None:
        return layer.packed.shape[0]
    assert layer.weight is not None  # noqa: S101
    return len(layer.weight)


_LOAD = """
import sys, threading
from pathlib import Path
from model_code.common import kernels
from model_code.common.checkpoint import load_decoder
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, find_gguf
from model_code.common.gguf_tensors import GGUFTensors
import torch
kernels.loaded()
header = read_header(find_gguf(Path(sys.argv[1])))
architecture = architecture_of(header)
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
tensors = GGUFTensors(header, architecture)
# Linux keeps the peak of all memory only, and how much of the file is mapped comes and goes.
before, most, over = status("RssAnon"), [0], threading.Event()
def watch():
    while not over.wait(0.001):
        most.append(status("RssAnon"))
watching = threading.Thread(target=watch)
watching.start()
decoder = load_decoder(architecture, tensors.rows, context=64, dtype=torch.bfloat16)
over.set()
watching.join()
print(max(most) - before, architecture.weight_bytes("bf16"), len(most))
"""


def load_peak() -> Row:
    """Memory at the worst moment of loading, beside that of the weights; the mapped file apart."""
    # A fixed threshold: by default glibc raises it, and what it then keeps differs by 60 MB a run.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(smollm2.weights())],
        cwd=smollm2.ROOT, capture_output=True, text=True, check=True, env=os.environ | malloc,
    )  # fmt: skip
    peak, weights, looks = map(int, done.stdout.split())
    return Row(
        name="peak memory at load, SmolLM2 in bf16, without the mapped file",
        ours=f"{peak / 2**20:.0f} MiB in {looks} looks",
        peer=f"its weights: {weights / 2**20:.0f} MiB",
        ratio=weights / peak, target=1 / 1.1,
    )  # fmt: skip


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
