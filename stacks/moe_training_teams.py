"""A training cluster on EKS: the EKS cluster, its teams, and what their pods may do."""

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_iam as iam

from constructs_lib import HyperPodCluster, Place, Site, TaskGovernance, TrainingEks
from constructs_lib.task_governance import namespace, priority_class, queue
from stacks.base import Base
from stacks.moe_training_settings import MoeTrainingSettings

SERVICE_ACCOUNT = "isomorph"
CHART = "https://github.com/aws/sagemaker-hyperpod-cli"
_FOLDER = "sagemaker-hyperpod-cli/helm_chart/HyperPodHelmChart"
WITHOUT_TEAMS = "isomorph"  # the namespace of runs where nobody shares
GROUP = "isomorph"  # of Kubernetes: GROUP:NAMESPACE may run there


def training_eks(
    stack: Stack, name: str, settings: MoeTrainingSettings, site: Site, place: Place, base: Base
) -> TrainingEks:
    """Return the EKS cluster, and say what is to be done before it can have nodes."""
    chosen = settings.eks
    assert chosen is not None  # noqa: S101  the settings' checks say that it is there
    eks = TrainingEks(
        stack,
        "Eks",
        name=name,
        version=chosen.version,
        site=site,
        security_group=place.security_group,
        admins=chosen.admins,
        retained=base.retained,
    )
    eks.admit(_groups(settings))
    CfnOutput(stack, "EksCluster", value=eks.name)
    done = f"chart {chosen.chart} is installed"
    CfnOutput(
        stack, "Chart", value=done if chosen.chart else _how_to_install(eks.name, base.environment)
    )
    return eks


def _groups(settings: MoeTrainingSettings) -> dict[str, list[str]]:
    """Return whose rights each role has: one group a namespace (isomorph/training/places.py)."""
    assert settings.eks is not None  # noqa: S101  the settings' checks say that it is there
    teams = settings.governance.teams if settings.governance else {}
    members = {namespace(name): team.members for name, team in teams.items()}
    found: dict[str, list[str]] = {}
    for each, its in (members or {WITHOUT_TEAMS: ()}).items():
        for principal in dict.fromkeys((*its, *settings.eks.members)):
            found.setdefault(principal, []).append(f"{GROUP}:{each}")
    return found


def _how_to_install(name: str, environment: str) -> str:
    steps = (
        f"git clone {CHART}",
        f"aws eks update-kubeconfig --name {name}",
        f"helm dependencies update {_FOLDER}",
        f"helm install hyperpod {_FOLDER} -n kube-system",
    )
    return (
        f"not installed, and without it there are no nodes: {'; '.join(steps)}; then give the "
        f"clone's revision as moe.training.eks.chart, and deploy again; when the nodes are "
        f"there: isomorph access moe --env {environment}"
    )


def govern(
    stack: Stack, eks: TrainingEks, cluster: HyperPodCluster, settings: MoeTrainingSettings
) -> TaskGovernance | None:
    """Give the cluster's nodes to teams, if there are any."""
    eks.add_operator(cluster.arn, after=cluster)
    governance = settings.governance
    if governance is None:
        return None
    kind = next(iter(settings.workers.values())).instance_type
    teams = {name: team.team(kind) for name, team in governance.teams.items()}
    return TaskGovernance(
        stack,
        "Governance",
        name=cluster.name,
        cluster_arn=cluster.arn,
        eks=eks,
        after=cluster,
        policy=governance.policy(),
        teams=teams,
    )


def admit_pods(eks: TrainingEks, settings: MoeTrainingSettings, role: iam.IRole) -> None:
    """Let pods of one service account in each team's namespace act as `role`; put that out."""
    governance = settings.governance
    namespaces = [namespace(team) for team in governance.teams] if governance else [WITHOUT_TEAMS]
    for each in namespaces:
        eks.give_role(each, each, SERVICE_ACCOUNT, role)
    values = {"Namespace": namespaces[0], "ServiceAccount": SERVICE_ACCOUNT}
    if governance:
        team, first = next(iter(governance.teams)), next(iter(governance.priorities))
        values |= {"Queue": queue(team), "PriorityClass": priority_class(first)}
        values |= {"Teams": ",".join(governance.teams)}
        values |= {"Topology": governance.topology} if governance.topology else {}
    for output, value in values.items():
        CfnOutput(Stack.of(eks), output, value=value)
