"""The cluster by itself: plain values in, CloudFormation's words out."""

from typing import Any

import pytest

from tests.cdk_app import json_of, literal, new_stack, only, resources

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_ec2 as ec2  # isort: skip
from aws_cdk import aws_kms as kms  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip
from aws_cdk import aws_sns as sns  # isort: skip

from constructs_lib import (  # isort: skip
    Care, ClusterSecurityGroup, Eks, HyperPodCluster, Lustre, LustreMount, MonthlyBudget,
    NodeGroup, Place, Site, Slurm, Start, TrainingStorage,
)  # fmt: skip
from constructs_lib.rules import RULES  # isort: skip

CLUSTER = "AWS::SageMaker::Cluster"
KEY = "arn:aws:kms:us-east-1:111122223333:key/volumes"
ZONES = ("us-east-1a", "us-east-1b")


def site(stack: cdk.Stack) -> Site:
    key = kms.Key.from_key_arn(stack, "Key", KEY)
    return Site(
        vpc=ec2.Vpc.from_vpc_attributes(
            stack, "Vpc", vpc_id="vpc-1", availability_zones=list(ZONES),
            private_subnet_ids=["subnet-a", "subnet-b"],
        ),
        cidr="10.0.0.0/16",
        endpoints=ec2.SecurityGroup.from_security_group_id(stack, "Endpoints", "sg-1"),
        s3_prefix_list="pl-1",
        volume_key=key,
        log_key=key,
        access_logs=s3.Bucket.from_bucket_name(stack, "Logs", "logs"),
        alarm_topic=sns.Topic.from_topic_arn(
            stack, "Alarms", "arn:aws:sns:us-east-1:111122223333:alarms"
        ),
    )  # fmt: skip


def made(*groups: NodeGroup, slurm: bool = True, **start: Any) -> dict[str, Any]:
    stack = new_stack()
    place = site(stack)
    nodes = ClusterSecurityGroup(stack, "Nodes", site=place)
    HyperPodCluster(
        stack,
        "Cluster",
        name="mine",
        groups=groups or (group(),),
        start=Start(
            scripts="s3://sagemaker-mine/lifecycle/1",
            entry="on_create.sh",
            role_arn="arn:aws:iam::111122223333:role/nodes",
            volume_key_arn=KEY,
            **start,
        ),
        place=Place(
            subnets=dict(zip(ZONES, place.vpc.private_subnets, strict=True)),
            zone=ZONES[0],
            security_group=nodes,
        ),
        orchestrator=Slurm() if slurm else Eks(cluster_arn="arn:aws:eks:us-east-1:1:cluster/e"),
        care=Care(),
    )
    return json_of(stack)


def group(**changes: Any) -> NodeGroup:
    given = {"name": "w", "role": "workers", "instance_type": "ml.p5.48xlarge", "count": 2}
    return NodeGroup(**{**given, **changes})


@pytest.mark.parametrize("rule", [each for each in RULES if each.id.startswith(("Cluster", "Efa"))])
def test_it_keeps_our_rules_by_construction(rule):
    template = made(group(), group(name="x", zone=ZONES[1]))
    assert list(rule.check(template)) == []


def test_a_hundred_groups_are_a_cluster():
    template = made(*(group(name=f"g{number}") for number in range(100)))
    assert len(only(template, CLUSTER)["InstanceGroups"]) == 100


@pytest.mark.parametrize(
    ("role", "node"),
    [("controller", "Controller"), ("login", "Login"), ("workers", "Compute"), ("data", "Compute")],
)
def test_a_role_is_a_kind_of_slurm_node_and_compute_has_a_partition(role, node):
    [found] = only(made(group(role=role)), CLUSTER)["InstanceGroups"]
    assert found["SlurmConfig"]["NodeType"] == node
    assert found["SlurmConfig"].get("PartitionNames") == (["w"] if node == "Compute" else None)


def test_only_a_group_in_another_zone_has_a_network_of_its_own():
    here, there = only(made(group(zone=ZONES[0]), group(zone=ZONES[1], name="x")), CLUSTER)[
        "InstanceGroups"
    ]
    assert "OverrideVpcConfig" not in here
    assert there["OverrideVpcConfig"]["Subnets"] == ["subnet-b"]


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        ({}, "CapacityRequirements", None),
        ({"capacity": "spot"}, "CapacityRequirements", {"Spot": {}}),
        ({"capacity": "on_demand"}, "CapacityRequirements", {"OnDemand": {}}),
        ({}, "NetworkInterface", None),
        ({"interface": "efa"}, "NetworkInterface", {"InterfaceType": "efa"}),
        ({"interface": "efa-only"}, "NetworkInterface", {"InterfaceType": "efa-only"}),
    ],
)
def test_how_nodes_are_bought_and_attached(given, key, expected):
    [found] = only(made(group(**given), slurm=False), CLUSTER)["InstanceGroups"]
    assert found.get(key) == expected


def test_labels_are_for_kubernetes_and_partitions_for_slurm():
    labelled = group(labels={"rack": "1"})
    [slurm] = only(made(labelled), CLUSTER)["InstanceGroups"]
    [eks] = only(made(labelled, slurm=False), CLUSTER)["InstanceGroups"]
    assert "KubernetesConfig" not in slurm
    assert "SlurmConfig" not in eks
    assert eks["KubernetesConfig"] == {"Labels": {"rack": "1"}}


def test_a_mount_is_asked_of_hyperpod_only_if_there_is_one():
    mount = LustreMount(dns_name="fs-1.fsx", mount_name="abc", path="/fsx")
    [without] = only(made(), CLUSTER)["InstanceGroups"]
    [with_it] = only(made(lustre=mount), CLUSTER)["InstanceGroups"]
    assert len(without["InstanceStorageConfigs"]) == 2
    assert with_it["InstanceStorageConfigs"][2]["FsxLustreConfig"]["MountName"] == "abc"


def test_the_file_system_is_destroyed_as_the_bucket_has_what_was_in_it():
    stack = new_stack()
    place = site(stack)
    TrainingStorage(
        stack,
        "Storage",
        site=place,
        subnet=place.vpc.private_subnets[0],
        nodes=ClusterSecurityGroup(stack, "Nodes", site=place),
        bucket=s3.Bucket.from_bucket_name(stack, "Data", "data"),
        key=place.volume_key,
        size=Lustre(capacity_gib=2400, mb_s_per_tib=250),
    )
    template = json_of(stack)
    [system] = resources(template, "AWS::FSx::FileSystem").values()
    assert system["DeletionPolicy"] == "Delete"
    assert system["Properties"]["KmsKeyId"] == KEY
    for each in resources(template, "AWS::FSx::DataRepositoryAssociation").values():
        assert literal(each["Properties"]["DataRepositoryPath"]).startswith("s3://data/")


def test_a_budget_of_services_counts_those_alone():
    stack = new_stack()
    MonthlyBudget(stack, "All", usd=1)
    MonthlyBudget(stack, "Some", usd=1, services=["Amazon FSx"])
    found = resources(json_of(stack), "AWS::Budgets::Budget")
    filters = {
        name: each["Properties"]["Budget"].get("CostFilters") for name, each in found.items()
    }
    assert {name[:3]: value for name, value in filters.items()} == {
        "All": None,
        "Som": {"Service": ["Amazon FSx"]},
    }
