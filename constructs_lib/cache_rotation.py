"""Rotates the password of a latent cache with a function of ours.

The hosted rotation needs a CloudFormation macro, and knows no users of ElastiCache.
"""

from pathlib import Path

from aws_cdk import ArnFormat, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.cache_access import CacheAccess
from constructs_lib.closed_group import ClosedGroup
from constructs_lib.code_asset import CodeAsset
from constructs_lib.site import Site

_CODE = Path(__file__).parent / "functions" / "rotate_cache_password"
# What Lambda itself calls for a function inside of a VPC, with the function's role.
_INTERFACES = [
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
]


class CacheRotation(Construct):
    """Gives the cache a new password every so many days, without locking a node out.

    Args:
        site: Its subnets, endpoints and log key.
        access: The secret, and whose password it is.
        key: Encrypts the secret.
        address: Host and port of the cache, to try a password.
        group_id: Id of the replication group; empty where the password is a user's.
        days: Between two rotations.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        access: CacheAccess,
        key: kms.IKey,
        address: tuple[str, str],
        group_id: str,
        days: int,
    ) -> None:
        super().__init__(scope, construct_id)
        self.security_group = ClosedGroup(
            self,
            "SecurityGroup",
            vpc=site.vpc,
            description="Rotation: the latent cache, HTTPS to AWS",
        )
        self.security_group.add_egress_rule(
            site.endpoints, ec2.Port.tcp(443), "interface endpoints"
        )
        log_group = logs.LogGroup(
            self,
            "Logs",
            encryption_key=site.log_key,
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        function = self._function(
            role=self._role(access, key, group_id, log_group),
            subnets=[subnet.subnet_id for subnet in site.vpc.private_subnets],
            log_group=log_group,
            environment={
                "ISOMORPH_CACHE_USER": access.user.ref if access.user else "",
                "ISOMORPH_CACHE_GROUP": group_id,
                "ISOMORPH_CACHE_HOST": address[0],
                "ISOMORPH_CACHE_PORT": address[1],
            },
        )
        may_call = lambda_.CfnPermission(
            self,
            "MayCall",
            action="lambda:InvokeFunction",
            function_name=function.ref,
            principal="secretsmanager.amazonaws.com",
            source_account=Stack.of(self).account,
            source_arn=access.secret.secret_arn,
        )
        schedule = secretsmanager.CfnRotationSchedule(
            self,
            "Schedule",
            secret_id=access.secret.secret_arn,
            rotation_lambda_arn=function.attr_arn,
            rotation_rules=secretsmanager.CfnRotationSchedule.RotationRulesProperty(
                automatically_after_days=days
            ),
            rotate_immediately_on_update=False,  # the first password is new as it is
        )
        schedule.add_resource_dependency(may_call)

    def _function(
        self,
        *,
        role: iam.Role,
        subnets: list[str],
        log_group: logs.LogGroup,
        environment: dict[str, str],
    ) -> lambda_.CfnFunction:
        function = lambda_.CfnFunction
        code = CodeAsset(self, "Code", root=_CODE, include=["index.py"])
        return function(
            self,
            "Function",
            description="rotates the password of the latent cache",
            runtime=lambda_.Runtime.PYTHON_3_14.name,
            architectures=["arm64"],
            handler="index.handler",
            code=function.CodeProperty(s3_bucket=code.bucket_name, s3_key=code.object_key),
            timeout=600,
            memory_size=256,
            role=role.role_arn,
            vpc_config=function.VpcConfigProperty(
                subnet_ids=subnets, security_group_ids=[self.security_group.security_group_id]
            ),
            logging_config=function.LoggingConfigProperty(log_group=log_group.log_group_name),
            environment=function.EnvironmentProperty(variables=environment),
        )

    def _role(
        self, access: CacheAccess, key: kms.IKey, group_id: str, log_group: logs.ILogGroup
    ) -> iam.Role:
        stack = Stack.of(self)
        kind, name = ("user", access.user.ref) if access.user else ("replicationgroup", group_id)
        cache = stack.format_arn(
            service="elasticache",
            resource=kind,
            resource_name=name,
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        verbs = (
            ["elasticache:DescribeUsers", "elasticache:ModifyUser"]
            if access.user
            else ["elasticache:DescribeReplicationGroups", "elasticache:ModifyReplicationGroup"]
        )
        through = f"secretsmanager.{stack.region}.amazonaws.com"
        statements = [
            _allow(verbs, cache),
            _allow(
                [
                    "secretsmanager:DescribeSecret",
                    "secretsmanager:GetSecretValue",
                    "secretsmanager:PutSecretValue",
                    "secretsmanager:UpdateSecretVersionStage",
                ],
                access.secret.secret_arn,
            ),
            _allow(["secretsmanager:GetRandomPassword"], "*"),
            iam.PolicyStatement(
                actions=["kms:Decrypt", "kms:GenerateDataKey"],
                resources=[key.key_arn],
                conditions={"StringEquals": {"kms:ViaService": through}},
            ),
            _allow(["logs:CreateLogStream", "logs:PutLogEvents"], log_group.log_group_arn),
            _allow(_INTERFACES, "*"),
        ]
        role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            inline_policies={"Rotate": iam.PolicyDocument(statements=statements)},
        )
        acknowledge_wildcards(
            role,
            {
                "*": "GetRandomPassword knows no resource, and Lambda asks for leave over every "
                "network interface when it checks the role"
            },
        )
        return role


def _allow(actions: list[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(actions=actions, resources=list(resources))
