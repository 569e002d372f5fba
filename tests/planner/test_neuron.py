import pytest

from planner import Load, PlanError
from planner.catalogue import GIB, instances
from planner.experts import MIB, check_expert_budget, expert_memory
from planner.neuron import LONGEST_S, NeuronSize, neuron_endpoint
from tests.planner.common import model


def endpoint(
    name: str, instance: str | None = None, region: str = "us-east-2", **load: int
) -> NeuronSize:
    return neuron_endpoint(model(name), Load(**load), region=region, instance=instance)


def test_the_cheapest_inf2_that_holds_the_model_is_taken() -> None:
    assert endpoint("tiny-deepseek", context=512).instance_type == "ml.inf2.xlarge"
    assert endpoint("mixtral-8x7b").instance_type == "ml.inf2.24xlarge"


def test_a_replica_has_two_cores_for_each_inferentia2() -> None:
    found = endpoint("mixtral-8x7b")
    assert (found.cores, found.machine_cores) == (12, 12)
    assert instances()["inf2.48xlarge"].cores == 2
    assert "12 NeuronCores" in found.reasons[0]


def test_disk_and_patience_follow_the_weights() -> None:
    small, large = endpoint("tiny-deepseek", context=512), endpoint("mixtral-8x7b")
    assert small.volume_gib == 21
    assert large.volume_gib is not None
    assert large.volume_gib * GIB > large.weight_bytes * 1.1
    assert small.startup_seconds < large.startup_seconds <= LONGEST_S
    assert large.download_seconds < large.startup_seconds


def test_trainium2_is_offered_and_has_disks_of_its_own() -> None:
    found = endpoint("qwen3-30b-a3b", "ml.trn2.48xlarge")
    assert found.volume_gib is None
    assert found.machine_cores == 64
    assert found.instance_type == "ml.trn2.48xlarge"


def test_a_replica_does_not_span_machines_of_an_endpoint() -> None:
    # Pipelines over EFA are a cluster's; an endpoint's machines know nothing of each other.
    with pytest.raises(PlanError, match=r"llama-3\.1-405b on ml\.inf2\.48xlarge: one sequence"):
        endpoint("llama-3.1-405b")


def test_fails_when_the_model_does_not_fit_and_says_what_would() -> None:
    with pytest.raises(
        PlanError,
        match=r"qwen3-30b-a3b on ml\.inf2\.xlarge: one sequence needs 57\.2 GiB .* what would fit: "
        r"ml\.inf2\.24xlarge, ml\.inf2\.48xlarge, ml\.trn2\.48xlarge$",
    ):
        endpoint("qwen3-30b-a3b", "ml.inf2.xlarge")


def test_fails_when_the_type_is_not_sold_in_the_region() -> None:
    with pytest.raises(PlanError, match=r"trn2\.48xlarge: not sold in us-east-1; what would"):
        endpoint("qwen3-30b-a3b", "ml.trn2.48xlarge", "us-east-1")


def test_fails_when_nothing_would() -> None:
    with pytest.raises(PlanError, match="what would fit: no Neuron type; "):
        endpoint("kimi-k2", context=100_000)


def test_fails_when_the_type_is_no_neuron_type_of_endpoints() -> None:
    with pytest.raises(PlanError, match=r"got 'ml\.c7i\.large'; allowed: ml\.inf2\.xlarge, .*trn2"):
        endpoint("tiny-deepseek", "ml.c7i.large", context=512)


def test_experts_take_what_the_model_says() -> None:
    mixtral = model("mixtral-8x7b")
    memory = expert_memory(mixtral, "bf16")
    assert memory.total == 2 * mixtral.expert_parameters
    assert memory.least == 2 * 2 * 3 * 4096 * 14336  # two experts of three matrices, two bytes
    assert expert_memory(mixtral, "int8").least == memory.least / 2


def test_fails_when_a_budget_holds_less_than_one_layers_active_experts() -> None:
    mixtral = model("mixtral-8x7b")
    assert check_expert_budget(mixtral, "bf16", 672).least == 672 * MIB
    with pytest.raises(
        PlanError,
        match=r"got 671 MiB; the 2 active experts .* 672\.0 MiB in bf16: give at least 672",
    ):
        check_expert_budget(mixtral, "bf16", 671)


def test_fails_when_the_model_has_no_experts() -> None:
    with pytest.raises(PlanError, match="llama-3-8b has no experts; a mixture has, such as"):
        expert_memory(model("llama-3-8b"), "bf16")
