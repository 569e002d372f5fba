"""The plan and the stack: the same machines, the same number of nodes, the same experts a rank."""

import pytest

from config import hyperpod_instance_types
from planner import resolve
from planner.catalogue import instances
from planner.planning import plan
from stacks.settings import environments, selected

OF_THE_MAP = {
    # type: accelerators, GiB of each, dense bf16 TFLOPS of each, EFA cards
    "p5.48xlarge": (8, 80, 989, 32),
    "p5e.48xlarge": (8, 131.3, 989, 32),
    "p5en.48xlarge": (8, 131.3, 989, 16),
    "p6e-gb200.36xlarge": (4, 172.3, 2500, 17),
    "trn2.48xlarge": (16, 96, 667, 16),
}


@pytest.mark.parametrize("name", OF_THE_MAP)
def test_the_catalogue_has_the_accelerators_of_the_map(name):
    row = instances()[name]
    found = (row.devices, row.device_bytes / 2**30, row.rate("bf16") / 1e12, row.efa)
    assert found == pytest.approx(OF_THE_MAP[name])
    assert {"hyperpod", "training_plan"} <= row.services
    assert f"ml.{name}" in hyperpod_instance_types()
    assert row.source
    assert row.date


def test_the_catalogue_has_what_prepares_data():
    rows = [each for name, each in instances().items() if name.startswith("r7i.")]
    assert len(rows) > 3
    for each in rows:
        assert "hyperpod" in each.services
        assert each.memory_gib == 8 * each.vcpus


@pytest.fixture(scope="module")
def prod():
    [environment] = environments("prod")
    settings = {innovation.slug: each for innovation, each in selected(environment)}["moe"]
    return environment, settings.training


def test_prods_workers_are_where_their_type_is_sold(prod):
    environment, training = prod
    for each in training.workers.values():
        assert environment.region in each.machine.regions


def test_prods_nodes_hold_what_the_plan_says_that_the_model_takes(prod):
    environment, training = prod
    model = training.architecture
    found = plan(resolve(model), region=environment.region)
    [placement] = [each for each in found.placements
                   if (each.slug, each.service) == ("moe", "SageMaker HyperPod")]  # fmt: skip
    [workers] = training.workers.values()
    assert placement.instance_type.removeprefix("ml.") == workers.machine.name
    assert placement.count <= workers.count
    assert list(training.remarks(environment.region, model)) == []


def test_too_few_of_them_would_be_remarked_on(prod):
    environment, training = prod
    [(name, workers)] = training.workers.items()
    few = workers.model_copy(update={"count": 8})
    smaller = training.model_copy(update={"groups": {name: few}})
    [remark] = smaller.remarks(environment.region, training.architecture)
    assert "takes 12 nodes of ml.p5e.48xlarge" in remark
