"""What machines cost, and what bills while nobody asks anything. A missing price is never zero."""

import datetime
from dataclasses import dataclass, field
from typing import Literal

from planner.catalogue import Instance, Price, price

Service = Literal["ec2", "hyperpod", "endpoint", "training"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An hour of some machines.

    Args:
        usd_per_hour: On demand; None when no price is at hand.
        at_least_usd_per_hour: A price that the true one is known not to be below, or None.
        notes: Why a price is missing, interpolated or a floor.
        warnings: Prices that are old.
    """

    usd_per_hour: float | None
    at_least_usd_per_hour: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def per_million(self, tokens_per_s: float) -> float | None:
        """Return the price of a million tokens at a rate, or None without a price."""
        if self.usd_per_hour is None or tokens_per_s <= 0:
            return None
        return self.usd_per_hour / (tokens_per_s * 3600) * 1e6


def machines(
    instance: Instance, count: int, *, service: Service, region: str, today: datetime.date
) -> Cost:
    """Return what so many machines of a service cost."""
    ec2 = price("ec2", instance.name, region)
    row = ec2 if service == "ec2" else price("sagemaker", f"ml.{instance.name}", region)
    if row is not None:
        return _cost(row, count, today)
    if instance.capacity == "plan":
        note = (
            f"{instance.name} has no public on-demand price: its price is that of a training plan "
            f"or Capacity Block, quoted when one is searched"
        )
        return Cost(usd_per_hour=None, notes=(note,))
    name = instance.name if service == "ec2" else f"ml.{instance.name}"
    note = f"the price file has no price of {name} in {region}; run `isomorph prices refresh`"
    if ec2 is None:
        return Cost(usd_per_hour=None, notes=(note,))
    floor = _cost(ec2, count, today)
    return Cost(
        usd_per_hour=None,
        at_least_usd_per_hour=floor.usd_per_hour,
        notes=(note, f"EC2 asks {ec2.usd:g} an hour for {instance.name}; SageMaker asks more"),
        warnings=floor.warnings,
    )


def _cost(row: Price, count: int, today: datetime.date) -> Cost:
    warning = row.warning(today)
    what = f"{row.usd:g} USD per {row.unit} for {row.item} in {row.region}"
    note = f"{what}: {row.source}, {row.date}"
    if row.basis == "interpolated":
        note += " (interpolated)"
    return Cost(usd_per_hour=row.usd * count, notes=(note,), warnings=(warning,) if warning else ())


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """What an environment has whether or not an innovation is switched on."""

    nat_gateways: int = 0
    interface_endpoints: int = 6
    zones: int = 3


@dataclass(frozen=True, kw_only=True)
class IdleFloor:
    """What bills with no request at all: rows of (what, count, USD an hour or None)."""

    rows: tuple[tuple[str, int, float | None], ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def usd_per_hour(self) -> float:
        """The sum of the rows with a price."""
        return sum(usd for _, _, usd in self.rows if usd is not None)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """What the sum leaves out."""
        return tuple(what for what, _, usd in self.rows if usd is None)


def idle_floor(
    foundation: Foundation,
    always_on: list[tuple[str, int, float | None]],
    *,
    region: str,
    today: datetime.date,
) -> IdleFloor:
    """Return the floor of an environment: its network, and machines that never stop."""
    rows: list[tuple[str, int, float | None]] = []
    warnings = []
    for what, item, count in (
        ("NAT gateways", "nat-gateway", foundation.nat_gateways),
        (
            "interface endpoints, one a zone",
            "interface-endpoint",
            foundation.interface_endpoints * foundation.zones,
        ),
    ):
        row = price("vpc", item, region)
        if count:
            rows.append((what, count, row.usd * count if row else None))
            warnings += [warning] if row and (warning := row.warning(today)) else []
    return IdleFloor(rows=(*rows, *always_on), warnings=tuple(warnings))
