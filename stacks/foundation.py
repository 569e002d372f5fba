"""Everything that has state: network, keys, buckets, pointers. Other stacks can go and return."""

from collections.abc import Sequence

from aws_cdk import CfnOutput, Duration, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from config import EnvironmentConfig
from constructs_lib import (
    NO_WEIGHTS,
    AccessLogBucket,
    DataBucket,
    DataKey,
    LifecycleBucket,
    MonthlyBudget,
    PrivateVpc,
    lifecycle_bucket_name,
)
from stacks.base import export_name
from stacks.innovation import weights_parameter


class Foundation(Stack):
    """One a environment; every other stack of the environment stands on it.

    Args:
        environment: The environment's file.
        serving: Slugs of the innovations that serve weights.
    """

    def __init__(
        self, scope: Construct, slug: str, *, environment: EnvironmentConfig, serving: Sequence[str]
    ) -> None:
        self._environment, self._retained = environment, environment.data == "retained"
        super().__init__(scope, slug)
        self._keys()
        self._buckets()
        self._network()
        self._alarms()
        self._weights_pointers(serving)
        MonthlyBudget(
            self,
            "Budget",
            usd=environment.budget.monthly_usd,
            email=environment.budget.email,
        )
        self._export()

    @property
    def availability_zones(self) -> list[str]:
        """The zones that the environment names; CDK's own way is to ask the account."""
        return list(self._environment.availability_zones)

    def _keys(self) -> None:
        keep = self._retained
        self.model_key = DataKey(self, "ModelKey", description="models, artifacts", retained=keep)
        self.model_key.allow_lustre_links()
        self.volume_key = DataKey(self, "VolumeKey", description="disks of nodes", retained=keep)
        self.volume_key.allow_auto_scaling_volumes()
        self.log_key = DataKey(self, "LogKey", description="logs, alarms", retained=keep)
        self.log_key.allow_log_groups()
        self.log_key.allow_alarm_topics()

    def _buckets(self) -> None:
        keep = self._retained
        self.access_logs = AccessLogBucket(
            self, "AccessLogs", keep=Duration.days(365 if keep else 30), retained=keep
        )
        self.models = DataBucket(
            self,
            "Models",
            key=self.model_key,
            access_logs=self.access_logs,
            tiered=True,
            retained=keep,
        )
        self.artifacts = DataBucket(
            self, "Artifacts", key=self.model_key, access_logs=self.access_logs, retained=keep
        )
        self.training = DataBucket(
            self, "Training", key=self.model_key, access_logs=self.access_logs, retained=keep
        )
        self.lifecycle = LifecycleBucket(
            self,
            "Lifecycle",
            name=lifecycle_bucket_name(self._environment.name, self.account, self.region),
            key=self.model_key,
            access_logs=self.access_logs,
            retained=keep,
        )

    def _network(self) -> None:
        self.network = PrivateVpc(
            self,
            "Network",
            availability_zones=self._environment.availability_zones,
            nat_gateways=self._environment.nat_gateways,
            s3_policy=self._s3_policy(),
            log_key=self.log_key,
            retained=self._retained,
        )

    def _s3_policy(self) -> list[iam.PolicyStatement]:
        """Return what passes the S3 endpoint: our buckets, our assets, the nodes' packages."""
        assets = f"cdk-{self.synthesizer.bootstrap_qualifier}-assets-{self.account}-{self.region}"
        packages = f"al2023-repos-{self.region}-de612dc2"  # the same suffix in every region
        layers = f"prod-{self.region}-starport-layer-bucket"  # of container images in ECR
        arn = f"arn:{self.partition}:s3:::"
        ours = [self.models, self.artifacts, self.training]
        return [
            _anyone(
                ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListBucket"],
                *(bucket.bucket_arn for bucket in ours),
                *(bucket.arn_for_objects("*") for bucket in ours),
            ),
            _anyone(["s3:GetObject"], f"{arn}{assets}/*", f"{arn}{packages}/*", f"{arn}{layers}/*"),
            _anyone(
                ["s3:GetObject", "s3:ListBucket"],
                self.lifecycle.bucket_arn,
                self.lifecycle.arn_for_objects("*"),
            ),
        ]

    def _alarms(self) -> None:
        self.alarms = sns.Topic(self, "Alarms", master_key=self.log_key, enforce_ssl=True)
        self.alarms.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[self.alarms.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self.account}},
            )
        )
        if self._environment.budget.email:
            self.alarms.add_subscription(
                subscriptions.EmailSubscription(self._environment.budget.email)
            )

    def _weights_pointers(self, serving: Sequence[str]) -> None:
        for slug in serving:
            ssm.CfnParameter(
                self,
                f"Weights-{slug}",
                name=weights_parameter(self._environment.name, slug),
                type="String",
                value=NO_WEIGHTS,
                description=f"Where the weights of {slug} are; `isomorph weights push` sets it",
            )

    def _export(self) -> None:
        values = {
            "ModelBucket": self.models.bucket_name,
            "ArtifactBucket": self.artifacts.bucket_name,
            "TrainingBucket": self.training.bucket_name,
            "LifecycleBucket": self.lifecycle.bucket_name,
            "AccessLogBucket": self.access_logs.bucket_name,
            "ModelKeyArn": self.model_key.key_arn,
            "VolumeKeyArn": self.volume_key.key_arn,
            "LogKeyArn": self.log_key.key_arn,
            "AlarmTopicArn": self.alarms.topic_arn,
            "VpcId": self.network.vpc.vpc_id,
            "EndpointSecurityGroup": self.network.endpoints.security_group_id,
        }
        for group in ("private", "isolated"):
            chosen = self.network.vpc.select_subnets(subnet_group_name=group)
            for number, subnet in enumerate(chosen.subnets, start=1):
                values[f"{group.capitalize()}Subnet{number}"] = subnet.subnet_id
        for output, value in values.items():
            CfnOutput(
                self, output, value=value, export_name=export_name(self._environment.name, output)
            )


def _anyone(actions: Sequence[str], *resources: str) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        principals=[iam.AnyPrincipal()], actions=list(actions), resources=list(resources)
    )
