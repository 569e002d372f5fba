"""Every type that a stack of the project has is really created, changed and deleted."""

import copy
import subprocess
import sys
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_aws import describe
from tests.local_aws import samples
from tests.local_aws.clusters import put_scripts
from tests.local_aws.conftest import Emulator
from tests.local_aws.samples_endpoints import BUCKET, archive
from tests.local_aws.templates import ZONES, resource

CONTRACT = "contract"
TYPES = sorted({one["Type"] for one in samples.CONTRACT["Resources"].values()})


@pytest.fixture(scope="module")
def contract(emulator: Emulator) -> Emulator:
    emulator.client("ssm").put_parameter(Name="/given/weights", Type="String", Value="none")
    emulator.client("s3").create_bucket(Bucket=BUCKET)
    emulator.client("s3").put_object(Bucket=BUCKET, Key="model.gz", Body=archive())
    put_scripts(emulator, "contract", {"on_create.sh": "#!/bin/bash\n"})
    assert emulator.create(CONTRACT, samples.CONTRACT) == "CREATE_COMPLETE"
    return emulator


def physical(emulator: Emulator, logical_id: str) -> str:
    return emulator.resources(CONTRACT)[logical_id].physical_id


def test_every_type_that_can_be_seen_is_in_the_contract() -> None:
    assert sorted(describe.DESCRIBE) == TYPES


@pytest.mark.parametrize("kind", TYPES)
def test_every_resource_is_seen_by_its_service(contract: Emulator, kind: str) -> None:
    made = [one for one in contract.resources(CONTRACT).values() if one.kind == kind]
    assert made
    assert all(one.visible(contract.client) for one in made)


def test_a_bucket_has_the_properties_of_the_template(contract: Emulator) -> None:
    s3, bucket = contract.client("s3"), physical(contract, "Models")
    [rule] = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rule["Transitions"] == [{"Days": 0, "StorageClass": "INTELLIGENT_TIERING"}]
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    logged = s3.get_bucket_logging(Bucket=bucket)["LoggingEnabled"]
    assert logged["TargetBucket"] == physical(contract, "AccessLogs")
    [encryption] = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"][
        "Rules"
    ]
    assert encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert encryption["BucketKeyEnabled"]
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"][
        "BlockPublicAcls"
    ]


def test_a_bucket_for_logs_has_its_ownership_and_acl(contract: Emulator) -> None:
    s3, bucket = contract.client("s3"), physical(contract, "AccessLogs")
    [rule] = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert rule["ObjectOwnership"] == "ObjectWriter"
    grantees = {one["Grantee"].get("URI") for one in s3.get_bucket_acl(Bucket=bucket)["Grants"]}
    assert "http://acs.amazonaws.com/groups/s3/LogDelivery" in grantees


def test_a_write_with_kms_needs_to_name_no_key(contract: Emulator) -> None:
    s3, bucket = contract.client("s3"), physical(contract, "AccessLogs")
    s3.put_object(Bucket=bucket, Key="asset", Body=b"1", ServerSideEncryption="aws:kms")
    found = s3.head_object(Bucket=bucket, Key="asset")
    assert found["SSEKMSKeyId"].endswith("alias/aws/s3")
    s3.delete_object(Bucket=bucket, Key="asset")


def test_a_group_has_the_properties_of_the_template(contract: Emulator) -> None:
    autoscaling, name = contract.client("autoscaling"), physical(contract, "Group")
    [group] = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])[
        "AutoScalingGroups"
    ]
    assert group["TargetGroupARNs"] == [physical(contract, "Targets")]
    assert group["DesiredCapacity"] == 0
    assert sorted(group["AvailabilityZones"]) == list(ZONES)
    assert group["WarmPoolConfiguration"]["PoolState"] == "Stopped"
    [policy] = autoscaling.describe_policies(AutoScalingGroupName=name)["ScalingPolicies"]
    [notice] = autoscaling.describe_notification_configurations()["NotificationConfigurations"]
    assert notice["TopicARN"] == physical(contract, "Topic")
    tracked = policy["TargetTrackingConfiguration"]["CustomizedMetricSpecification"]
    assert tracked["MetricName"] == "RequestsInFlight"


def test_a_load_balancer_logs_to_the_bucket(contract: Emulator) -> None:
    found = contract.client("elbv2").describe_load_balancer_attributes(
        LoadBalancerArn=physical(contract, "Balancer")
    )
    attributes = {one["Key"]: one["Value"] for one in found["Attributes"]}
    assert attributes["access_logs.s3.bucket"] == physical(contract, "AccessLogs")


def test_a_rule_shares_requests_among_target_groups(contract: Emulator) -> None:
    [rule] = contract.client("elbv2").describe_rules(RuleArns=[physical(contract, "Shares")])[
        "Rules"
    ]
    [action] = rule["Actions"]
    weights = [group["Weight"] for group in action["ForwardConfig"]["TargetGroups"]]
    assert weights == [90, 10]
    assert action["ForwardConfig"]["TargetGroupStickinessConfig"]["DurationSeconds"] == 600
    assert rule["Transforms"][0]["UrlRewriteConfig"]["Rewrites"][0]["Replace"] == "/$1"
    [group] = contract.client("elbv2").describe_target_groups(
        TargetGroupArns=[physical(contract, "Canary")]
    )["TargetGroups"]
    assert group["LoadBalancerArns"] == [physical(contract, "Balancer")]


def test_a_launch_template_takes_the_image_from_the_public_parameter(contract: Emulator) -> None:
    [version] = contract.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=physical(contract, "Template"), Versions=["$Latest"]
    )["LaunchTemplateVersions"]
    data = version["LaunchTemplateData"]
    assert data["ImageId"].startswith("ami-")
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]


def test_a_budget_tells_by_mail(contract: Emulator) -> None:
    budgets, name = contract.client("budgets"), physical(contract, "Budget")
    [notice] = budgets.describe_notifications_for_budget(
        AccountId=contract.account, BudgetName=name
    )["Notifications"]
    assert notice["Threshold"] == 80
    limit = budgets.describe_budget(AccountId=contract.account, BudgetName=name)["Budget"]
    assert limit["BudgetLimit"] == {"Amount": "50", "Unit": "USD"}


def test_an_alarm_over_an_expression_is_kept(contract: Emulator) -> None:
    name = physical(contract, "Errors")
    [alarm] = contract.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"]
    assert [metric["Id"] for metric in alarm["Metrics"]] == ["share", "failed"]
    assert "MetricName" not in alarm
    assert alarm["Threshold"] == 1


def test_metrics_that_are_put_are_read_back(contract: Emulator) -> None:
    cloudwatch = contract.client("cloudwatch")
    cloudwatch.put_metric_data(
        Namespace="Isomorph/gqa", MetricData=[{"MetricName": "RequestsInFlight", "Value": 3.0}]
    )
    found = cloudwatch.get_metric_statistics(
        Namespace="Isomorph/gqa",
        MetricName="RequestsInFlight",
        StartTime="2020-01-01T00:00:00Z",
        EndTime="2100-01-01T00:00:00Z",
        Period=60,
        Statistics=["Average"],
    )
    assert [point["Average"] for point in found["Datapoints"]] == [3.0]


def test_an_export_is_imported_by_another_stack(contract: Emulator) -> None:
    assert contract.create("importing", samples.IMPORTING) == "CREATE_COMPLETE"
    [made] = contract.resources("importing").values()
    copied = contract.client("ssm").get_parameter(Name=made.physical_id)["Parameter"]["Value"]
    assert copied == physical(contract, "Models")
    assert contract.delete("importing") == "DELETE_COMPLETE"


def test_a_changed_property_is_changed(contract: Emulator) -> None:
    changed = copy.deepcopy(samples.CONTRACT)
    of: dict[str, Any] = {name: one["Properties"] for name, one in changed["Resources"].items()}
    of["Budget"]["Budget"]["BudgetLimit"]["Amount"] = 75
    of["Models"]["LifecycleConfiguration"]["Rules"][0]["NoncurrentVersionExpiration"] = {
        "NoncurrentDays": 90
    }
    del of["Models"]["LoggingConfiguration"]
    of["Pool"]["MinSize"] = 2
    of["Group"]["HealthCheckGracePeriod"] = 900
    of["Overall"]["AlarmRule"] = "FALSE"
    of["Errors"]["Metrics"][0]["Expression"] = "failed"
    of["FlowLogs"]["TrafficType"] = "REJECT"
    of["Shares"]["Actions"][0]["ForwardConfig"]["TargetGroups"][1]["Weight"] = 20
    of["EndpointTarget"]["MaxCapacity"] = 5
    of["FromBalancer"] |= {"FromPort": 9090, "ToPort": 9090}
    before = contract.resources(CONTRACT)
    assert contract.update(CONTRACT, changed) == "UPDATE_COMPLETE"

    after = contract.resources(CONTRACT)
    replaced = {name for name in after if after[name].physical_id != before[name].physical_id}
    assert replaced == {"FlowLogs", "FromBalancer"}
    assert not before["FlowLogs"].visible(contract.client)
    budget = contract.client("budgets").describe_budget(
        AccountId=contract.account, BudgetName=after["Budget"].physical_id
    )["Budget"]
    assert budget["BudgetLimit"]["Amount"] == "75"
    s3 = contract.client("s3")
    [rule] = s3.get_bucket_lifecycle_configuration(Bucket=after["Models"].physical_id)["Rules"]
    assert rule["NoncurrentVersionExpiration"]["NoncurrentDays"] == 90
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=after["Models"].physical_id)
    group = contract.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"][0]
    assert group["HealthCheckGracePeriod"] == 900
    assert group["WarmPoolConfiguration"]["MinSize"] == 2
    [alarm] = contract.client("cloudwatch").describe_alarms(
        AlarmNames=[after["Errors"].physical_id]
    )["MetricAlarms"]
    assert alarm["Metrics"][0]["Expression"] == "failed"
    [rule] = contract.client("elbv2").describe_rules(RuleArns=[after["Shares"].physical_id])[
        "Rules"
    ]
    assert rule["Actions"][0]["ForwardConfig"]["TargetGroups"][1]["Weight"] == 20
    rules = contract.client("ec2").describe_security_group_rules(
        SecurityGroupRuleIds=[after["FromBalancer"].physical_id]
    )["SecurityGroupRules"]
    assert rules[0]["FromPort"] == 9090


def test_a_resource_that_fails_rolls_the_stack_back(emulator: Emulator) -> None:
    template = {
        "Resources": {
            "Good": resource("SSM::Parameter", Name="/rolled/back", Type="String", Value="1"),
            "Bad": resource(
                "AutoScaling::WarmPool", after="Good", AutoScalingGroupName="no-such-group"
            ),
        }
    }
    assert emulator.create("failing", template) == "ROLLBACK_COMPLETE"
    assert "not found" in emulator.failure("failing")
    assert not describe.visible("AWS::SSM::Parameter", "/rolled/back", emulator.client, {})


def test_fails_when_a_type_is_unknown(emulator: Emulator) -> None:
    template = {"Resources": {"What": resource("SageMaker::NoSuchThing")}}
    with pytest.raises(ClientError, match="NoSuchThing"):
        emulator.create("unknown", template)


@pytest.mark.parametrize(
    ("kind", "properties", "said"),
    [
        ("S3::Bucket", {"ReplicationConfiguration": {}}, "ReplicationConfiguration is not played"),
        (
            "S3::Bucket",
            {"LifecycleConfiguration": {"Rules": [{"Status": "Enabled", "TagFilters": []}]}},
            "TagFilters of a lifecycle rule is not played",
        ),
        (
            "ElasticLoadBalancingV2::ListenerRule",
            {"Actions": [{"Type": "authenticate-oidc"}], "Conditions": [], "ListenerArn": "x"},
            "an action of type authenticate-oidc is not played here",
        ),
        (
            "ElasticLoadBalancingV2::ListenerRule",
            {"Actions": [], "Conditions": [{"Field": "source-ip"}], "ListenerArn": "x"},
            "source-ip of a condition is not played",
        ),
        ("EC2::EIP", {"Domain": "vpc", "TransferAddress": "1.2.3.4"}, "TransferAddress is not"),
        (
            "AutoScaling::AutoScalingGroup",
            {"MinSize": "0", "MaxSize": "0", "MixedInstancesPolicy": {}},
            "MixedInstancesPolicy is not played",
        ),
    ],
)
def test_fails_when_a_property_would_be_dropped(
    emulator: Emulator, kind: str, properties: dict[str, Any], said: str
) -> None:
    stack = f"dropping-{said.split()[0]}"
    template = {"Resources": {"What": resource(kind, **properties)}}
    assert emulator.create(stack, template) == "ROLLBACK_COMPLETE"
    assert said in emulator.failure(stack)
    assert not [name for name in _buckets(emulator) if name.startswith("dropping")]


def _buckets(emulator: Emulator) -> list[str]:
    return [bucket["Name"] for bucket in emulator.client("s3").list_buckets()["Buckets"]]


def test_a_bucket_with_data_is_not_deleted(emulator: Emulator) -> None:
    template = {"Resources": {"Data": resource("S3::Bucket")}}
    assert emulator.create("data", template) == "CREATE_COMPLETE"
    bucket = emulator.resources("data")["Data"].physical_id
    emulator.client("s3").put_object(Bucket=bucket, Key="weights", Body=b"1")
    assert emulator.delete("data") == "DELETE_FAILED"
    assert "not empty" in emulator.failure("data")
    emulator.client("s3").delete_object(Bucket=bucket, Key="weights")
    assert emulator.delete("data") == "DELETE_COMPLETE"
    assert bucket not in _buckets(emulator)


def test_services_that_moto_serves_answer(emulator: Emulator) -> None:
    sagemaker = emulator.client("sagemaker")
    sagemaker.create_model(
        ModelName="behind", ExecutionRoleArn="arn:aws:iam::000000000000:role/any"
    )
    assert sagemaker.describe_model(ModelName="behind")["ModelArn"].split(":")[4] == "0" * 12


def test_accounts_and_regions_are_apart(emulator: Emulator) -> None:
    other = Emulator(emulator.running, account="111111111111", region="eu-west-1")
    template = {"Resources": {"Topic": resource("SNS::Topic")}}
    assert other.create("elsewhere", template) == "CREATE_COMPLETE"
    [topic] = other.resources("elsewhere").values()
    assert topic.physical_id.split(":")[3:5] == ["eu-west-1", "111111111111"]
    assert topic.visible(other.client)
    assert not topic.visible(emulator.client)


def test_nothing_listens_beyond_the_loopback_address(emulator: Emulator) -> None:
    if sys.platform != "linux":
        pytest.skip("ss is Linux's")
    listing = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listing.splitlines() if f"pid={emulator.running.pid}," in line]
    assert ours
    assert all(line.split()[3].startswith("127.0.0.1:") for line in ours)


def test_deleting_the_stack_leaves_nothing(contract: Emulator) -> None:
    # The last test of the module: it takes away what the others look at.
    made = contract.resources(CONTRACT)
    assert contract.delete(CONTRACT) == "DELETE_COMPLETE", contract.failure(CONTRACT)
    assert [one for one in made.values() if one.visible(contract.client)] == []
    assert contract.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
