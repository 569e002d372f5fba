"""What can be known without credentials."""

import datetime
import re
from collections.abc import Iterator

from planner.catalogue import instances, offerings, regions
from planner.doctor.findings import Environment, Finding, Group
from planner.doctor.quotas import quotas
from planner.planning import Plan
from planner.pricing import Service

# Network interfaces that one machine with EFA takes addresses for, by HyperPod's orchestrator.
ADDRESSES = {"slurm": 32, "eks": 81}
# Tags that were there in November 2026. SageMaker's SDK is stale for Neuron, so this is the table.
IMAGES = frozenset(
    {
        "djl-inference:0.38.0-lmi29.0.0-cu130",
        "pytorch-inference-neuronx:2.9.0-neuronx-py312-sdk2.31.1-ubuntu24.04",
        "pytorch-inference-vllm-neuronx:0.16.0-neuronx-py312-sdk2.31.1-ubuntu24.04",
        "pytorch-training-neuronx:2.9.0-neuronx-py312-sdk2.30.0-ubuntu24.04",
        "pytorch-training:2.10.0-gpu-py313",
        "pytorch:2.14-cu133-amzn2023-sagemaker",
        "vllm:0.30.0-gpu-py312-cu130-ubuntu24.04-sagemaker",
    }
)
RUNTIME_WARNING = datetime.timedelta(days=180)
_SERVICES: dict[str, Service] = {
    "SageMaker HyperPod": "hyperpod",
    "SageMaker endpoint": "endpoint",
    "SageMaker training job": "training",
}


def groups_of(plan: Plan) -> tuple[Group, ...]:
    """Return the machines that a plan asks for."""
    return tuple(
        Group(
            service=_SERVICES.get(row.service, "ec2"),
            instance_type=row.instance_type,
            count=row.count,
            orchestrator="slurm" if row.service == "SageMaker HyperPod" else None,
        )
        for row in plan.placements
        if row.instance_type.removeprefix("ml.") in instances()
    )


def offline(
    env: Environment, plan: Plan | None = None, *, today: datetime.date | None = None
) -> list[Finding]:
    """Return what is wrong with an environment, and with a plan for it, without asking AWS."""
    day = today or datetime.datetime.now(datetime.UTC).date()
    groups = (*env.groups, *(groups_of(plan) if plan else ()))
    found = [*_places(env)]
    for group in groups:
        found += [*_accepted(group), *_sold(env, group), *_zones(env, group)]
    found += [*_addresses(env, groups), *_quotas(groups), *_images(env), *_runtimes(env, day)]
    if plan is not None:
        found += [*_plan(env, plan)]
    return list(dict.fromkeys(found))


def _places(env: Environment) -> Iterator[Finding]:
    if env.region not in regions():
        yield Finding(
            what=f"{env.name}: region {env.region} is in no price list",
            why="nothing in the catalogue is sold there",
            fix=f"config/{env.name}.yaml: region",
            incident="a deployment that fails on its first instance",
        )
    for zone in env.availability_zones:
        if not re.fullmatch(rf"{re.escape(env.region)}[a-z]", zone):
            yield Finding(
                what=f"{env.name}: zone {zone} is not in {env.region}",
                why="subnets cannot be made there",
                fix=f"config/{env.name}.yaml: availability_zones",
                incident="a network that rolls back after the rest was made",
            )


def _accepted(group: Group) -> Iterator[Finding]:
    if group.service == "ec2":
        return
    accepted = offerings()["services"][group.service]
    if group.instance not in accepted:
        also = [s for s, names in offerings()["services"].items() if group.instance in names]
        yield Finding(
            what=f"{group.service} does not accept {group.instance_type}",
            why="the service's API refuses it, which CloudFormation does not know",
            fix=f"choose one it accepts; {group.instance_type} is for {', '.join(also) or 'EC2'}",
            incident="Inf2 in a HyperPod group passes validation and fails in the stack",
        )


def _sold(env: Environment, group: Group) -> Iterator[Finding]:
    instance = instances().get(group.instance)
    if instance is None:
        yield Finding(
            what=f"{group.instance_type} is not in the catalogue",
            why="its memory, speed, price and quota are not known here",
            fix="choose a type of the map, or add its row to planner/catalogue/hardware.json",
            incident="a size that nobody checked",
            level="unknown",
        )
        return
    if instance.regions is None:
        yield Finding(
            what=f"no price list names the regions of {instance.name}",
            why="it is sold as a training plan or Capacity Block only",
            fix="search offerings in the region: `isomorph doctor --online`",
            incident="capacity that is in another region than the network",
            level="note",
        )
    elif env.region not in instance.regions:
        yield Finding(
            what=f"{instance.name} is not sold in {env.region}",
            why="launching it fails with Unsupported",
            fix=f"use {', '.join(sorted(instance.regions))}, or another type",
            incident="a cluster that waits for capacity that does not exist",
        )
    if instance.capacity == "plan" and group.plan_arn is None:
        yield Finding(
            what=f"{group.instance_type} is asked for without a training plan",
            why="it has no on-demand capacity",
            fix="buy a training plan, and set its ARN",
            incident="instance groups that stay at zero until the stack times out",
        )


def _zones(env: Environment, group: Group) -> Iterator[Finding]:
    subnets = {subnet.zone for subnet in env.subnets} or set(env.availability_zones)
    zones = {"group": group.zone, "training plan": group.plan_zone}
    for owner, zone in zones.items():
        if zone is not None and zone not in subnets:
            yield Finding(
                what=f"the {owner} of {group.instance_type} is in {zone}, "
                f"subnets are in {', '.join(sorted(subnets)) or 'no zone'}",
                why="capacity of one zone cannot be used from another",
                fix=f"add a subnet in {zone}, or choose capacity in a zone of the subnets",
                incident="a zone mismatch that shows 20 minutes into the deployment",
            )
    if None not in (group.zone, group.plan_zone) and group.zone != group.plan_zone:
        yield Finding(
            what=f"{group.instance_type} is placed in {group.zone}, its training plan is in "
            f"{group.plan_zone}",
            why="a plan's capacity is in one zone",
            fix=f"place the group in {group.plan_zone}",
            incident="a zone mismatch that shows 20 minutes into the deployment",
        )


def _addresses(env: Environment, groups: tuple[Group, ...]) -> Iterator[Finding]:
    if not env.subnets:
        return
    by_zone: dict[str, int] = {}
    for group in groups:
        instance = instances().get(group.instance)
        cards = instance is not None and instance.efa > 0 and group.orchestrator
        each = ADDRESSES[group.orchestrator] if cards and group.orchestrator else 1
        by_zone[group.zone or ""] = by_zone.get(group.zone or "", 0) + each * group.count
    for zone, needed in by_zone.items():
        free = sum(s.free_addresses for s in env.subnets if zone in ("", s.zone))
        if needed > free:
            where = zone or "all zones"
            yield Finding(
                what=f"subnets in {where} have {free} free addresses, the machines take {needed}",
                why="a machine with EFA takes 32 addresses under Slurm and 81 under EKS",
                fix="wider subnets, or fewer machines",
                incident="a cluster that creates some of its nodes and rolls back",
            )


def _quotas(groups: tuple[Group, ...]) -> Iterator[Finding]:
    for quota in quotas(groups):
        unit = "vCPUs" if quota.service_code == "ec2" else "instances"
        yield Finding(
            what=f"needs {quota.needed} {unit} of the quota '{quota.name}'",
            why="a new account's quota of accelerators is zero",
            fix=f"Service Quotas, {quota.service_code}: ask for at least {quota.needed}",
            incident="ResourceLimitExceeded in the middle of a deployment",
            level="note",
        )


def _images(env: Environment) -> Iterator[Finding]:
    for image in env.images:
        name = image.rsplit("/", 1)[-1]
        if name not in IMAGES:
            yield Finding(
                what=f"image {image} is not among the known tags",
                why="a tag that does not exist fails when the container starts",
                fix=f"known are {', '.join(sorted(IMAGES))}",
                incident="an endpoint that never becomes healthy",
                level="unknown",
            )


def _runtimes(env: Environment, today: datetime.date) -> Iterator[Finding]:
    ends = offerings()["lambda_runtimes"]
    for runtime in env.runtimes:
        if runtime not in ends:
            yield Finding(
                what=f"Lambda has no runtime {runtime}",
                why="CreateFunction refuses it",
                fix="python3.13 or a container image",
                incident="a stack that rolls back on its function",
            )
            continue
        end = datetime.date.fromisoformat(ends[runtime])
        if end - today < RUNTIME_WARNING:
            over = end <= today
            yield Finding(
                what=f"runtime {runtime} {'ended' if over else 'ends'} on {end}",
                why="functions on it get no security updates, later no deployments",
                fix="a newer Python, or a container image",
                incident="templates that stop deploying without a change",
                level="problem" if over else "note",
            )


def _plan(env: Environment, plan: Plan) -> Iterator[Finding]:
    if plan.region != env.region:
        yield Finding(
            what=f"the plan is for {plan.region}, {env.name} is in {env.region}",
            why="what is sold, and its price, differ by region",
            fix=f"isomorph plan ... --region {env.region}",
            incident="a size for machines that are not there",
        )
    for refusal in plan.refusals:
        yield Finding(
            what=f"{refusal.slug}: {refusal.service} cannot take it: {refusal.reason}",
            why="it does not fit, or is not sold",
            fix=refusal.remedy,
            incident="a server that dies when it loads the weights",
            level="note",
        )
    for warning in plan.warnings:
        yield Finding(
            what=warning,
            why="prices change",
            fix="isomorph prices refresh",
            incident="a bill that the plan did not show",
            level="note",
        )
