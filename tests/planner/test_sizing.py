import pytest

from planner import Load, PlanError, plan
from planner.sizing import (
    FleetSize,
    fleet,
    latent_cache,
    training_nodes,
    window_fleet,
    window_function,
    window_of,
)
from tests.planner.common import model


def c7i(name: str, load: Load, instance: str | None = None) -> FleetSize:
    return fleet(model(name), load, family="c7i", region="us-east-1", instance=instance)


def test_without_a_type_the_cheapest_of_the_family_is_taken() -> None:
    found = c7i("llama-3-8b", Load(concurrent=4, dtype="int8"))
    rows = {row.slug: row for row in plan("llama-3-8b", "concurrent=4,dtype=int8").placements}
    assert found.settings() == {k: v for k, v in rows["gqa"].settings.items() if k != "model"}
    assert found.fits


def test_fails_when_nothing_of_the_family_carries_the_load() -> None:
    with pytest.raises(PlanError, match=r"^c7i\.\S+: one sequence needs .*; what would fit: "):
        c7i("llama-3.1-405b", Load())
    with pytest.raises(PlanError, match="family 'm9z' is not in the catalogue"):
        fleet(model("llama-3-8b"), Load(), family="m9z", region="us-east-1")


def test_a_fleet_has_slots_servers_a_volume_and_reasons() -> None:
    fleet = c7i("smollm2-135m", Load(concurrent=32), instance="c7i.xlarge")
    assert fleet.fits
    assert fleet.slots * fleet.instances >= 32
    assert fleet.volume_gib == 21  # 20 for the system, 1.1 x 0.25 GiB of weights
    assert "of weights in bf16" in fleet.reasons[0]


def test_an_explicit_type_that_does_not_fit_is_kept_and_told() -> None:
    fleet = c7i("llama-3-8b", Load(), instance="c7i.large")
    assert (fleet.instance_type, fleet.instances, fleet.fits) == ("c7i.large", 1, False)
    assert fleet.reasons[0].startswith("does not fit: one sequence needs")
    assert fleet.reasons[1].startswith("what would: ")


def test_fails_when_the_type_is_not_in_the_catalogue() -> None:
    with pytest.raises(PlanError, match=r"'c7i\.huge' is not in the catalogue; allowed is c7i"):
        c7i("llama-3-8b", Load(), instance="c7i.huge")
    with pytest.raises(PlanError, match=r"'t2\.micro' is not in the catalogue; allowed is c7i"):
        c7i("llama-3-8b", Load(), instance="t2.micro")
    with pytest.raises(PlanError, match=r"'t2\.micro' is not in the catalogue"):
        training_nodes(model("llama-3-8b"), Load(), "t2.micro")


def test_a_cache_a_function_and_a_run_are_sized_as_in_a_plan() -> None:
    assert latent_cache(model("deepseek-v3"), Load(), "us-east-1").shards >= 1
    assert window_function(model("gemma-3-270m"), Load(), "us-east-1").memory_mib <= 10_240
    assert training_nodes(model("olmo-2-7b"), Load(), "p5en.48xlarge").nodes == 1


def test_fails_when_it_does_not_fit() -> None:
    with pytest.raises(PlanError, match=r"lambda: needs 13,872 MiB .* what would fit: 3,632 MiB"):
        window_function(model("gemma-3-27b"), Load(), "us-east-1")


def test_a_window_fleet_is_the_smallest_of_the_most_bandwidth_for_a_dollar() -> None:
    small = window_fleet(model("gemma-3-270m"), Load(tokens_per_s=1), "us-east-1")
    assert small.instance_type == "r7i.large"
    assert "GB/s for a dollar an hour" in small.reasons[0]
    large = window_fleet(model("gemma-3-27b"), Load(tokens_per_s=1), "us-east-1")
    assert int(large.instance_type.removeprefix("r7i.").rstrip("xlarge") or 1) >= 2


def test_fails_when_no_type_of_the_family_takes_the_model() -> None:
    with pytest.raises(PlanError, match=r"deepseek-v3 fits no r7i: .*what would: "):
        window_fleet(model("deepseek-v3"), Load(tokens_per_s=100), "us-east-1")


def test_the_window_is_that_of_the_local_layers() -> None:
    assert window_of(model("gemma-3-270m")) == 512
    assert window_of(model("mistral-7b")) == 4096


def test_fails_when_the_model_has_no_window() -> None:
    with pytest.raises(PlanError, match="llama-3-8b has no sliding window; what has one: gemma-3"):
        window_of(model("llama-3-8b"))
