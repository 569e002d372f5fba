"""Sizes that stacks ask for. The same arithmetic as a plan's, so a template never disagrees."""

import dataclasses
import datetime
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from model_code.common.architecture import Architecture
from planner.caching import CacheFit, fit_cache
from planner.catalogue import GIB, Instance, instances, price
from planner.choosing import cheapest
from planner.errors import PlanError
from planner.functions import FunctionFit, fit_function
from planner.load import Load
from planner.roofline import Demand
from planner.serving import Layout, Misfit, fit
from planner.training import TrainingFit, fit_training

Fit = TypeVar("Fit", CacheFit, FunctionFit, TrainingFit)

MOST_OF_A_FLEET = 1000  # what an Auto Scaling group of ours may grow to
SYSTEM_GIB = 20  # of a volume: the operating system, Python and the wheelhouse


@dataclass(frozen=True, kw_only=True)
class FleetSize:
    """A fleet of decode servers.

    Args:
        slots: Sequences that one server takes at once.
        most_slots: Sequences that its memory holds.
        instances: Servers for the load.
        volume_gib: Root volume of each.
        context: Tokens of a sequence, prompt and answer.
        fits: Whether the load fits; with an instance type given, the size stands all the same.
        reasons: The arithmetic, one line each; when it does not fit, by how much and what would.
    """

    instance_type: str
    slots: int
    most_slots: int
    instances: int
    volume_gib: int
    context: int
    fits: bool
    reasons: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """Return the keys of an environment's section: for the load, and to grow to twice of it.

        Another machine is added when three quarters of the slots are taken.
        """
        return {
            "instance_type": self.instance_type,
            "volume_gib": self.volume_gib,
            "min_capacity": self.instances,
            "max_capacity": 2 * self.instances,
            "slots": self.slots,
            "context": self.context,
            "requests_in_flight_target": max(1, self.slots * 3 // 4),
        }


def fleet(
    architecture: Architecture, load: Load, *, family: str, region: str, instance: str | None = None
) -> FleetSize:
    """Return the size of a fleet with a server in each of its machines.

    Args:
        architecture: The model.
        load: What is asked of it.
        family: EC2 instance family, such as c7i: the cheapest of it in `region` is taken.
        region: Where it is to stand.
        instance: An instance type that is given. It stands even where the load does not fit.

    Raises:
        PlanError: An unknown type, or no type of the family carries the load.
    """
    asked = load.of(architecture)
    demand = Demand(architecture, dtype=asked.dtype, kv_dtype=asked.kv_dtype, context=asked.context)
    if instance is not None:
        found: Layout | Misfit = fit(demand, asked, _known(instance))
    else:
        offered = [each for each in instances().values() if each.family == family]
        best = cheapest(
            demand, asked, offered, service="ec2", region=region, today=datetime.date.today()
        )
        if best is None:
            raise PlanError(f"family {ascii(family)[:40]} is not in the catalogue")
        found = best[0] if isinstance(best, tuple) else best
    if isinstance(found, Layout):
        return fleet_size(demand, asked, found)
    if instance is None:
        raise PlanError(f"{found.instance}: {found.reason}; what would fit: {found.remedy}")
    return FleetSize(
        instance_type=instance,
        slots=1,
        most_slots=0,
        instances=1,
        volume_gib=_volume(demand),
        context=asked.context,
        fits=False,
        reasons=(f"does not fit: {found.reason}", f"what would: {found.remedy}"),
    )


def fleet_size(demand: Demand, load: Load, layout: Layout) -> FleetSize:
    """Return the size of a fleet in a layout that fits."""
    volume = _volume(demand)
    return FleetSize(
        instance_type=layout.instance.name,
        slots=min(layout.slots, layout.batch),
        most_slots=layout.slots,
        instances=layout.count,
        volume_gib=volume,
        context=load.context,
        fits=True,
        reasons=(
            f"{layout.slots} sequences of {load.context:,} tokens fit beside "
            f"{demand.weights / GIB:.2f} GiB of weights in {load.dtype}",
            f"{layout.batch} at once decode {layout.tokens_per_s:.3g} tokens/s each (modelled), "
            f"asked {load.tokens_per_s:g}",
            f"{layout.count} server(s) for {load.concurrent} sequences in flight",
            f"{volume} GiB volume: {SYSTEM_GIB} system + 1.1 x weights",
        ),
    )


def _known(instance: str) -> Instance:
    known = instances()
    if instance not in known:
        family = [name for name in known if name.split(".")[0] == instance.split(".")[0]]
        raise PlanError(
            f"instance type {ascii(instance)[:40]} is not in the catalogue; "
            f"allowed is {', '.join(family or sorted({n.split('.')[0] for n in known}))}"
        )
    return known[instance]


def _volume(demand: Demand) -> int:
    return SYSTEM_GIB + math.ceil(1.1 * demand.weights / GIB)


def latent_cache(architecture: Architecture, load: Load, region: str) -> CacheFit:
    """Return the replication group that holds the load's latents."""
    return _or_refuse(fit_cache(architecture, load.of(architecture), region))


def window_function(
    architecture: Architecture, load: Load, region: str, memory_mib: int | None = None
) -> FunctionFit:
    """Return the Lambda function that answers the load's requests.

    Raises:
        PlanError: The model does not fit; the message says by how much, and what would.
    """
    return _or_refuse(fit_function(architecture, load.of(architecture), region, memory_mib))


def window_of(architecture: Architecture) -> int:
    """Return the window of the model's local layers, in tokens.

    Raises:
        PlanError: It has none.
    """
    if architecture.window is None:
        raise PlanError(
            f"{architecture.name} has no sliding window; what has one: gemma-3-270m, gemma-3-1b, "
            f"mistral-7b, gpt-oss-20b; without one, gqa serves it"
        )
    return architecture.window


def window_fleet(
    architecture: Architecture, load: Load, region: str, family: str = "r7i"
) -> FleetSize:
    """Return the fleet on the family's type with the most memory bandwidth for a dollar.

    Decoding reads all weights for every token, so that bandwidth is its speed. Within a family
    the ratio is nearly flat: of equal ones, the smallest that fits needs the fewest spare cores.

    Raises:
        PlanError: No type of the family takes the model; the message says what the last lacks.
    """
    asked = load.of(architecture)
    demand = Demand(architecture, dtype=asked.dtype, kv_dtype=asked.kv_dtype, context=asked.context)
    fitting, refused = [], "none is in the catalogue"
    for instance in instances().values():
        row = price("ec2", instance.name, region)
        if instance.family != family or row is None:
            continue
        found = fit(demand, asked, instance)
        if isinstance(found, Misfit):
            refused = f"{found.reason}; what would: {found.remedy}"
            continue
        rate = instance.bandwidth / 1e9 / row.usd
        fitting.append((-round(rate), row.usd, instance.name, found, rate))
    if not fitting:
        raise PlanError(f"{architecture.name} fits no {family}: {refused}")
    _, usd, name, layout, rate = min(fitting, key=lambda each: each[:3])
    size = fleet_size(demand, asked, layout)
    why = f"{name} reads {rate:,.0f} GB/s for a dollar an hour ({usd:.4g} USD/h): {family}'s most"
    return dataclasses.replace(size, reasons=(why, *size.reasons))


def training_nodes(architecture: Architecture, load: Load, instance: str) -> TrainingFit:
    """Return the run that trains the model on one instance type."""
    return _or_refuse(fit_training(architecture, load.of(architecture), _known(instance)))


def _or_refuse(found: Fit | Misfit) -> Fit:
    if isinstance(found, Misfit):
        raise PlanError(f"{found.instance}: {found.reason}; what would fit: {found.remedy}")
    return found
