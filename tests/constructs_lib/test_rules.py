"""Each rule on one example that keeps it and one or more that break it."""

from typing import Any

import pytest

from constructs_lib.rules import RULES
from tests.cdk_app import literal, new_stack
from tests.constructs_lib import cluster_examples

IMDS = {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
DISK = {"Ebs": {"Encrypted": True, "KmsKeyId": {"Ref": "Key"}}}
DELIVERY = {"Service": "logdelivery.elasticloadbalancing.amazonaws.com"}


def launch(**data: Any) -> dict[str, Any]:
    return {"X": {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}}}


def one(kind: str, **properties: Any) -> dict[str, Any]:
    return {"X": {"Type": kind, "Properties": properties}}


def bucket(algorithm: str) -> dict[str, Any]:
    default = {"ServerSideEncryptionByDefault": {"SSEAlgorithm": algorithm}}
    return {
        "Type": "AWS::S3::Bucket",
        "Properties": {"BucketEncryption": {"ServerSideEncryptionConfiguration": [default]}},
    }


def logging_to(algorithm: str) -> dict[str, Any]:
    logging = {"DestinationBucketName": {"Ref": "X"}}
    data = {"Type": "AWS::S3::Bucket", "Properties": {"LoggingConfiguration": logging}}
    return {"X": bucket(algorithm), "Data": data}


def delivered_to(algorithm: str) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Principal": DELIVERY, "Action": "s3:PutObject"}
    document = {"Statement": [statement]}
    policy = {
        "Type": "AWS::S3::BucketPolicy",
        "Properties": {"Bucket": {"Ref": "X"}, "PolicyDocument": document},
    }
    return {"X": bucket(algorithm), "Policy": policy}


def role(*statements: dict[str, Any]) -> dict[str, Any]:
    document = {"Statement": list(statements)}
    return one("AWS::IAM::Role", Policies=[{"PolicyDocument": document}])


def key(**statement: Any) -> dict[str, Any]:
    document = {"Statement": [{"Effect": "Allow", "Action": "kms:Decrypt", **statement}]}
    return one("AWS::KMS::Key", KeyPolicy=document)


def group(*egress: dict[str, Any]) -> dict[str, Any]:
    return one("AWS::EC2::SecurityGroup", SecurityGroupEgress=list(egress))


def endpoint(*resources: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"ServiceName": "com.amazonaws.us-east-1.s3"}
    if resources:
        statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": list(resources)}
        properties["PolicyDocument"] = {"Statement": [statement]}
    return one("AWS::EC2::VPCEndpoint", **properties)


def lifecycle(storage: str) -> dict[str, Any]:
    rules = {"Rules": [{"Transitions": [{"StorageClass": storage, "TransitionInDays": 0}]}]}
    return one("AWS::S3::Bucket", LifecycleConfiguration=rules)


SECRET = "{{resolve:secretsmanager:arn:SecretString:password}}"
INF2, TRN2 = {"InstanceType": "ml.inf2.xlarge"}, {"InstanceType": "ml.trn2.48xlarge"}
GROUP, SERVERLESS = "AWS::ElastiCache::ReplicationGroup", "AWS::ElastiCache::ServerlessCache"


def user(may: str, **mode: Any) -> dict[str, Any]:
    return one("AWS::ElastiCache::User", AccessString=may, AuthenticationMode=mode)


KEEPS = {
    "ArchiveTiers": [lifecycle("INTELLIGENT_TIERING")],
    "CacheFailover": [
        one(GROUP, AutomaticFailoverEnabled=True, MultiAZEnabled=True, ReplicasPerNodeGroup=1),
        one(GROUP, AutomaticFailoverEnabled=True, NumCacheClusters=2),
        one(GROUP, ReplicasPerNodeGroup=0),
    ],
    "CacheKeys": [
        one(GROUP, AtRestEncryptionEnabled=True, KmsKeyId="arn"),
        one(SERVERLESS, KmsKeyId="arn"),
    ],
    "CacheLogins": [
        one(GROUP, UserGroupIds=["nodes"]),
        one(GROUP, AuthToken={"Fn::Join": ["", [SECRET]]}),
        one(SERVERLESS, UserGroupId="nodes"),
        user("on ~* +get", Type="password", Passwords=[SECRET]),
        user("off -@all", Type="no-password-required"),
        user("on ~* +get", Type="iam"),
    ],
    "CacheTransit": [
        one(GROUP, TransitEncryptionEnabled=True),
        one(GROUP, TransitEncryptionEnabled=True, TransitEncryptionMode="required"),
    ],
    "CustomResources": [one("AWS::S3::Bucket")],
    "DefaultSecurityGroup": [
        launch(SecurityGroupIds=[{"Fn::GetAtt": ["Own", "GroupId"]}]),
        one("AWS::EC2::VPCEndpoint", VpcEndpointType="Gateway"),
    ],
    "EndpointKeys": [
        one("AWS::SageMaker::EndpointConfig", KmsKeyId="arn", ProductionVariants=[INF2]),
        one("AWS::SageMaker::EndpointConfig", ProductionVariants=[TRN2]),
    ],
    "FixedNames": [one("AWS::S3::Bucket"), one("AWS::SSM::Parameter", Name="/a/b")],
    "InstanceMetadata": [launch(MetadataOptions=IMDS)],
    "LogBucketEncryption": [
        logging_to("AES256"),
        delivered_to("AES256"),
        {"X": bucket("aws:kms")},
    ],
    "LogGroups": [one("AWS::Logs::LogGroup", RetentionInDays=30, KmsKeyId="arn")],
    "ModelNetwork": [
        one("AWS::SageMaker::Model", VpcConfig={"Subnets": ["s"], "SecurityGroupIds": ["g"]}),
    ],
    "NodeDisks": [launch(BlockDeviceMappings=[DISK])],
    "OpenEgress": [group({"CidrIp": "255.255.255.255/32"})],
    "OpenPrincipal": [
        key(Principal={"AWS": "arn:aws:iam::111122223333:root"}),
        key(Principal={"AWS": "*"}, Condition={"StringEquals": {"kms:CallerAccount": "1"}}),
        key(Principal="*", Effect="Deny"),
    ],
    "PassRole": [
        role({"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:role/one"}),
        role({"Effect": "Allow", "Action": "ssm:UpdateInstanceInformation", "Resource": "*"}),
        role({"Effect": "Deny", "Action": "iam:*", "Resource": "*"}),
    ],
    "S3EndpointPolicy": [
        endpoint("arn:aws:s3:::ours/*"),
        one("AWS::EC2::VPCEndpoint", ServiceName="com.amazonaws.us-east-1.logs"),
    ],
    "SilentAlarms": [one("AWS::CloudWatch::Alarm", AlarmActions=["arn"])],
    "UserDataSecrets": [
        launch(UserData={"Fn::Base64": 'token=$(ask "api/token")\nISOMORPH_SLOTS=8'}),
        launch(UserData={"Fn::Join": ["", ["ISOMORPH_SECRET=", {"Ref": "LatentCacheSecret12"}]]}),
        launch(),
    ],
}

BREAKS = {
    "ArchiveTiers": [
        lifecycle("GLACIER"),
        one("AWS::S3::Bucket", IntelligentTieringConfigurations=[{"Id": "a"}]),
    ],
    "CacheFailover": [
        one(GROUP, AutomaticFailoverEnabled=True, ReplicasPerNodeGroup=0),
        one(GROUP, AutomaticFailoverEnabled=True),
        one(GROUP, MultiAZEnabled=True, NumCacheClusters=1),
    ],
    "CacheKeys": [
        one(GROUP, AtRestEncryptionEnabled=True),
        one(GROUP, KmsKeyId="arn"),
        one(SERVERLESS),
    ],
    "CacheLogins": [
        one(GROUP),
        one(GROUP, AuthToken="hunter2hunter2hunter2"),
        one(SERVERLESS),
        user("on ~* +@all", Type="no-password-required"),
        user("on ~* +get", Type="password", Passwords=["hunter2hunter2hunter2"]),
    ],
    "CacheTransit": [
        one(GROUP),
        one(GROUP, TransitEncryptionEnabled=False),
        one(GROUP, TransitEncryptionEnabled=True, TransitEncryptionMode="preferred"),
    ],
    "CustomResources": [
        one("Custom::S3AutoDeleteObjects"),
        one("AWS::CloudFormation::CustomResource"),
    ],
    "DefaultSecurityGroup": [
        launch(),
        one("AWS::ElasticLoadBalancingV2::LoadBalancer"),
        one("AWS::EC2::VPCEndpoint", VpcEndpointType="Interface"),
        one("AWS::Lambda::Function", VpcConfig={"Fn::GetAtt": ["Vpc", "DefaultSecurityGroup"]}),
    ],
    "EndpointKeys": [
        one("AWS::SageMaker::EndpointConfig", ProductionVariants=[INF2]),
        one("AWS::SageMaker::EndpointConfig", ProductionVariants=[INF2, TRN2]),
    ],
    "FixedNames": [
        one("AWS::S3::Bucket", BucketName="models"),
        one("AWS::IAM::Role", RoleName="node"),
    ],
    "InstanceMetadata": [
        launch(),
        launch(MetadataOptions={**IMDS, "HttpTokens": "optional"}),
        launch(MetadataOptions={**IMDS, "HttpPutResponseHopLimit": 2}),
    ],
    "LogBucketEncryption": [logging_to("aws:kms"), delivered_to("aws:kms")],
    "LogGroups": [
        one("AWS::Logs::LogGroup", KmsKeyId="arn"),
        one("AWS::Logs::LogGroup", RetentionInDays=30),
    ],
    "ModelNetwork": [
        one("AWS::SageMaker::Model"),
        one("AWS::SageMaker::Model", VpcConfig={"Subnets": ["s"]}),
    ],
    "NodeDisks": [
        launch(),
        launch(BlockDeviceMappings=[{"Ebs": {"Encrypted": True}}]),
        launch(BlockDeviceMappings=[DISK, {"Ebs": {"Encrypted": False}}]),
    ],
    "OpenEgress": [
        one("AWS::EC2::SecurityGroup"),
        group({"CidrIp": "0.0.0.0/0"}),
        group({"CidrIpv6": "::/0"}),
        one("AWS::EC2::SecurityGroupEgress", CidrIp="0.0.0.0/0"),
    ],
    "OpenPrincipal": [
        key(Principal={"AWS": "*"}),
        key(Principal="*", Condition={"Bool": {"kms:GrantIsForAWSResource": "true"}}),
    ],
    "PassRole": [
        role({"Effect": "Allow", "Action": ["s3:GetObject", "iam:PassRole"], "Resource": "*"}),
        role({"Effect": "Allow", "Action": "iam:*", "Resource": ["*"]}),
        role({"Effect": "Allow", "Action": "*", "Resource": "*"}),
        role({"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}),
    ],
    "S3EndpointPolicy": [endpoint(), endpoint("arn:aws:s3:::ours/*", "*")],
    "SilentAlarms": [
        one("AWS::CloudWatch::Alarm"),
        one("AWS::CloudWatch::Alarm", AlarmActions=["arn"], ActionsEnabled=False),
    ],
    "UserDataSecrets": [
        launch(UserData={"Fn::Base64": "export AWS_ACCESS_KEY_ID=AKIAABCDEFGHIJKLMNOP"}),
        launch(UserData={"Fn::Base64": {"Fn::Join": ["", ["password='hunter2hunter2'"]]}}),
        launch(UserData={"Fn::Base64": "-----BEGIN RSA PRIVATE KEY-----"}),
        launch(UserData={"Fn::Base64": "P={{resolve:ssm-secure:/db/password}}"}),
    ],
}

KEEPS |= cluster_examples.KEEPS
BREAKS |= cluster_examples.BREAKS
BY_ID = {rule.id: rule for rule in (*RULES, cluster_examples.TYPES)}


def test_every_rule_has_an_example_of_each_kind():
    assert set(BY_ID) == set(KEEPS) == set(BREAKS)


@pytest.mark.parametrize(
    ("rule", "found"), [(rule, found) for rule, examples in KEEPS.items() for found in examples]
)
def test_keeps(rule, found):
    assert list(BY_ID[rule].check({"Resources": found})) == []


@pytest.mark.parametrize(
    ("rule", "found"), [(rule, found) for rule, examples in BREAKS.items() for found in examples]
)
def test_breaks(rule, found):
    assert "X" in {breach.resource for breach in BY_ID[rule].check({"Resources": found})}


def test_the_examples_look_like_what_cdk_writes():
    # A rule that looks for a property where CDK does not put it would never find a thing.
    from aws_cdk import aws_ec2 as ec2

    from tests.cdk_app import json_of, only

    stack = new_stack()
    ec2.LaunchTemplate(stack, "X", user_data=ec2.UserData.custom("echo hello"), require_imdsv2=True)
    data = only(json_of(stack), "AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
    assert literal(data["UserData"]) == "echo hello"
    assert data["MetadataOptions"]["HttpTokens"] == "required"
