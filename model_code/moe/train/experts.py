"""Experts that learn: grouped products, tokens sent between ranks, and a balance without a loss.

Shape letters: B sequences, S tokens of each, T tokens of all, D model width, E experts of the
model, L experts of this rank, A experts that a token visits, V visits (T x A), F inner width of an
expert, R ranks that share the experts.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.tensor import DTensor
from torch.nn import functional

from model_code.common.feed_forward import gated
from model_code.common.layers import FeedForward
from model_code.moe.model import Experts, MixtureOfExperts, Router


class BalancedRouter(Router):
    """A router whose load is balanced as DeepSeek-V3's (arXiv 2412.19437, section 2.1.2).

    After each step, an expert that was visited less than the mean becomes a little more wanted, and
    the others a little less. A small term besides keeps single sequences from extremes; its
    gradient is added where the weights of the visits come out, so that the loss stays what it is.
    Visits are those that happened; the paper's term counts those that raw scores would choose.

    Args:
        balance: Weight of that term (the paper's alpha).
    """

    def __init__(
        self, hidden: int, part: FeedForward, dtype: torch.dtype, *, balance: float
    ) -> None:
        super().__init__(hidden, part, dtype)
        self.balance = balance
        self.visits_E: Tensor | None = None  # of the step so far, on this rank

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts [T, A] of each token, and their weights [T, A] in float32."""
        scores_TE = self.scores(x_BSD.flatten(0, -2))
        experts_TA, weights_TA = self.choose(scores_TE)
        if not torch.is_grad_enabled():
            return experts_TA, weights_TA
        B, S, E = len(x_BSD), x_BSD.shape[1], scores_TE.shape[1]
        visits_BE = scores_TE.new_zeros(B, E).scatter_add_(
            1, experts_TA.view(B, -1), torch.ones_like(weights_TA).view(B, -1)
        )
        shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        term = (visits_BE * shares_TE.view(B, S, E).mean(1)).sum() * (E / (self.active * S * B))
        visited = cast(Tensor, _Balanced.apply(weights_TA, self.balance * term, visits_BE, self))
        return experts_TA, visited

    @torch.no_grad()
    def correct(self, visits_E: Tensor, rate: float) -> None:
        """Make experts that too few tokens visited more wanted by `rate`, the others less."""
        if self.correction is not None:
            self.correction += rate * (visits_E.mean() - visits_E).sign()


class _Balanced(Function):
    """Passes weights on; on the way back it adds the term's gradient and counts the visits.

    On the way back, because layers that are computed again to save memory go forward twice, and
    sequences that nothing is learnt from never come back.
    """

    @staticmethod
    def forward(
        ctx: Any, weights_TA: Tensor, _: Tensor, visits_BE: Tensor, router: BalancedRouter
    ) -> Tensor:
        ctx.save_for_backward(visits_BE)
        ctx.router = router
        return weights_TA.view_as(weights_TA)

    @staticmethod
    def backward(ctx: Any, grad_TA: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (visits_BE,) = ctx.saved_tensors
        router, visits_E = ctx.router, visits_BE.sum(0)
        router.visits_E = visits_E if router.visits_E is None else router.visits_E + visits_E
        return grad_TA, grad_TA.new_ones(()), None, None


class GroupedExperts(Experts):
    """The routed experts of one rank, or all of them, in one grouped product for each matrix.

    Attributes:
        group: Ranks that share the experts, in their order; None if this one has all.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of what each token's experts make of it."""
        T, A = experts_TA.shape
        order_V = experts_TA.flatten().argsort(stable=True)
        counts_E = torch.bincount(experts_TA.flatten(), minlength=self.part.experts)
        rows_VD = _permuted(x_TD, order_V, copies=A)
        if self.group is None:
            out_VD = self._grouped(rows_VD, counts_E)
        else:
            out_VD = self._elsewhere(rows_VD, counts_E, self.group)
        visits_TAD = _permuted(out_VD, order_V.argsort()).view(T, A, -1)
        return (visits_TAD * weights_TA[..., None].to(x_TD.dtype)).sum(1)

    def _elsewhere(self, rows_VD: Tensor, counts_E: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Send each row to the rank that has its expert, and take back what comes of it."""
        ranks = dist.get_world_size(group)
        wanted_RL = counts_E.view(ranks, -1)
        given_RL = torch.empty_like(wanted_RL)
        dist.all_to_all_single(given_RL, wanted_RL, group=group)
        sent, got = wanted_RL.sum(1).tolist(), given_RL.sum(1).tolist()
        rows_WD = _exchanged(rows_VD, sent, got, group)
        # They come rank by rank, each rank's by expert; the product wants them by expert.
        experts_L = torch.arange(given_RL.shape[1], device=given_RL.device)
        order_W = experts_L.repeat(ranks).repeat_interleave(given_RL.flatten()).argsort(stable=True)
        out_WD = self._grouped(_permuted(rows_WD, order_W), given_RL.sum(0))
        return _exchanged(_permuted(out_WD, order_W.argsort()), got, sent, group)

    def _grouped(self, rows_VD: Tensor, counts_L: Tensor) -> Tensor:
        """Return what the experts make of rows that stand expert by expert."""
        ends_L = counts_L.cumsum(0).to(torch.int32)

        def product(rows: Tensor, name: str) -> Tensor:
            weight = _local(getattr(self, name))
            out = functional.grouped_mm(rows, weight.mT, offs=ends_L)
            bias = getattr(self, f"{name}_bias")
            if bias is None:
                return out
            return out + _local(bias).repeat_interleave(counts_L, 0, output_size=len(rows))

        return product(gated(product(rows_VD, "gate_up"), self.part), "down")


class TrainedMixture(MixtureOfExperts):
    """A mixture of experts, with the names of the one that serves."""

    def __init__(
        self, hidden: int, part: FeedForward, dtype: torch.dtype, *, balance: float
    ) -> None:
        super().__init__(hidden, part, dtype)
        self.router: BalancedRouter = BalancedRouter(hidden, part, dtype, balance=balance)
        self.experts: GroupedExperts = GroupedExperts(hidden, part, dtype)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        routed_TD = self.experts(x_BSD.flatten(0, -2), *self.router(x_BSD))
        out_BSD = routed_TD.view(x_BSD.shape)
        return out_BSD if self.shared is None else out_BSD + self.shared(x_BSD)


def mixtures(model: nn.Module) -> Iterator[TrainedMixture]:
    """Yield the mixtures of a model, from the first layer on."""
    return (each for each in model.modules() if isinstance(each, TrainedMixture))


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class _Permuted(Function):
    """Rows in another order. Indexing does not know that no row comes twice, and adds slowly."""

    @staticmethod
    def forward(ctx: Any, rows_TD: Tensor, order_V: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(order_V)
        ctx.copies = copies
        return rows_TD[order_V // copies]

    @staticmethod
    def backward(ctx: Any, grad_VD: Tensor) -> tuple[Tensor, None, None]:
        (order_V,) = ctx.saved_tensors
        grad_VD = grad_VD[order_V.argsort()]
        return grad_VD.unflatten(0, (-1, ctx.copies)).sum(1), None, None


def _permuted(rows_TD: Tensor, order_V: Tensor, copies: int = 1) -> Tensor:
    """Return `copies` of each row, in an order in which row i stands for copy i // copies."""
    return cast(Tensor, _Permuted.apply(rows_TD, order_V, copies))


class _Exchanged(Function):
    """Sends runs of rows to ranks, and their gradients back."""

    @staticmethod
    def forward(
        ctx: Any, rows_VD: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.got, ctx.group = sent, got, group
        return _sent(rows_VD, sent, got, group)

    @staticmethod
    def backward(ctx: Any, grad_WD: Tensor) -> tuple[Tensor, None, None, None]:
        return _sent(grad_WD, ctx.got, ctx.sent, ctx.group), None, None, None


def _exchanged(
    rows_VD: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup
) -> Tensor:
    return cast(Tensor, _Exchanged.apply(rows_VD, sent, got, group))


def _sent(rows: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(got), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), got, sent, group=group)
    return out
