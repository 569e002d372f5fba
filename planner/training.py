"""How many machines a training run takes: for its memory, and to be done in time."""

import math
from dataclasses import dataclass

from model_code.common.architecture import Architecture
from planner.catalogue import GIB, Instance
from planner.load import Load
from planner.serving import USABLE, Misfit

# bf16 weights and gradients, fp32 master weights and the two moments of Adam.
STATE_BYTES = 2 + 2 + 4 + 8
# Of the arithmetic peak, recomputation not counted as work: 30 to 55% is what runs report.
MODEL_FLOPS_SHARE = {"cuda": 0.35, "neuron": 0.3, "cpu": 0.25}
MOST_NODES = 1024


@dataclass(frozen=True, kw_only=True)
class TrainingFit:
    """A run that shards parameters, gradients and optimizer over all devices (FSDP).

    Args:
        nodes: Machines: what memory takes, or what the time takes, whichever is more.
        expert_parallel: Devices that the experts of a layer are spread over; 1 without experts.
        days: What the tokens take with these nodes.
        bound_days: The same at the arithmetic peak.
    """

    instance: Instance
    nodes: int
    memory_nodes: int
    expert_parallel: int
    state_bytes: float
    gathered_bytes: float
    activation_bytes: float
    usable_bytes: float
    flops: float
    days: float
    bound_days: float


def fit_training(
    architecture: Architecture, load: Load, instance: Instance
) -> TrainingFit | Misfit:
    """Return the smallest run that fits the memory and the days asked for."""
    usable = instance.device_bytes * USABLE[instance.runtime]
    gathered, activations = _gathered(architecture), _activations(architecture, load.sequence)
    state = STATE_BYTES * architecture.parameters
    room = usable - gathered - activations
    if room <= 0:
        return Misfit(
            instance=instance.name,
            reason=(
                f"one layer and a sequence of {load.sequence:,} take "
                f"{(gathered + activations) / GIB:,.1f} GiB a device; "
                f"it has {usable / GIB:,.1f} usable"
            ),
            remedy="a shorter sequence, or a device with more memory",
        )
    memory_nodes = math.ceil(state / room / instance.devices)
    sequences = load.train_tokens / load.sequence
    flops = sequences * architecture.training_flops(load.sequence)
    peak = instance.rate("bf16") * instance.devices
    seconds = flops / peak
    share = MODEL_FLOPS_SHARE[instance.runtime]
    in_time = math.ceil(seconds / share / (load.train_days * 86_400))
    nodes = max(memory_nodes, in_time, 1)
    if nodes > MOST_NODES:
        why = "memory" if memory_nodes >= in_time else f"{load.train_days:g} days"
        return Misfit(
            instance=instance.name,
            reason=f"{why} would take {nodes:,} of them; more than {MOST_NODES:,} is no plan",
            remedy="a larger type, more train_days, or fewer train_tokens",
        )
    if nodes > 1 and not instance.efa:
        return Misfit(
            instance=instance.name,
            reason=f"it takes {nodes} of them, and it has no EFA to join them",
            remedy="a type with EFA",
        )
    experts = max(layer.feed_forward.experts for layer in architecture.kinds)
    return TrainingFit(
        instance=instance,
        nodes=nodes,
        memory_nodes=memory_nodes,
        expert_parallel=math.gcd(experts, nodes * instance.devices) if experts else 1,
        state_bytes=state / (nodes * instance.devices),
        gathered_bytes=gathered,
        activation_bytes=activations,
        usable_bytes=usable,
        flops=flops,
        days=seconds / share / nodes / 86_400,
        bound_days=seconds / nodes / 86_400,
    )


def _gathered(architecture: Architecture) -> float:
    """Return the bf16 bytes of the layer in use and of the next; experts stay where they are."""
    hidden = architecture.hidden
    largest = max(
        layer.parameters(hidden)
        - layer.feed_forward.experts * layer.feed_forward.expert_parameters(hidden)
        for layer in architecture.kinds
    )
    return 2 * 2 * largest


def _activations(architecture: Architecture, sequence: int) -> float:
    """Return the bytes of one sequence a device: layers' inputs kept, one layer recomputed."""
    hidden = architecture.hidden
    kept = 2 * sequence * hidden * len(architecture.layers)
    widest = max(
        part.active * part.width + part.shared_width if part.experts else part.width
        for part in {layer.feed_forward for layer in architecture.kinds}
    )
    one = 2 * sequence * (16 * hidden + 4 * widest)
    logits = 6 * sequence * architecture.vocabulary
    return float(kept + max(one, logits))
