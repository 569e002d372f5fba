"""How each type of a stack's resources is seen through the service's own API.

A stack that says it has a resource proves nothing: a type that the embedded AWS only pretended to
create would show nothing here.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from ministack.services.cloudformation.engine import _parse_template

from local_aws.clients import is_gone

Clients = Callable[[str], Any]  # the name of a service -> its boto3 client
Properties = Mapping[str, Any]
# Returns something truthy if what the physical id (or the properties) name exists.
See = Callable[[Clients, str, Properties], object]

# Types of a template that make nothing in an account.
NOTHING_TO_SEE = frozenset({"AWS::CDK::Metadata"})


def _ec2(operation: str, argument: str, answer: str) -> See:
    return lambda clients, name, _: getattr(clients("ec2"), operation)(**{argument: [name]})[answer]


def _nat_gateway(clients: Clients, name: str, _: Properties) -> object:
    found = clients("ec2").describe_nat_gateways(NatGatewayIds=[name])["NatGateways"]
    return any(gateway["State"] not in ("deleting", "deleted") for gateway in found)


def _route(clients: Clients, name: str, _: Properties) -> object:
    table_id, destination = name.split("|")
    tables = clients("ec2").describe_route_tables(RouteTableIds=[table_id])["RouteTables"]
    return any(destination in route.values() for table in tables for route in table["Routes"])


def _association(clients: Clients, name: str, _: Properties) -> object:
    tables = clients("ec2").describe_route_tables()["RouteTables"]
    return any(
        one["RouteTableAssociationId"] == name for table in tables for one in table["Associations"]
    )


def _attachment(clients: Clients, name: str, _: Properties) -> object:
    vpc = name.partition("|")[2]
    gateways = clients("ec2").describe_internet_gateways()["InternetGateways"]
    return any(one["VpcId"] == vpc for gateway in gateways for one in gateway["Attachments"])


def _inline_policy(clients: Clients, _: str, properties: Properties) -> object:
    """A policy inside of roles has no id of its own: the template says where it is."""
    for role in properties["Roles"]:
        found = clients("iam").list_role_policies(RoleName=role)["PolicyNames"]
        wanted = properties["PolicyName"]
        if not (wanted in found if isinstance(wanted, str) else found):
            return False
    return True


def _topic_policy(clients: Clients, _: str, properties: Properties) -> object:
    """A topic's policy has no id of its own either."""
    for topic in properties["Topics"]:
        found = clients("sns").get_topic_attributes(TopicArn=topic)["Attributes"]
        statement = json.loads(found["Policy"])["Statement"][0]
        if statement.get("Sid", "").startswith("__default"):  # what a topic has without ours
            return False
    return True


def _subscription(clients: Clients, name: str, _: Properties) -> object:
    found = clients("sns").list_subscriptions()["Subscriptions"]
    return any(subscription["SubscriptionArn"] == name for subscription in found)


def _group(clients: Clients, name: str, _: Properties) -> object:
    found = clients("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])
    return found["AutoScalingGroups"]


def _hook(clients: Clients, name: str, _: Properties) -> object:
    autoscaling = clients("autoscaling")
    groups = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    return any(
        hook["LifecycleHookName"] == name
        for group in groups
        for hook in autoscaling.describe_lifecycle_hooks(
            AutoScalingGroupName=group["AutoScalingGroupName"]
        )["LifecycleHooks"]
    )


def _scaling_policy(clients: Clients, name: str, _: Properties) -> object:
    found = clients("autoscaling").describe_policies()["ScalingPolicies"]
    return any(policy["PolicyARN"] == name for policy in found)


def _warm_pool(clients: Clients, name: str, _: Properties) -> object:
    found = clients("autoscaling").describe_warm_pool(AutoScalingGroupName=name)
    return found.get("WarmPoolConfiguration")


def _alarm(kind: str) -> See:
    return lambda clients, name, _: clients("cloudwatch").describe_alarms(
        AlarmNames=[name], AlarmTypes=[kind]
    )[f"{kind}s"]


def _log_group(clients: Clients, name: str, _: Properties) -> object:
    found = clients("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return any(group["logGroupName"] == name for group in found)


def _metric_filter(clients: Clients, name: str, _: Properties) -> object:
    found = clients("logs").describe_metric_filters()
    return any(each["filterName"] == name for each in found["metricFilters"])


def _queue_policy(clients: Clients, _: str, properties: Properties) -> object:
    """Nor has a queue's policy."""
    return all(
        clients("sqs")
        .get_queue_attributes(QueueUrl=queue, AttributeNames=["Policy"])
        .get("Attributes", {})
        .get("Policy")
        for queue in properties["Queues"]
    )


def _alias(clients: Clients, name: str, _: Properties) -> object:
    return any(alias["AliasName"] == name for alias in clients("kms").list_aliases()["Aliases"])


def _key(clients: Clients, name: str, _: Properties) -> object:
    found = clients("kms").describe_key(KeyId=name)["KeyMetadata"]
    return found["KeyState"] != "PendingDeletion"


def _budget(clients: Clients, name: str, _: Properties) -> object:
    account = clients("sts").get_caller_identity()["Account"]
    return clients("budgets").describe_budget(AccountId=account, BudgetName=name)["Budget"]


def _elasticache(operation: str, argument: str, answer: str) -> See:
    return lambda clients, name, _: getattr(clients("elasticache"), operation)(**{argument: name})[
        answer
    ]


def _permission(clients: Clients, _: str, properties: Properties) -> object:
    """Leave to call a function is a statement of its policy, whose id the template knows not."""
    policy = clients("lambda").get_policy(FunctionName=properties["FunctionName"])["Policy"]
    callers = [one["Principal"] for one in json.loads(policy)["Statement"]]
    return {"Service": properties["Principal"]} in callers


def _cluster(clients: Clients, name: str, _: Properties) -> object:
    return clients("sagemaker").describe_cluster(ClusterName=name)["ClusterStatus"] == "InService"


def _rotation(clients: Clients, secret: str, _: Properties) -> object:
    return clients("secretsmanager").describe_secret(SecretId=secret).get("RotationEnabled")


def _sagemaker(kind: str) -> See:
    def see(clients: Clients, arn: str, _: Properties) -> object:
        describe = getattr(clients("sagemaker"), f"describe_{kind}")
        name = "".join(word.capitalize() for word in kind.split("_")) + "Name"
        return describe(**{name: arn.rpartition("/")[2]})

    return see


def _scalable_target(clients: Clients, name: str, _: Properties) -> object:
    resource, _dimension, namespace = name.split("|")
    return clients("application-autoscaling").describe_scalable_targets(
        ServiceNamespace=namespace, ResourceIds=[resource]
    )["ScalableTargets"]


def _tracking_policy(clients: Clients, arn: str, _: Properties) -> object:
    found = clients("application-autoscaling").describe_scaling_policies(
        ServiceNamespace="sagemaker"
    )["ScalingPolicies"]
    return any(policy["PolicyARN"] == arn for policy in found)


DESCRIBE: dict[str, See] = {
    "AWS::ApplicationAutoScaling::ScalableTarget": _scalable_target,
    "AWS::ApplicationAutoScaling::ScalingPolicy": _tracking_policy,
    "AWS::AutoScaling::AutoScalingGroup": _group,
    "AWS::AutoScaling::LifecycleHook": _hook,
    "AWS::AutoScaling::ScalingPolicy": _scaling_policy,
    "AWS::AutoScaling::WarmPool": _warm_pool,
    "AWS::Budgets::Budget": _budget,
    "AWS::CloudWatch::Alarm": _alarm("MetricAlarm"),
    "AWS::CloudWatch::CompositeAlarm": _alarm("CompositeAlarm"),
    "AWS::CloudWatch::Dashboard": lambda clients, name, _: clients("cloudwatch").get_dashboard(
        DashboardName=name
    ),
    "AWS::EC2::EIP": _ec2("describe_addresses", "PublicIps", "Addresses"),
    "AWS::EC2::FlowLog": _ec2("describe_flow_logs", "FlowLogIds", "FlowLogs"),
    "AWS::EC2::InternetGateway": _ec2(
        "describe_internet_gateways", "InternetGatewayIds", "InternetGateways"
    ),
    "AWS::EC2::LaunchTemplate": _ec2(
        "describe_launch_templates", "LaunchTemplateIds", "LaunchTemplates"
    ),
    "AWS::EC2::NatGateway": _nat_gateway,
    "AWS::EC2::Route": _route,
    "AWS::EC2::RouteTable": _ec2("describe_route_tables", "RouteTableIds", "RouteTables"),
    "AWS::EC2::SecurityGroup": _ec2("describe_security_groups", "GroupIds", "SecurityGroups"),
    "AWS::EC2::SecurityGroupEgress": _ec2(
        "describe_security_group_rules", "SecurityGroupRuleIds", "SecurityGroupRules"
    ),
    "AWS::EC2::SecurityGroupIngress": _ec2(
        "describe_security_group_rules", "SecurityGroupRuleIds", "SecurityGroupRules"
    ),
    "AWS::EC2::Subnet": _ec2("describe_subnets", "SubnetIds", "Subnets"),
    "AWS::EC2::SubnetRouteTableAssociation": _association,
    "AWS::EC2::VPC": _ec2("describe_vpcs", "VpcIds", "Vpcs"),
    "AWS::EC2::VPCEndpoint": _ec2("describe_vpc_endpoints", "VpcEndpointIds", "VpcEndpoints"),
    "AWS::EC2::VPCGatewayAttachment": _attachment,
    "AWS::ECR::Repository": lambda clients, name, _: clients("ecr").describe_repositories(
        repositoryNames=[name]
    )["repositories"],
    "AWS::ElastiCache::ParameterGroup": _elasticache(
        "describe_cache_parameter_groups", "CacheParameterGroupName", "CacheParameterGroups"
    ),
    "AWS::ElastiCache::ReplicationGroup": _elasticache(
        "describe_replication_groups", "ReplicationGroupId", "ReplicationGroups"
    ),
    "AWS::ElastiCache::SubnetGroup": _elasticache(
        "describe_cache_subnet_groups", "CacheSubnetGroupName", "CacheSubnetGroups"
    ),
    "AWS::ElastiCache::User": _elasticache("describe_users", "UserId", "Users"),
    "AWS::ElastiCache::UserGroup": _elasticache(
        "describe_user_groups", "UserGroupId", "UserGroups"
    ),
    "AWS::ElasticLoadBalancingV2::Listener": lambda clients, name, _: clients(
        "elbv2"
    ).describe_listeners(ListenerArns=[name])["Listeners"],
    "AWS::ElasticLoadBalancingV2::ListenerRule": lambda clients, name, _: clients(
        "elbv2"
    ).describe_rules(RuleArns=[name])["Rules"],
    "AWS::ElasticLoadBalancingV2::LoadBalancer": lambda clients, name, _: clients(
        "elbv2"
    ).describe_load_balancers(LoadBalancerArns=[name])["LoadBalancers"],
    "AWS::ElasticLoadBalancingV2::TargetGroup": lambda clients, name, _: clients(
        "elbv2"
    ).describe_target_groups(TargetGroupArns=[name])["TargetGroups"],
    "AWS::FSx::DataRepositoryAssociation": lambda clients, name, _: clients(
        "fsx"
    ).describe_data_repository_associations(AssociationIds=[name])["Associations"],
    "AWS::FSx::FileSystem": lambda clients, name, _: clients("fsx").describe_file_systems(
        FileSystemIds=[name]
    )["FileSystems"],
    "AWS::IAM::InstanceProfile": lambda clients, name, _: clients("iam").get_instance_profile(
        InstanceProfileName=name.rpartition("/")[2]
    ),
    "AWS::IAM::ManagedPolicy": lambda clients, name, _: clients("iam").get_policy(PolicyArn=name),
    "AWS::IAM::Policy": _inline_policy,
    "AWS::IAM::Role": lambda clients, name, _: clients("iam").get_role(RoleName=name),
    "AWS::KMS::Alias": _alias,
    "AWS::KMS::Key": _key,
    "AWS::Lambda::Function": lambda clients, name, _: clients("lambda").get_function(
        FunctionName=name
    ),
    "AWS::Lambda::Permission": _permission,
    "AWS::Lambda::Url": lambda clients, name, _: clients("lambda").get_function_url_config(
        FunctionName=name
    ),
    "AWS::Logs::LogGroup": _log_group,
    "AWS::Logs::MetricFilter": _metric_filter,
    "AWS::S3::Bucket": lambda clients, name, _: clients("s3").head_bucket(Bucket=name),
    "AWS::S3::BucketPolicy": lambda clients, name, _: clients("s3").get_bucket_policy(
        Bucket=name.removesuffix("-policy")
    ),
    "AWS::SNS::Subscription": _subscription,
    "AWS::SNS::Topic": lambda clients, name, _: clients("sns").get_topic_attributes(TopicArn=name),
    "AWS::SNS::TopicPolicy": _topic_policy,
    "AWS::SageMaker::Cluster": _cluster,
    "AWS::SageMaker::Endpoint": _sagemaker("endpoint"),
    "AWS::SageMaker::EndpointConfig": _sagemaker("endpoint_config"),
    "AWS::SageMaker::Model": _sagemaker("model"),
    "AWS::SecretsManager::RotationSchedule": _rotation,
    "AWS::SecretsManager::Secret": lambda clients, name, _: (
        "DeletedDate" not in clients("secretsmanager").describe_secret(SecretId=name)
    ),
    "AWS::SQS::Queue": lambda clients, name, _: clients("sqs").get_queue_attributes(
        QueueUrl=name, AttributeNames=["QueueArn"]
    ),
    "AWS::SQS::QueuePolicy": _queue_policy,
    "AWS::SSM::Parameter": lambda clients, name, _: clients("ssm").get_parameter(Name=name),
}


def visible(kind: str, physical_id: str, clients: Clients, properties: Properties) -> bool:
    """Tell whether a resource of a stack is there, asking its service and not CloudFormation.

    Args:
        kind: Its type; one without an entry in `DESCRIBE` is a KeyError.
        physical_id: As `list_stack_resources` gives it.
        clients: Returns the boto3 client of a service.
        properties: From the template, with every `Ref` replaced by what it refers to.
    """
    if kind in NOTHING_TO_SEE:
        return True
    try:
        return bool(DESCRIBE[kind](clients, physical_id, properties))
    except ClientError as error:
        if is_gone(error):
            return False
        raise


@dataclass(frozen=True)
class Resource:
    """A resource of a deployed stack."""

    logical_id: str
    kind: str
    physical_id: str
    properties: Properties

    def visible(self, clients: Clients) -> bool:
        """Tell whether its service knows it."""
        return visible(self.kind, self.physical_id, clients, self.properties)


def resources(stack: str, clients: Clients) -> list[Resource]:
    """Return the resources of a deployed stack."""
    cloudformation = clients("cloudformation")
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    rows = [row for page in pages for row in page["StackResourceSummaries"]]
    names = {row["LogicalResourceId"]: row["PhysicalResourceId"] for row in rows}
    body = cloudformation.get_template(StackName=stack)["TemplateBody"]
    # boto3 reads JSON; the CDK CLI's own template is YAML with CloudFormation's tags.
    template = body if isinstance(body, dict) else _parse_template(body)
    return [
        Resource(
            row["LogicalResourceId"],
            row["ResourceType"],
            row["PhysicalResourceId"],
            _resolved(template["Resources"][row["LogicalResourceId"]].get("Properties", {}), names),
        )
        for row in rows
    ]


def _resolved(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"Ref"}:
            return names.get(value["Ref"], value)
        return {name: _resolved(inner, names) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, names) for inner in value]
    return value
