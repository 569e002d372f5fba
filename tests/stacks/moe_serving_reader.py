"""Sections of moe.serving, and what is read of the templates that they make."""

from typing import Any

from tests.cdk_app import literal, only, resources

MODEL, CONFIG = "AWS::SageMaker::Model", "AWS::SageMaker::EndpointConfig"
ENDPOINT, TARGET = "AWS::SageMaker::Endpoint", "AWS::ApplicationAutoScaling::ScalableTarget"
POLICY, SCHEDULE = "AWS::ApplicationAutoScaling::ScalingPolicy", "AWS::Scheduler::Schedule"
RULE, GROUP = "AWS::ElasticLoadBalancingV2::ListenerRule", "AWS::AutoScaling::AutoScalingGroup"
TEMPLATE, TARGETS = "AWS::EC2::LaunchTemplate", "AWS::ElasticLoadBalancingV2::TargetGroup"
POINTER = "s3://models/moe/other/0123456789abcdef/#sha256=" + "a" * 64
NIGHT = {"stop": "20:00", "start": "07:30"}
R7I: dict[str, Any] = {"pools": {"code": {"instance_type": "r7i.large"}}}
TWO = {"pools": {"code": {"instance_type": "r7i.large"}, "prose": {"instance_type": "r7i.large"}}}
LARGE = {"max_instances": 3, "instances": 2}


def pool(**settings: Any) -> dict[str, Any]:
    return {"pools": {"code": {"instance_type": "r7i.large", **settings}}}


def endpoint(**settings: Any) -> dict[str, Any]:
    return {"pools": {}, "endpoint": settings}


def container(name: str) -> Any:
    return lambda found: only(found, MODEL)["PrimaryContainer"]["Environment"][name]


def variant(name: str) -> Any:
    return lambda found: only(found, CONFIG)["ProductionVariants"][0][name]


def data(template: dict, name: str = "code") -> dict[str, Any]:
    [found] = [
        each["Properties"]["LaunchTemplateData"]
        for logical_id, each in resources(template, TEMPLATE).items()
        if f"Fleettestmoeserving{name.replace('-', '')}Group" in logical_id
    ]
    return dict(found)


def env(name: str, fleet: str = "code") -> Any:
    def read(template: dict) -> str:
        script = literal(data(template, fleet)["UserData"])
        [line] = [each for each in script.splitlines() if each.startswith(f"{name}=")]
        return str(line.partition("=")[2])

    return read


def volume(template: dict) -> int:
    return int(data(template)["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"])


def group(name: str) -> Any:
    return lambda found: only(found, GROUP)[name]


def threshold(name: str) -> Any:
    def read(template: dict) -> float:
        alarms = resources(template, "AWS::CloudWatch::Alarm").items()
        found = [each for logical_id, each in alarms if name in logical_id]
        return float(found[0]["Properties"]["Threshold"])

    return read


def tracking(name: str, key: str = "TargetValue") -> Any:
    def read(template: dict) -> Any:
        for policy in resources(template, POLICY).values():
            if policy["Properties"]["PolicyName"] == name:
                return policy["Properties"]["TargetTrackingScalingPolicyConfiguration"][key]
        raise AssertionError(name)

    return read


def traffic(template: dict) -> dict[str, Any]:
    deployment = only(template, ENDPOINT)["DeploymentConfig"]
    return dict(deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"])


def schedules(template: dict) -> set[str]:
    found = resources(template, SCHEDULE).values()
    return {each["Properties"]["ScheduleExpression"] for each in found}


def timezone(template: dict) -> str:
    found = resources(template, SCHEDULE).values()
    return str(next(iter(found))["Properties"]["ScheduleExpressionTimezone"])


def weights_of(name: str) -> Any:
    def read(template: dict) -> list[int]:
        [rule] = [
            each["Properties"]
            for logical_id, each in resources(template, RULE).items()
            if f"Header{name}" in logical_id
        ]
        shares = rule["Actions"][0]["ForwardConfig"]["TargetGroups"]
        return [share["Weight"] for share in shares]

    return read


def session(template: dict) -> str:
    targets = only(template, TARGETS)["TargetGroupAttributes"]
    found = {each["Key"]: each["Value"] for each in targets}
    assert found["stickiness.enabled"] == "true"
    return str(found["stickiness.lb_cookie.duration_seconds"])


def default_pool(template: dict) -> str:
    action = only(template, "AWS::ElasticLoadBalancingV2::Listener")["DefaultActions"][0]
    return str(action["TargetGroupArn"]["Ref"])
