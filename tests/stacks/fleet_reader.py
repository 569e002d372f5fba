"""Where the settings of a fleet are in its stack's template."""

from typing import Any

from tests.cdk_app import literal, only, resources
from tests.stacks.conftest import CERTIFICATE

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


def size(template: dict) -> str:
    """What the planner said; every size of its own is given here, so it only remarks."""
    return str(template["Outputs"]["Size"]["Value"])


# What every fleet's settings become: the value given, how to read it, what it is in the template.
FLEET_TRACE: dict[str, tuple[Any, Any, Any]] = {
    "model": ("other-1b", env_line("ISOMORPH_MODEL"), "other-1b"),
    "dtype": ("float32", env_line("ISOMORPH_DTYPE"), "float32"),
    "quantization": ("int8", env_line("ISOMORPH_QUANTIZATION"), "int8"),
    "python": ("3.11", env_line("ISOMORPH_PYTHON"), "python3.11"),
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

# What a load adds; every size is given beside it, so that the planner only remarks.
LOAD_TRACE: dict[str, tuple[Any, Any, Any]] = {
    "architecture": ("smollm2-135m", size, "beside 0.25 GiB of weights in bf16"),
    "load": ({"concurrent": 300}, size, "for 300 sequences in flight"),
}
