"""What AWS would refuse, or a run could not use, in the settings of a training cluster."""

import ipaddress
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from config import EnvironmentConfig
from constructs_lib.bounds import PRIVATE_MASK
from planner import Load, PlanError, resolve
from planner.catalogue import offerings
from planner.training import TrainingFit, fit_training
from stacks.moe_training_groups import GroupSettings
from stacks.moe_training_parts import ROLE_PATTERN, TEAM_PATTERN
from stacks.wheelhouse import HOST

if TYPE_CHECKING:
    from stacks.moe_training_settings import MoeTrainingSettings

Conflicts = Iterator[tuple[str, str]]

# Addresses of a node in its subnet. Of P5 nodes as HyperPod's documentation has them: one for each
# of 32 network cards on Slurm, and 49 more for pods on EKS:
# docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-hyperpod-prerequisites.html. EFA-only interfaces
# take none: docs.aws.amazon.com/AWSEC2/latest/UserGuide/create-efa.html.
EFA_ADDRESSES = {"slurm": 32, "eks": 81}
ADDRESSES = {"slurm": 1, "eks": 50}
# Of a subnet: five that AWS keeps, and room for endpoints, file servers and other stacks' nodes.
KEPT = 5 + 250


def conflicts(
    settings: "MoeTrainingSettings", environment: EnvironmentConfig, model: str
) -> Conflicts:
    """Yield (key, what is wrong) where AWS or the trainer would refuse the settings."""
    yield from _orchestrator(settings)
    if settings.accounting and "mla" in environment.innovations:
        yield (
            "accounting",
            "got with mla on: HyperPod reads the database's login through an endpoint of Secrets "
            "Manager, and a VPC has one with private names, mla's: leave one of the two out",
        )
    yield from _zones(settings, environment)
    for name, group in settings.groups.items():
        found = (*_group(settings, group, environment), *_capacity(settings, group))
        for key, text in found:
            yield f"groups.{name}.{key}", text
    yield from _addresses(settings, environment)
    yield from _experts(settings, model)
    yield from _principals(settings)
    if settings.python == HOST and environment.aws != "embedded":
        yield "python", "got 'host', which is only for aws: embedded; allowed here: '3.11', '3.12'"


def _orchestrator(settings: "MoeTrainingSettings") -> Conflicts:
    roles = [group.role for group in settings.groups.values()]
    if settings.orchestrator == "eks":
        yield from _eks(settings)
        return
    if roles.count("controller") != 1:
        yield (
            "groups",
            f"{roles.count('controller')} groups have the role controller; Slurm takes one",
        )
    for key in ("governance", "eks", "checkpoint_memory_percent"):
        if getattr(settings, key) is not None:
            yield key, f"got with orchestrator 'slurm'; {_ONLY_EKS[key]}: orchestrator: eks"
    if settings.accounting and not settings.continuous:
        yield "accounting", "a database of its own takes `continuous: true`, or leave it out"


_ONLY_EKS = {
    "governance": "HyperPod has quotas and priorities for EKS alone",
    "eks": "it is for EKS alone",
    "checkpoint_memory_percent": "HyperPod keeps checkpoints in memory on EKS alone",
}


def _eks(settings: "MoeTrainingSettings") -> Conflicts:
    if settings.eks is None:
        yield "eks", "missing; add it with admins, the ARNs of IAM roles that may do everything"
    if settings.accounting is not None:
        yield "accounting", "got with orchestrator 'eks'; it is Slurm's: leave it out"
    for name, group in settings.groups.items():
        if group.role in ("controller", "login"):
            yield (
                f"groups.{name}.role",
                f"got {group.role!r} with orchestrator 'eks', which has its own control plane; "
                f"allowed: workers, data",
            )
    if settings.governance:
        own = sum(team.nodes for team in settings.governance.teams.values())
        first = next(iter(settings.workers.values()))
        if own > first.count:
            yield (
                "governance.teams",
                f"the teams have {own} nodes of {first.instance_type} together; there are "
                f"{first.count}",
            )


def _zones(settings: "MoeTrainingSettings", environment: EnvironmentConfig) -> Conflicts:
    zones = environment.availability_zones
    if settings.zone is not None and settings.zone not in zones:
        yield "zone", f"got {settings.zone!r}; allowed: {', '.join(zones)}"
    for name, group in settings.groups.items():
        if group.zone is not None and group.zone not in zones:
            yield f"groups.{name}.zone", f"got {group.zone!r}; allowed: {', '.join(zones)}"


def _group(
    settings: "MoeTrainingSettings", group: GroupSettings, environment: EnvironmentConfig
) -> Conflicts:
    plan, machine, kind = group.plan, group.machine, group.instance_type
    accelerated = group.devices > 1 or (machine is not None and machine.runtime != "cpu")
    if machine is None and group.role == "workers" and group.processes_per_node is None:
        yield (
            "processes_per_node",
            f"missing; the catalogue has no {kind}, so say how many ranks a node has",
        )
    if group.deep_health_checks and machine is not None and not accelerated:
        yield "deep_health_checks", f"got with {kind}; they test accelerators, and it has none"
    if group.labels and settings.orchestrator == "slurm":
        yield "labels", "got with orchestrator 'slurm'; nodes have labels in Kubernetes alone"
    if group.partition and settings.orchestrator == "eks":
        yield "partition", "got with orchestrator 'eks'; partitions are Slurm's"
    if plan is None:
        if machine is not None and machine.capacity == "plan":
            yield (
                "plan",
                f"missing; {kind} is sold as a training plan alone: add plan: {{arn, zone}}",
            )
        return
    if machine is not None and "training_plan" not in machine.services:
        sold = [f"ml.{each}" for each in sorted(offerings()["services"]["training_plan"])]
        yield "plan", f"got one for {kind}; sold as training plans: {', '.join(sold)}"
    zone = settings.zone_of(group, environment.availability_zones)
    if plan.zone != zone:
        yield (
            "plan.zone",
            f"got {plan.zone!r}, and the group's nodes and subnet are in {zone!r}; both must be "
            f"the same: set the group's zone, or buy a plan for {zone}",
        )
    where = (environment.region, environment.account)
    if tuple(plan.arn.split(":")[3:5]) != where:
        yield "plan.arn", f"got {plan.arn!r}; must be of {where[0]} and account {where[1]}"


def _capacity(settings: "MoeTrainingSettings", group: GroupSettings) -> Conflicts:
    """Yield ways of buying and of attaching nodes that exclude each other."""
    if group.capacity and group.plan:
        yield (
            "capacity",
            f"got {group.capacity!r} and a plan, which is a third way of buying nodes: leave one "
            f"of the two out",
        )
    elif group.capacity == "spot" and group.role in ("controller", "login"):
        yield (
            "capacity",
            f"got 'spot' with role {group.role!r}, without whose node nobody can work; allowed: "
            f"on_demand",
        )
    elif group.capacity == "spot" and not settings.continuous:
        yield (
            "capacity",
            "got 'spot', which HyperPod has with continuous provisioning alone: add `continuous: "
            "true` to training, or leave capacity out",
        )
    if group.interface and group.machine is not None and not group.machine.efa:
        yield "interface", f"got with {group.instance_type}, which has no EFA card: leave it out"


def _addresses(settings: "MoeTrainingSettings", environment: EnvironmentConfig) -> Conflicts:
    """Compare what the nodes of each zone take with what its subnet has."""
    mask = PRIVATE_MASK
    free = ipaddress.ip_network(f"10.0.0.0/{mask}").num_addresses - KEPT
    needed: dict[str, int] = {}
    with_cards: set[str] = set()
    for group in settings.groups.values():
        efa = group.machine is not None and group.machine.efa > 0
        cards = efa and group.interface != "efa-only"
        each = (EFA_ADDRESSES if cards else ADDRESSES)[settings.orchestrator]
        zone = settings.zone_of(group, environment.availability_zones)
        needed[zone] = needed.get(zone, 0) + group.count * each
        with_cards |= {zone} if cards else set()
    for zone, addresses in needed.items():
        if addresses > free:
            saving = ", or interface: efa-only" if zone in with_cards else ""
            yield (
                "groups",
                f"nodes in {zone} take {addresses:,} addresses with orchestrator "
                f"{settings.orchestrator!r}; its private subnet, a /{mask}, has {free:,} for them: "
                f"fewer nodes, or some in another zone{saving}",
            )


def _experts(settings: "MoeTrainingSettings", model: str) -> Conflicts:
    """Compare the ranks of each group of workers with the experts that they share."""
    try:
        experts = _experts_of(settings.architecture or model)
    except PlanError as error:
        yield "architecture", str(error)
        return
    for name, group in settings.workers.items():
        ranks = group.count * group.ranks
        parallel = settings.expert_parallel or ranks
        if experts % parallel:
            fits = [str(n) for n in range(1, experts + 1) if experts % n == 0]
            yield (
                f"groups.{name}.count" if settings.expert_parallel is None else "expert_parallel",
                f"{group.count} nodes with {group.ranks} ranks each: {parallel} ranks cannot share "
                f"{experts} experts evenly; allowed: {', '.join(fits)}",
            )
        elif ranks % parallel:
            yield (
                "expert_parallel",
                f"got {parallel}, which does not divide the {ranks} ranks of {name}",
            )


def _experts_of(name: str) -> int:
    model = resolve(name)
    experts = max(layer.feed_forward.experts for layer in model.kinds)
    if not experts:
        raise PlanError(f"{name} has no experts: it is no mixture of experts")
    return experts


def _principals(settings: "MoeTrainingSettings") -> Conflicts:
    eks = settings.eks
    given = {"eks.admins": eks.admins, "eks.members": eks.members} if eks else {}
    teams = settings.governance.teams if settings.governance else {}
    for team, its in teams.items():
        given[f"governance.teams.{team}.members"] = its.members
        if not re.fullmatch(TEAM_PATTERN, team):
            yield (
                "governance.teams",
                f"got {team!r} as a team's name; allowed: up to 40 small letters, digits, hyphens",
            )
    for key, arns in given.items():
        for arn in arns:
            if not re.fullmatch(ROLE_PATTERN, arn):
                yield key, f"got {arn!r}; must be the ARN of an IAM role"


def remarks(settings: "MoeTrainingSettings", model: str) -> Iterator[str]:
    """Yield where AWS may refuse the settings, or the planner sees too few nodes for the model."""
    for name, group in settings.groups.items():
        if group.capacity == "spot" and settings.orchestrator == "slurm":
            yield (
                f"groups.{name}: HyperPod documents Spot for EKS alone; with Slurm it may refuse "
                f"the group, and the cluster with it"
            )
    try:
        architecture = resolve(settings.architecture or model)
    except PlanError:
        return
    for name, group in settings.workers.items():
        if group.machine is None:
            continue
        fit = fit_training(architecture, Load().of(architecture), group.machine)
        if isinstance(fit, TrainingFit) and fit.memory_nodes > group.count:
            yield (
                f"groups.{name}: {architecture.name} takes {fit.memory_nodes} nodes of "
                f"{group.instance_type} to hold weights, gradients and optimizer; got {group.count}"
            )
