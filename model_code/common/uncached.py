"""A pass over whole sequences that keeps nothing, as training makes it: gradients flow through.

Shape letters: B sequences, S tokens of each, K heads of a part, H width of one.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.span import Span


class Uncached:
    """Shows the tokens of one pass to each other, in the place of a cache. Knows no windows."""

    def __init__(self, layers: int) -> None:
        self.layers = [self] * layers

    def reserve(self, _: Span) -> None:
        """See `KVCache`."""

    def update(self, new_BSKH: Sequence[Tensor], span: Span) -> tuple[list[Tensor], Tensor | None]:
        """See `LayerCache`."""
        return [new.transpose(1, 2) for new in new_BSKH], span.mask_BST


def states(decoder: Decoder, tokens_BS: Tensor) -> Tensor:
    """Return the normed states [B, S, D] of whole sequences, each of which starts at 0."""
    cache = cast(KVCache, Uncached(len(decoder.layers)))
    starts_B = torch.zeros(len(tokens_BS), dtype=torch.long, device=tokens_BS.device)
    found: Tensor = decoder(tokens_BS, cache, Span(0, starts_B, tokens_BS.shape[1]))
    return found
