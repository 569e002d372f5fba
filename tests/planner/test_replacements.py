from typing import Any

import pytest

from planner import PlanError
from planner.replacements import Change, create_only, diff, refuse, stateful


def template(kind: str, **properties: Any) -> dict[str, Any]:
    return {"Resources": {"Thing": {"Type": kind, "Properties": properties}}}


def only(old: dict[str, Any], new: dict[str, Any]) -> Change:
    [change] = diff(old, new)
    return change


CLUSTER = "AWS::SageMaker::Cluster"


def group(**change: Any) -> list[dict[str, Any]]:
    return [
        {"InstanceGroupName": "a", "InstanceType": "ml.p5.48xlarge", "InstanceCount": 2} | change
    ]


@pytest.mark.parametrize(
    ("kind", "old", "new", "path", "effect"),
    [
        (CLUSTER, {"InstanceGroups": group()}, {"InstanceGroups": group(InstanceType="ml.p5e")},
         "InstanceGroups/0/InstanceType", "replace"),
        (CLUSTER, {"InstanceGroups": group()}, {"InstanceGroups": group(InstanceCount=4)},
         "InstanceGroups/0/InstanceCount", "update"),
        (CLUSTER, {"VpcConfig": {"Subnets": ["a"]}}, {"VpcConfig": {"Subnets": ["b"]}},
         "VpcConfig/Subnets/0", "replace"),
        (CLUSTER, {"VpcConfig": {"Subnets": ["a"]}}, {}, "VpcConfig", "replace"),
        (CLUSTER, {"NodeRecovery": "A"}, {"NodeRecovery": "B"}, "NodeRecovery", "update"),
        ("AWS::SageMaker::EndpointConfig", {"ProductionVariants": [{"InitialInstanceCount": 1}]},
         {"ProductionVariants": [{"InitialInstanceCount": 2}]},
         "ProductionVariants/0/InitialInstanceCount", "replace"),
        ("AWS::SageMaker::Endpoint", {"EndpointConfigName": "a"}, {"EndpointConfigName": "b"},
         "EndpointConfigName", "update"),
        ("AWS::S3::Bucket", {"BucketName": "a"}, {"BucketName": "b"}, "BucketName", "replace"),
        ("AWS::ElastiCache::ReplicationGroup", {"Port": 6379}, {"Port": 6380}, "Port", "replace"),
        ("AWS::AutoScaling::AutoScalingGroup", {"MaxSize": "2"}, {"MaxSize": "4"}, "MaxSize",
         "update"),
        ("Custom::Anything", {"A": 1}, {"A": 2}, "A", "update"),
    ],
)  # fmt: skip
def test_a_change_is_an_update_or_a_replacement_as_the_schema_says(
    kind: str, old: dict[str, Any], new: dict[str, Any], path: str, effect: str
) -> None:
    change = only(template(kind, **old), template(kind, **new))
    assert (change.path, change.effect) == (path, effect)


def test_adding_an_instance_group_replaces_nothing() -> None:
    old = template(CLUSTER, InstanceGroups=group())
    new = template(CLUSTER, InstanceGroups=[*group(), *group(InstanceGroupName="b")])
    assert only(old, new).effect == "update"


def test_what_is_the_same_is_no_change() -> None:
    same = template(CLUSTER, InstanceGroups=group())
    assert diff(same, same) == []


def test_resources_that_come_and_go_are_told() -> None:
    old, new = template("AWS::S3::Bucket"), {"Resources": {"Other": {"Type": "AWS::SNS::Topic"}}}
    assert [(c.logical_id, c.effect) for c in diff(old, new)] == [
        ("Other", "create"),
        ("Thing", "delete"),
    ]


def test_another_type_under_one_name_is_a_delete_and_a_create() -> None:
    changes = diff(template("AWS::S3::Bucket"), template("AWS::SNS::Topic"))
    assert [change.effect for change in changes] == ["delete", "create"]
    assert changes[0].loses_data


def test_stateful_replacements_are_refused_unless_allowed() -> None:
    changes = diff(
        template("AWS::S3::Bucket", BucketName="a"), template("AWS::S3::Bucket", BucketName="b")
    )
    message = (
        'would lose data: replace Thing \\(AWS::S3::Bucket\\): BucketName: "a" -> "b" '
        "\\(holds data\\); add --allow-replace"
    )
    with pytest.raises(PlanError, match=message):
        refuse(changes)
    refuse(changes, allow=True)


def test_a_replacement_that_keeps_its_data_is_not_refused() -> None:
    old = template("AWS::S3::Bucket", BucketName="a")
    old["Resources"]["Thing"]["UpdateReplacePolicy"] = "Retain"
    changes = diff(old, template("AWS::S3::Bucket", BucketName="b"))
    assert changes[0].effect == "replace"
    refuse(changes)


def test_a_deletion_that_keeps_its_data_is_not_refused() -> None:
    old = template("AWS::S3::Bucket")
    old["Resources"]["Thing"]["DeletionPolicy"] = "Retain"
    changes = diff(old, {"Resources": {}})
    assert changes[0].effect == "delete"
    refuse(changes)


def test_stateless_replacements_pass() -> None:
    kind = "AWS::SageMaker::EndpointConfig"
    changes = diff(template(kind, KmsKeyId="a"), template(kind, KmsKeyId="b"))
    assert changes[0].effect == "replace"
    refuse(changes)


def test_long_values_are_cut_on_one_line() -> None:
    change = only(template("Custom::A", A="x" * 500), template("Custom::A", A={"y": ["\n"]}))
    assert len(str(change)) < 220
    assert "\n" not in str(change)


def test_what_the_schema_leaves_out_is_added_by_hand() -> None:
    assert "InstanceGroups/*/ThreadsPerCore" in create_only(CLUSTER)
    assert stateful("AWS::ElastiCache::ServerlessCache")
    assert not stateful("AWS::SNS::Topic")


def test_fails_when_a_template_is_none() -> None:
    with pytest.raises(PlanError, match="the new template's Resources is not a map of resources"):
        diff({}, {"Resources": [1]})
