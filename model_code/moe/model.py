"""A mixture of experts: each token visits the few feed-forward experts that a router chooses.

Shape letters: B sequences, S tokens of each, T tokens of all, D model width, F inner width of an
expert, E experts, A experts that a token visits, G groups of experts.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_code.common import kernels
from model_code.common.feed_forward import GatedFeedForward, gated
from model_code.common.kernels import one_mixture
from model_code.common.layers import FeedForward
from model_code.common.linear import linear
from model_code.common.quantize import Int4Weight, Int8Weight


class Router(nn.Module):
    """Chooses each token's experts and their weights, in float32.

    With groups, only the best few groups are considered (DeepSeek-V2, arXiv 2405.04434, section
    2.2.2; a group lies on one node there). A correction changes the choice, not the weights; it
    balances the load without an auxiliary loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """

    def __init__(self, hidden: int, part: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        assert part.router is not None  # noqa: S101
        self.rules, self.active = part.router, part.active
        self.weight = nn.Parameter(torch.empty(part.experts, hidden, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.empty(part.experts, dtype=dtype)) if part.router.bias else None
        )
        kept = torch.empty(part.experts, dtype=torch.float32) if part.router.correction else None
        self.correction: Tensor | None
        self.register_buffer("correction", kept)
        rules = part.router
        self.choice = one_mixture.Choice(
            chosen=part.active, sigmoid=rules.scoring == "sigmoid", normalize=rules.normalize,
            scale=rules.scale, groups=rules.groups, kept_groups=rules.kept_groups,
            best_of_group=min(2, part.experts // rules.groups) if rules.correction else 1,
        )  # fmt: skip

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts [T, A] of each token, and their weights [T, A] in float32."""
        if kernels.usable(x_TD, self.weight):
            return one_mixture.route(x_TD.float(), self.chooser())
        return self.choose(self.scores(x_TD))

    def tensors(self) -> list[Tensor]:
        """Return all that a choice depends on."""
        found = (self.weight, self.bias, self.correction)
        return [each for each in found if each is not None]

    def chooser(self) -> one_mixture.Chooser:
        """Return what a kernel needs to choose as `forward` does."""
        return one_mixture.Chooser(self.weight, self.bias, self.correction, self.choice)

    def scores(self, x_TD: Tensor) -> Tensor:
        """Return how much each token wants each expert, [T, E] in float32."""
        bias = None if self.bias is None else self.bias.float()
        logits_TE = functional.linear(x_TD.float(), self.weight.float(), bias)
        return logits_TE.sigmoid() if self.rules.scoring == "sigmoid" else logits_TE.softmax(-1)

    def choose(self, scores_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, from scores."""
        wanted_TE = scores_TE if self.correction is None else scores_TE + self.correction
        if self.rules.kept_groups < self.rules.groups:
            wanted_TE = self._in_best_groups(wanted_TE)
        experts_TA = wanted_TE.topk(self.active, dim=-1).indices
        weights_TA = scores_TE.gather(-1, experts_TA)
        if self.rules.normalize:
            weights_TA = weights_TA / (weights_TA.sum(-1, keepdim=True) + 1e-20)
        return experts_TA, weights_TA * self.rules.scale

    def _in_best_groups(self, wanted_TE: Tensor) -> Tensor:
        """Rule out experts of other groups. A group is as good as its best, or its best two."""
        groups_TGE = wanted_TE.unflatten(-1, (self.rules.groups, -1))
        best = min(2, groups_TGE.shape[-1]) if self.rules.correction else 1
        worth_TG = groups_TGE.topk(best, dim=-1).values.sum(-1)
        kept = worth_TG.topk(self.rules.kept_groups, dim=-1).indices
        out_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter_(-1, kept, False)
        return groups_TGE.masked_fill(out_TG[..., None], -torch.inf).flatten(-2)


class Experts(nn.Module):
    """The routed experts. Each one that is visited reads its tokens together, once."""

    def __init__(self, hidden: int, part: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self._widths = part, (part.width, hidden)
        E, F = part.experts, part.width
        self.gate_up = nn.Parameter(torch.empty(E, 2 * F, hidden, dtype=dtype))
        self.down = nn.Parameter(torch.empty(E, hidden, F, dtype=dtype))
        biased = part.expert_bias
        self.gate_up_bias = nn.Parameter(torch.empty(E, 2 * F, dtype=dtype)) if biased else None
        self.down_bias = nn.Parameter(torch.empty(E, hidden, dtype=dtype)) if biased else None
        plain = not biased and part.clamp is None and part.activation in ("silu", "swish")
        self.in_one_kernel = plain
        self._packed: dict[str, kernels.Weight] = {}

    def quantize(self, name: str, quantization: str) -> None:
        """Keep all experts in int8 or int4 from now on, and free their floats."""
        if self.in_one_kernel and name in ("gate_up", "down"):
            rows = getattr(self, name).flatten(0, 1)
            whole = (
                quantization == "int4"
                and kernels.loaded()
                and not any(w % kernels.GROUP for w in self._widths)
            )
            self._packed[name] = (Int4Weight(rows) if whole else Int8Weight(rows)).tensors
            setattr(self, name, None)

    def forward(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of what each token's experts make of it."""
        if self._packed or (self.in_one_kernel and kernels.usable(x_TD, self.down)):
            return self._together(x_TD, experts_TA, weights_TA)
        active = experts_TA.shape[1]
        visits = experts_TA.flatten().sort(stable=True)
        tokens = visits.indices // active
        weights = weights_TA.flatten()[visits.indices, None].to(x_TD.dtype)
        counts = torch.bincount(visits.values, minlength=self.part.experts).tolist()
        out_TD = torch.zeros_like(x_TD)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                stop = start + count
                rows = tokens[start:stop]
                out_TD.index_add_(0, rows, self._one(expert, x_TD[rows]) * weights[start:stop])
                start = stop
        return out_TD

    def tensors(self) -> list[Tensor]:
        """Return the experts' numbers, packed or not."""
        found = (each for weight in self._packed.values() for each in weight)
        return [*found, *(each for each in (self.gate_up, self.down) if each is not None)]

    def weights(self) -> tuple[kernels.Weight, kernels.Weight] | None:
        """Return `gate_up` and `down` as a kernel takes them; None if it does not compute them."""
        if not self.in_one_kernel:
            return None
        gate_up, down = (
            self._packed.get(name) or (getattr(self, name).flatten(0, 1),)
            for name in ("gate_up", "down")
        )
        return gate_up, down

    def _together(self, x_TD: Tensor, experts_TA: Tensor, weights_TA: Tensor) -> Tensor:
        weights = self.weights()
        assert weights is not None  # noqa: S101
        found_TD = one_mixture.experts(x_TD.float(), experts_TA, weights_TA.float(), *weights)
        return found_TD.to(x_TD.dtype)

    def _one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Return what one expert makes of some tokens."""
        up_bias = None if self.gate_up_bias is None else self.gate_up_bias[expert]
        down_bias = None if self.down_bias is None else self.down_bias[expert]
        inner_TF = gated(linear(x_TD, self.gate_up[expert], up_bias), self.part)
        return linear(inner_TF, self.down[expert], down_bias)


class MixtureOfExperts(nn.Module):
    """Routed experts, and shared ones that every token visits.

    Whoever wants to know which experts work sets `watch`: it is called with the experts [T, A] of
    each pass.
    """

    def __init__(self, hidden: int, part: FeedForward, dtype: torch.dtype) -> None:
        super().__init__()
        self.router = Router(hidden, part, dtype)
        self.experts: nn.Module = Experts(hidden, part, dtype)
        self.watch: Callable[[Tensor], None] | None = None
        self.shared = (
            GatedFeedForward(hidden, part, dtype, width=part.shared_width)
            if part.shared_width
            else None
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        x_TD = x_BSD.flatten(0, -2)
        kernel = self.in_one_call(x_TD)
        if kernel is None:
            experts_TA, weights_TA = self.router(x_TD)
            out_TD: Tensor = self.experts(x_TD, experts_TA, weights_TA)
        else:
            found_TD, experts_TA = kernel(x_TD.float())
            out_TD = found_TD.to(x_TD.dtype)
        if self.watch is not None:
            self.watch(experts_TA)
        out_BSD = out_TD.view(x_BSD.shape)
        return out_BSD if self.shared is None else out_BSD + self.shared(x_BSD)

    def in_one_call(self, x_TD: Tensor) -> one_mixture.OneMixture | None:
        """Return the kernel for all that is between `x_TD` and the sum, where there is one."""
        if type(self.experts) is not Experts or type(self.router) is not Router:
            return None
        tensors = (*self.router.tensors(), *self.experts.tensors())
        if not (self.experts.in_one_kernel and kernels.usable(x_TD, *tensors)):
            return None
        places = tuple(each.data_ptr() for each in tensors)
        known = _KERNELS.get(self)
        if known is None or known[0] != places:
            weights = self.experts.weights()
            assert weights is not None  # noqa: S101  in_one_kernel says so
            made = one_mixture.OneMixture(*weights, self.router.chooser())
            known = _KERNELS[self] = places, made
        return known[1]


_Known = tuple[tuple[int, ...], one_mixture.OneMixture]
_KERNELS: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
