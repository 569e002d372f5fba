"""Auto Scaling's API where the control plane only records: instances, hooks, refreshes, warm pools.

Each function here answers one action of the query API. What changes a machine is only noted; the
runner's thread acts on it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import autoscaling as records

from local_aws.machines.group import Group, Replacement
from local_aws.machines.member import Action, Member
from local_aws.machines.runner import Runner, Scope

Response = tuple[int, dict[str, str], bytes]
_Answer = Callable[[Mapping[str, Any]], Response]
_GROUP_FIELDS = (
    "AutoScalingGroupName",
    "AutoScalingGroupARN",
    "LaunchTemplate",
    "MinSize",
    "MaxSize",
    "DesiredCapacity",
    "DefaultCooldown",
    "AvailabilityZones",
    "TargetGroupARNs",
    "HealthCheckType",
    "HealthCheckGracePeriod",
    "CreatedTime",
    "VPCZoneIdentifier",
    "EnabledMetrics",
    "Tags",
    "TerminationPolicies",
    "NewInstancesProtectedFromScaleIn",
    "ServiceLinkedRoleARN",
    "MaxInstanceLifetime",
    "CapacityRebalance",
    "DefaultInstanceWarmup",
    "WarmPoolConfiguration",
)


def scopes() -> dict[Scope, str]:
    """Return the accounts and regions that have groups, each with all that is recorded of them."""
    found: dict[Scope, str] = {}
    for (account, region, _), record in records._asgs.all_items():
        found[account, region] = found.get((account, region), "") + repr(record)
    return found


def _ok(action: str, result: Mapping[str, Any] | None = None) -> Response:
    inner = f"<{action}Result>{records._member_xml(result or {})}</{action}Result>"
    answer: Response = records._xml(200, f"{action}Response", inner)
    return answer


def _refuse(message: str, code: str = "ValidationError") -> Response:
    answer: Response = records._error(code, message)
    return answer


def _instance(member: Member, group: str | None = None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "InstanceId": member.instance_id,
        "InstanceType": member.facts["instance-type"],
        "AvailabilityZone": member.zone,
        "LifecycleState": member.phase,
        "HealthStatus": "Unhealthy" if member.failure else "Healthy",
        "LaunchTemplate": member.template,
        "ProtectedFromScaleIn": False,
    }
    if group is None:
        return described
    # The same two states have other spellings in DescribeAutoScalingInstances.
    return {
        **described,
        "AutoScalingGroupName": group,
        "HealthStatus": described["HealthStatus"].upper(),
    }


class AutoScalingApi:
    """The actions that need the runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def install(self) -> None:
        """Put these actions in the place of the control plane's own."""
        # The runner makes instances; the control plane must not invent any.
        records._reconcile_instances = lambda group: None
        set_desired = records._ACTION_MAP["SetDesiredCapacity"]
        delete_hook = records._ACTION_MAP["DeleteLifecycleHook"]
        actions: dict[str, _Answer] = {
            "DescribeAutoScalingGroups": self._describe_groups,
            "DescribeAutoScalingInstances": self._describe_instances,
            "DescribeScalingActivities": self._describe_activities,
            "SetDesiredCapacity": lambda query: self._set_desired(query, set_desired),
            "CompleteLifecycleAction": self._complete,
            "DeleteLifecycleHook": lambda query: self._delete_hook(query, delete_hook),
            "RecordLifecycleActionHeartbeat": self._heartbeat,
            "StartInstanceRefresh": self._start_refresh,
            "CancelInstanceRefresh": self._cancel_refresh,
            "DescribeInstanceRefreshes": self._describe_refreshes,
            "DescribeNotificationConfigurations": _describe_notifications,
            "PutWarmPool": _put_warm_pool,
            "DescribeWarmPool": _describe_warm_pool,
            "DeleteWarmPool": _delete_warm_pool,
        }
        records._ACTION_MAP.update(actions)

    def _group(self, name: str) -> Group | None:
        return self._runner.group(get_account_id(), get_region(), name)

    def _describe_groups(self, query: Mapping[str, Any]) -> Response:
        names = records._parse_member_list(query, "AutoScalingGroupNames")
        found = []
        for name, record in records._asgs.items():
            if names and name not in names:
                continue
            group = self._group(name)
            members = list(group.members) if group else []
            described = {key: record[key] for key in _GROUP_FIELDS if record.get(key) is not None}
            found.append({**described, "Instances": [_instance(member) for member in members]})
        return _ok("DescribeAutoScalingGroups", {"AutoScalingGroups": found})

    def _describe_instances(self, query: Mapping[str, Any]) -> Response:
        wanted = records._parse_member_list(query, "InstanceIds")
        found = [
            _instance(member, name)
            for (account, region, name), group in self._runner.groups()
            if (account, region) == (get_account_id(), get_region())
            for member in list(group.members)
            if not wanted or member.instance_id in wanted
        ]
        return _ok("DescribeAutoScalingInstances", {"AutoScalingInstances": found})

    def _describe_activities(self, query: Mapping[str, Any]) -> Response:
        group = self._group(records._p(query, "AutoScalingGroupName"))
        return _ok(
            "DescribeScalingActivities", {"Activities": list(group.activities) if group else []}
        )

    def _set_desired(self, query: Mapping[str, Any], proceed: _Answer) -> Response:
        record = records._asgs.get(records._p(query, "AutoScalingGroupName"))
        value = records._p(query, "DesiredCapacity")
        if record and value.isdigit():
            for limit, side, beyond in (
                ("MaxSize", "above max", int(value) > record["MaxSize"]),
                ("MinSize", "below min", int(value) < record["MinSize"]),
            ):
                if beyond:
                    return _refuse(
                        f"New SetDesiredCapacity value {value} is {side} value {record[limit]} "
                        "for the AutoScalingGroup."
                    )
        return proceed(query)

    def _action(self, query: Mapping[str, Any]) -> Action | None:
        group = self._group(records._p(query, "AutoScalingGroupName"))
        hook = records._p(query, "LifecycleHookName")
        wanted = records._p(query, "InstanceId") or records._p(query, "LifecycleActionToken")
        for member in list(group.members) if group else []:
            if member.instance_id == wanted and hook in member.actions:
                return member.actions[hook]
        return None

    def _complete(self, query: Mapping[str, Any]) -> Response:
        action = self._action(query)
        result = records._p(query, "LifecycleActionResult")
        if action is None:
            return self._no_action(query)
        if result not in ("CONTINUE", "ABANDON"):
            return _refuse("LifecycleActionResult must be CONTINUE or ABANDON")
        action.result = result
        return _ok("CompleteLifecycleAction")

    def _delete_hook(self, query: Mapping[str, Any], proceed: _Answer) -> Response:
        group = self._group(records._p(query, "AutoScalingGroupName"))
        for member in list(group.members) if group else []:
            member.forget_hook(records._p(query, "LifecycleHookName"))
        return proceed(query)

    def _heartbeat(self, query: Mapping[str, Any]) -> Response:
        action = self._action(query)
        if action is None:
            return self._no_action(query)
        action.heartbeat()
        return _ok("RecordLifecycleActionHeartbeat")

    def _no_action(self, query: Mapping[str, Any]) -> Response:
        instance = records._p(query, "InstanceId")
        return _refuse(f"No active Lifecycle Action found with instance ID {instance}")

    def _start_refresh(self, query: Mapping[str, Any]) -> Response:
        name = records._p(query, "AutoScalingGroupName")
        group = self._group(name)
        if group is None:
            return _refuse(f"AutoScalingGroup name not found - no such group: {name}")
        if group.replacement:
            return _refuse(
                "An Instance Refresh is already in progress and blocks the execution of this "
                "Instance Refresh.",
                "InstanceRefreshInProgress",
            )
        replacement = Replacement()
        group.replacements = [replacement, *group.replacements]
        return _ok("StartInstanceRefresh", {"InstanceRefreshId": replacement.replacement_id})

    def _cancel_refresh(self, query: Mapping[str, Any]) -> Response:
        name = records._p(query, "AutoScalingGroupName")
        group = self._group(name)
        replacement = group.replacement if group else None
        if replacement is None:
            return _refuse(
                f"No active instance refresh found for the group {name}",
                "ActiveInstanceRefreshNotFound",
            )
        replacement.end("Cancelled", "Cancelled by a user")
        return _ok("CancelInstanceRefresh", {"InstanceRefreshId": replacement.replacement_id})

    def _describe_refreshes(self, query: Mapping[str, Any]) -> Response:
        name = records._p(query, "AutoScalingGroupName")
        wanted = records._parse_member_list(query, "InstanceRefreshIds")
        group = self._group(name)
        found = []
        for one in list(group.replacements) if group else []:
            if wanted and one.replacement_id not in wanted:
                continue
            done = one.total - len(one.remaining)
            described = {
                "InstanceRefreshId": one.replacement_id,
                "AutoScalingGroupName": name,
                "Status": one.status,
                "StatusReason": one.reason,
                "StartTime": one.started,
                "EndTime": one.ended,
                "PercentageComplete": 100 * done // one.total if one.total else 0,
                "InstancesToUpdate": len(one.remaining),
            }
            if one.status == "Successful":
                described["PercentageComplete"] = 100
            found.append({key: value for key, value in described.items() if value != ""})
        return _ok("DescribeInstanceRefreshes", {"InstanceRefreshes": found})


def _describe_notifications(query: Mapping[str, Any]) -> Response:
    names = records._parse_member_list(query, "AutoScalingGroupNames")
    found = [
        {"AutoScalingGroupName": name, **notification}
        for name, record in records._asgs.items()
        if not names or name in names
        for notification in record.get("Notifications", [])
    ]
    return _ok("DescribeNotificationConfigurations", {"NotificationConfigurations": found})


def _put_warm_pool(query: Mapping[str, Any]) -> Response:
    record = records._asgs.get(records._p(query, "AutoScalingGroupName"))
    if record is None:
        return _refuse("AutoScalingGroup name not found")
    pool: dict[str, Any] = {
        name: int(records._p(query, name))
        for name in ("MinSize", "MaxGroupPreparedCapacity")
        if records._p(query, name) != ""
    }
    pool["PoolState"] = records._p(query, "PoolState") or "Stopped"
    if policy := records._parse_nested(query, "InstanceReusePolicy"):
        pool["InstanceReusePolicy"] = policy
    record["WarmPoolConfiguration"] = pool
    return _ok("PutWarmPool")


def _describe_warm_pool(query: Mapping[str, Any]) -> Response:
    record = records._asgs.get(records._p(query, "AutoScalingGroupName"), {})
    pool = record.get("WarmPoolConfiguration")
    # The pool is kept, its instances are not played: a local machine is quick to boot.
    described = {"WarmPoolConfiguration": pool} if pool else {}
    return _ok("DescribeWarmPool", {**described, "Instances": []})


def _delete_warm_pool(query: Mapping[str, Any]) -> Response:
    record = records._asgs.get(records._p(query, "AutoScalingGroupName"), {})
    record.pop("WarmPoolConfiguration", None)
    return _ok("DeleteWarmPool")
