"""How fast a model runs on a machine: what memory and arithmetic allow, and a share of that.

A step of decoding reads every weight that its tokens touch and every cached value of its sequences,
and computes; whichever takes longer is its time. The bound takes both at their peak. The modelled
time takes the shares below, which are assumptions until `isomorph bench` has measured a target.
"""

from dataclasses import dataclass

from model_code.common.architecture import BITS, Architecture, FeedForward
from planner.catalogue import Instance

# Streaming weights through a matrix-vector product reaches about 60% of the memory's peak on
# accelerators and CPUs alike; large products reach 40% of the arithmetic peak.
BANDWIDTH_SHARE = 0.6
COMPUTE_SHARE = 0.4


class Demand:
    """What one model asks of memory and arithmetic, worked out once for many machines."""

    def __init__(self, architecture: Architecture, *, dtype: str, kv_dtype: str, context: int):
        self.architecture = architecture
        self.dtype = dtype
        self.context = context
        self.bits = BITS[dtype]
        self.weights = architecture.weight_bytes(dtype)
        self.experts = -(-architecture.expert_parameters * self.bits // 8)
        self.kv = architecture.kv_bytes(context, kv_dtype)
        self.decode_flops = architecture.decode_flops(context)
        first = architecture.layers[0].attention
        self.heads = first.heads
        self.kv_heads = 1 if first.latent_rank is not None else first.kv_heads
        self.is_mla = first.latent_rank is not None
        self.widest = max(_active_width(layer.feed_forward) for layer in architecture.kinds)
        self._touched: dict[int, float] = {}
        self._prefill: dict[int, int] = {}

    def prefill_flops(self, tokens: int) -> int:
        """Return the operations of a prompt."""
        if tokens not in self._prefill:
            self._prefill[tokens] = self.architecture.prefill_flops(tokens)
        return self._prefill[tokens]

    def touched_bytes(self, tokens: int) -> float:
        """Return the weight bytes that a step over so many tokens reads, experts by expectation."""
        if tokens not in self._touched:
            hidden = self.architecture.hidden
            left_out = float(0 if self.architecture.tied_embeddings else self._embedding)
            for layer, count in self.architecture.kinds.items():
                part = layer.feed_forward
                if part.experts:
                    spared = part.experts - _visited(part, tokens)
                    left_out += count * spared * part.expert_parameters(hidden)
            self._touched[tokens] = (self.architecture.parameters - left_out) * self.bits / 8
        return self._touched[tokens]

    @property
    def _embedding(self) -> int:
        return self.architecture.embedding_parameters  # a token looks up one row of it


def _active_width(part: FeedForward) -> int:
    return part.active * part.width + part.shared_width if part.experts else part.width


def _visited(part: FeedForward, tokens: int) -> float:
    """Return how many of a layer's experts so many tokens visit, were they chosen evenly."""
    share = 1 - part.active / part.experts
    return float(part.experts) * (1 - share**tokens)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One replica's speed. Without `bound` in its name a time is modelled, with it the least."""

    step_s: float
    bound_s: float
    prefill_s: float
    prefill_bound_s: float
    limit: str


def speed(demand: Demand, instance: Instance, *, devices: int, batch: int, prompt: int) -> Speed:
    """Return the speed of a replica that uses `devices` of a machine, or of each of its machines.

    Pipeline stages work one after the other on a token, so a step takes as long as if one stage's
    devices did all of it. Traffic between devices is left out.
    """
    rate = instance.rate(demand.dtype) * devices
    bandwidth = instance.bandwidth * devices
    memory = (demand.touched_bytes(batch) + batch * demand.kv) / bandwidth
    compute = batch * demand.decode_flops / rate
    prefill = demand.prefill_flops(prompt) / rate
    prefill_read = demand.touched_bytes(prompt) / bandwidth
    return Speed(
        step_s=max(memory / BANDWIDTH_SHARE, compute / COMPUTE_SHARE),
        bound_s=max(memory, compute),
        prefill_s=max(prefill / COMPUTE_SHARE, prefill_read / BANDWIDTH_SHARE),
        prefill_bound_s=max(prefill, prefill_read),
        limit="memory" if memory / BANDWIDTH_SHARE >= compute / COMPUTE_SHARE else "arithmetic",
    )
