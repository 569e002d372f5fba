"""The cheapest machines of a kind that carry a load."""

import datetime
from collections.abc import Iterable

from planner.catalogue import Instance
from planner.load import Load
from planner.pricing import Cost, Service, machines
from planner.ranking import sold
from planner.roofline import Demand
from planner.serving import Layout, Misfit, fit


def cheapest(
    demand: Demand,
    load: Load,
    offered: Iterable[Instance],
    *,
    service: Service,
    region: str,
    today: datetime.date,
) -> tuple[Layout, Cost] | Misfit | None:
    """Return the cheapest layout on one of the instance types, or why the last does not fit.

    What has no price comes after what has one. None: nothing was offered.
    """
    best: tuple[Layout, Cost] | None = None
    misfit: Misfit | None = None
    for instance in offered:
        found = sold(instance, region) or fit(demand, load, instance)
        if isinstance(found, Misfit):
            misfit = found
            continue
        cost = machines(instance, found.count, service=service, region=region, today=today)
        if best is None or _order(found, cost) < _order(*best):
            best = (found, cost)
    return best or misfit


def _order(layout: Layout, cost: Cost) -> tuple[bool, float, int, float]:
    usd = cost.usd_per_hour or cost.at_least_usd_per_hour
    return usd is None, usd or 0.0, layout.count, layout.instance.memory_gib
