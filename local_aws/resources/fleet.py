"""The types of Auto Scaling whose instances are played by machines.

Making and changing a group waits for its instances as CloudFormation does: for the signals of its
`CreationPolicy`, and for the rolling update of its `UpdatePolicy`.
"""

import copy
import time
from typing import Any

from ministack.services import autoscaling as records
from ministack.services import cloudformation
from ministack.services.cloudformation import engine, provisioners

from local_aws.machines.group import Group, Replacement
from local_aws.machines.runner import Runner
from local_aws.resources.signals import SignalError, Signals, seconds
from local_aws.resources.table import Attributes, Aws, Made, Properties, Resource, Type

GROUP = "AWS::AutoScaling::AutoScalingGroup"
_SIZES = ("MinSize", "MaxSize", "DesiredCapacity")
# Properties that the control plane drops, and a describe call shows.
_KEPT = ("TargetGroupARNs", "MaxInstanceLifetime", "CapacityRebalance", "DefaultInstanceWarmup")
_PLAYED = frozenset(
    {
        *_SIZES,
        *_KEPT,
        "AutoScalingGroupName",
        "AvailabilityZones",
        "Cooldown",
        "HealthCheckGracePeriod",
        "HealthCheckType",
        "LaunchTemplate",
        "LifecycleHookSpecificationList",
        "MetricsCollection",
        "NewInstancesProtectedFromScaleIn",
        "NotificationConfigurations",
        "Tags",
        "TerminationPolicies",
        "VPCZoneIdentifier",
    }
)
_WARM_POOL = frozenset(
    {
        "AutoScalingGroupName",
        "InstanceReusePolicy",
        "MaxGroupPreparedCapacity",
        "MinSize",
        "PoolState",
    }
)
_GONE_SECONDS = 150.0


def _policy(resource: Resource, attribute: str) -> dict[str, Any]:
    """Return `CreationPolicy` or `UpdatePolicy` of a resource, resolved."""
    stack = cloudformation._stacks[resource.stack]
    template = provisioners._cfn_wait_condition_definition(resource.stack, resource.logical_id)
    resolved: dict[str, Any] = engine._resolve_refs(
        copy.deepcopy(template.get(attribute, {})),
        stack.get("_resources", {}),
        stack.get("_resolved_params", {}),
        stack.get("_conditions", {}),
        engine._parse_template(stack["_template_body"]).get("Mappings", {}),
        resource.stack,
        stack["StackId"],
    )
    return resolved


class Groups:
    """Makes, changes and deletes Auto Scaling groups with their machines."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def create(self, aws: Aws, resource: Resource) -> Made:
        """Make a group, and wait for the signals that its `CreationPolicy` wants."""
        policy = _policy(resource, "CreationPolicy")
        signal = policy.get("ResourceSignal")
        percent = policy.get("AutoScalingCreationPolicy", {}).get(
            "MinSuccessfulInstancesPercent", 100
        )
        with self._signals(resource) as signals:
            name, attributes = provisioners._asg_create(
                resource.logical_id, dict(resource.properties), resource.stack
            )
            _complete(aws, name, resource.properties)
            if signal:
                try:
                    signals.wait(
                        count=int(signal.get("Count", 1)),
                        percent=int(percent),
                        seconds=seconds(signal.get("Timeout", "PT5M"), resource.logical_id),
                        given_up=lambda: self._given_up(aws, name),
                    )
                except SignalError:
                    self.delete(aws, name, resource.properties)
                    raise
        return Made(name, attributes)

    def update(self, aws: Aws, name: str, resource: Resource) -> Made:
        """Change a group in place, and roll its instances if its `UpdatePolicy` says so."""
        record = records._asgs[name]
        before = copy.deepcopy(record)
        policy = _policy(resource, "UpdatePolicy")
        attributes = self._apply(aws, name, resource, policy)
        if "AutoScalingReplacingUpdate" in policy:
            raise ValueError(f"{GROUP}: AutoScalingReplacingUpdate is not played here")
        rolling = policy.get("AutoScalingRollingUpdate")
        if rolling is None or record["LaunchTemplate"] == before["LaunchTemplate"]:
            return Made(name, attributes)
        try:
            self._roll(aws, name, resource, rolling)
        except SignalError:
            record.update(before)
            self._replace(aws, name, batch=max(1, record["MaxSize"]))
            raise
        return Made(name, attributes)

    def delete(self, aws: Aws, name: str, properties: Properties) -> None:
        """Delete a group, and wait until its machines are off."""
        provisioners._asg_delete(name, properties)
        deadline = time.monotonic() + _GONE_SECONDS
        while self._group(aws, name) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the machines of {name} are still running")
            time.sleep(0.1)

    def _signals(self, resource: Resource) -> Signals:
        return Signals(
            stack_id=cloudformation._stacks[resource.stack]["StackId"],
            stack=resource.stack,
            logical_id=resource.logical_id,
            kind=GROUP,
            explain=self._explain,
        )

    def _explain(self, instance_id: str) -> str | None:
        member = self._runner.member(instance_id)
        # What it was replaced for, if it was: it may have said more when it went.
        return (member.failure or member.machine.reason()) if member else None

    def _group(self, aws: Aws, name: str) -> Group | None:
        return self._runner.group(aws.account, aws.region, name)

    def _given_up(self, aws: Aws, name: str) -> str | None:
        group = self._group(aws, name)
        return group.reason if group and group.given_up else None

    def _apply(self, aws: Aws, name: str, resource: Resource, policy: dict[str, Any]) -> Attributes:
        """Write the new properties; sizes that the template does not change stay as they are."""
        record = records._asgs[name]
        old, new = resource.before, dict(resource.properties)
        scheduled = policy.get("AutoScalingScheduledAction", {})
        if str(scheduled.get("IgnoreUnmodifiedGroupSizeProperties")).lower() == "true":
            new |= {k: record[k] for k in _SIZES if k in new and new[k] == old.get(k)}
        if "DesiredCapacity" not in new:
            least, most = int(new["MinSize"]), int(new["MaxSize"])
            new["DesiredCapacity"] = min(max(record["DesiredCapacity"], least), most)
        _, attributes = provisioners._asg_update(
            name, old, new, resource.stack, resource.logical_id
        )
        _complete(aws, name, resource.properties)
        return dict(attributes)

    def _roll(self, aws: Aws, name: str, resource: Resource, rolling: dict[str, Any]) -> None:
        batch = int(rolling.get("MaxBatchSize", 1))
        with self._signals(resource) as signals:
            replacement = self._replace(aws, name, batch=batch)
            while replacement.status == "Pending":
                time.sleep(0.05)
            wants_signals = (
                str(rolling.get("WaitOnResourceSignals", False)).lower() == "true"
                # Nobody may signal a stack that rolls back.
                and "ROLLBACK" not in cloudformation._stacks[resource.stack]["StackStatus"]
            )
            pause = seconds(rolling["PauseTime"], resource.logical_id) if wants_signals else 300.0
            # A group that grows from nothing replaces none, but those that come have to work too.
            count = replacement.total or records._asgs[name]["DesiredCapacity"]
            signals.wait(
                count=count if wants_signals else 0,
                percent=int(rolling.get("MinSuccessfulInstancesPercent", 100)),
                seconds=pause * max(1, -(-count // batch)),
                also=lambda: replacement.status == "Successful",
                given_up=lambda: replacement.reason if replacement.over else None,
            )

    def _replace(self, aws: Aws, name: str, *, batch: int) -> Replacement:
        group = self._group(aws, name)
        while group is None:  # the runner has not seen it yet
            time.sleep(0.1)
            group = self._group(aws, name)
        if group.replacement:
            group.replacement.end("Cancelled", "the stack was updated")
        version = records._asgs[name]["LaunchTemplate"]["Version"]
        replacement = Replacement(batch=batch, version=version)
        group.replacements = [replacement, *group.replacements]
        return replacement


def _complete(aws: Aws, name: str, properties: Properties) -> None:
    """Add to a record what the control plane leaves out."""
    record = records._asgs[name]
    for kept in _KEPT:
        record[kept] = properties.get(kept)
    subnets = aws.client("ec2").describe_subnets(SubnetIds=properties["VPCZoneIdentifier"])
    zones = {subnet["AvailabilityZone"] for subnet in subnets["Subnets"]}
    record["AvailabilityZones"] = sorted(zones)
    record["EnabledMetrics"] = [
        {"Metric": metric, "Granularity": collection["Granularity"]}
        for collection in properties.get("MetricsCollection", [])
        for metric in collection.get("Metrics", ["All"])
    ]
    record["Notifications"] = [
        {"TopicARN": told["TopicARN"], "NotificationType": event}
        for told in properties.get("NotificationConfigurations", [])
        for event in told["NotificationTypes"]
    ]
    for hook in properties.get("LifecycleHookSpecificationList", []):
        key = f"{name}/{hook['LifecycleHookName']}"
        records._hooks[key] = records._hook_record(name, hook["LifecycleHookName"], hook)


def _create_warm_pool(aws: Aws, resource: Resource) -> Made:
    aws.client("autoscaling").put_warm_pool(**_numbered(resource.properties))
    return Made(resource.properties["AutoScalingGroupName"], {})


def _numbered(properties: Properties) -> dict[str, Any]:
    sizes = {
        name: int(properties[name])
        for name in ("MinSize", "MaxGroupPreparedCapacity")
        if name in properties
    }
    return {**properties, **sizes}


def _update_warm_pool(aws: Aws, _: str, resource: Resource) -> Made:
    return _create_warm_pool(aws, resource)


def _delete_warm_pool(aws: Aws, _: str, properties: Properties) -> None:
    aws.client("autoscaling").delete_warm_pool(
        AutoScalingGroupName=properties["AutoScalingGroupName"]
    )


def fleet(runner: Runner) -> tuple[Type, ...]:
    """Return the types whose resources are played by a runner."""
    groups = Groups(runner)
    return (
        Type(GROUP, _PLAYED, groups.create, groups.delete, groups.update),
        Type(
            "AWS::AutoScaling::WarmPool",
            _WARM_POOL,
            _create_warm_pool,
            _delete_warm_pool,
            _update_warm_pool,
        ),
    )
