"""What the runner reads from the control plane and tells it: through the APIs, as a user would."""

import base64
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from local_aws.clients import client, is_gone


@dataclass(frozen=True)
class Hook:
    """A lifecycle hook of a group."""

    name: str
    timeout: float
    default: str


@dataclass(frozen=True)
class TargetGroup:
    """How a load balancer checks the health of its targets."""

    arn: str
    path: str
    interval: float
    timeout: float
    healthy_threshold: int
    unhealthy_threshold: int
    codes: str


@dataclass(frozen=True)
class Launched:
    """An instance that EC2 has just made, before anything runs on it."""

    instance_id: str
    zone: str
    template: dict[str, str]
    user_data: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Cloud:
    """The APIs as one account sees them in one region."""

    endpoint: str
    account: str
    region: str

    def _client(self, service: str) -> Any:
        return client(service, self.endpoint, self.account, self.region)

    def groups(self) -> list[dict[str, Any]]:
        """Return the Auto Scaling groups as described."""
        pages = self._client("autoscaling").get_paginator("describe_auto_scaling_groups")
        return [group for page in pages.paginate() for group in page["AutoScalingGroups"]]

    def hooks(self, group: str, transition: str) -> list[Hook]:
        """Return the hooks of a group for `LAUNCHING` or `TERMINATING`."""
        found = self._client("autoscaling").describe_lifecycle_hooks(AutoScalingGroupName=group)
        return [
            Hook(hook["LifecycleHookName"], hook["HeartbeatTimeout"], hook["DefaultResult"])
            for hook in found["LifecycleHooks"]
            if hook["LifecycleTransition"] == f"autoscaling:EC2_INSTANCE_{transition}"
        ]

    def target_group(self, arn: str) -> TargetGroup:
        """Return how a target group checks health."""
        [group] = self._client("elbv2").describe_target_groups(TargetGroupArns=[arn])[
            "TargetGroups"
        ]
        return TargetGroup(
            arn=arn,
            path=group["HealthCheckPath"],
            interval=group["HealthCheckIntervalSeconds"],
            timeout=group["HealthCheckTimeoutSeconds"],
            healthy_threshold=group["HealthyThresholdCount"],
            unhealthy_threshold=group["UnhealthyThresholdCount"],
            codes=group["Matcher"].get("HttpCode", "200"),
        )

    def register(self, target_group: str, instance_id: str) -> None:
        """Make an instance a target."""
        self._client("elbv2").register_targets(
            TargetGroupArn=target_group, Targets=[{"Id": instance_id}]
        )

    def deregister(self, target_group: str, instance_id: str) -> None:
        """Take an instance out of a target group."""
        try:
            self._client("elbv2").deregister_targets(
                TargetGroupArn=target_group, Targets=[{"Id": instance_id}]
            )
        except ClientError as error:
            if not is_gone(error):
                raise

    def launch(self, group: dict[str, Any], turn: int) -> Launched:
        """Make an instance from the group's launch template, in the subnet whose turn it is."""
        ec2 = self._client("ec2")
        wanted = group["LaunchTemplate"]
        [version] = ec2.describe_launch_template_versions(
            LaunchTemplateId=wanted["LaunchTemplateId"], Versions=[wanted["Version"]]
        )["LaunchTemplateVersions"]
        data = version["LaunchTemplateData"]
        subnets = [name for name in group["VPCZoneIdentifier"].split(",") if name]
        subnet = subnets[turn % len(subnets)]
        [placed] = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]
        tags = [{"Key": "aws:autoscaling:groupName", "Value": group["AutoScalingGroupName"]}]
        tags += [
            {"Key": tag["Key"], "Value": tag["Value"]}
            for tag in group["Tags"]
            if tag["PropagateAtLaunch"]
        ]
        request: dict[str, Any] = {
            "ImageId": data["ImageId"],
            "InstanceType": data["InstanceType"],
            "SubnetId": subnet,
            "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
        }
        if data.get("SecurityGroupIds"):
            request["SecurityGroupIds"] = data["SecurityGroupIds"]
        user_data = base64.b64decode(data.get("UserData", "")).decode()
        [instance] = ec2.run_instances(MinCount=1, MaxCount=1, UserData=user_data, **request)[
            "Instances"
        ]
        return Launched(
            instance_id=instance["InstanceId"],
            zone=placed["AvailabilityZone"],
            template={
                "LaunchTemplateId": version["LaunchTemplateId"],
                "LaunchTemplateName": version["LaunchTemplateName"],
                "Version": str(version["VersionNumber"]),
            },
            user_data=user_data,
            facts={
                "instance-id": instance["InstanceId"],
                "instance-type": data["InstanceType"],
                "ami-id": data["ImageId"],
                "local-ipv4": instance["PrivateIpAddress"],
            },
        )

    def terminate(self, instance_id: str) -> None:
        """Tell EC2 that an instance is gone."""
        self._client("ec2").terminate_instances(InstanceIds=[instance_id])
