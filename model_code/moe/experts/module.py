"""The routed experts of a layer, out of a cache: in the place of model_code/moe/model.py's Experts.

Shape letters: T tokens, A experts that a token visits, D model width, F inner width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common import kernels
from model_code.common.decoder import Decoder
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.layers import mixtures

_FEW = 4  # tokens whose next experts are worth foreseeing: of more, nearly all are needed


class CachedExperts(nn.Module):
    """Computes with experts that are in memory while others are loaded.

    Args:
        foresee: The next layer's router, to load what it may choose; None foresees nothing.
    """

    def __init__(self, cache: ExpertCache, layer: int, foresee: "Foresee | None" = None) -> None:
        super().__init__()
        self._cache, self._layer = cache, layer
        self._foresee = foresee

    def forward(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of what each token's experts make of it."""
        cache, x = self._cache, x_TD.float()
        results_TAD = torch.empty(*experts_TA.shape, x.shape[1])
        weights = cache.gate_up.flatten(0, 1), cache.down.flatten(0, 1)
        foreseen = self._foresee is None or len(x) > _FEW
        for slots in cache.visit(self._layer, experts_TA.unique().tolist()):
            if not foreseen and self._foresee is not None:
                self._foresee(x_TD)
                foreseen = True
            table_E = torch.full((len(cache.index.layers[self._layer]),), -1)
            table_E[list(slots)] = torch.tensor([*slots.values()])
            visits_TA = table_E[experts_TA]
            if kernels.loaded():
                kernels.visit(x, visits_TA, weights[:1], weights[1:], results_TAD)
            else:
                self._in_torch(x, visits_TA, results_TAD)
        return kernels.combine(results_TAD, weights_TA.float()).to(x_TD.dtype)

    def _in_torch(self, x_TD: Tensor, visits_TA: Tensor, results_TAD: Tensor) -> None:
        """Compute in float32 whatever the numbers are stored in, as our kernels do."""
        for slot in visits_TA.unique().tolist():
            if slot >= 0:
                token, rank = (visits_TA == slot).nonzero(as_tuple=True)
                both = functional.linear(x_TD[token], self._cache.gate_up[slot].float())
                gate, up = both.chunk(2, dim=-1)
                results_TAD[token, rank] = functional.linear(
                    functional.silu(gate) * up, self._cache.down[slot].float()
                )


class Foresee:
    """Loads what the next layer's router would choose from the states that this layer sees.

    A layer adds little to the states, so that its router often chooses the same (Eliseev and Mazur
    2023, arXiv 2312.17238, section 3.2, "speculative expert loading").
    """

    def __init__(self, cache: ExpertCache, layer: int, router: nn.Module) -> None:
        self._cache, self._layer = cache, layer
        self._choose: Callable[[Tensor], tuple[Tensor, Tensor]] = router

    def __call__(self, x_TD: Tensor) -> None:
        """Begin to load the next layer's likely experts, the likeliest first."""
        if not self._cache.complete:
            experts_TA, _ = self._choose(x_TD)
            self._cache.prefetch(self._layer, [*dict.fromkeys(experts_TA.T.flatten().tolist())])


def install(decoder: Decoder, cache: ExpertCache, *, prefetch: bool = True) -> None:
    """Let a decoder, before it is filled, take its routed experts out of the cache."""
    found = mixtures(decoder)
    following = dict(zip(found, [*list(found)[1:], None], strict=True))
    for layer, mixture in found.items():
        after = following[layer]
        foresee = Foresee(cache, after, found[after].router) if prefetch and after else None
        mixture.experts = CachedExperts(cache, layer, foresee)
