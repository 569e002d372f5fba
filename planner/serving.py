"""Whether a model and its load fit a kind of machine, in what layout, and how many it takes."""

import math
from dataclasses import dataclass
from typing import Literal

from planner.catalogue import GIB, Instance
from planner.load import Load
from planner.roofline import Demand, Speed, speed

# Share of a device's memory for weights, cache and activations; the rest is the runtime's,
# or on a CPU machine the system's.
USABLE = {"cuda": 0.9, "neuron": 0.9, "cpu": 0.8}
LARGEST_BATCH = 256
MOST_STAGES = 16
MOST_INSTANCES = 10_000
PREFILL_CHUNK = 2048
PREFILL_SHARE = 0.5  # of a replica's time that prompts may take
NO_KERNELS = {"neuron": "int4"}  # a dtype that a runtime does not compute with


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How replicas of a model lie on machines.

    Args:
        devices: Accelerators of one machine that one replica uses (tensor or expert parallel).
        stages: Machines that one replica spans (pipeline parallel).
        slots: Sequences that one replica holds at once.
        batch: Sequences that it has at this load.
        device_bytes: Use of one device's memory: weights, cache, activations, and what is usable.
    """

    instance: Instance
    kind: Literal["tensor", "expert"]
    devices: int
    stages: int
    slots: int
    batch: int
    replicas: int
    count: int
    speed: Speed
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    usable_bytes: float

    @property
    def tokens_per_s(self) -> float:
        """What one sequence sees."""
        return 1 / self.speed.step_s

    def capacity(self, demand: Demand, prompt: int) -> float:
        """Return the tokens a second of all replicas with every slot in use."""
        full = speed(
            demand,
            self.instance,
            devices=self.devices,
            batch=self.slots,
            prompt=prompt,
        )
        return self.replicas * self.slots / full.step_s


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Why a model does not fit a kind of machine, and what would."""

    instance: str
    reason: str
    remedy: str


def fit(demand: Demand, load: Load, instance: Instance) -> Layout | Misfit:
    """Return the layout with the fewest machines, and of those the fastest."""
    if NO_KERNELS.get(instance.runtime) == demand.dtype:
        return Misfit(
            instance=instance.name,
            reason=f"its runtime does not compute with {demand.dtype} weights",
            remedy="ask for dtype=int8 or bf16",
        )
    best: Layout | None = None
    slowest: Layout | None = None
    for layout in _layouts(demand, load, instance):
        if layout.tokens_per_s < load.tokens_per_s:
            if slowest is None or layout.tokens_per_s > slowest.tokens_per_s:
                slowest = layout
        elif best is None or _order(layout) < _order(best):
            best = layout
    if best is not None and best.count > MOST_INSTANCES:
        return Misfit(
            instance=instance.name,
            reason=f"it would take {best.count:,} of them; more than {MOST_INSTANCES:,} is no plan",
            remedy="a larger type, or less load",
        )
    if best is not None:
        return best
    if slowest is not None:
        short = load.tokens_per_s / slowest.tokens_per_s
        return Misfit(
            instance=instance.name,
            reason=(
                f"decodes {slowest.tokens_per_s:.2g} tokens/s a sequence, asked is "
                f"{load.tokens_per_s:g}: {short:.1f} times too slow"
            ),
            remedy=f"{short:.1f} times the bandwidth, a smaller dtype than {demand.dtype}, or "
            f"tokens_per_s={slowest.tokens_per_s:.2g}",
        )
    return _too_large(demand, instance)


def _order(layout: Layout) -> tuple[int, int, float]:
    return layout.count, layout.stages, layout.speed.step_s


def _too_large(demand: Demand, instance: Instance) -> Misfit:
    usable = instance.device_bytes * instance.devices * USABLE[instance.runtime]
    need = demand.weights + demand.kv
    return Misfit(
        instance=instance.name,
        reason=(
            f"one sequence needs {need / GIB:,.1f} GiB ({demand.weights / GIB:,.1f} weights in "
            f"{demand.dtype}, {demand.kv / GIB:,.2f} cache); it has {usable / GIB:,.1f} usable"
        ),
        remedy=(
            f"{max(need - usable, 0) / GIB:,.1f} GiB more, or a smaller dtype"
            if need > usable
            else "devices that hold their share of the layers: heads must divide among them"
        ),
    )


def _layouts(demand: Demand, load: Load, instance: Instance) -> list[Layout]:
    spans = [1]
    if instance.runtime != "cpu" and instance.efa and not instance.members:
        spans = list(range(1, MOST_STAGES + 1))
    kinds: tuple[Literal["tensor", "expert"], ...] = (
        ("tensor", "expert") if demand.experts else ("tensor",)
    )
    found = []
    for kind in kinds:
        for devices in range(1, instance.devices + 1):
            for stages in spans if devices == instance.devices else [1]:
                layout = _layout(demand, load, instance, kind, devices, stages)
                if layout is not None:
                    found.append(layout)
                    break  # more stages only cost more machines
    return found


def _layout(
    demand: Demand,
    load: Load,
    instance: Instance,
    kind: Literal["tensor", "expert"],
    devices: int,
    stages: int,
) -> Layout | None:
    layers = len(demand.architecture.layers)
    if (kind == "tensor" and demand.heads % devices) or stages > layers:
        return None
    share = math.ceil(layers / stages) / layers  # of the layers, on the fullest stage
    if kind == "tensor":
        weights = demand.weights * share / devices
        # A head's cache cannot be split: devices beyond the key/value heads hold copies.
        cache = demand.kv * share / min(devices, demand.kv_heads)
    else:
        weights = (demand.weights - demand.experts + demand.experts / devices) * share
        cache = demand.kv * share / devices  # each sequence lives on one device
    activations = _activations(demand, devices)
    usable = instance.device_bytes * USABLE[instance.runtime]
    room = usable - weights - activations
    if room < cache * (devices if kind == "expert" else 1):
        return None
    slots = min(LARGEST_BATCH, int(room // cache)) if cache else LARGEST_BATCH
    per_machine = max(1, instance.devices // devices) if stages == 1 else 1

    def laid_out(most: int) -> Layout:
        replicas = math.ceil(load.concurrent / most)
        batch = math.ceil(load.concurrent / replicas)
        found = speed(demand, instance, devices=devices, batch=batch, prompt=load.prompt)
        busy = math.ceil(load.requests_per_s * found.prefill_s / PREFILL_SHARE)
        if busy > replicas:
            replicas = busy
            batch = math.ceil(load.concurrent / replicas)
            found = speed(demand, instance, devices=devices, batch=batch, prompt=load.prompt)
        return Layout(
            instance=instance,
            kind=kind,
            devices=devices,
            stages=stages,
            slots=slots,
            batch=batch,
            replicas=replicas,
            count=stages * math.ceil(replicas / per_machine),
            speed=found,
            weight_bytes=weights,
            kv_bytes=min(slots, batch) * cache,
            activation_bytes=activations,
            usable_bytes=usable,
        )

    most = slots
    layout = laid_out(most)
    while layout.tokens_per_s < load.tokens_per_s and layout.batch > 1:
        most = layout.batch // 2
        layout = laid_out(most)
    return layout


def _activations(demand: Demand, devices: int) -> float:
    """Return the bytes of a chunk of the prompt in one layer, and of the logits of a batch."""
    architecture = demand.architecture
    chunk = min(PREFILL_CHUNK, demand.context)
    inner = chunk * (6 * architecture.hidden + 3 * demand.widest / devices) * 2
    return inner + LARGEST_BATCH * architecture.vocabulary * 4 / devices
