"""Brings the price file up to date from the AWS Price List API."""

import csv
import datetime
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner.catalogue import PRICES, Price, cache_nodes, instances, read_prices, regions
from planner.errors import PlanError

SOURCE = "AWS Price List API"
COLUMNS = ("service", "item", "unit", "region", "usd", "basis", "source", "date")


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What became of one price: `kept` when the API has none, or more than one."""

    item: str
    before: float | None
    after: float | None
    outcome: Literal["new", "changed", "confirmed", "kept"]
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class _Question:
    service: str
    item: str
    code: str
    filters: Mapping[str, str]


def refresh(
    client: Any,
    catalogue_path: str | Path = PRICES,
    *,
    region: str = "us-east-1",
    today: datetime.date | None = None,
) -> list[Refreshed]:
    """Ask for the price of every instance and cache node, and rewrite the file at once.

    Args:
        client: boto3's `pricing`, in us-east-1 or ap-south-1, where the API is.
        catalogue_path: The file; the planner's own when left out.
        region: Whose prices to ask for.
        today: What to date them.
    """
    if region not in regions():
        raise PlanError(f"region {ascii(region)[:40]} is not known; see `isomorph plan --help`")
    path = Path(catalogue_path)
    day = today or datetime.datetime.now(datetime.UTC).date()
    rows = {(row.service, row.item, row.region): row for row in read_prices(path)}
    outcomes = []
    for question in _questions(region):
        key = (question.service, question.item, region)
        old = rows.get(key)
        usd, why = _ask(client, question)
        if usd is None:
            if old is not None:
                outcomes.append(
                    Refreshed(
                        item=question.item, before=old.usd, after=old.usd, outcome="kept", why=why
                    )
                )
            continue
        rows[key] = Price(
            service=question.service,
            item=question.item,
            unit="hour",
            region=region,
            usd=usd,
            basis="published",
            source=SOURCE,
            date=day,
        )
        before = old.usd if old else None
        outcome: Literal["new", "changed", "confirmed"] = (
            "new" if before is None else "confirmed" if before == usd else "changed"
        )
        outcomes.append(Refreshed(item=question.item, before=before, after=usd, outcome=outcome))
    _save(path, list(rows.values()))
    return outcomes


def _questions(region: str) -> Iterator[_Question]:
    place = {"regionCode": region}
    for instance in instances().values():
        if instance.members:
            continue
        yield _Question(
            service="ec2",
            item=instance.name,
            code="AmazonEC2",
            filters=place
            | {
                "instanceType": instance.name,
                "operatingSystem": "Linux",
                "tenancy": "Shared",
                "preInstalledSw": "NA",
                "capacitystatus": "Used",
                "licenseModel": "No License required",
            },
        )
        if "endpoint" in instance.services:
            yield _Question(
                service="sagemaker",
                item=f"ml.{instance.name}",
                code="AmazonSageMaker",
                filters=place | {"instanceName": f"ml.{instance.name}", "component": "Hosting"},
            )
    for node in cache_nodes():
        yield _Question(
            service="elasticache",
            item=node.name,
            code="AmazonElastiCache",
            filters=place | {"instanceType": node.name, "cacheEngine": "Valkey"},
        )


def _ask(client: Any, question: _Question) -> tuple[float | None, str]:
    """Return the one price an hour that the API knows, or None and why."""
    filters = [
        {"Type": "TERM_MATCH", "Field": field, "Value": value}
        for field, value in question.filters.items()
    ]
    found: set[float] = set()
    pages = client.get_paginator("get_products").paginate(
        ServiceCode=question.code, Filters=filters
    )
    for page in pages:
        for text in page["PriceList"]:
            found |= set(_hourly(json.loads(text)))
    if len(found) == 1:
        return found.pop(), ""
    return None, "the API has no price" if not found else f"the API has {len(found)} prices"


def _hourly(product: Mapping[str, Any]) -> Iterator[float]:
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            usd = float(dimension["pricePerUnit"].get("USD", 0))
            if usd > 0 and dimension["unit"].lower() in ("hrs", "hours", "hour"):
                yield usd


def _save(path: Path, rows: list[Price]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([
            row.service, row.item, row.unit, row.region, f"{row.usd:.10g}", row.basis, row.source,
            row.date.isoformat(),
        ])  # fmt: skip
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text.getvalue())
    os.chmod(name, path.stat().st_mode)
    os.replace(name, path)
