"""What AWS offers, as data: instances, cache nodes, limits and prices, each row with its source.

`hardware.json`, `vendor.json` and `prices.csv` are kept by hand (prices also by `planner.prices`);
`offerings.json` and `create_only.json` are written by `planner.catalogue.generate`.
"""

import csv
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
PRICES = HERE / "prices.csv"
STALE_AFTER = datetime.timedelta(days=180)
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An EC2 instance or UltraServer.

    Args:
        devices: Accelerators; 1 for a machine that computes on its CPUs.
        device_bytes: Memory of one of them; all memory for CPUs.
        bandwidth: Bytes a second that one of them reads from its memory.
        rates: Operations a second of one of them by dtype, dense.
        sparse_rate: The same with 4:16 sparsity; None where there is none.
        capacity: plan means sold as a training plan or Capacity Block only, at no public price.
        members: Of an UltraServer: what it is made of, and how many.
        services: SageMaker services that accept it: hyperpod, endpoint, training, training_plan.
        regions: Where it is sold on demand; None when no price list has it.
        advice: What to know before choosing it.
        cores: NeuronCores of one device as the runtime counts them (on Trainium2 two physical ones
            make one: LNC=2); 1 for other devices.
    """

    name: str
    vcpus: int
    memory_gib: float
    device: str
    devices: int
    device_bytes: float
    bandwidth: float
    rates: Mapping[str, float]
    sparse_rate: float | None
    runtime: Literal["cuda", "neuron", "cpu"]
    network_gbps: float | None
    efa: int
    capacity: Literal["on_demand", "plan"]
    architecture: str
    members: tuple[str, int] | None
    services: frozenset[str]
    regions: frozenset[str] | None
    source: str
    date: str
    advice: str | None = None
    cores: int = 1

    @property
    def family(self) -> str:
        """The name up to its size."""
        return self.name.split(".")[0]

    def rate(self, dtype: str) -> float:
        """Return the operations a second of one device; bf16's where the dtype has none."""
        return self.rates.get(dtype, self.rates["bf16"])


@dataclass(frozen=True, kw_only=True)
class CacheNode:
    """A node type of ElastiCache."""

    name: str
    usable_gib: float
    regions: frozenset[str]
    source: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Price:
    """One price. `basis` is interpolated where the list's own row was not at hand."""

    service: str
    item: str
    unit: str
    region: str
    usd: float
    basis: Literal["published", "interpolated"]
    source: str
    date: datetime.date

    def warning(self, today: datetime.date) -> str | None:
        """Return what to say when the price is old, or None."""
        age = today - self.date
        if age <= STALE_AFTER:
            return None
        return (
            f"price of {self.item} in {self.region} is {age.days} days old ({self.date}); "
            f"run `isomorph prices refresh`"
        )


def _load(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


@cache
def _hardware() -> dict[str, Any]:
    data: dict[str, Any] = _load("hardware.json")
    return data


@cache
def offerings() -> dict[str, Any]:
    """Return what was generated: services and regions of each instance."""
    data: dict[str, Any] = _load("offerings.json")
    return data


def names(caches: bool = False) -> list[str]:
    """Return the names of all instances, and of cache nodes if asked."""
    rows = _hardware()["instances"] + (_hardware()["cache_nodes"] if caches else [])
    return [row["name"] for row in rows]


@cache
def instances() -> Mapping[str, Instance]:
    """Return all instances by name."""
    found: dict[str, Instance] = {}
    for row in _hardware()["instances"]:
        found[row["name"]] = _instance(row)
    return found


def _instance(row: Mapping[str, Any]) -> Instance:
    offered, name = offerings(), row["name"]
    if row["device"] == "AMX":
        cpu = _hardware()["cpu"]
        hardware = {
            "devices": 1,
            "device_bytes": row["memory_gib"] * GIB,
            "bandwidth": cpu["bandwidth_gb_s_per_vcpu"] * row["vcpus"] * 1e9,
            "rates": {
                dtype: rate * row["vcpus"] * 1e12
                for dtype, rate in cpu["teraflops_per_vcpu"].items()
            },
            "sparse_rate": None,
            "runtime": "cpu",
        }
    else:
        device = _hardware()["devices"][row["device"]]
        sparse = device.get("sparse_teraflops")
        hardware = {
            "devices": row["devices"],
            "device_bytes": device["memory_gib"] * GIB,
            "bandwidth": device["bandwidth_gb_s"] * 1e9,
            "rates": {dtype: rate * 1e12 for dtype, rate in device["teraflops"].items()},
            "sparse_rate": sparse * 1e12 if sparse else None,
            "runtime": device["runtime"],
            "advice": device.get("advice"),
            "cores": device.get("cores", 1),
        }
    members = row.get("members")
    regions = offered["regions"].get(name)
    return Instance(
        name=name,
        vcpus=row["vcpus"],
        memory_gib=row["memory_gib"],
        device=row["device"],
        network_gbps=row["network_gbps"],
        efa=row["efa"],
        capacity=row["capacity"],
        architecture=row["architecture"],
        members=(members["instance"], members["count"]) if members else None,
        services=frozenset(s for s, accepted in offered["services"].items() if name in accepted),
        regions=frozenset(regions) if regions is not None else None,
        source=row["source"],
        date=row["date"],
        **hardware,
    )


@cache
def cache_nodes() -> tuple[CacheNode, ...]:
    """Return ElastiCache's node types, smallest first in each family."""
    regions = offerings()["regions"]
    return tuple(
        CacheNode(**row, regions=frozenset(regions.get(row["name"], ())))
        for row in _hardware()["cache_nodes"]
    )


def limits(service: str) -> Mapping[str, Any]:
    """Return the limits of `lambda` or `elasticache`."""
    data: Mapping[str, Any] = _hardware()["limits"][service]
    return data


@cache
def regions() -> frozenset[str]:
    """Return every region that some price list names."""
    return frozenset(r for listed in offerings()["regions"].values() for r in listed)


@cache
def vendor_figures() -> tuple[Mapping[str, Any], ...]:
    """Return the map's figures that are the vendor's, with what can be computed of them."""
    return tuple(_load("vendor.json"))


def read_prices(path: Path = PRICES) -> tuple[Price, ...]:
    """Return the rows of a price file."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            Price(
                service=row["service"],
                item=row["item"],
                unit=row["unit"],
                region=row["region"],
                usd=float(row["usd"]),
                basis="published" if row["basis"] == "published" else "interpolated",
                source=row["source"],
                date=datetime.date.fromisoformat(row["date"]),
            )
            for row in csv.DictReader(file)
        )


@cache
def _shipped_prices() -> Mapping[tuple[str, str, str], Price]:
    return {(row.service, row.item, row.region): row for row in read_prices()}


def price(service: str, item: str, region: str) -> Price | None:
    """Return a price, or None when the file has none: never zero."""
    return _shipped_prices().get((service, item, region))
