"""What is refused in moe.training, one line each, and what is only remarked on."""

from typing import Any

import pytest

from config import ConfigError, EnvironmentConfig, innovation_settings
from stacks.settings import SETTINGS
from tests.stacks.conftest import ENVIRONMENT, MLA, MOE_GROUPS
from tests.stacks.test_moe_training import ACCOUNTED, P5E, PLAN, changed
from tests.stacks.test_moe_training_eks import TEAM, governed, settings

P5 = {"role": "workers", "instance_type": "ml.p5.48xlarge"}
LOGIN = {"role": "login", "instance_type": "ml.r7i.large"}
V3 = {"architecture": "deepseek-v3"}
GOVERNANCE = {"teams": {"research": TEAM}}


def checked(training: dict[str, Any], **more: Any) -> Any:
    on = {"moe": {"model": "tiny-moe", "training": training}, **more.pop("innovations", {})}
    environment = EnvironmentConfig(**{**ENVIRONMENT, "innovations": on, **more})
    return innovation_settings(environment, SETTINGS)["moe"]


def refusal(training: dict[str, Any], **more: Any) -> str:
    given = training if "groups" in training else {"groups": MOE_GROUPS, **training}
    with pytest.raises(ConfigError) as caught:
        checked(given, **more)
    [line] = str(caught.value).splitlines()
    assert line.startswith("config/test.yaml: innovations.moe.training")
    return line.removeprefix("config/test.yaml: innovations.moe.training.")


def many(number: int, **more: Any) -> dict[str, Any]:
    workers = {f"group-{n}": {**P5, **more} for n in range(number)}
    return {"groups": {"controller": MOE_GROUPS["controller"], **workers}}


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (changed(instance_type="ml.inf2.48xlarge"),
         "groups.workers.instance_type: got 'ml.inf2.48xlarge', which HyperPod does not have; "
         "serve on it with moe.serving, and train on ml.trn2.48xlarge"),
        (changed(instance_type="ml.c7i.large"),
         "groups.workers.instance_type: got 'ml.c7i.large', which HyperPod does not have; ml.r7i "
         "and ml.m7i have the same cores"),
        (changed(instance_type="ml.p5e.24xlarge"),
         "which HyperPod does not have; allowed of its family: ml.p5e.48xlarge"),
        (changed(instance_type="p99"), "which HyperPod does not have; it has families c5, c5n, "),
        (changed(count=0), "groups.workers.count: got 0; a group has at least 1 node: leave the "),
        (changed(count=2, min_count=3),
         "groups.workers: got min_count 3; must be at most count, 2"),
        (changed(size=3), "groups.workers.size: unknown key; allowed: capacity, count, deep_"),
        (many(100), "groups: got 101 groups; a cluster has 1 to 100"),
        ({"groups": {}}, "groups: got 0 groups; a cluster has 1 to 100"),
        ({"groups": {**MOE_GROUPS, "a_b": LOGIN}}, "groups: got 'a_b' as a group's name; "),
        ({"groups": {"controller": MOE_GROUPS["controller"]}},
         "groups: none of controller has the role workers; one of them must train"),
        ({"groups": {"workers": MOE_GROUPS["workers"]}},
         "groups: 0 groups have the role controller; Slurm takes one"),
        ({"groups": {**MOE_GROUPS, "second": MOE_GROUPS["controller"]}},
         "groups: 2 groups have the role controller; Slurm takes one"),
        ({"zone": "us-east-1f"}, "zone: got 'us-east-1f'; allowed: us-east-1a, us-east-1b, us-"),
        (changed(zone="us-east-1f"), "groups.workers.zone: got 'us-east-1f'; allowed: us-east-1a"),
        (changed(**{**P5E, "plan": {"arn": PLAN, "zone": "us-east-1b"}}),
         "groups.workers.plan.zone: got 'us-east-1b', and the group's nodes and subnet are in "
         "'us-east-1a'; both must be the same: set the group's zone, or buy a plan for us-east-1a"),
        (changed(**{**P5E, "plan": {"arn": PLAN.replace("us-east-1", "us-west-2"),
                                    "zone": "us-east-1a"}}),
         "groups.workers.plan.arn: got 'arn:aws:sagemaker:us-west-2:111122223333:training-plan/"),
        (changed(plan={"arn": "arn:aws:ec2", "zone": "us-east-1a"}),
         "groups.workers.plan.arn: got 'arn:aws:ec2'; must match "),
        (changed(plan={"arn": PLAN, "zone": "us-east-1a"}),
         "groups.workers.plan: got one for ml.r7i.xlarge; sold as training plans: ml.p5.4"),
        (changed(**P5E, capacity="spot"),
         "groups.workers.capacity: got 'spot' and a plan, which is a third way of buying nodes: "
         "leave one of the two out"),
        (changed(**P5E, capacity="on_demand"), "capacity: got 'on_demand' and a plan, which is a"),
        (changed(capacity="spot"),
         "groups.workers.capacity: got 'spot', which HyperPod has with continuous provisioning "
         "alone: add `continuous: true` to training, or leave capacity out"),
        ({"continuous": True, "groups": {**MOE_GROUPS, "login": {**LOGIN, "capacity": "spot"}}},
         "groups.login.capacity: got 'spot' with role 'login', without whose node nobody can work; "
         "allowed: on_demand"),
        (changed(capacity="reserved"), "capacity: got 'reserved'; allowed: 'on_demand', 'spot'"),
        (changed(interface="efa"),
         "groups.workers.interface: got with ml.r7i.xlarge, which has no EFA card: leave it out"),
        (changed(**P5, interface="ena"), "interface: got 'ena'; allowed: 'efa', 'efa-only'"),
        (changed(instance_type="ml.p5e.48xlarge"),
         "groups.workers.plan: missing; ml.p5e.48xlarge is sold as a training plan alone: add"),
        (changed(deep_health_checks=["InstanceStress"]),
         "groups.workers.deep_health_checks: got with ml.r7i.xlarge; they test accelerators"),
        (changed(deep_health_checks=["Everything"]), "got 'Everything'; allowed: 'InstanceStress'"),
        (changed(instance_type="ml.g6.xlarge"),
         "groups.workers.processes_per_node: missing; the catalogue has no ml.g6.xlarge, so say"),
        (changed(labels={"a": "b"}), "groups.workers.labels: got with orchestrator 'slurm'; nodes"),
        ({"governance": GOVERNANCE},
         "governance: got with orchestrator 'slurm'; HyperPod has quotas and priorities for EKS"),
        ({"eks": {"admins": []}}, "eks.admins: got []; tuple should have at least 1 item"),
        ({"eks": settings()["eks"]}, "eks: got with orchestrator 'slurm'; it is for EKS alone: "),
        ({"checkpoint_memory_percent": 20},
         "checkpoint_memory_percent: got with orchestrator 'slurm'; HyperPod keeps checkpoints in"),
        ({"checkpoint_memory_percent": 5}, "checkpoint_memory_percent: got 5; should be greater"),
        ({"accounting": ACCOUNTED["accounting"]},
         "accounting: a database of its own takes `continuous: true`, or leave it out"),
        ({"lustre": {"capacity_gib": 3600}},
         "lustre.capacity_gib: got 3600; allowed: 1200, 2400 and multiples of 2400"),
        ({"lustre": {"mb_s_per_tib": 300}}, "lustre.mb_s_per_tib: got 300; allowed: 125, 250, "),
        ({"python": "host"}, "python: got 'host', which is only for aws: embedded; allowed here: "),
        (settings(eks={"version": "1.36"}), "eks.version: got '1.36'; allowed: '1.31', '1.32', "),
        (settings(eks={"admins": ["me"]}), "eks.admins: got 'me'; must be the ARN of an IAM role"),
        (settings(eks={"members": ["me"]}), "eks.members: got 'me'; must be the ARN of an IAM"),
        ({**settings(), "eks": None}, "eks: missing; add it with admins, the ARNs of IAM roles"),
        ({**settings(), **ACCOUNTED}, "accounting: got with orchestrator 'eks'; it is Slurm's: "),
        ({**settings(), "groups": {**settings()["groups"], "login": LOGIN}},
         "groups.login.role: got 'login' with orchestrator 'eks', which has its own control plane"),
        (settings(workers={"partition": "a"}),
         "groups.workers.partition: got with orchestrator 'eks'; partitions are Slurm's"),
        (governed({"nodes": 4}),
         "governance.teams: the teams have 5 nodes of ml.r7i.2xlarge together; there are 4"),
        (governed({"members": ["me"]}), "governance.teams.research.members: got 'me'; must be the"),
        (governed({"quota": 1}), "governance.teams.research.quota: unknown key; allowed: borrow_"),
        (governed(priorities={"urgent": 101}),
         "governance.priorities: got 101 for urgent; a weight is 0 to 100"),
        (governed(topology="rack"),
         "governance.topology: got 'rack'; allowed: 'topology.k8s.aws/network-node-layer-1', "),
        (settings(governance={"teams": {"A team": TEAM}}),
         "governance.teams: got 'A team' as a team's name; allowed: up to 40 small letters"),
        ({**changed(count=3)},
         "groups.workers.count: 3 nodes with 1 ranks each: 3 ranks cannot share 16 experts evenly; "
         "allowed: 1, 2, 4, 8, 16"),
        ({**V3, **changed(**P5, count=3)},
         "groups.workers.count: 3 nodes with 8 ranks each: 24 ranks cannot share 256 experts"),
        ({"expert_parallel": 5},
         "expert_parallel: 2 nodes with 1 ranks each: 5 ranks cannot share 16 experts evenly"),
        ({"expert_parallel": 4},
         "expert_parallel: got 4, which does not divide the 2 ranks of workers"),
        ({"architecture": "gpt-5"}, "architecture: no model 'gpt-5': not a folder, not a file, "),
        ({"architecture": "llama-3-8b"}, "architecture: llama-3-8b has no experts: it is no mix"),
    ],
)  # fmt: skip
def test_fails_when_a_setting_is_wrong(training, line):
    assert line in refusal(training)


def test_fails_when_nodes_need_more_addresses_than_their_subnet_has():
    # 7,937 addresses: 248 P5 nodes with Slurm, 97 on EKS.
    given = {**V3, "expert_parallel": 8, **changed(**P5, count=256)}
    assert refusal(given) == (
        "groups: nodes in us-east-1a take 8,193 addresses with orchestrator 'slurm'; its private "
        "subnet, a /19, has 7,937 for them: fewer nodes, or some in another zone, or interface: "
        "efa-only"
    )
    assert checked({**V3, "expert_parallel": 8, **changed(**P5, count=256, interface="efa-only")})
    more = settings(architecture="deepseek-v3", expert_parallel=8, workers={**P5, "count": 98})
    assert "take 7,938 addresses with orchestrator 'eks'" in refusal(more)
    assert checked(settings(architecture="deepseek-v3", expert_parallel=8,
                            workers={**P5, "count": 97}))  # fmt: skip


def test_fails_when_mla_has_the_endpoint_that_the_database_needs():
    line = refusal(ACCOUNTED, innovations={"mla": MLA})
    assert line.startswith("accounting: got with mla on: HyperPod reads the database's login")


def test_fails_when_there_is_neither_half():
    environment = EnvironmentConfig(**ENVIRONMENT, innovations={"moe": {"model": "tiny-moe"}})
    with pytest.raises(ConfigError, match="neither half is there; add training") as caught:
        innovation_settings(environment, SETTINGS)
    assert str(caught.value).startswith("config/test.yaml: innovations.moe")


def test_a_plan_in_the_groups_own_zone_is_taken():
    plan = {"arn": PLAN, "zone": "us-east-1b"}
    assert checked(changed(**{**P5E, "plan": plan, "zone": "us-east-1b"}))


def test_workers_on_spot_are_taken_and_with_slurm_remarked_on():
    with_slurm = checked({"continuous": True, **changed(capacity="spot")})
    assert list(with_slurm.remarks("us-east-1")) == [
        "training: groups.workers: HyperPod documents Spot for EKS alone; with Slurm it may refuse "
        "the group, and the cluster with it"
    ]
    on_eks = checked(settings(continuous=True, workers={"capacity": "spot"}))
    assert list(on_eks.remarks("us-east-1")) == []


def test_too_few_nodes_for_the_model_are_remarked_on_as_the_planner_counts_them():
    few = checked({**V3, **changed(**P5E, count=2)})
    [remark] = few.remarks("us-east-1")
    assert remark.startswith("training: groups.workers: deepseek-v3 takes 12 nodes of ml.p5e.48x")
    assert list(checked({**V3, **changed(**P5E, count=16)}).remarks("us-east-1")) == []
