"""Where the new tokens of a batch stand. Every layer's cache and attention read it.

Shape letters: B sequences, S new tokens, T cached positions, K key/value heads, H head width.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Span:
    """Where the new tokens of a batch go in the cache, and what each of them may see.

    The sequences are in neighbouring slots from `first_slot` on.

    Args:
        starts_B: Lengths of the sequences so far.
        tokens: New tokens of each, with padding.
        counts_B: New tokens of each without the padding, which stands on the right: it is not
            written to the cache, and what comes out for it means nothing. None is no padding.
    """

    def __init__(
        self, first_slot: int, starts_B: Tensor, tokens: int, counts_B: Tensor | None = None
    ) -> None:
        self.slots = slice(first_slot, first_slot + len(starts_B))
        self.starts_B, self.tokens = starts_B, tokens
        self.ends_B = starts_B + (tokens if counts_B is None else counts_B)
        device = starts_B.device
        self.rows_B1 = torch.arange(len(starts_B), device=device)[:, None]
        self.positions_BS = starts_B[:, None] + torch.arange(tokens, device=device)
        self.real_BS: Tensor | None = None
        if counts_B is not None:
            self.real_BS = self.positions_BS < self.ends_B[:, None]
            self.positions_BS = self.positions_BS.minimum(self.ends_B[:, None] - 1)
        self.visible = int(self.ends_B.max())
        self.plans: dict[Any, Any] = {}  # what kinds of cache work out once for all their layers

    @cached_property
    def sees_all(self) -> bool:
        """Whether each new token sees all positions so far: one token each, lengths equal."""
        if self.tokens > 1 or self.real_BS is not None:
            return False
        return int(self.ends_B.min()) == self.visible

    @cached_property
    def mask_BST(self) -> Tensor | None:
        """Which of all positions so far each new token sees; None is all, which costs nothing."""
        if self.sees_all:
            return None
        places_T = torch.arange(self.visible, device=self.positions_BS.device)
        return places_T <= self.positions_BS[..., None]

    def write(self, store_BKTH: Tensor, places_BS: Tensor, new_BSKH: Tensor) -> None:
        """Put the new tokens, without padding, at places along T."""
        self.write_some(store_BKTH, places_BS, new_BSKH, self.real_BS)

    def write_some(
        self, store_BKTH: Tensor, places_BS: Tensor, new_BSKH: Tensor, chosen_BS: Tensor | None
    ) -> None:
        """Put the chosen ones of the new tokens at places along T; None chooses all."""
        if chosen_BS is None:
            store_BKTH[self.rows_B1, :, places_BS] = new_BSKH
        else:
            rows, columns = chosen_BS.nonzero(as_tuple=True)
            store_BKTH[rows, :, places_BS[rows, columns]] = new_BSKH[rows, columns]
