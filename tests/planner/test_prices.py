import json
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from planner import PlanError
from planner.catalogue import PRICES, read_prices
from planner.prices import _questions, refresh
from tests.planner.common import TODAY


def product(*usd: str, unit: str = "Hrs") -> str:
    dimensions = {
        str(index): {"unit": unit, "pricePerUnit": {"USD": price}}
        for index, price in enumerate(usd)
    }
    return json.dumps({"terms": {"OnDemand": {"a": {"priceDimensions": dimensions}}}})


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    return Path(shutil.copy(PRICES, tmp_path / "prices.csv"))


def client(answers: dict[str, list[str]], asked: list[dict[str, Any]] | None = None) -> Any:
    """Return a pricing client that answers by item, and nothing for the rest."""
    made = boto3.client(
        "pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    stub = Stubber(made)
    for question in _questions("us-east-1"):
        expected = {"ServiceCode": question.code, "Filters": ANY}
        lists = answers.get(question.item, [])
        # Two pages, so that the second is asked for too.
        first = {"FormatVersion": "aws_v1", "PriceList": lists[:1]}
        if len(lists) > 1:
            first["NextToken"] = "more"
        stub.add_response("get_products", first, expected)
        if len(lists) > 1:
            rest = {"FormatVersion": "aws_v1", "PriceList": lists[1:]}
            stub.add_response("get_products", rest, {**expected, "NextToken": "more"})
    stub.activate()
    if asked is not None:
        made.meta.events.register(
            "provide-client-params.pricing.GetProducts", lambda params, **_: asked.append(params)
        )
    return made


def row(path: Path, item: str) -> Any:
    [found] = [price for price in read_prices(path) if price.item == item]
    return found


def test_a_new_price_replaces_the_old_with_its_source_and_date(prices: Path) -> None:
    answers = {"c7i.large": [product("0.1000000000", "0.0000000000")]}
    outcomes = {o.item: o for o in refresh(client(answers), prices, today=TODAY)}
    found = row(prices, "c7i.large")
    assert (found.usd, found.date, found.source) == (0.1, TODAY, "AWS Price List API")
    assert (outcomes["c7i.large"].before, outcomes["c7i.large"].outcome) == (0.08925, "changed")


def test_a_price_that_was_missing_is_added(prices: Path) -> None:
    answers = {"ml.p5en.48xlarge": [product("70.5")]}
    [new] = [o for o in refresh(client(answers), prices, today=TODAY) if o.outcome == "new"]
    assert (new.item, new.after) == ("ml.p5en.48xlarge", 70.5)
    assert row(prices, "ml.p5en.48xlarge").service == "sagemaker"


def test_an_interpolated_price_becomes_a_published_one(prices: Path) -> None:
    assert row(prices, "cache.r7g.xlarge").basis == "interpolated"
    refresh(client({"cache.r7g.xlarge": [product("0.35")]}), prices, today=TODAY)
    assert row(prices, "cache.r7g.xlarge").basis == "published"


def test_what_the_api_does_not_have_or_has_twice_is_kept(prices: Path) -> None:
    answers = {"c7i.large": [product("0.1"), product("0.2")]}
    outcomes = {o.item: o for o in refresh(client(answers), prices, today=TODAY)}
    assert outcomes["c7i.large"].outcome == "kept"
    assert outcomes["c7i.large"].why == "the API has 2 prices"
    assert outcomes["c7i.xlarge"].why == "the API has no price"
    assert row(prices, "c7i.large").usd == 0.08925


def test_prices_by_another_unit_and_of_zero_do_not_count(prices: Path) -> None:
    answers = {"c7i.large": [product("0"), product("5", unit="Quantity")]}
    outcomes = {o.item: o for o in refresh(client(answers), prices, today=TODAY)}
    assert outcomes["c7i.large"].outcome == "kept"


def test_the_api_is_asked_for_plain_linux_in_the_region(prices: Path) -> None:
    asked: list[dict[str, Any]] = []
    refresh(client({}, asked), prices, today=TODAY)
    first = {f["Field"]: f["Value"] for f in asked[0]["Filters"]}
    assert first["instanceType"] == "p5.48xlarge"
    assert (first["regionCode"], first["operatingSystem"]) == ("us-east-1", "Linux")
    assert (first["tenancy"], first["preInstalledSw"]) == ("Shared", "NA")


def test_nothing_else_in_the_file_changes(prices: Path) -> None:
    before = {(p.item, p.usd, p.date) for p in read_prices(prices)}
    refresh(client({}), prices, today=TODAY)
    assert {(p.item, p.usd, p.date) for p in read_prices(prices)} == before
    assert [path.name for path in prices.parent.iterdir()] == ["prices.csv"]


def test_fails_when_the_region_is_unknown(prices: Path) -> None:
    with pytest.raises(PlanError, match="region 'mars-1' is not known"):
        refresh(client({}), prices, region="mars-1")
