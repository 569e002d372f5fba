import json
from pathlib import Path

import pytest

from tests.cdk_app import new_app

from config import EnvironmentConfig  # isort: skip
from stacks.map_data import INNOVATIONS  # isort: skip
from stacks.registry import DEPLOYABLE, REGISTRY  # isort: skip
from stacks.settings import SETTINGS, environments, selected  # isort: skip
from stacks.stage import ToolkitStage  # isort: skip
from tests.stacks.conftest import CERTIFICATE, ENVIRONMENT, GQA, MLA, MOE, WINDOW  # isort: skip

ROOT = Path(__file__).parents[2]
SERVING = {
    "certificate_arn": CERTIFICATE,
    "default_pool": "prose",
    "pools": {"prose": {"instance_type": "r7i.large"}},
    "endpoint": {},
}


@pytest.mark.parametrize("deployable", DEPLOYABLE, ids=lambda each: each.innovation.slug)
def test_the_stacks_contain_the_constructs_that_the_registry_names(deployable, wheels):
    on = {"moe": {**MOE, "serving": SERVING}, "gqa": GQA, "mla": MLA, "sliding_window": WINDOW}
    environment = EnvironmentConfig(**ENVIRONMENT, innovations=on)
    stage = ToolkitStage(new_app(), environment, wheelhouses=wheels)
    found = {
        type(node)
        for name in deployable.stacks
        for node in stage.node.find_child(name).node.find_all()
    }
    assert set(deployable.constructs) <= found


def test_an_innovation_is_real_exactly_if_the_registry_can_deploy_it():
    real = {innovation.slug for innovation in INNOVATIONS if innovation.status == "real"}
    assert real == set(REGISTRY)


def test_the_registry_deploys_the_stacks_that_the_map_names():
    for deployable in DEPLOYABLE:
        assert set(deployable.stacks) <= set(deployable.innovation.stack_ids)


def test_a_planned_innovation_has_no_settings():
    assert {slug for slug, model in SETTINGS.items() if model is None} == (
        {innovation.slug for innovation in INNOVATIONS} - set(REGISTRY)
    )


def test_every_real_innovation_has_code_of_the_same_name():
    for slug in REGISTRY:
        assert (ROOT / "model_code" / slug).is_dir()


def test_all_shipped_environments_switch_on_what_can_be_deployed():
    for environment in environments():
        assert [each.slug for each, _ in selected(environment)] == list(REGISTRY)


def test_cdk_json_keeps_stack_tags_and_custom_resources_off():
    # A stack's own tags reach the weights pointers, which must not be updated; closing the
    # default security group takes a custom resource.
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    assert flags["@aws-cdk/core:explicitStackTags"] is True
    assert flags["@aws-cdk/aws-ec2:restrictDefaultSecurityGroup"] is False
    assert flags["@aws-cdk/core:validateAgainstDefaultRules"] is True
