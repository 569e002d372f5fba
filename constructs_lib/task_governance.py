"""Who gets the nodes of a HyperPod cluster on EKS when several teams want them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aws_cdk import Acknowledgment, CfnResource, Validations
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from constructs_lib.training_eks import TrainingEks

ADDON = "amazon-sagemaker-hyperpod-taskgovernance"


@dataclass(frozen=True, kw_only=True)
class Team:
    """A team's part of a cluster.

    Args:
        instance_type: What it gets, such as ml.p5e.48xlarge.
        nodes: How many of them are its own.
        weight: Its share of what nobody uses, against other teams': 0 to 100.
        sharing: Whether others may use what it does not, and it what others do not.
        borrow_percent: Of its own nodes, the most that it may borrow.
        preempt: Whether its tasks of high priority stop its own of lower.
    """

    instance_type: str
    nodes: int
    weight: int = 0
    sharing: Literal["DontLend", "Lend", "LendAndBorrow"] = "LendAndBorrow"
    borrow_percent: int = 50
    preempt: bool = True


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How tasks wait.

    Args:
        priorities: Weight of each priority class, 0 to 100; the highest goes first.
        fair_share: Give out idle nodes by the teams' weights; otherwise first come, first served.
        idle_sharing: Let teams use nodes that no team owns.
    """

    priorities: Mapping[str, int]
    fair_share: bool = True
    idle_sharing: bool = False


class TaskGovernance(Construct):
    """Priorities of a cluster's tasks and quotas of its teams, with the add-on that keeps them.

    Args:
        name: What the resources' names begin with.
        cluster_arn: The HyperPod cluster.
        eks: The EKS cluster that gets the add-on.
        after: What the add-on needs: nodes.
        policy: How tasks wait.
        teams: Quotas, by team.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        cluster_arn: str,
        eks: TrainingEks,
        after: Construct,
        policy: Policy,
        teams: Mapping[str, Team],
    ) -> None:
        super().__init__(scope, construct_id)
        addon = eks.add_addon(ADDON, after=after)
        config = sagemaker.CfnClusterSchedulerConfig
        self.scheduler = config(
            self,
            "Scheduler",
            name=f"{name}-scheduler",
            cluster_arn=cluster_arn,
            scheduler_config=config.SchedulerConfigProperty(
                fair_share=_switch(policy.fair_share),
                idle_resource_sharing=_switch(policy.idle_sharing),
                priority_classes=[
                    config.PriorityClassProperty(name=each, weight=weight)
                    for each, weight in policy.priorities.items()
                ],
            ),
        )
        self.scheduler.node.add_dependency(addon)
        _acknowledge_newness(self.scheduler)
        self.quotas = [
            self._quota(f"{name}-{team}", team, given, cluster_arn) for team, given in teams.items()
        ]

    def _quota(self, name: str, team: str, given: Team, cluster_arn: str) -> CfnResource:
        quota = CfnResource(
            self,
            f"Quota-{team}",
            type="AWS::SageMaker::ComputeQuota",
            properties={
                "Name": name,
                "ClusterArn": cluster_arn,
                "ActivationState": "Enabled",
                "ComputeQuotaTarget": {"TeamName": team, "FairShareWeight": given.weight},
                "ComputeQuotaConfig": {
                    "ComputeQuotaResources": [
                        {"InstanceType": given.instance_type, "Count": given.nodes}
                    ],
                    "ResourceSharingConfig": _sharing(given),
                    "PreemptTeamTasks": "LowerPriority" if given.preempt else "Never",
                },
            },
        )
        _acknowledge_newness(quota)
        quota.node.add_dependency(self.scheduler)
        return quota


def _acknowledge_newness(resource: CfnResource) -> None:
    """Say that the bundled list of a region's types is behind; cfn-lint's own has both."""
    Validations.of(resource).acknowledge(
        Acknowledgment(
            id="CloudFormation-Validate::F3006",
            reason="the bundled list of a region's types lacks it; its properties are those of "
            "SageMaker's API, and a test compares them",
        )
    )


def namespace(team: str) -> str:
    """Return the namespace that the add-on makes for a team."""
    return f"hyperpod-ns-{team}"


def queue(team: str) -> str:
    """Return the local queue that the add-on makes in a team's namespace."""
    return f"{namespace(team)}-localqueue"


def priority_class(priority: str) -> str:
    """Return what a task's label calls one of the priorities."""
    return f"{priority}-priority"


def _sharing(team: Team) -> dict[str, Any]:
    borrows = {"BorrowLimit": team.borrow_percent} if team.sharing == "LendAndBorrow" else {}
    return {"Strategy": team.sharing, **borrows}


def _switch(on: bool) -> str:
    return "Enabled" if on else "Disabled"
