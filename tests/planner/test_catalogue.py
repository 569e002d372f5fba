import datetime
import json

import pytest

from planner import catalogue
from planner.catalogue import Price, generate

MAP = {
    "p5", "p5e", "p5en", "p6-b200", "p6-b300", "p6e-gb200", "u-p6e-gb200x72", "trn1", "trn2",
    "u-trn2x64", "inf2", "c7i", "c8i", "r7i", "r8i",
}  # fmt: skip


def test_every_family_of_the_map_has_a_row() -> None:
    assert {instance.family for instance in catalogue.instances().values()} == MAP


@pytest.mark.parametrize("file", ["offerings.json", "create_only.json"])
def test_what_was_generated_agrees_with_the_installed_libraries(file: str) -> None:
    installed = generate.generated()[file]
    shipped = json.loads((catalogue.HERE / file).read_text())
    assert installed == shipped, "run `python -m planner.catalogue.generate`"


@pytest.mark.parametrize(
    ("service", "accepted", "refused"),
    [
        ("hyperpod", "r7i.48xlarge", "inf2.48xlarge"),
        ("hyperpod", "p5e.48xlarge", "c7i.48xlarge"),
        ("endpoint", "inf2.xlarge", "c8i.96xlarge"),
        ("training", "trn1.32xlarge", "inf2.xlarge"),
        ("training_plan", "trn2.48xlarge", "r7i.large"),
    ],
)
def test_services_accept_what_their_api_does(service: str, accepted: str, refused: str) -> None:
    assert service in catalogue.instances()[accepted].services
    assert service not in catalogue.instances()[refused].services


def test_every_row_has_a_source_and_a_date() -> None:
    for instance in catalogue.instances().values():
        assert instance.source
        assert datetime.date.fromisoformat(instance.date)
    for node in catalogue.cache_nodes():
        assert node.source
        assert datetime.date.fromisoformat(node.date)
    for price in catalogue.read_prices():
        assert price.source
        assert price.usd > 0
    for figure in catalogue.vendor_figures():
        assert figure["label"] == "vendor"
        assert figure["source"]
        assert datetime.date.fromisoformat(figure["date"])


def test_every_instance_computes_and_reads() -> None:
    for instance in catalogue.instances().values():
        assert instance.bandwidth > 0
        assert instance.rate("bf16") > 0
        assert instance.rate("int4") == instance.rate("bf16")
        assert instance.device_bytes > 0


def test_an_ultraserver_is_the_sum_of_its_members() -> None:
    for instance in catalogue.instances().values():
        if instance.members:
            name, count = instance.members
            member = catalogue.instances()[name]
            assert instance.devices == member.devices * count
            assert instance.vcpus == member.vcpus * count
            assert instance.memory_gib == member.memory_gib * count


def test_the_vendors_figures_that_can_be_computed_come_out() -> None:
    checked = 0
    for figure in catalogue.vendor_figures():
        check = figure.get("check", {})
        if "petaflops" in check:
            one = next(i for i in catalogue.instances().values() if i.device == check["device"])
            total = check["devices"] * one.rate(check["dtype"]) / 1e15
            assert total == pytest.approx(check["petaflops"], rel=0.01)
            checked += 1
        for field in ("devices", "network_gbps"):
            if "instance" in check and field in check:
                assert getattr(catalogue.instances()[check["instance"]], field) == check[field]
                checked += 1
    assert checked == 4


def test_memory_of_cpu_machines_is_two_or_eight_gib_a_vcpu() -> None:
    ratio = {"c7i": 2, "c8i": 2, "r7i": 8, "r8i": 8}
    for instance in catalogue.instances().values():
        if instance.runtime == "cpu":
            assert instance.memory_gib == ratio[instance.family] * instance.vcpus


def test_a_price_warns_after_180_days_and_not_before() -> None:
    row = Price(
        service="ec2", item="c7i.large", unit="hour", region="us-east-1", usd=0.08925,
        basis="published", source="a list", date=datetime.date(2026, 1, 1),
    )  # fmt: skip
    assert row.warning(datetime.date(2026, 6, 30)) is None
    text = row.warning(datetime.date(2026, 7, 1))
    assert text is not None
    assert "price of c7i.large in us-east-1 is 181 days old (2026-01-01)" in text


def test_a_missing_price_is_none_and_not_zero() -> None:
    assert catalogue.price("ec2", "p5e.48xlarge", "us-east-1") is None
    assert catalogue.price("ec2", "c7i.large", "eu-west-1") is None


def test_plans_and_capacity_blocks_have_no_on_demand_price() -> None:
    for instance in catalogue.instances().values():
        if instance.capacity == "plan":
            assert catalogue.price("ec2", instance.name, "us-east-1") is None
