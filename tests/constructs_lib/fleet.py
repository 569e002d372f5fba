"""What the tests of a fleet's parts read a template with."""

from typing import Any

from tests.cdk_app import literal, only

GROUP = "AWS::AutoScaling::AutoScalingGroup"
TEMPLATE = "AWS::EC2::LaunchTemplate"
BALANCER = "AWS::ElasticLoadBalancingV2::LoadBalancer"
LISTENER = "AWS::ElasticLoadBalancingV2::Listener"
TARGETS = "AWS::ElasticLoadBalancingV2::TargetGroup"
CERTIFICATE = "arn:aws:acm:us-east-1:111122223333:certificate/x"


def data(template: dict) -> dict:
    return only(template, TEMPLATE)["LaunchTemplateData"]


def env(template: dict) -> dict[str, str]:
    """Return what the user data writes into fleet.env."""
    script = literal(data(template)["UserData"])
    body = script.partition("<<ENV\n")[2].partition("\nENV\n")[0]
    return dict(line.split("=", 1) for line in body.splitlines())


def attributes(template: dict, kind: str) -> dict[str, str]:
    name = "LoadBalancerAttributes" if kind == BALANCER else "TargetGroupAttributes"
    return {each["Key"]: each["Value"] for each in only(template, kind)[name]}


def if_weights(template: dict, value: Any) -> list[Any]:
    [condition, there, missing] = value["Fn::If"]
    [pointer] = [name for name in template["Parameters"] if name.startswith("WeightsPointer")]
    assert template["Conditions"][condition] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": pointer}, "none"]}]
    }
    assert template["Parameters"][pointer] == {
        "Type": "AWS::SSM::Parameter::Value<String>",
        "Default": "/isomorph/test/gqa/weights",
        "Description": "SSM parameter that says where the weights are, or `none`",
    }
    return [there, missing]
