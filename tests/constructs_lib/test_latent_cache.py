"""The latent cache: its protections, its parameters, what ElastiCache would refuse."""

import pytest

from planner.caching import USABLE_SHARE
from tests.cdk_app import json_of, new_stack, only, resources
from tests.constructs_lib.conftest import KEY

from aws_cdk import aws_ec2 as ec2  # isort: skip
from aws_cdk import aws_kms as kms  # isort: skip
from constructs_lib import LatentCache, LatentWatch, CacheLimits, Login, Nodes, Serverless  # isort: skip
from constructs_lib.latent_cache import RESERVED_PERCENT  # isort: skip
from tests.constructs_lib.conftest import site as plain_site  # isort: skip

GROUP, USER = "AWS::ElastiCache::ReplicationGroup", "AWS::ElastiCache::User"
NODES = Nodes(node_type="cache.r7g.large", shards=2, replicas=1)


def site(stack):
    import dataclasses

    vpc = ec2.Vpc.from_vpc_attributes(
        stack,
        "Both",
        vpc_id="vpc-1",
        availability_zones=["us-east-1a"],
        private_subnet_ids=["subnet-a"],
        private_subnet_route_table_ids=["rtb-a"],
        isolated_subnet_ids=["subnet-i"],
        isolated_subnet_route_table_ids=["rtb-i"],
    )
    return dataclasses.replace(plain_site(stack), vpc=vpc)


def make(size=NODES, login=None, engine="valkey"):
    stack = new_stack("test-mla")
    place = site(stack)
    cache = LatentCache(
        stack,
        "Cache",
        site=place,
        engine=engine,
        size=size,
        login=login or Login(),
        key=kms.Key.from_key_arn(stack, "Key", KEY + "cache"),
    )
    LatentWatch(
        stack,
        "Watch",
        cache=cache,
        namespace="Isomorph/mla",
        fleet="test-mla",
        limits=CacheLimits(),
        topic=place.alarm_topic,
    )
    return json_of(stack)


@pytest.fixture(scope="module")
def template():
    return make()


def test_it_takes_tls_alone_and_encrypts_with_the_key(template):
    group = only(template, GROUP)
    assert group["TransitEncryptionEnabled"] is True
    assert group["TransitEncryptionMode"] == "required"
    assert group["AtRestEncryptionEnabled"] is True
    assert group["KmsKeyId"] == KEY + "cache"


def test_it_is_in_cluster_mode_over_zones(template):
    group = only(template, GROUP)
    assert group["ClusterMode"] == "enabled"
    assert group["AutomaticFailoverEnabled"] is True
    assert group["MultiAZEnabled"] is True
    assert (group["NumNodeGroups"], group["ReplicasPerNodeGroup"]) == (2, 1)
    assert only(template, "AWS::ElastiCache::SubnetGroup")["SubnetIds"] == ["subnet-i"]


def test_its_server_is_set_up_as_a_cache(template):
    parameters = only(template, "AWS::ElastiCache::ParameterGroup")["Properties"]
    assert parameters["cluster-enabled"] == "yes"
    assert parameters["maxmemory-policy"] == "allkeys-lru"
    assert {name for name, value in parameters.items() if "lazyfree" in name and value == "yes"}
    assert only(template, GROUP)["SnapshotRetentionLimit"] == 0


def test_the_planner_counts_on_the_memory_that_is_not_reserved():
    assert USABLE_SHARE * 100 + int(RESERVED_PERCENT) == 100


def test_its_user_may_do_what_nodes_do_and_its_password_is_a_reference(template):
    user = only(template, USER)
    assert user["AccessString"].startswith("on ~* resetchannels -@all ")
    assert "-@dangerous" in user["AccessString"]
    assert "+@all" not in user["AccessString"]
    assert "resolve:secretsmanager:" in str(user["AuthenticationMode"]["Passwords"])


def test_redis_gets_a_default_user_that_is_off():
    users = resources(make(engine="redis"), USER).values()
    [default] = [u["Properties"] for u in users if u["Properties"]["UserName"] == "default"]
    assert default["AccessString"] == "off -@all"


def test_a_token_is_a_reference_too():
    template = make(login=Login(access="token"))
    group = only(template, GROUP)
    assert "resolve:secretsmanager:" in str(group["AuthToken"])
    assert "UserGroupIds" not in group
    assert resources(template, USER) == {}


def test_slow_and_engine_logs_go_to_encrypted_groups(template):
    deliveries = only(template, GROUP)["LogDeliveryConfigurations"]
    assert [one["LogType"] for one in deliveries] == ["slow-log", "engine-log"]
    groups = resources(template, "AWS::Logs::LogGroup").values()
    assert all(group["Properties"]["KmsKeyId"] == KEY + "log" for group in groups)


def test_nobody_reaches_it_but_the_rotation(template):
    [rule] = [
        each["Properties"]
        for each in resources(template, "AWS::EC2::SecurityGroupIngress").values()
        if each["Properties"]["FromPort"] == 6379
    ]
    assert "Rotation" in str(rule["SourceSecurityGroupId"])


def test_the_rotation_changes_one_user_and_one_secret(template):
    [role] = resources(template, "AWS::IAM::Role").values()
    statements = role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    [cache] = [each for each in statements if "elasticache:ModifyUser" in each["Action"]]
    assert ":user:" in str(cache["Resource"])
    everywhere = {name for each in statements if each["Resource"] == "*" for name in each["Action"]}
    beyond = {name for name in everywhere if not name.endswith("NetworkInterface")}
    assert beyond == {
        "ec2:AssignPrivateIpAddresses",
        "ec2:DescribeNetworkInterfaces",
        "ec2:UnassignPrivateIpAddresses",
        "secretsmanager:GetRandomPassword",
    }


def test_every_shard_has_its_alarms(template):
    alarms = {
        name.removeprefix("Watch")[:-8] for name in resources(template, "AWS::CloudWatch::Alarm")
    }
    each = {"Memory", "Evictions", "Cpu", "Lag"}
    shards = {f"Shard{number}{name}" for number in (1, 2) for name in each}
    assert alarms == shards | {"HitRate", "StoreErrors"}


def test_alarms_look_at_the_nodes_by_the_names_that_elasticache_gives(template):
    alarms = resources(template, "AWS::CloudWatch::Alarm").items()
    [memory] = [each for name, each in alarms if name.startswith("WatchShard2Memory")]
    names = [
        dimension["Value"]["Fn::Join"][1][1]
        for metric in memory["Properties"]["Metrics"]
        if "MetricStat" in metric
        for dimension in metric["MetricStat"]["Metric"]["Dimensions"]
        if dimension["Name"] == "CacheClusterId"
    ]
    assert names == ["-0002-001", "-0002-002"]


def test_a_serverless_cache_has_limits_a_key_and_a_user_group():
    template = make(size=Serverless(max_gb=20, max_ecpu=5000))
    cache = only(template, "AWS::ElastiCache::ServerlessCache")
    assert cache["CacheUsageLimits"] == {
        "DataStorage": {"Maximum": 20, "Unit": "GB"},
        "ECPUPerSecond": {"Maximum": 5000},
    }
    assert cache["KmsKeyId"] == KEY + "cache"
    assert "UserGroupId" in cache
    assert resources(template, GROUP) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": Nodes(node_type="cache.r7g.large", shards=2, replicas=0)},
         "2 shards without replicas cannot be"),
        ({"size": Serverless(max_gb=1, max_ecpu=1000), "login": Login(access="token")},
         "a serverless cache cannot have an AUTH token"),
        ({"login": Login(password_length=15)}, "password_length cannot be 15; ElastiCache takes"),
    ],
)  # fmt: skip
def test_fails_when_elasticache_would_refuse_it(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)
