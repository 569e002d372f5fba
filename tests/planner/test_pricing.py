import datetime

import pytest

from planner.catalogue import instances
from planner.pricing import Foundation, idle_floor, machines
from tests.planner.common import TODAY


def test_ec2_costs_its_price_times_the_count() -> None:
    cost = machines(instances()["c7i.large"], 3, service="ec2", region="us-east-1", today=TODAY)
    assert cost.usd_per_hour == pytest.approx(3 * 0.08925)
    assert "2026-07-20" in cost.notes[0]
    assert cost.per_million(100) == pytest.approx(3 * 0.08925 / 360_000 * 1e6)
    assert cost.per_million(0) is None


def test_sagemaker_costs_its_own_price_and_an_old_one_warns() -> None:
    cost = machines(
        instances()["inf2.xlarge"], 2, service="endpoint", region="us-east-1", today=TODAY
    )
    assert cost.usd_per_hour == pytest.approx(2 * 0.99)
    assert "days old (2025-02-01)" in cost.warnings[0]


def test_a_missing_sagemaker_price_is_none_with_ec2s_as_the_floor() -> None:
    cost = machines(
        instances()["p5en.48xlarge"], 2, service="hyperpod", region="us-east-1", today=TODAY
    )
    assert cost.usd_per_hour is None
    assert cost.at_least_usd_per_hour == pytest.approx(2 * 63.296)
    assert "no price of ml.p5en.48xlarge in us-east-1" in cost.notes[0]
    assert cost.per_million(100) is None


def test_a_plan_only_type_says_that_its_price_is_a_plans() -> None:
    cost = machines(instances()["trn2.48xlarge"], 1, service="ec2", region="us-east-2", today=TODAY)
    assert cost.usd_per_hour is None
    assert "training plan or Capacity Block" in cost.notes[0]


def test_a_region_without_prices_says_so() -> None:
    cost = machines(instances()["c7i.large"], 1, service="ec2", region="eu-west-1", today=TODAY)
    assert cost.usd_per_hour is None
    assert "no price of c7i.large in eu-west-1" in cost.notes[0]


def test_the_idle_floor_is_the_network_and_what_never_stops() -> None:
    floor = idle_floor(
        Foundation(nat_gateways=3, interface_endpoints=6, zones=3),
        [("a fleet", 2, 1.5), ("a cluster", 4, None)],
        region="us-east-1",
        today=TODAY,
    )
    assert floor.usd_per_hour == pytest.approx(3 * 0.045 + 18 * 0.01 + 1.5)
    assert floor.unpriced == ("a cluster",)


def test_an_idle_floor_of_old_prices_warns() -> None:
    later = datetime.date(2027, 6, 1)
    floor = idle_floor(Foundation(nat_gateways=1), [], region="us-east-1", today=later)
    assert len(floor.warnings) == 2
