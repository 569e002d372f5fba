"""Settings of grouped-query attention: each followed from YAML to the template."""

from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

from config import ConfigError  # isort: skip
from stacks.gqa import GqaSettings  # isort: skip
from tests.stacks.conftest import CERTIFICATE  # isort: skip

GROUP = "AWS::AutoScaling::AutoScalingGroup"


def env_line(name: str) -> Any:
    def read(template: dict) -> str:
        script = literal(data(template)["UserData"])
        [line] = [each for each in script.splitlines() if each.startswith(f"{name}=")]
        return line.partition("=")[2]

    return read


def data(template: dict) -> dict:
    return only(template, "AWS::EC2::LaunchTemplate")["LaunchTemplateData"]


def volume(template: dict) -> int:
    return data(template)["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]


def signal_timeout(template: dict) -> str:
    [group] = resources(template, GROUP).values()
    return group["CreationPolicy"]["ResourceSignal"]["Timeout"]


def threshold(name: str) -> Any:
    def read(template: dict) -> float:
        alarms = resources(template, "AWS::CloudWatch::Alarm").items()
        [found] = [each for logical_id, each in alarms if f"Watch{name}" in logical_id]
        return found["Properties"]["Threshold"]

    return read


def target_value(template: dict) -> int:
    policy = only(template, "AWS::AutoScaling::ScalingPolicy")
    return policy["TargetTrackingConfiguration"]["TargetValue"]


def certificate(template: dict) -> str:
    listener = only(template, "AWS::ElasticLoadBalancingV2::Listener")
    return listener["Certificates"][0]["CertificateArn"]


TRACE = {
    "model": ("other-1b", env_line("ISOMORPH_MODEL"), "other-1b"),
    "engine": ("native", env_line("ISOMORPH_ENGINE"), "native"),
    "dtype": ("float32", env_line("ISOMORPH_DTYPE"), "float32"),
    "quantization": ("int8", env_line("ISOMORPH_QUANTIZATION"), "int8"),
    "python": ("3.11", env_line("ISOMORPH_PYTHON"), "python3.11"),
    "instance_type": ("c7i.8xlarge", lambda found: data(found)["InstanceType"], "c7i.8xlarge"),
    "volume_gib": (55, volume, 55),
    "min_capacity": (2, lambda found: only(found, GROUP)["MinSize"]["Fn::If"][1], "2"),
    "max_capacity": (9, lambda found: only(found, GROUP)["MaxSize"], "9"),
    "warm_pool": (2, lambda found: only(found, "AWS::AutoScaling::WarmPool")["MinSize"], 2),
    "boot_minutes": (22, signal_timeout, "PT22M"),
    "port": (9000, lambda found: only(found, "AWS::ElasticLoadBalancingV2::TargetGroup")["Port"],
             9000),
    "slots": (32, env_line("ISOMORPH_SLOTS"), "32"),
    "context": (4096, env_line("ISOMORPH_CONTEXT"), "4096"),
    "queue": (7, env_line("ISOMORPH_QUEUE"), "7"),
    "deadline_seconds": (90, env_line("ISOMORPH_DEADLINE_S"), "90"),
    "requests_in_flight_target": (5, target_value, 5),
    "certificate_arn": (CERTIFICATE, certificate, CERTIFICATE),
    "alarm_latency_seconds": (3.5, threshold("Latency"), 3.5),
    "alarm_error_percent": (1, threshold("Errors"), 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def everything(synthesize):
    return synthesize({name: given for name, (given, _, _) in TRACE.items()})["gqa"]


def test_every_setting_is_followed():
    assert set(TRACE) == set(GqaSettings.model_fields)


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(everything, name):
    _, read, expected = TRACE[name]
    assert read(everything) == expected


def test_every_setting_says_what_it_is():
    assert all(field.description for field in GqaSettings.model_fields.values())


def test_the_hosts_python_is_python3(synthesize):
    embedded = {"aws": "embedded", "account": "000000000000", "budget": {"monthly_usd": 1}}
    gqa = {"python": "host", "certificate_arn": None}
    template = synthesize(gqa, **embedded)["gqa"]
    assert env_line("ISOMORPH_PYTHON")(template) == "python3"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"instance_type": "c7i.tiny"}, "instance_type: got 'c7i.tiny'; allowed: c7i.12xlarge, "),
        ({"instance_type": "c7g.large"}, "instance_type: got 'c7g.large'; allowed: c7i.12xlarge,"),
        ({"instance_type": "c7i-flex.large"}, "instance_type: got 'c7i-flex.large'; allowed: c7i."),
        ({"engine": "vllm"}, "engine: got 'vllm'; allowed: 'llama.cpp', 'native'"),
        ({"python": 3.11}, "python: got 3.11; allowed: 'host', '3.11'"),
        ({"python": "host"}, "python: got 'host', which is only for aws: embedded; allowed here"),
        ({"min_capacity": 3, "max_capacity": 2},
         "max_capacity: got 2; must be at least min_capacity, which is 3"),
        ({"min_capacity": 3}, "max_capacity: got 1; must be at least min_capacity, which is 3"),
        ({"min_capacity": 0}, "min_capacity: got 0; should be greater than or equal to 1"),
        ({"slots": 4, "requests_in_flight_target": 5},
         "requests_in_flight_target: got 5; must be at most slots, which is 4"),
        ({"slots": 4}, "requests_in_flight_target: got 6; must be at most slots, which is 4"),
        ({"slots": "8"}, "slots: got '8'; should be a valid integer"),
        ({"boot_minutes": 61}, "boot_minutes: got 61; should be less than or equal to 60"),
        ({"certificate_arn": None},
         "certificate_arn: missing; add the ARN of an ACM certificate (only aws: embedded has "),
        ({"certificate_arn": "arn:aws:acm:eu-west-1:111122223333:certificate/" + "0" * 36},
         "must be arn:aws:acm:us-east-1:111122223333:certificate/UUID"),
        ({"certificate_arn": "arn:aws:acm:us-east-1:999999999999:certificate/" + "0" * 36},
         "must be arn:aws:acm:us-east-1:111122223333:certificate/UUID"),
        ({"certificate_arn": "certificate"},
         "certificate_arn: got 'certificate'; must be arn:aws:acm:us-east-1:111122223333:"),
    ],
)  # fmt: skip
def test_fails_when_a_setting_is_wrong(synthesize, settings, line):
    with pytest.raises(ConfigError) as caught:
        synthesize(settings)
    [found] = str(caught.value).splitlines()
    assert found.startswith("config/test.yaml: innovations.gqa.")
    assert line in found


def test_nothing_of_the_stack_hangs_on_the_foundations_generated_names(templates):
    imported = [
        value for value in _imports(templates["gqa"]) if not value.startswith("test-foundation-")
    ]
    assert imported == []


def test_what_it_imports_is_exported(templates):
    exported = {output["Export"]["Name"] for output in templates["foundation"]["Outputs"].values()}
    assert set(_imports(templates["gqa"])) <= exported


def _imports(value: Any) -> list[str]:
    if isinstance(value, dict):
        if "Fn::ImportValue" in value:
            return [value["Fn::ImportValue"]]
        return [name for child in value.values() for name in _imports(child)]
    if isinstance(value, list):
        return [name for child in value for name in _imports(child)]
    return []


def test_the_outputs_are_those_that_commands_read(templates):
    outputs = templates["gqa"]["Outputs"]
    assert set(outputs) == {"Endpoint", "Fleet", "Weights", "Engine"}
    assert literal(outputs["Endpoint"]["Value"]).startswith("https://")
    assert outputs["Engine"]["Value"] == "llama.cpp"


def test_a_plain_deploy_says_how_to_get_weights(templates):
    [_, pushed, missing] = templates["gqa"]["Outputs"]["Weights"]["Value"]["Fn::If"]
    assert "Ref" in pushed
    assert missing == ("none yet: run `isomorph weights push test gqa FOLDER`, then deploy again")


def test_both_engines_ship_the_same_code(synthesize, templates):
    native = synthesize({"max_capacity": 2, "engine": "native"})["gqa"]

    def code_line(template: dict) -> str:
        script = literal(data(template)["UserData"])
        [line] = [each for each in script.splitlines() if each.endswith(" code")]
        return line

    assert code_line(native) == code_line(templates["gqa"])


def test_nodes_reach_s3_through_the_prefix_list_of_the_environment(synthesize):
    template = synthesize({}, s3_prefix_list="pl-0123456789abcdef0")["gqa"]
    lists = {
        rule["Properties"].get("DestinationPrefixListId")
        for rule in resources(template, "AWS::EC2::SecurityGroupEgress").values()
    }
    assert lists == {None, "pl-0123456789abcdef0"}
