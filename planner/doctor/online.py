"""What AWS must be asked: quotas, offerings, access and permissions. Reads only."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from planner.catalogue import instances
from planner.doctor.findings import Environment, Finding, Group
from planner.doctor.offline import groups_of
from planner.doctor.quotas import quotas
from planner.planning import Plan

PLAN_HOURS = 24  # the shortest training plan that offerings are searched for
_TARGETS = {"hyperpod": "hyperpod-cluster", "endpoint": "endpoint", "training": "training-job"}
_SIMULATED_AT_ONCE = 50


def online(env: Environment, clients: Mapping[str, Any], plan: Plan | None = None) -> list[Finding]:
    """Return what AWS says against an environment.

    Args:
        env: What would be deployed.
        clients: boto3 clients by service: service-quotas, ec2, sagemaker, bedrock, iam. What
            has no client is not checked, and a finding says so.
        plan: Its machines are checked too.
    """
    groups = (*env.groups, *(groups_of(plan) if plan else ()))
    checks: tuple[tuple[str, bool, Callable[[Any], Iterator[Finding]]], ...] = (
        ("service-quotas", bool(groups), lambda client: _quotas(client, groups)),
        ("ec2", bool(groups), lambda client: _offered(client, env, groups)),
        ("sagemaker", _wants_plan(groups), lambda client: _plans(client, groups)),
        ("bedrock", bool(env.models), lambda client: _models(client, env)),
        ("iam", bool(env.role_arn and env.actions), lambda client: _permissions(client, env)),
    )
    found: list[Finding] = []
    for service, needed, check in checks:
        if not needed:
            continue
        if service not in clients:
            found.append(_unchecked(service, "no client for it was given"))
            continue
        try:
            found += check(clients[service])
        except Exception as error:
            # Any refusal of AWS or of the network is a finding, not the end of the other checks.
            if not type(error).__module__.startswith("botocore"):
                raise
            found.append(_unchecked(service, str(error).splitlines()[0]))
    return found


def _unchecked(service: str, why: str) -> Finding:
    return Finding(
        what=f"{service} was not checked",
        why=why,
        fix="credentials that may read it",
        incident="a deployment that finds out by itself",
        level="unknown",
    )


def _quotas(client: Any, groups: tuple[Group, ...]) -> Iterator[Finding]:
    needed = quotas(groups)
    for code in sorted({quota.service_code for quota in needed}):
        values = {
            row["QuotaName"]: row["Value"]
            for page in client.get_paginator("list_service_quotas").paginate(ServiceCode=code)
            for row in page["Quotas"]
        }
        for quota in needed:
            if quota.service_code != code:
                continue
            value = values.get(quota.name, 0.0)
            if value < quota.needed:
                yield Finding(
                    what=f"quota '{quota.name}' is {value:g}, {quota.needed} is needed",
                    why="the deployment stops with ResourceLimitExceeded",
                    fix=f"Service Quotas, {code}: ask for at least {quota.needed}",
                    incident="a zero quota that shows in the middle of a deployment",
                )


def _offered(client: Any, env: Environment, groups: tuple[Group, ...]) -> Iterator[Finding]:
    names = sorted({g.instance for g in groups if g.instance in instances()})
    names = [name for name in names if instances()[name].members is None]
    if not names:
        return
    pages = client.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": names}]
    )
    offered: dict[str, set[str]] = {}
    for page in pages:
        for row in page["InstanceTypeOfferings"]:
            offered.setdefault(row["InstanceType"], set()).add(row["Location"])
    for name in names:
        zones = offered.get(name, set())
        if not zones & set(env.availability_zones):
            yield Finding(
                what=f"{name} is offered in {', '.join(sorted(zones)) or 'no zone'} of "
                f"{env.region}, {env.name} uses {', '.join(env.availability_zones)}",
                why="launching it fails with Unsupported",
                fix=f"config/{env.name}.yaml: availability_zones, or another type",
                incident="a zone mismatch that shows 20 minutes into the deployment",
            )


def _wants_plan(groups: tuple[Group, ...]) -> bool:
    return any(_bought(group) for group in groups)


def _bought(group: Group) -> bool:
    instance = instances().get(group.instance)
    return instance is not None and instance.capacity == "plan" and group.service in _TARGETS


def _plans(client: Any, groups: tuple[Group, ...]) -> Iterator[Finding]:
    for group in groups:
        if not _bought(group):
            continue
        answer = client.search_training_plan_offerings(
            InstanceType=f"ml.{group.instance}",
            InstanceCount=group.count,
            DurationHours=PLAN_HOURS,
            TargetResources=[_TARGETS[group.service]],
        )
        offers = answer.get("TrainingPlanOfferings", [])
        zones = sorted(
            {
                capacity["AvailabilityZone"]
                for offer in offers
                for capacity in offer.get("ReservedCapacityOfferings", [])
                if "AvailabilityZone" in capacity
            }
        )
        what = f"{group.count} x ml.{group.instance} for {_TARGETS[group.service]}"
        if offers:
            prices = sorted(float(offer["UpfrontFee"]) for offer in offers if "UpfrontFee" in offer)
            fee = f" from {prices[0]:g} USD" if prices else ""
            yield Finding(
                what=f"training plans of {PLAN_HOURS} h are offered for {what}{fee}",
                why=f"in {', '.join(zones) or 'a zone that is not told'}: subnet and group too",
                fix="buy one, and set its ARN",
                incident="a plan for one target that does not serve another",
                level="note",
            )
        else:
            yield Finding(
                what=f"no training plan of {PLAN_HOURS} h is offered for {what}",
                why="there is no other capacity of this type",
                fix="another start, length, count or type",
                incident="instance groups that stay at zero until the stack times out",
            )


def _models(client: Any, env: Environment) -> Iterator[Finding]:
    for model in env.models:
        answer = client.get_foundation_model_availability(modelId=model)
        missing = [
            word
            for word, key, good in (
                ("not authorized", "authorizationStatus", "AUTHORIZED"),
                ("no entitlement", "entitlementAvailability", "AVAILABLE"),
                ("not in this region", "regionAvailability", "AVAILABLE"),
            )
            if answer.get(key) != good
        ]
        if missing:
            yield Finding(
                what=f"Bedrock model {model}: {', '.join(missing)}",
                why="calls fail with AccessDeniedException",
                fix="Bedrock console, model access, in this region",
                incident="a router or a distillation that fails on its first call",
            )


def _permissions(client: Any, env: Environment) -> Iterator[Finding]:
    denied = []
    for start in range(0, len(env.actions), _SIMULATED_AT_ONCE):
        pages = client.get_paginator("simulate_principal_policy").paginate(
            PolicySourceArn=env.role_arn,
            ActionNames=list(env.actions[start : start + _SIMULATED_AT_ONCE]),
        )
        denied += [
            row["EvalActionName"]
            for page in pages
            for row in page["EvaluationResults"]
            if row["EvalDecision"] != "allowed"
        ]
    if denied:
        yield Finding(
            what=f"{env.role_arn} may not {', '.join(denied)}",
            why="the deployment stops with AccessDenied",
            fix="add the actions to that role",
            incident="a stack that rolls back for one missing action",
        )
