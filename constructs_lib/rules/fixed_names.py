"""Physical names."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources

_NAMES = {
    "AWS::AutoScaling::AutoScalingGroup": "AutoScalingGroupName",
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::CloudWatch::Dashboard": "DashboardName",
    "AWS::EC2::LaunchTemplate": "LaunchTemplateName",
    "AWS::EC2::SecurityGroup": "GroupName",
    "AWS::ElastiCache::ReplicationGroup": "ReplicationGroupId",
    "AWS::ElasticLoadBalancingV2::LoadBalancer": "Name",
    "AWS::ElasticLoadBalancingV2::TargetGroup": "Name",
    "AWS::IAM::InstanceProfile": "InstanceProfileName",
    "AWS::IAM::Role": "RoleName",
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::S3::Bucket": "BucketName",
    "AWS::SNS::Topic": "TopicName",
    "AWS::SageMaker::Cluster": "ClusterName",
    "AWS::SageMaker::Endpoint": "EndpointName",
    "AWS::SageMaker::EndpointConfig": "EndpointConfigName",
    "AWS::SageMaker::Model": "ModelName",
}


def _check(template: Template) -> Iterator[Breach]:
    for kind, name in _NAMES.items():
        for logical_id, properties in resources(template, kind):
            if name in properties:
                yield Breach(logical_id, f"Properties.{name}")


RULE = Rule(
    id="FixedNames",
    says="A resource with a fixed name cannot be replaced, and blocks the next deployment after a "
    "destroy that kept it.",
    fix="leave the name out; CloudFormation makes one",
    check=_check,
)
