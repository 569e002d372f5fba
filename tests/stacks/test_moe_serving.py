"""The pools, the endpoint and the alarms that moe.serving makes."""

import pytest

from tests.cdk_app import literal, only, resources

from planner import PlanError, resolve  # isort: skip
from stacks.moe_serving import endpoint_files  # isort: skip
from tests.stacks.conftest import CERTIFICATE  # isort: skip
from tests.stacks.moe_serving_reader import (  # isort: skip
    CONFIG,
    ENDPOINT,
    GROUP,
    MODEL,
    POLICY,
    R7I,
    RULE,
    TARGET,
    TWO,
    data,
    endpoint,
    env,
    pool,
    traffic,
    volume,
)


@pytest.fixture(scope="module")
def both(synthesize_serving):
    return synthesize_serving({**TWO, "endpoint": {"max_instances": 2}})["moe-serving"]


def test_the_endpoint_exists_only_while_there_are_weights(both) -> None:
    kinds = (MODEL, CONFIG, ENDPOINT, TARGET, POLICY)
    conditions = {
        resource.get("Condition") for kind in kinds for resource in resources(both, kind).values()
    }
    [condition] = conditions
    pointer = both["Conditions"][condition]["Fn::Not"][0]["Fn::Equals"]
    assert pointer[1] == "none"
    assert both["Outputs"]["SageMakerEndpoint"]["Condition"] == condition


def test_nothing_of_the_endpoint_has_a_name_of_its_own(both) -> None:
    for kind, name in ((MODEL, "ModelName"), (CONFIG, "EndpointConfigName"),
                       (ENDPOINT, "EndpointName")):  # fmt: skip
        assert name not in only(both, kind)


def test_the_request_is_for_neuron_in_our_network_under_our_key(both) -> None:
    model, config = only(both, MODEL), only(both, CONFIG)
    assert literal(model["PrimaryContainer"]["Image"]).startswith(
        "763104351884.dkr.ecr.us-east-1.{AWS::URLSuffix}/pytorch-inference-neuronx:2.9.0-neuronx-"
    )
    assert len(model["VpcConfig"]["Subnets"]) == 3
    assert literal(config["KmsKeyId"]) == "{test-foundation-VolumeKeyArn}"
    [variant] = config["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-neuron-2"
    assert variant["VariantName"] == "test-moe-serving"
    assert 60 <= variant["ContainerStartupHealthCheckTimeoutInSeconds"] <= 3600
    assert model["EnableNetworkIsolation"] is False  # it fetches weights, and publishes figures


def test_trainium2_takes_neither_volume_nor_key(synthesize_serving) -> None:
    settings = {**endpoint(instance_type="ml.trn2.48xlarge")}
    arn = CERTIFICATE.replace("us-east-1", "us-east-2")
    template = synthesize_serving(
        settings, region="us-east-2", certificate_arn=arn,
        availability_zones=["us-east-2a", "us-east-2b", "us-east-2c"],
    )["moe-serving"]  # fmt: skip
    config = only(template, CONFIG)
    assert "KmsKeyId" not in config
    assert "VolumeSizeInGB" not in config["ProductionVariants"][0]


def test_alarms_roll_an_update_back(both) -> None:
    deployment = only(both, ENDPOINT)["DeploymentConfig"]
    names = [each["AlarmName"]["Ref"] for each in deployment["AutoRollbackConfiguration"]["Alarms"]]
    assert len(names) == 2
    for name in names:
        alarm = both["Resources"][name]["Properties"]
        assert "WHERE VariantName = 'test-moe-serving'" in alarm["Metrics"][0]["Expression"]
        assert alarm["AlarmActions"]


def test_one_machine_has_no_canary_and_two_have(synthesize_serving) -> None:
    assert traffic(synthesize_serving(endpoint())["moe-serving"])["Type"] == "ALL_AT_ONCE"
    assert traffic(synthesize_serving(endpoint(instances=2))["moe-serving"])["Type"] == "CANARY"


def test_a_canary_of_a_pool_is_sticky_and_has_its_own_metrics(synthesize_serving) -> None:
    template = synthesize_serving(pool(canary={}))["moe-serving"]
    for rule in resources(template, RULE).values():
        forward = rule["Properties"]["Actions"][0]["ForwardConfig"]
        assert forward["TargetGroupStickinessConfig"] == {"Enabled": True, "DurationSeconds": 1800}
    assert env("ISOMORPH_FLEET", "code-canary")(template) == "test-moe-serving-code-canary"
    assert env("ISOMORPH_POOL", "code-canary")(template) == "code"


def test_a_path_rule_takes_its_prefix_away(both) -> None:
    [path] = [
        each["Properties"]
        for logical_id, each in resources(both, RULE).items()
        if "Pathcode" in logical_id
    ]
    assert path["Conditions"][0]["PathPatternConfig"]["Values"] == ["/pools/code/*"]
    [rewrite] = path["Transforms"][0]["UrlRewriteConfig"]["Rewrites"]
    assert rewrite == {"Regex": "^/pools/code/(.*)$", "Replace": "/$1"}


def test_there_is_one_load_balancer_for_all_pools(both) -> None:
    only(both, "AWS::ElasticLoadBalancingV2::LoadBalancer")
    assert len(resources(both, GROUP)) == 2
    for fleet in resources(both, GROUP).values():
        assert any("Path" in name for name in fleet["DependsOn"])  # a target before it is checked


def test_a_neuron_node_starts_from_neurons_image(synthesize_serving) -> None:
    template = synthesize_serving(pool(instance_type="inf2.xlarge"))["moe-serving"]
    image = data(template)["ImageId"]["Ref"]
    parameter = template["Parameters"][image]["Default"]
    assert parameter == "/aws/service/neuron/dlami/pytorch-2.9/ubuntu-24.04/latest/image_id"
    assert data(template)["BlockDeviceMappings"][0]["DeviceName"] == "/dev/sda1"
    assert volume(template) > 100
    assert env("ISOMORPH_DEVICE")(template) == "neuron"
    assert env("ISOMORPH_NEURON_VENV")(template).startswith("/opt/aws_neuronx_venv_pytorch_2_9")


def test_experts_are_watched_in_every_fleet(both) -> None:
    alarms = [name for name in resources(both, "AWS::CloudWatch::Alarm") if "ExpertWatch" in name]
    for fleet in ("code", "prose", "endpoint"):
        for what in ("HitRate", "Stall", "Errors"):
            assert any(f"ExpertWatch{what}testmoeserving{fleet}" in name for name in alarms)
    [board] = [
        literal(each["Properties"]["DashboardBody"])
        for name, each in resources(both, "AWS::CloudWatch::Dashboard").items()
        if name.startswith("ExpertWatch")
    ]
    for metric in ("ExpertBytesLoaded", "ExpertStallMs", "ExpertHits", "Invocation5XXErrors"):
        assert metric in board


def test_the_archive_holds_the_entry_point_and_the_model_code() -> None:
    files = endpoint_files()
    assert "code/inference.py" in files
    assert "code/model_code/moe/serve/hosting.py" in files
    assert not [name for name in files if "train_tiny" in name and "mla" in name]


def test_either_half_is_there_alone(synthesize_serving) -> None:
    assert "moe-training" not in synthesize_serving(R7I)
    assert set(synthesize_serving(endpoint())) == {"foundation", "moe-serving"}


def test_the_sizes_are_the_planners(both) -> None:
    said = both["Outputs"]["Size"]["Value"]
    assert "inf2.xlarge: a replica on 1 Inferentia2 of 1, 2 NeuronCores" in said
    with pytest.raises(PlanError):
        resolve("nobody")
