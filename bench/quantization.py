"""What few bits cost: SmolLM2's loss on real text, and how far its next-token odds move."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from bench import smollm2
from bench.row import Row
from model_code.common.cache import KVCache
from model_code.common.checkpoint import load_decoder
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, find_gguf
from model_code.common.gguf_tensors import GGUFTensors
from model_code.common.span import Span
from model_code.common.tokenizer import GGUFTokenizer

# The most that is allowed: nats a token of loss, and of divergence, against bfloat16. SmolLM2's
# file has 4-bit groups of 32 itself, so that int4 finds nearly the same grid again: of a model that
# was trained in more bits it would lose more.
BOUNDS = {"int8": 0.02, "int4": 0.02}
_CONTEXT = 256


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Means over the tokens of a text, in nats.

    Args:
        loss: Negative log-likelihood of the next token, in few bits.
        reference: The same in bfloat16.
        divergence: Kullback-Leibler divergence of the next token's odds from those in bfloat16.
    """

    loss: float
    reference: float
    divergence: float


def rows() -> Iterator[Row]:
    """Loss and divergence of each quantization; the ratio is the bound over what was found."""
    for quantization, bound in BOUNDS.items():
        found = divergence(quantization, tokens=_CONTEXT)
        more = abs(found.loss - found.reference)
        yield Row(
            name=f"{quantization} weights, SmolLM2 on {_CONTEXT} tokens of Python's reference",
            ours=f"loss {found.loss:.4f}",
            peer=f"bf16: {found.reference:.4f}; at most {bound:g} apart",
            ratio=bound / max(more, 1e-9),
            target=1.0,
        )
        yield Row(
            name=f"{quantization} weights, SmolLM2, divergence from bf16",
            ours=f"{found.divergence:.5f} nats a token",
            peer=f"at most {bound:g}",
            ratio=bound / found.divergence,
            target=1.0,
        )


def divergence(quantization: str, *, tokens: int) -> Divergence:
    """Read the first `tokens` of the text in both."""
    ours, theirs = (_log_odds(each, tokens) for each in (quantization, "none"))
    following = _tokens(tokens)[1:, None]
    return Divergence(
        loss=float(-ours[:-1].gather(1, following).mean()),
        reference=float(-theirs[:-1].gather(1, following).mean()),
        divergence=float((theirs.exp() * (theirs - ours)).sum(1).mean()),
    )


@cache
def _tokens(count: int) -> torch.Tensor:
    tokenizer = GGUFTokenizer(read_header(find_gguf(smollm2.weights())))
    return torch.tensor(tokenizer.encode(smollm2.text()[: 12 * count])[:count])


@cache
@torch.inference_mode()
def _log_odds(quantization: str, tokens: int) -> torch.Tensor:
    """Return the logarithm of each token's odds to be the next one: [tokens, vocabulary]."""
    header = read_header(find_gguf(smollm2.weights()))
    architecture = architecture_of(header)
    decoder = load_decoder(
        architecture, GGUFTensors(header, architecture), context=_CONTEXT, dtype=torch.bfloat16,
        quantization=quantization,
    )  # fmt: skip
    cache_ = KVCache(architecture, slots=1, context=_CONTEXT, dtype=torch.bfloat16)
    states = decoder(_tokens(tokens)[None], cache_, Span(0, torch.tensor([0]), tokens))
    return functional.log_softmax(decoder.logits(states[0]), dim=-1)
