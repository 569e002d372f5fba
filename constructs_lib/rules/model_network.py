"""Networks of SageMaker models."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, model in resources(template, "AWS::SageMaker::Model"):
        network = model.get("VpcConfig", {})
        if not network.get("Subnets") or not network.get("SecurityGroupIds"):
            yield Breach(logical_id, "Properties.VpcConfig")


RULE = Rule(
    id="ModelNetwork",
    says="A model's containers must be in our subnets; left out, they reach the internet.",
    fix="give the model a vpc_config with subnets and security groups",
    check=_check,
)
