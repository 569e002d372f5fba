"""Where HyperPod takes lifecycle scripts from."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources, text


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, cluster in resources(template, "AWS::SageMaker::Cluster"):
        for number, group in enumerate(cluster.get("InstanceGroups", [])):
            lifecycle = group.get("LifeCycleConfig")
            if lifecycle is None:
                continue
            if not text(lifecycle.get("SourceS3Uri", "")).startswith("s3://sagemaker-"):
                place = f"Properties.InstanceGroups.{number}.LifeCycleConfig.SourceS3Uri"
                yield Breach(logical_id, place)


RULE = Rule(
    id="ClusterScripts",
    says="HyperPod reads lifecycle scripts only from a bucket whose name begins with sagemaker-; "
    "from another, the first node fails after minutes.",
    fix="use LifecycleScripts in a stack with the LifecycleSynthesizer",
    check=_check,
)
