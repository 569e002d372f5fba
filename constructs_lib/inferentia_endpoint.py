"""A SageMaker endpoint on Neuron devices: model, configuration, endpoint, and how it scales."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from aws_cdk import CfnResource, Fn
from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.endpoint_alarms import EndpointAlarms, EndpointLimits
from constructs_lib.endpoint_role import EndpointRole
from constructs_lib.model_archive import ModelArchive
from constructs_lib.neuron_images import NeuronImage
from constructs_lib.site import Site
from constructs_lib.weights import Weights

# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ProductionVariant.html
NEURON_AMI = "al2-ami-sagemaker-inference-neuron-2"
_TERMINATION_SECONDS, _SLACK_SECONDS, _LONGEST_SECONDS = 120, 1800, 28800
DIMENSION = "sagemaker:variant:DesiredInstanceCount"

Made = TypeVar("Made", bound=CfnResource)


@dataclass(frozen=True, kw_only=True)
class EndpointMachines:
    """Which machines an endpoint has, how many, and how long they may take to start.

    Args:
        instance_type: Such as ml.inf2.xlarge.
        instances: Always there.
        most_instances: There at most.
        volume_gib: Disk; None for types with disks of their own, which take neither size nor key.
        download_seconds: To fetch the model archive.
        startup_seconds: To the first healthy answer, weights fetched and loaded.
    """

    instance_type: str
    instances: int
    most_instances: int
    volume_gib: int | None
    download_seconds: int
    startup_seconds: int


@dataclass(frozen=True, kw_only=True)
class EndpointScaling:
    """When machines are added and taken away.

    Args:
        invocations: A minute and machine at which another is added.
        concurrency: Requests at work in a machine at which another is added.
        out_seconds: Between two additions.
        in_seconds: After any change, before one is taken away: a new one must have loaded first.
    """

    invocations: int
    concurrency: int
    out_seconds: int
    in_seconds: int


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How an update takes over the traffic.

    Args:
        percent: Of the machines that take traffic first, 1 to 50.
        minutes: That they are watched for before the others follow.
    """

    percent: int
    minutes: int


@dataclass(frozen=True, kw_only=True)
class Container:
    """What runs on the machines.

    Args:
        image: Where it is.
        archive: The model.tar.gz with its code.
        environment: Its variables, besides where the weights are.
        isolated: Whether it may reach no network at all. Only for one that calls no AWS service:
            weights and metrics of ours go through S3 and CloudWatch.
    """

    image: NeuronImage
    archive: ModelArchive
    environment: Mapping[str, str]
    isolated: bool = False


class InferentiaEndpoint(Construct):
    """Endpoint that serves a model from its container's code and the pointer's weights.

    Until there are weights it does not exist: it could not start. An update goes to new machines;
    a share of the traffic follows, and goes back by itself when an alarm rings.

    Args:
        site: The network, keys and sinks that it is put into.
        variant: Name of its only variant, unique in the account: alarms find its metrics by it.
        container: What runs.
        weights: What it serves.
        machines: Which, and how many.
        grows: When machines come and go.
        canary: How an update takes over.
        limits: When to raise an alarm, and to roll an update back.
        metric_namespace: Where its code publishes.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        variant: str,
        container: Container,
        weights: Weights,
        machines: EndpointMachines,
        grows: EndpointScaling,
        canary: Canary,
        limits: EndpointLimits,
        metric_namespace: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._site, self._weights, self._machines = site, weights, machines
        self.variant = variant
        self.role = EndpointRole(
            self,
            "Role",
            archive_arn=container.archive.object_arn,
            image_arn=container.image.repository_arn(self),
            weights=weights,
            volume_key=site.volume_key,
            metric_namespace=metric_namespace,
        )
        self.security_group = ClosedGroup(
            self,
            "SecurityGroup",
            vpc=site.vpc,
            description="Endpoint: HTTPS to AWS; its requests come through SageMaker",
        )
        self.security_group.allow_to_aws(site)
        self.alarms = EndpointAlarms(
            self, "Alarms", variant=variant, weights=weights, limits=limits, topic=site.alarm_topic
        )
        self.model = self._made_with_weights(self._model(container))
        self.config = self._made_with_weights(self._config())
        self._endpoint = self._made_with_weights(self._deploy(canary))
        self.name, self.arn = self._endpoint.attr_endpoint_name, self._endpoint.ref
        self._grow(grows)

    def _model(self, container: Container) -> sagemaker.CfnModel:
        address = Fn.split("#sha256=", self._weights.value)
        return sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=self.role.role_arn,
            enable_network_isolation=container.isolated,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=container.image.uri(self),
                # Not ModelDataUrl, which wants a name that ends in .tar.gz: an asset's ends in .gz.
                model_data_source=sagemaker.CfnModel.ModelDataSourceProperty(
                    s3_data_source=sagemaker.CfnModel.S3DataSourceProperty(
                        s3_uri=container.archive.url,
                        s3_data_type="S3Object",
                        compression_type="Gzip",
                    )
                ),
                environment={
                    **container.environment,
                    "ISOMORPH_WEIGHTS": Fn.select(0, address),
                    "ISOMORPH_WEIGHTS_SHA256": Fn.select(1, address),
                },
            ),
            vpc_config=sagemaker.CfnModel.VpcConfigProperty(
                security_group_ids=[self.security_group.security_group_id],
                subnets=[subnet.subnet_id for subnet in self._site.vpc.private_subnets],
            ),
        )

    def _config(self) -> sagemaker.CfnEndpointConfig:
        machines = self._machines
        own_disks = machines.volume_gib is None
        return sagemaker.CfnEndpointConfig(
            self,
            "Config",
            kms_key_id=None if own_disks else self._site.volume_key.key_arn,
            production_variants=[
                sagemaker.CfnEndpointConfig.ProductionVariantProperty(
                    variant_name=self.variant,
                    model_name=self.model.attr_model_name,
                    instance_type=machines.instance_type,
                    initial_instance_count=machines.instances,
                    initial_variant_weight=1,
                    inference_ami_version=NEURON_AMI,
                    volume_size_in_gb=machines.volume_gib,
                    model_data_download_timeout_in_seconds=machines.download_seconds,
                    container_startup_health_check_timeout_in_seconds=machines.startup_seconds,
                    routing_config=sagemaker.CfnEndpointConfig.RoutingConfigProperty(
                        routing_strategy="LEAST_OUTSTANDING_REQUESTS"
                    ),
                )
            ],
        )

    def _deploy(self, canary: Canary) -> sagemaker.CfnEndpoint:
        wait = canary.minutes * 60
        # Half of the machines is the most that a canary may be: one machine cannot have any.
        traffic = sagemaker.CfnEndpoint.TrafficRoutingConfigProperty(
            type="CANARY" if self._machines.instances > 1 else "ALL_AT_ONCE",
            wait_interval_in_seconds=wait,
            canary_size=sagemaker.CfnEndpoint.CapacitySizeProperty(
                type="CAPACITY_PERCENT", value=canary.percent
            )
            if self._machines.instances > 1
            else None,
        )
        longest = 2 * self._machines.startup_seconds + 2 * wait + _SLACK_SECONDS
        return sagemaker.CfnEndpoint(
            self,
            "Resource",
            endpoint_config_name=self.config.attr_endpoint_config_name,
            retain_all_variant_properties=True,  # or an update would undo what scaling has done
            deployment_config=sagemaker.CfnEndpoint.DeploymentConfigProperty(
                blue_green_update_policy=sagemaker.CfnEndpoint.BlueGreenUpdatePolicyProperty(
                    traffic_routing_configuration=traffic,
                    termination_wait_in_seconds=_TERMINATION_SECONDS,
                    maximum_execution_timeout_in_seconds=min(longest, _LONGEST_SECONDS),
                ),
                auto_rollback_configuration=sagemaker.CfnEndpoint.AutoRollbackConfigProperty(
                    alarms=[
                        sagemaker.CfnEndpoint.AlarmProperty(alarm_name=alarm.alarm_name)
                        for alarm in self.alarms.rolling_back
                    ]
                ),
            ),
        )

    def _grow(self, grows: EndpointScaling) -> None:
        if self._machines.instances == self._machines.most_instances:
            return
        target = scaling.CfnScalableTarget(
            self,
            "Target",
            service_namespace="sagemaker",
            scalable_dimension=DIMENSION,
            resource_id=self.resource_id,
            min_capacity=self._machines.instances,
            max_capacity=self._machines.most_instances,
        )
        self._made_with_weights(target)
        for name, (metric, value) in tracked(grows).items():
            policy = scaling.CfnScalingPolicy(
                self,
                name,
                policy_name=name,
                policy_type="TargetTrackingScaling",
                scaling_target_id=target.ref,
                target_tracking_scaling_policy_configuration=_tracking(grows, metric, value),
            )
            self._made_with_weights(policy)

    @property
    def resource_id(self) -> str:
        """What Application Auto Scaling calls the variant."""
        return Fn.join("/", ["endpoint", self.name, "variant", self.variant])

    def _made_with_weights(self, resource: Made) -> Made:
        resource.cfn_options.condition = self._weights.present
        return resource


def tracked(grows: EndpointScaling) -> dict[str, tuple[str, int]]:
    """Return SageMaker's metric and its target, by the policy's name."""
    return {
        "Invocations": ("SageMakerVariantInvocationsPerInstance", grows.invocations),
        "Concurrency": (
            "SageMakerVariantConcurrentRequestsPerModelHighResolution",
            grows.concurrency,
        ),
    }


def _tracking(
    grows: EndpointScaling, metric: str, value: int
) -> scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty:
    return scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty(
        target_value=value,
        scale_in_cooldown=grows.in_seconds,
        scale_out_cooldown=grows.out_seconds,
        predefined_metric_specification=(
            scaling.CfnScalingPolicy.PredefinedMetricSpecificationProperty(
                predefined_metric_type=metric
            )
        ),
    )
