"""How much memory a mixture's routed experts take: all, and the least a node can work in."""

import math
from dataclasses import dataclass

from model_code.common.architecture import BITS, Architecture
from planner.errors import PlanError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ExpertMemory:
    """Bytes of routed experts.

    Args:
        total: All experts of all layers.
        least: The active ones of one layer at one token: what must be in memory at once.
        active: Experts that a token visits in a layer.
    """

    total: int
    least: int
    active: int


def expert_memory(architecture: Architecture, dtype: str) -> ExpertMemory:
    """Return what the routed experts take.

    Raises:
        PlanError: The model has none.
    """
    mixtures = {part for layer in architecture.kinds if (part := layer.feed_forward).experts}
    if not mixtures:
        raise PlanError(
            f"{architecture.name} has no experts; a mixture has, such as tiny-moe, "
            f"qwen3-30b-a3b or mixtral-8x7b; without them gqa, mla or sliding_window serves it"
        )
    bits = BITS[dtype]
    widest = max(mixtures, key=lambda part: part.active * part.expert_parameters(1))
    least = widest.active * widest.expert_parameters(architecture.hidden) * bits
    return ExpertMemory(
        total=math.ceil(architecture.expert_parameters * bits / 8),
        least=math.ceil(least / 8),
        active=widest.active,
    )


def check_expert_budget(architecture: Architecture, dtype: str, mib: int) -> ExpertMemory:
    """Return the experts' sizes if a budget of `mib` holds what one token needs in one layer.

    Raises:
        PlanError: It does not; or the model has no experts.
    """
    memory = expert_memory(architecture, dtype)
    if mib * MIB < memory.least:
        raise PlanError(
            f"got {mib} MiB; the {memory.active} active experts of one layer of "
            f"{architecture.name} take {memory.least / MIB:,.1f} MiB in {dtype}: give at least "
            f"{math.ceil(memory.least / MIB)}, or leave it out to keep all "
            f"{memory.total / MIB:,.0f} MiB"
        )
    return memory
