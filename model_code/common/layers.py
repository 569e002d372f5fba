"""One layer of a model: its attention, its feed-forward part, and what each of them counts to."""

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["mha", "gqa", "mqa", "mla"]
NormPlacement = Literal["pre", "post", "reordered", "sandwich"]
QkNorm = Literal["none", "head", "all_heads"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of a layer.

    Args:
        kind: default, linear, dynamic, llama3, yarn or longrope, in transformers' words.
        fraction: Share of each head that is rotated.
        interleaved: Whether the checkpoint has the two numbers that turn together side by side; if
            not, they are half a rotated part apart.
        parameters: What else the kind takes (factor, original length ...), sorted by name.
    """

    theta: float
    kind: str = "default"
    fraction: float = 1.0
    interleaved: bool = False
    parameters: tuple[tuple[str, float | bool | tuple[float, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention of one layer.

    Args:
        value_dim: Width of a head's values; differs from `head_dim` in latent attention only.
        window: How many tokens a query sees, itself included; None sees all.
        latent_rank: Width of the latent that keys and values share; None without one (not MLA).
        query_rank: Width of the latent that queries come from; None projects them directly.
        rope_dim: Width of the key part that all heads share and that carries the position (MLA).
        bias_qkv: Whether the input projections have biases; MLA's two down projections.
        sinks: Whether each head has a learned logit that belongs to no token.
        scale: What scores are multiplied by; in MLA with YaRN's correction (its `mscale_all_dim`).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    rope: Rope
    window: int | None = None
    latent_rank: int | None = None
    query_rank: int | None = None
    rope_dim: int = 0
    bias_qkv: bool = False
    bias_output: bool = False
    qk_norm: QkNorm = "none"
    sinks: bool = False
    softcap: float | None = None

    @property
    def kind(self) -> AttentionKind:
        """How keys and values are shared between heads."""
        if self.latent_rank is not None:
            return "mla"
        if self.kv_heads == self.heads:
            return "mha"
        return "mqa" if self.kv_heads == 1 else "gqa"

    @property
    def cached_values(self) -> int:
        """Numbers that one token leaves in the cache of this layer."""
        if self.latent_rank is not None:
            return self.latent_rank + self.rope_dim
        return self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def fp8_latent_bytes(self) -> int:
        """Bytes of one latent stored in fp8: its numbers, a scale, the rotated key in 16 bits."""
        assert self.latent_rank is not None  # noqa: S101
        return self.latent_rank + 1 + 2 * self.rope_dim

    def matrix_parameters(self, hidden: int) -> int:
        """Return the weights of the projections, without biases."""
        out = self.heads * self.value_dim * hidden
        if self.latent_rank is None:
            return out + hidden * (self.heads * self.head_dim + self.cached_values)
        down = hidden * (self.latent_rank + self.rope_dim)
        up = self.latent_rank * self.heads * (self.head_dim - self.rope_dim + self.value_dim)
        if self.query_rank is None:
            query = hidden * self.heads * self.head_dim
        else:
            query = self.query_rank * (hidden + self.heads * self.head_dim)
        return query + down + up + out

    def vector_parameters(self, hidden: int) -> int:
        """Return the biases, norms and sinks."""
        count = hidden if self.bias_output else 0
        count += self.heads if self.sinks else 0
        if self.latent_rank is not None:
            count += self.latent_rank + (self.query_rank or 0)
            if self.bias_qkv:
                count += self.latent_rank + self.rope_dim + (self.query_rank or 0)
            return count
        if self.bias_qkv:
            count += self.heads * self.head_dim + self.cached_values
        if self.qk_norm == "head":
            count += 2 * self.head_dim
        elif self.qk_norm == "all_heads":
            count += (self.heads + self.kv_heads) * self.head_dim
        return count

    def flops_per_pair(self, *, absorbed: bool) -> int:
        """Return the operations of one query on one cached token, over all heads.

        Args:
            absorbed: Score on MLA's latents without expanding them, as a decode step does.
        """
        if self.latent_rank is not None and absorbed:
            return 2 * self.heads * (2 * self.latent_rank + self.rope_dim)
        return 2 * self.heads * (self.head_dim + self.value_dim)

    def pairs(self, start: int, stop: int) -> int:
        """Return how many (query, key) pairs the queries at positions start to stop - 1 make."""

        def up_to(tokens: int) -> int:
            if self.window is None or tokens <= self.window:
                return tokens * (tokens + 1) // 2
            return self.window * (self.window + 1) // 2 + (tokens - self.window) * self.window

        return up_to(stop) - up_to(start)


@dataclass(frozen=True, kw_only=True)
class Router:
    """How a token chooses its experts.

    Args:
        normalize: Whether the chosen experts' weights are made to add up to one.
        scale: What those weights are multiplied by.
        groups: Groups of experts, of which the best `kept_groups` are considered; 1 is all.
        bias: Whether it has a trained bias.
        correction: Whether the choice adds a stored value to each score; stored, not trained.
    """

    scoring: Literal["softmax", "sigmoid"]
    normalize: bool
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    bias: bool = False
    correction: bool = False


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Feed-forward part of one layer: gated (gate, up, down), dense or a mixture of experts.

    Args:
        width: Inner width of the dense part, or of one routed expert.
        experts: Routed experts; 0 for a dense layer.
        active: Routed experts that one token visits.
        shared_width: Inner width of all shared experts together, which every token visits.
        bias: Whether dense and shared projections have biases.
        expert_bias: Whether routed experts have biases.
        router: How tokens choose experts; None in a dense layer.
        slope: What the gate is multiplied by inside of SiLU's sigmoid; other than 1 in gpt-oss.
        clamp: Bound of gate and value before they are multiplied, the value then raised by 1
            (gpt-oss); None leaves them as they are.
    """

    width: int
    experts: int = 0
    active: int = 0
    shared_width: int = 0
    bias: bool = False
    expert_bias: bool = False
    router: Router | None = None
    activation: str = "silu"
    slope: float = 1.0
    clamp: float | None = None

    def expert_parameters(self, hidden: int) -> int:
        """Return the weights and biases of one routed expert; 0 in a dense layer."""
        if not self.experts:
            return 0
        return 3 * hidden * self.width + (2 * self.width + hidden if self.expert_bias else 0)

    def matrix_parameters(self, hidden: int, *, experts: int) -> int:
        """Return the weights of the matrices, with that many of the routed experts."""
        if not self.experts:
            return 3 * hidden * self.width
        router = hidden * self.experts
        return router + 3 * hidden * (self.shared_width + experts * self.width)

    def vector_parameters(self, hidden: int, *, experts: int) -> int:
        """Return the biases, with those of that many routed experts."""
        plain = self.shared_width if self.experts else self.width
        count = 2 * plain + hidden if self.bias and plain else 0
        if self.experts:
            count += self.experts if self.router and self.router.bias else 0
            count += experts * (2 * self.width + hidden) if self.expert_bias else 0
        return count


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer.

    Args:
        norms: Where the RMSNorms of the residual stream stand: before each part (pre), after the
            sum (post), on what a part gives (reordered, OLMo 2) or on both sides (sandwich).
    """

    attention: Attention
    feed_forward: FeedForward
    norms: NormPlacement

    @property
    def innovations(self) -> frozenset[str]:
        """The slugs of what this layer has. Plain pre-normalization is not one."""
        attention = self.attention
        has = {
            "moe": self.feed_forward.experts > 0,
            "mla": attention.kind == "mla",
            "gqa": attention.kind in ("gqa", "mqa"),
            "sliding_window": attention.window is not None,
            "normalization": attention.qk_norm != "none" or self.norms != "pre",
        }
        return frozenset(slug for slug, present in has.items() if present)

    def norm_parameters(self, hidden: int) -> int:
        """Return the weights of the norms on the residual stream."""
        return (4 if self.norms == "sandwich" else 2) * hidden

    def parameters(self, hidden: int, *, active: bool = False) -> int:
        """Return all parameters of the layer, or those that one token touches."""
        part = self.feed_forward
        experts = part.active if active else part.experts
        return (
            self.matrix_parameters(hidden, active=active)
            + self.attention.vector_parameters(hidden)
            + part.vector_parameters(hidden, experts=experts)
            + self.norm_parameters(hidden)
        )

    def matrix_parameters(self, hidden: int, *, active: bool = False) -> int:
        """Return the weights of matrices only: what a token is multiplied with."""
        part = self.feed_forward
        experts = part.active if active else part.experts
        return self.attention.matrix_parameters(hidden) + part.matrix_parameters(
            hidden, experts=experts
        )
