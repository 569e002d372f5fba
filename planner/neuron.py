"""Sizes of SageMaker endpoints on Neuron devices: type, count, cores, disk and time to start."""

import dataclasses
import datetime
import math
from dataclasses import dataclass

from model_code.common.architecture import Architecture
from planner.catalogue import GIB, Instance, instances
from planner.choosing import cheapest
from planner.errors import PlanError
from planner.load import Load
from planner.ranking import sold
from planner.roofline import Demand
from planner.serving import Layout, Misfit, fit

NEURON_FAMILIES = ("inf2", "trn2")  # what was asked for, and Neuron's way on
LOCAL_DISKS = frozenset({"trn1", "trn2"})  # their NVMe takes neither a volume size nor a key
LONGEST_S = 3600  # the most that SageMaker waits for a download, or for the first healthy answer
_SHORTEST_S = 300  # an image is started, a runtime is set up, graphs are loaded
# Assumptions, until a machine is measured: half of the network's rate is reached, a device takes
# in 1 GB/s, and twice the sum is waited for.
_NETWORK_SHARE, _LOAD_BYTES_S, _PATIENCE = 0.5, 1e9, 2
_SYSTEM_GIB = 20


@dataclass(frozen=True, kw_only=True)
class NeuronSize:
    """An endpoint's variant.

    Args:
        instance_type: As SageMaker has it, such as ml.inf2.xlarge.
        instances: Machines for the load, each with whole replicas.
        cores: NeuronCores that one replica is spread over.
        machine_cores: NeuronCores of a machine.
        slots: Sequences that one replica takes at once.
        volume_gib: Disk for the weights; None where the machine has its own.
        download_seconds: How long SageMaker shall wait for model data of the weights' size.
        startup_seconds: How long it shall wait for the first healthy answer, weights fetched.
        weight_bytes: What it serves.
        reasons: The arithmetic, one line each.
    """

    instance_type: str
    instances: int
    cores: int
    machine_cores: int
    slots: int
    volume_gib: int | None
    download_seconds: int
    startup_seconds: int
    weight_bytes: int
    reasons: tuple[str, ...]


def neuron_endpoint(
    architecture: Architecture, load: Load, *, region: str, instance: str | None = None
) -> NeuronSize:
    """Return the endpoint that carries a load.

    Args:
        architecture: The model.
        load: What is asked of it.
        region: Where it is to stand.
        instance: The type, such as ml.inf2.xlarge; left out, the cheapest Inf2 that carries it.

    Raises:
        PlanError: The type is no Neuron type of endpoints, or the model or its load does not fit;
            the message says by how much, and what would.
    """
    asked = load.of(architecture)
    demand = Demand(architecture, dtype=asked.dtype, kv_dtype=asked.kv_dtype, context=asked.context)
    if instance is not None:
        machine = _endpoint_type(instance)
        found: Layout | Misfit | None = sold(machine, region) or fit(demand, asked, machine)
    else:
        best = cheapest(
            demand, asked, _offered("inf2"), service="endpoint", region=region,
            today=datetime.date.today(),
        )  # fmt: skip
        found = best[0] if isinstance(best, tuple) else best
    if isinstance(found, Layout):
        return _size(demand, found)
    raise PlanError(_refusal(demand, asked, region, found))


def _offered(*families: str) -> list[Instance]:
    """Return the types that an endpoint can stand on; a replica lies within one machine."""
    return [
        dataclasses.replace(each, efa=0)
        for family in families
        for each in instances().values()
        if each.family == family and "endpoint" in each.services
    ]


def _endpoint_type(name: str) -> Instance:
    offered = {f"ml.{each.name}": each for each in _offered(*NEURON_FAMILIES)}
    if name not in offered:
        raise PlanError(f"got {ascii(name)[:40]}; allowed: {', '.join(offered)}")
    return offered[name]


def _refusal(demand: Demand, load: Load, region: str, found: Misfit | None) -> str:
    """Say why nothing carries the model, and which type would."""
    if found is None:
        return "no Neuron type of endpoints is in the catalogue"
    would = [
        f"ml.{each.name}"
        for each in _offered(*NEURON_FAMILIES)
        if isinstance(sold(each, region) or fit(demand, load, each), Layout)
    ]
    remedy = ", ".join(would) or f"no Neuron type; {found.remedy}"
    name = demand.architecture.name
    return f"{name} on ml.{found.instance}: {found.reason}; what would fit: {remedy}"


def _size(demand: Demand, layout: Layout) -> NeuronSize:
    machine = layout.instance
    volume = None
    if machine.family not in LOCAL_DISKS:
        volume = _SYSTEM_GIB + math.ceil(1.1 * demand.weights / GIB)
    network = (machine.network_gbps or 10) / 8 * 1e9 * _NETWORK_SHARE
    fetch = demand.weights / network
    into_devices = demand.weights / layout.devices / _LOAD_BYTES_S
    cores = layout.devices * machine.cores
    disk = "its own disks" if volume is None else f"{volume} GiB volume"
    startup = _waited(fetch + into_devices)
    return NeuronSize(
        instance_type=f"ml.{machine.name}",
        instances=layout.count,
        cores=cores,
        machine_cores=machine.devices * machine.cores,
        slots=min(layout.slots, layout.batch),
        volume_gib=volume,
        download_seconds=_waited(fetch),
        startup_seconds=startup,
        weight_bytes=demand.weights,
        reasons=(
            f"{layout.instance.name}: a replica on {layout.devices} {machine.device} of "
            f"{machine.devices}, {cores} NeuronCores ({layout.kind} parallel)",
            f"{layout.slots} sequences of {demand.context:,} tokens fit beside "
            f"{demand.weights / GIB:.2f} GiB of weights in {demand.dtype}",
            f"{layout.batch} at once decode {layout.tokens_per_s:.3g} tokens/s each (modelled)",
            f"{layout.count} machine(s), {disk}; {startup} s to start: {fetch:.0f} s to fetch and "
            f"{into_devices:.0f} s into the devices (assumed rates), twice, at least {_SHORTEST_S}",
        ),
    )


def _waited(seconds: float) -> int:
    return min(LONGEST_S, _SHORTEST_S + math.ceil(_PATIENCE * seconds))
