"""The Auto Scaling group of a fleet: how nodes start, are counted, replaced and drained."""

from dataclasses import dataclass

from aws_cdk import (
    CfnAutoScalingRollingUpdate,
    CfnCreationPolicy,
    CfnResourceSignal,
    CfnUpdatePolicy,
    Token,
)
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from constructs_lib.front_door import Entrance
from constructs_lib.machine_images import AMAZON_LINUX, Image
from constructs_lib.site import Site
from constructs_lib.weights import Weights

LAUNCH_HOOK, DRAIN_HOOK = "launch", "drain"
_LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
_TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
_EVENTS = [
    "autoscaling:EC2_INSTANCE_LAUNCH",
    "autoscaling:EC2_INSTANCE_LAUNCH_ERROR",
    "autoscaling:EC2_INSTANCE_TERMINATE",
    "autoscaling:EC2_INSTANCE_TERMINATE_ERROR",
]
# A rolling update must not fight with these; without launching it could not work.
_SUSPENDED = [
    "AlarmNotification",
    "AZRebalance",
    "HealthCheck",
    "ReplaceUnhealthy",
    "ScheduledActions",
]


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Which machines, and how many.

    Args:
        instance_type: EC2 instance type, x86-64.
        volume_gib: Size of the disk.
        min_capacity: Nodes that are always there.
        max_capacity: Nodes that there are at most.
        warm_pool: Stopped nodes, set up and ready to start; 0 for none.
        requests_in_flight_target: Requests in flight per node at which another is added.
        boot_minutes: How long a node may take from launch to its first healthy answer.
        image: Amazon Linux, or Ubuntu with Neuron's driver and libraries.
    """

    instance_type: str
    volume_gib: int
    min_capacity: int
    max_capacity: int
    warm_pool: int
    requests_in_flight_target: int
    boot_minutes: int
    image: Image = AMAZON_LINUX


class FleetGroup(Construct):
    """Auto Scaling group whose nodes count only when they have signalled that they answer.

    The group has no desired capacity in its template: a deployment would put back what scaling
    has changed. It starts with the minimum, which is 0 while there are no weights.

    Args:
        site: Network and keys.
        machines: Which machines, and how many.
        weights: Until there are any, the group and its warm pool are empty.
        door: Sends requests to the nodes.
        metric_namespace: Where the nodes publish RequestsInFlight.
        fleet: Value of that metric's dimension Fleet.
        drain_seconds: How long a node may take to finish its requests.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        machines: Machines,
        weights: Weights,
        door: Entrance,
        metric_namespace: str,
        fleet: str,
        drain_seconds: int,
    ) -> None:
        if machines.volume_gib < machines.image.least_gib:
            raise ValueError(
                f"got volume_gib={machines.volume_gib}; the machine image's own disk has "
                f"{machines.image.least_gib} GiB, and a node's must be at least as large"
            )
        super().__init__(scope, construct_id)
        self._site, self.machines = site, machines
        boot_seconds = machines.boot_minutes * 60
        self._group = autoscaling.CfnAutoScalingGroup(
            self,
            "Resource",
            min_size=Token.as_string(
                weights.if_present(str(machines.min_capacity), "0"),
            ),
            max_size=str(machines.max_capacity),
            vpc_zone_identifier=[subnet.subnet_id for subnet in site.vpc.private_subnets],
            target_group_arns=[door.targets.target_group_arn],
            health_check_type="ELB",
            health_check_grace_period=60,  # counted from when the launch hook lets a node in
            capacity_rebalance=False,
            metrics_collection=[
                autoscaling.CfnAutoScalingGroup.MetricsCollectionProperty(granularity="1Minute")
            ],
            notification_configurations=[
                autoscaling.CfnAutoScalingGroup.NotificationConfigurationProperty(
                    topic_arn=site.alarm_topic.topic_arn, notification_types=_EVENTS
                )
            ],
            # In the group and not as resources of their own, which would be made after it: the
            # first nodes would start without them.
            lifecycle_hook_specification_list=[
                _hook(LAUNCH_HOOK, _LAUNCHING, boot_seconds, "ABANDON"),
                _hook(DRAIN_HOOK, _TERMINATING, drain_seconds, "CONTINUE"),
            ],
        )
        self._group.node.add_dependency(door.attachment)
        self._roll_out(weights)
        self._scale(metric_namespace, fleet)
        self._keep_warm(weights)

    @property
    def name(self) -> str:
        """The group's name."""
        return self._group.ref

    @property
    def logical_id(self) -> str:
        """What nodes send their signals to."""
        return self._group.logical_id

    @property
    def signal_settings(self) -> dict[str, str]:
        """What a node must know to say that it is ready, and that it has drained."""
        return {
            "ISOMORPH_SIGNAL_RESOURCE": self.logical_id,
            "ISOMORPH_LAUNCH_HOOK": LAUNCH_HOOK,
            "ISOMORPH_DRAIN_HOOK": DRAIN_HOOK,
        }

    def launch(
        self, *, role: iam.IRole, security_group: ec2.ISecurityGroup, user_data: str
    ) -> None:
        """Say what the group launches. Separate, as the user data has the group's id in it."""
        image = self.machines.image
        disk = ec2.BlockDevice(
            device_name=image.disk,
            volume=ec2.BlockDeviceVolume.ebs(
                self.machines.volume_gib,
                encrypted=True,
                kms_key=self._site.volume_key,
                volume_type=ec2.EbsDeviceVolumeType.GP3,
            ),
        )
        template = ec2.LaunchTemplate(
            self,
            "LaunchTemplate",
            instance_type=ec2.InstanceType(self.machines.instance_type),
            machine_image=ec2.MachineImage.from_ssm_parameter(image.parameter)
            if image.parameter
            else ec2.MachineImage.latest_amazon_linux2023(),
            role=role,
            security_group=security_group,
            user_data=ec2.UserData.custom(user_data),
            block_devices=[disk],
            detailed_monitoring=True,
            require_imdsv2=True,
            http_put_response_hop_limit=1,
        )
        self._group.launch_template = (
            autoscaling.CfnAutoScalingGroup.LaunchTemplateSpecificationProperty(
                launch_template_id=template.launch_template_id,
                version=template.latest_version_number,
            )
        )

    def _roll_out(self, weights: Weights) -> None:
        """Make creation and updates wait for the nodes' signals."""
        least = self.machines.min_capacity
        kept = min(least, self.machines.max_capacity - 1)  # must be below the maximum
        timeout = f"PT{self.machines.boot_minutes}M"
        self._group.cfn_options.creation_policy = CfnCreationPolicy(
            resource_signal=CfnResourceSignal(
                count=Token.as_number(weights.if_present(least, 0)), timeout=timeout
            )
        )
        self._group.cfn_options.update_policy = CfnUpdatePolicy(
            auto_scaling_rolling_update=CfnAutoScalingRollingUpdate(
                min_instances_in_service=Token.as_number(weights.if_present(kept, 0)),
                max_batch_size=1,
                min_successful_instances_percent=100,
                pause_time=timeout,
                wait_on_resource_signals=True,
                suspend_processes=_SUSPENDED,
            )
        )

    def _scale(self, metric_namespace: str, fleet: str) -> None:
        if self.machines.min_capacity == self.machines.max_capacity:
            return  # a policy that could change nothing is refused
        policy = autoscaling.CfnScalingPolicy
        policy(
            self,
            "RequestsInFlight",
            auto_scaling_group_name=self.name,
            policy_type="TargetTrackingScaling",
            target_tracking_configuration=policy.TargetTrackingConfigurationProperty(
                target_value=self.machines.requests_in_flight_target,
                customized_metric_specification=policy.CustomizedMetricSpecificationProperty(
                    namespace=metric_namespace,
                    metric_name="RequestsInFlight",
                    statistic="Average",
                    dimensions=[policy.MetricDimensionProperty(name="Fleet", value=fleet)],
                ),
            ),
        )

    def _keep_warm(self, weights: Weights) -> None:
        if not self.machines.warm_pool:
            return
        pool = autoscaling.CfnWarmPool(
            self,
            "WarmPool",
            auto_scaling_group_name=self.name,
            min_size=self.machines.warm_pool,
            # Left out, the pool would be as large as what is left to the maximum.
            max_group_prepared_capacity=self.machines.min_capacity + self.machines.warm_pool,
            pool_state="Stopped",
        )
        pool.cfn_options.condition = weights.present


def _hook(
    name: str, transition: str, seconds: int, default: str
) -> autoscaling.CfnAutoScalingGroup.LifecycleHookSpecificationProperty:
    return autoscaling.CfnAutoScalingGroup.LifecycleHookSpecificationProperty(
        lifecycle_hook_name=name,
        lifecycle_transition=transition,
        heartbeat_timeout=seconds,
        default_result=default,
    )
