"""How large what serves a mixture is: as its section says, else as the planner sizes it."""

import math
from typing import TYPE_CHECKING

from planner import Architecture, Load
from planner.catalogue import GIB, instances
from planner.experts import MIB, expert_memory
from planner.neuron import NeuronSize, neuron_endpoint
from planner.roofline import Demand
from planner.serving import USABLE, Misfit, fit

if TYPE_CHECKING:
    from stacks.moe_serving_settings import MoeServingSettings

_SYSTEM_GIB, _NEURON_IMAGE_GIB = 20, 120


def _load(settings: "MoeServingSettings", concurrent: int) -> Load:
    return Load(
        concurrent=concurrent,
        context=settings.context,
        tokens_per_s=1,
        dtype=settings.weights_dtype,
    )


def endpoint_size(
    settings: "MoeServingSettings", architecture: Architecture, region: str
) -> NeuronSize:
    """Return the endpoint that carries its load.

    Raises:
        PlanError: Nothing does, or the type that is given does not.
    """
    assert settings.endpoint is not None  # noqa: S101  who asks has one
    return neuron_endpoint(
        architecture,
        _load(settings, settings.endpoint.concurrent),
        region=region,
        instance=settings.endpoint.instance_type,
    )


def pool_misfit(
    settings: "MoeServingSettings", architecture: Architecture, instance_type: str
) -> str | None:
    """Return why a node of a type cannot hold the model, and what would; None if it can.

    With a budget for experts it must hold the rest of the model, and the budget.
    """
    load = _load(settings, 1).of(architecture)
    machine = instances().get(instance_type)
    if machine is None:
        return f"got {instance_type!r}; it is not in the planner's catalogue"
    demand = Demand(architecture, dtype=load.dtype, kv_dtype=load.kv_dtype, context=load.context)
    if settings.expert_mib is None:
        found = fit(demand, load, machine)
        if not isinstance(found, Misfit):
            return None
        return (
            f"got {instance_type!r}; {architecture.name} does not fit: {found.reason}; what would: "
            f"{found.remedy}, or expert_mib, to keep a part of the experts in memory"
        )
    experts = expert_memory(architecture, load.dtype).total
    budget = min(experts, settings.expert_mib * MIB)
    need = demand.weights - experts + budget + demand.kv
    usable = machine.device_bytes * machine.devices * USABLE[machine.runtime]
    if need <= usable:
        return None
    return (
        f"got {instance_type!r}; {architecture.name} with expert_mib {settings.expert_mib} needs "
        f"{need / GIB:,.1f} GiB, it has {usable / GIB:,.1f} usable; what would: a larger type, or "
        f"expert_mib of at most {max(0, int((usable - need + budget) / MIB))}"
    )


def volume_gib(settings: "MoeServingSettings", architecture: Architecture, *, neuron: bool) -> int:
    """Return the disk of a pool's node: the system, or Neuron's image, and the weights."""
    weights = architecture.weight_bytes(settings.weights_dtype)
    system = _NEURON_IMAGE_GIB if neuron else _SYSTEM_GIB
    return system + math.ceil(1.1 * weights / GIB)
