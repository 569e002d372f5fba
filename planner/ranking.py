"""All machines that can serve a model in one list, and why the others cannot."""

import datetime
from dataclasses import dataclass
from typing import Any

from planner.catalogue import Instance, instances
from planner.load import Load
from planner.pricing import Cost, machines
from planner.roofline import Demand
from planner.serving import Layout, Misfit, fit


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A type of machine that can serve the model, with its layout and price."""

    layout: Layout
    cost: Cost
    usd_per_million_tokens: float | None
    usd_per_million_tokens_full: float | None


def sold(instance: Instance, region: str) -> Misfit | None:
    """Return why an instance cannot be had in a region, or None."""
    if instance.regions is None or region in instance.regions:
        return None
    where = ", ".join(sorted(instance.regions)) or "no region"
    return Misfit(
        instance=instance.name,
        reason=f"not sold in {region}",
        remedy=f"a region that has it: {where}",
    )


def rank(
    demand: Demand, load: Load, region: str, today: datetime.date
) -> tuple[list[Candidate], list[Misfit]]:
    """Return what can serve the model, best first, one size a family; and why the rest cannot.

    Best is the least price an hour; types without a public price follow, fewest machines first.
    """
    fits: dict[str, Candidate] = {}
    misfits: dict[str, Misfit] = {}
    for instance in instances().values():
        found = sold(instance, region) or fit(demand, load, instance)
        if isinstance(found, Misfit):
            misfits[instance.family] = found  # the largest size has the last word
            continue
        candidate = _candidate(demand, load, found, region, today)
        other = fits.get(instance.family)
        if other is None or _order(candidate) < _order(other):
            fits[instance.family] = candidate
    refused = [misfit for family, misfit in misfits.items() if family not in fits]
    return sorted(fits.values(), key=_order), refused


def _candidate(
    demand: Demand, load: Load, layout: Layout, region: str, today: datetime.date
) -> Candidate:
    cost = machines(layout.instance, layout.count, service="ec2", region=region, today=today)
    return Candidate(
        layout=layout,
        cost=cost,
        usd_per_million_tokens=cost.per_million(load.requests_per_s * load.output),
        usd_per_million_tokens_full=cost.per_million(layout.capacity(demand, load.prompt)),
    )


def _order(candidate: Candidate) -> tuple[bool, float, int, str]:
    usd = candidate.cost.usd_per_hour
    layout = candidate.layout
    return usd is None, usd or 0.0, layout.count, layout.instance.name


def notes(instance: Instance) -> tuple[str, ...]:
    """Return what to know of an instance besides its price."""
    found = [instance.advice] if instance.advice else []
    if instance.regions is None:
        found.append(f"no price list names the regions of {instance.name}: ask where it is sold")
    return tuple(found)


def layout_details(layout: Layout) -> dict[str, Any]:
    """Return a layout's numbers for JSON."""
    return {
        "parallel": layout.kind,
        "devices_per_replica": layout.devices,
        "stages": layout.stages,
        "replicas": layout.replicas,
        "slots": layout.slots,
        "batch": layout.batch,
        "tokens_per_s": layout.tokens_per_s,
        "tokens_per_s_bound": 1 / layout.speed.bound_s,
        "first_token_s": layout.speed.prefill_s,
        "first_token_s_bound": layout.speed.prefill_bound_s,
        "limit": layout.speed.limit,
        "device_bytes": {
            "weights": round(layout.weight_bytes),
            "kv_cache": round(layout.kv_bytes),
            "activations": round(layout.activation_bytes),
            "usable": round(layout.usable_bytes),
        },
    }
