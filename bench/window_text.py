"""Gemma 3 270M on real text: our logits and perplexity beside transformers', both in float32.

Prompts are read in chunks with a cache of windows on both sides, so that memory stays bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench import gemma
from bench.row import Row
from model_code.common.decoder import Decoder
from model_code.common.span import Span

TOKENS, TEXT = 32_768, 8192
# Largest difference of a logit, as a share of the largest; and of the perplexities.
LOGIT_TOLERANCE, PERPLEXITY_TOLERANCE = 1e-4, 5e-4
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Over the tokens of all texts whose logits were compared.

    Args:
        difference: Largest difference of a logit over the largest logit.
    """

    difference: float
    ours: float
    theirs: float

    @property
    def apart(self) -> float:
        """Difference of the perplexities, as a share."""
        return abs(self.ours / self.theirs - 1)


def rows(folder: Path, tokens: int = TOKENS) -> Iterator[Row]:
    """Logits and perplexity; the ratio is the tolerance over what was found."""
    text = min(TEXT, tokens)
    ids = torch.tensor(gemma.tokens(folder, tokens)).view(-1, text)
    found = compare(gemma.ours(folder, context=text), gemma.theirs(folder), ids)
    name = f"{gemma.NAME}, {tokens:,} tokens of Python's reference, float32"
    yield Row(
        name=f"logits, {name}", ours=f"at most {found.difference:.1e} of the largest apart",
        peer=f"transformers; tolerance {LOGIT_TOLERANCE:g}",
        ratio=LOGIT_TOLERANCE / max(found.difference, 1e-12), target=1.0,
    )  # fmt: skip
    yield Row(
        name=f"perplexity, {name}", ours=f"{found.ours:.5g}",
        peer=f"transformers: {found.theirs:.5g}; equal to 3 digits: {PERPLEXITY_TOLERANCE:g} apart",
        ratio=PERPLEXITY_TOLERANCE / max(found.apart, 1e-12), target=1.0,
    )  # fmt: skip


@torch.inference_mode()
def compare(ours: Decoder, theirs: Any, ids: Tensor, *, every: int = 1) -> Comparison:
    """Read texts with both, chunk by chunk.

    Args:
        ours: Decodes with float32 activations.
        theirs: transformers' model, in float32.
        ids: The texts' tokens, [texts, tokens of each].
        every: Of this many tokens one has its logits compared: they take longer than all layers.
    """
    text, counted = ids.shape[1], 0
    losses = torch.zeros(2, dtype=torch.float64)
    difference = largest = 0.0
    for piece in ids:
        our_cache, their_cache = gemma.our_cache(ours, text), gemma.their_cache(theirs)
        for start in range(0, text, _CHUNK):
            chunk = piece[None, start : start + _CHUNK]
            span = Span(0, torch.tensor([start]), chunk.shape[1])
            of = torch.arange(0, chunk.shape[1], every)
            found = ours.logits(ours(chunk, our_cache, span)[:, of])[0]
            expected = theirs(
                chunk, past_key_values=their_cache, use_cache=True, logits_to_keep=of
            ).logits[0]
            following = piece[start + 1 :][of[of < text - start - 1]]
            counted += len(following)  # nothing follows the last token of a piece
            losses += torch.stack([_loss(each, following) for each in (found, expected)])
            largest = max(largest, _largest(expected))
            difference = max(difference, _largest(found.sub_(expected)))  # half a gigabyte each
    our_perplexity, their_perplexity = (losses / counted).exp().tolist()
    return Comparison(difference=difference / largest, ours=our_perplexity, theirs=their_perplexity)


def _largest(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, float("inf")))


def _loss(logits: Tensor, following: Tensor) -> Tensor:
    """[S, V], at most S -> the sum of the losses of what follows."""
    found = functional.cross_entropy(logits[: len(following)], following, reduction="sum")
    return found.double()
