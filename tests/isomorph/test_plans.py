"""`isomorph plans search` against botocore's Stubber: moto has no offerings."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber
from click.testing import CliRunner

from isomorph.commands.plans import plans
from isomorph.environments import Environment
from isomorph.errors import UserError

OFFER = {
    "TrainingPlanOfferingId": "tpo-0123456789abcdef",
    "TargetResources": ["hyperpod-cluster"],
    "DurationHours": 48,
    "DurationMinutes": 30,
    "UpfrontFee": "9700.00",
    "CurrencyCode": "USD",
    "ReservedCapacityOfferings": [
        {
            "InstanceType": "ml.p5e.48xlarge",
            "InstanceCount": 2,
            "AvailabilityZone": "us-east-1c",
            "StartTime": datetime(2026, 12, 1, 11, 30, tzinfo=UTC),
        }
    ],
}
ASKED = ["search", "--env", "dev", "--instance-type", "ml.p5e.48xlarge"]
ASKED += ["--count", "2", "--hours", "48"]


@pytest.fixture
def stubber(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="a",
                          aws_secret_access_key="b")  # fmt: skip
    monkeypatch.setattr(Environment, "client", lambda *_: client)
    with Stubber(client) as stubbed:
        yield stubbed


def run(*words: str) -> str:
    done = CliRunner().invoke(plans, words, catch_exceptions=False, standalone_mode=False)
    return str(done.stdout)


def answer(stubber: Stubber, *offers: dict[str, Any]) -> None:
    stubber.add_response(
        "search_training_plan_offerings",
        {"TrainingPlanOfferings": list(offers)},
        {
            "InstanceType": "ml.p5e.48xlarge",
            "InstanceCount": 2,
            "DurationHours": 48,
            "TargetResources": ["hyperpod-cluster"],
            "StartTimeAfter": ANY,
            "EndTimeBefore": ANY,
        },
    )


def test_an_offer_has_its_zone_and_price_an_hour(stubber):
    answer(stubber, OFFER)
    [row] = json.loads(run(*ASKED, "--json"))
    assert (row["zone"], row["nodes"], row["from"]) == ("us-east-1c", 2, "2026-12-01 11:30")
    assert (row["an_hour"], row["a_node_hour"]) == (200, 100)


def test_offers_are_a_table_for_people(stubber):
    answer(stubber, OFFER)
    head, line = run(*ASKED).splitlines()
    assert head.split()[:2] == ["offering", "zone"]
    assert line.split()[:3] == ["tpo-0123456789abcdef", "us-east-1c", "2"]
    assert "9,700.00 USD" in line


def test_no_offer_is_an_error_that_says_what_to_change(stubber):
    answer(stubber)
    with pytest.raises(
        UserError, match=r"no plan of 2 x ml.p5e.48xlarge for 48 hours .* us-east-1"
    ):
        run(*ASKED)


def test_a_type_without_plans_is_refused_with_those_that_have_them():
    with pytest.raises(UserError, match=r"'ml.inf2.xlarge'; training plans have ml.p4d.24xlarge"):
        run(*[word.replace("ml.p5e.48xlarge", "ml.inf2.xlarge") for word in ASKED])


def test_a_refusal_of_aws_is_one_line(stubber):
    stubber.add_client_error("search_training_plan_offerings", "AccessDeniedException", "no")
    with pytest.raises(UserError, match=r"AWS refused in dev: .*AccessDeniedException"):
        run(*ASKED)
