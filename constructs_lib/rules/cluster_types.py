"""Instance types of HyperPod clusters. CloudFormation's own list lets types of endpoints pass."""

from collections.abc import Iterator, Set

from constructs_lib.rules.rule import Breach, Rule, Template, resources


def rule(allowed: Set[str]) -> Rule:
    """Return the rule for the types that SageMaker's API takes, which whoever runs it knows.

    Args:
        allowed: Such as ml.p5e.48xlarge.
    """

    def check(template: Template) -> Iterator[Breach]:
        for logical_id, cluster in resources(template, "AWS::SageMaker::Cluster"):
            for number, group in enumerate(cluster.get("InstanceGroups", [])):
                if group.get("InstanceType") not in allowed:
                    yield Breach(logical_id, f"Properties.InstanceGroups.{number}.InstanceType")

    return Rule(
        id="ClusterTypes",
        says="An instance group must have a type that SageMaker's API takes for clusters; ml.inf2 "
        "and ml.c7i, which it does not, pass CloudFormation's validation and fail the deployment.",
        fix="train on ml.p5, ml.p6 or ml.trn2, serve on ml.inf2 with an endpoint",
        check=check,
    )
