"""A template with every type that a stack of the project has."""

from tests.local_aws.samples_cache import CACHE
from tests.local_aws.samples_clusters import CLUSTERS
from tests.local_aws.samples_endpoints import ENDPOINTS
from tests.local_aws.samples_functions import FUNCTIONS
from tests.local_aws.samples_network import NETWORK
from tests.local_aws.templates import Template, assumed_by, attribute, policy, ref, resource

DATA: Template = {
    "Key": resource(
        "KMS::Key",
        EnableKeyRotation=True,
        KeyPolicy=policy("kms:*", "*", Principal={"AWS": "000000000000"}),
    ),
    "KeyAlias": resource("KMS::Alias", AliasName="alias/contract", TargetKeyId=ref("Key")),
    "AccessLogs": resource(
        "S3::Bucket",
        AccessControl="LogDeliveryWrite",
        OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]},
        BucketEncryption={
            "ServerSideEncryptionConfiguration": [
                {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
            ]
        },
    ),
    "Models": resource(
        "S3::Bucket",
        VersioningConfiguration={"Status": "Enabled"},
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True,
            "BlockPublicPolicy": True,
            "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True,
        },
        LoggingConfiguration={
            "DestinationBucketName": ref("AccessLogs"),
            "LogFilePrefix": "models/",
        },
        BucketEncryption={
            "ServerSideEncryptionConfiguration": [
                {
                    "BucketKeyEnabled": True,
                    "ServerSideEncryptionByDefault": {
                        "SSEAlgorithm": "aws:kms",
                        "KMSMasterKeyID": attribute("Key", "Arn"),
                    },
                }
            ]
        },
        LifecycleConfiguration={
            "Rules": [
                {
                    "Id": "weights",
                    "Status": "Enabled",
                    "Transitions": [{"StorageClass": "INTELLIGENT_TIERING", "TransitionInDays": 0}],
                    "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
                    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
                }
            ]
        },
    ),
    "ModelsPolicy": resource(
        "S3::BucketPolicy",
        Bucket=ref("Models"),
        PolicyDocument=policy(
            "s3:*",
            {"Fn::Sub": "${Models.Arn}/*"},
            Principal="*",
            Condition={"Bool": {"aws:SecureTransport": "true"}},
        ),
    ),
    "Pointer": resource("SSM::Parameter", Name="/contract/weights", Type="String", Value="none"),
    "Logs": resource("Logs::LogGroup", RetentionInDays=30, KmsKeyId=attribute("Key", "Arn")),
    "Failures": resource(
        "Logs::MetricFilter",
        LogGroupName=ref("Logs"),
        FilterPattern='{ $.state = "failed" }',
        MetricTransformations=[
            {"MetricName": "Failed", "MetricNamespace": "Contract", "MetricValue": "1"}
        ],
    ),
    "Images": resource("ECR::Repository", RepositoryName="contract"),
}

IDENTITY: Template = {
    "Role": resource(
        "IAM::Role",
        AssumeRolePolicyDocument=assumed_by("ec2"),
        ManagedPolicyArns=["arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"],
    ),
    "Profile": resource("IAM::InstanceProfile", Roles=[ref("Role")]),
    "Grant": resource(
        "IAM::Policy",
        PolicyName="Grant",
        PolicyDocument=policy("s3:GetObject", "*"),
        Roles=[ref("Role")],
    ),
    "Boundary": resource("IAM::ManagedPolicy", PolicyDocument=policy("s3:*", "*")),
}

SERVING: Template = {
    "Template": resource(
        "EC2::LaunchTemplate",
        LaunchTemplateData={
            "ImageId": ref("Image"),
            "InstanceType": "c7i.2xlarge",
            "IamInstanceProfile": {"Arn": attribute("Profile", "Arn")},
            "SecurityGroupIds": [attribute("ServerGroup", "GroupId")],
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {
                    "DeviceName": "/dev/xvda",
                    "Ebs": {"Encrypted": True, "VolumeSize": 30, "VolumeType": "gp3"},
                }
            ],
            "UserData": {"Fn::Base64": "#!/bin/sh\ntrue\n"},
        },
    ),
    "Balancer": resource(
        "ElasticLoadBalancingV2::LoadBalancer",
        Type="application",
        Scheme="internal",
        Subnets=[ref("Public"), ref("Private")],
        SecurityGroups=[attribute("BalancerGroup", "GroupId")],
        LoadBalancerAttributes=[
            {"Key": "access_logs.s3.enabled", "Value": "true"},
            {"Key": "access_logs.s3.bucket", "Value": ref("AccessLogs")},
            {"Key": "idle_timeout.timeout_seconds", "Value": "120"},
        ],
    ),
    "Targets": resource(
        "ElasticLoadBalancingV2::TargetGroup",
        VpcId=ref("Vpc"),
        Port=8080,
        Protocol="HTTP",
        TargetType="instance",
        HealthCheckPath="/health",
        HealthCheckIntervalSeconds=15,
        HealthyThresholdCount=2,
        TargetGroupAttributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "90"}],
    ),
    "Listener": resource(
        "ElasticLoadBalancingV2::Listener",
        LoadBalancerArn=ref("Balancer"),
        Port=80,
        Protocol="HTTP",
        DefaultActions=[{"Type": "forward", "TargetGroupArn": ref("Targets")}],
    ),
    "Canary": resource(
        "ElasticLoadBalancingV2::TargetGroup",
        VpcId=ref("Vpc"),
        Port=8080,
        Protocol="HTTP",
        TargetType="instance",
        TargetGroupAttributes=[
            {"Key": "stickiness.enabled", "Value": "true"},
            {"Key": "stickiness.type", "Value": "lb_cookie"},
            {"Key": "stickiness.lb_cookie.duration_seconds", "Value": "600"},
        ],
    ),
    "Shares": resource(
        "ElasticLoadBalancingV2::ListenerRule",
        ListenerArn=ref("Listener"),
        Priority=10,
        Conditions=[
            {
                "Field": "http-header",
                "HttpHeaderConfig": {"HttpHeaderName": "x-pool", "Values": ["one"]},
            }
        ],
        Actions=[
            {
                "Type": "forward",
                "ForwardConfig": {
                    "TargetGroups": [
                        {"TargetGroupArn": ref("Targets"), "Weight": 90},
                        {"TargetGroupArn": ref("Canary"), "Weight": 10},
                    ],
                    "TargetGroupStickinessConfig": {"Enabled": True, "DurationSeconds": 600},
                },
            }
        ],
        Transforms=[
            {
                "Type": "url-rewrite",
                "UrlRewriteConfig": {"Rewrites": [{"Regex": "^/one/(.*)$", "Replace": "/$1"}]},
            }
        ],
    ),
    "Group": resource(
        "AutoScaling::AutoScalingGroup",
        MinSize={"Fn::If": ["HasWeights", "1", "0"]},
        DesiredCapacity={"Fn::If": ["HasWeights", "1", "0"]},
        MaxSize="4",
        LaunchTemplate={
            "LaunchTemplateId": ref("Template"),
            "Version": attribute("Template", "LatestVersionNumber"),
        },
        VPCZoneIdentifier=[ref("Private"), ref("Public")],
        TargetGroupARNs=[ref("Targets")],
        HealthCheckType="ELB",
        HealthCheckGracePeriod=600,
        MetricsCollection=[{"Granularity": "1Minute"}],
        NotificationConfigurations=[
            {
                "TopicARN": ref("Topic"),
                "NotificationTypes": ["autoscaling:EC2_INSTANCE_LAUNCH_ERROR"],
            }
        ],
    ),
    "DrainHook": resource(
        "AutoScaling::LifecycleHook",
        AutoScalingGroupName=ref("Group"),
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
        HeartbeatTimeout=120,
        DefaultResult="CONTINUE",
    ),
    "Pool": resource(
        "AutoScaling::WarmPool", AutoScalingGroupName=ref("Group"), MinSize=1, PoolState="Stopped"
    ),
    "Tracking": resource(
        "AutoScaling::ScalingPolicy",
        AutoScalingGroupName=ref("Group"),
        PolicyType="TargetTrackingScaling",
        TargetTrackingConfiguration={
            "TargetValue": 6,
            "CustomizedMetricSpecification": {
                "Namespace": "Isomorph/gqa",
                "MetricName": "RequestsInFlight",
                "Statistic": "Average",
                "Dimensions": [{"Name": "Fleet", "Value": "local-gqa"}],
            },
        },
    ),
}

WATCHING: Template = {
    "Topic": resource("SNS::Topic", KmsMasterKeyId=ref("Key")),
    "TopicPolicy": resource(
        "SNS::TopicPolicy",
        Topics=[ref("Topic")],
        PolicyDocument=policy("sns:Publish", "*", Principal="*"),
    ),
    "Subscription": resource(
        "SNS::Subscription", TopicArn=ref("Topic"), Protocol="email", Endpoint="a@example.com"
    ),
    "Alarm": resource(
        "CloudWatch::Alarm",
        Namespace="Isomorph/gqa",
        MetricName="Rejected",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=3,
        Threshold=10,
        ComparisonOperator="GreaterThanThreshold",
        TreatMissingData="notBreaching",
        AlarmActions=[ref("Topic")],
    ),
    "Errors": resource(
        "CloudWatch::Alarm",
        ComparisonOperator="GreaterThanThreshold",
        EvaluationPeriods=3,
        Threshold=1,
        Metrics=[
            {"Id": "share", "Expression": "100 * failed / 2", "Label": "%", "ReturnData": True},
            {
                "Id": "failed",
                "ReturnData": False,
                "MetricStat": {
                    "Metric": {"Namespace": "Isomorph/gqa", "MetricName": "Failed"},
                    "Period": 60,
                    "Stat": "Sum",
                },
            },
        ],
    ),
    "Overall": resource(
        "CloudWatch::CompositeAlarm",
        AlarmName="contract-overall",
        AlarmRule={"Fn::Sub": 'ALARM("${Alarm}")'},
    ),
    "Dashboard": resource("CloudWatch::Dashboard", DashboardBody='{"widgets": []}'),
    "Budget": resource(
        "Budgets::Budget",
        Budget={
            "BudgetType": "COST",
            "TimeUnit": "MONTHLY",
            "BudgetLimit": {"Amount": 50, "Unit": "USD"},
        },
        ResourceTags=[{"Key": "project", "Value": "contract"}],
        NotificationsWithSubscribers=[
            {
                "Notification": {
                    "NotificationType": "ACTUAL",
                    "ComparisonOperator": "GREATER_THAN",
                    "Threshold": 80,
                },
                "Subscribers": [{"SubscriptionType": "EMAIL", "Address": "a@example.com"}],
            }
        ],
    ),
}

CONTRACT: Template = {
    "Parameters": {
        "Image": {
            "Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
            "Default": "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64",
        },
        "Weights": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": "/given/weights"},
    },
    "Conditions": {"HasWeights": {"Fn::Not": [{"Fn::Equals": [ref("Weights"), "none"]}]}},
    "Resources": {
        **NETWORK,
        **DATA,
        **IDENTITY,
        **SERVING,
        **WATCHING,
        **CACHE,
        **FUNCTIONS,
        **ENDPOINTS,
        **CLUSTERS,
    },
    "Outputs": {
        "Models": {"Value": ref("Models"), "Export": {"Name": "contract-models"}},
        "Fleet": {"Value": ref("Group")},
        "Endpoint": {"Value": {"Fn::Sub": "http://${Balancer.DNSName}"}},
    },
}

IMPORTING: Template = {
    "Resources": {
        "Copy": resource(
            "SSM::Parameter", Type="String", Value={"Fn::ImportValue": "contract-models"}
        )
    }
}
