"""A whole model of a billion random numbers, one token at a time: the bandwidth is its limit.

Llama 3.2 1B's layers with SmolLM2's tokenizer, written once as a GGUF file for llama.cpp and for
ours. In bfloat16 both read the same numbers; in 8 bits ours has a scale an output, Q8_0 one for
each 32 inputs (8.5 bits in all).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize

from bench import llama_cpp, smollm2
from bench.gguf_files import copy_metadata, finish
from bench.reading import reader
from bench.row import Row, in_turn, seconds_of
from bench.window_decode import TOKENS, our_steps
from model_code.common.gguf_model import find_gguf
from model_code.common.model_folder import load_folder

_HIDDEN, _INNER, _LAYERS, _HEADS, _KV_HEADS, _WIDTH = 2048, 8192, 16, 32, 8, 64
_CONTEXT = 256
_CHANGES = {
    "llama.embedding_length": _HIDDEN, "llama.feed_forward_length": _INNER,
    "llama.block_count": _LAYERS, "llama.attention.head_count": _HEADS,
    "llama.attention.head_count_kv": _KV_HEADS, "llama.rope.dimension_count": _WIDTH,
}  # fmt: skip
_MATRICES = {  # of a layer, [outputs, inputs]
    "attn_q": (_HIDDEN, _HIDDEN), "attn_k": (_KV_HEADS * _WIDTH, _HIDDEN),
    "attn_v": (_KV_HEADS * _WIDTH, _HIDDEN), "attn_output": (_HIDDEN, _HIDDEN),
    "ffn_gate": (_INNER, _HIDDEN), "ffn_up": (_INNER, _HIDDEN), "ffn_down": (_HIDDEN, _INNER),
}  # fmt: skip


def rows() -> Iterator[Row]:
    """One token in bfloat16 and in 8 bits, beside reading the weights and beside llama.cpp."""
    for kind, quantization, bits, peer in (
        (GGMLQuantizationType.BF16, "none", "bf16", "BF16"),
        (GGMLQuantizationType.Q8_0, "int8", "int8", "Q8_0"),
    ):
        with _written(kind) as folder:
            yield from _rows(folder, quantization, bits, peer)


@torch.inference_mode()
def _rows(folder: Path, quantization: str, bits: str, peer: str) -> Iterator[Row]:
    dtype = torch.bfloat16 if quantization == "none" else torch.float32
    model = load_folder(folder, context=_CONTEXT, dtype=dtype, quantization=quantization)
    decoder = model.decoder
    read = partial(seconds_of, reader(decoder.architecture.weight_bytes(bits)))
    prompt = model.tokenizer.encode("one two three")
    with llama_cpp.steps(folder, context=_CONTEXT, tokens=TOKENS) as ask:
        took = in_turn(
            {"ours": our_steps(decoder, 32), "theirs": partial(ask, prompt), "read": read}
        )
    billions = decoder.architecture.parameters / 1e9
    name = f"decode of a {billions:.2f}B model, random weights, {bits}"
    for called, other, target in (
        ("reading the weights once", "read", 0.85), (f"llama.cpp {peer}", "theirs", 1.0),
    ):  # fmt: skip
        yield Row(
            name=name, ours=f"{1 / took['ours']:.2f} tokens/s",
            peer=f"{called}: {1 / took[other]:.2f} tokens/s",
            ratio=took[other] / took["ours"], target=target,
        )  # fmt: skip


@contextmanager
def _written(kind: GGMLQuantizationType) -> Iterator[Path]:
    """Yield a folder with the model. Layers share their numbers, each stored on its own."""
    reader = GGUFReader(find_gguf(smollm2.weights()))
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].contents())
    random = np.random.default_rng(0)

    def matrix(outputs: int, inputs: int) -> np.ndarray:
        values = random.standard_normal((outputs, inputs), dtype=np.float32) * inputs**-0.5
        return quantize(values, kind)

    with TemporaryDirectory() as folder:
        writer = GGUFWriter(Path(folder, "random-1b.gguf"), "llama")
        copy_metadata(reader, writer, _CHANGES)
        writer.add_tensor("token_embd.weight", matrix(vocabulary, _HIDDEN), raw_dtype=kind)
        writer.add_tensor("output_norm.weight", np.ones(_HIDDEN, np.float32))
        made = {name: matrix(*shape) for name, shape in _MATRICES.items()}
        for layer in range(_LAYERS):
            for name, values in made.items():
                writer.add_tensor(f"blk.{layer}.{name}.weight", values, raw_dtype=kind)
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(_HIDDEN, np.float32))
        finish(writer)
        yield Path(folder)
