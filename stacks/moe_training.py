"""Training of a mixture of experts: a HyperPod cluster, and what its nodes need."""

from dataclasses import dataclass

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from constructs_lib import (
    Care,
    ClusterRole,
    ClusterSecurityGroup,
    Eks,
    HyperPodCluster,
    LifecycleSynthesizer,
    MonthlyBudget,
    Needs,
    NodeHealth,
    Place,
    PrivateEndpoints,
    Site,
    Slurm,
    Start,
    TrainingEks,
    TrainingRunRole,
    TrainingStorage,
    TrainingWatch,
)
from stacks.base import Base
from stacks.moe import MoeSettings
from stacks.moe_training_settings import MoeTrainingSettings
from stacks.moe_training_teams import admit_pods, govern, training_eks
from stacks.moe_training_told import (
    ENTRY,
    NAMESPACE,
    bucket_parameter,
    lifecycle_scripts,
    parameter,
)

# What a bill calls the services that a training cluster costs money with.
SERVICES = ("Amazon SageMaker", "Amazon FSx", "Amazon Elastic Container Service for Kubernetes")


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """What cluster and role both stand on."""

    name: str
    site: Site
    place: Place
    bucket: s3.IBucket
    key: kms.IKey
    log_group: logs.LogGroup
    storage: TrainingStorage


class MoeTrainingStack(Stack):
    """A cluster that trains, with its scripts, file system, roles and alarms."""

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: MoeSettings, base: Base
    ) -> None:
        # Its assets go to the lifecycle bucket, where HyperPod looks for scripts.
        synthesizer = LifecycleSynthesizer(base.lifecycle_bucket)
        super().__init__(scope, construct_id, synthesizer=synthesizer)
        chosen = settings.training
        assert chosen is not None  # noqa: S101  wants() says that this half is there
        data = base.training_bucket(self)
        ground = self._ground(chosen, base, data)
        eks = self._eks(chosen, ground, base)
        start = self._start(settings, ground, data, base, eks)
        self._put_out(chosen, ground, bucket_parameter(self, base, data), start)
        if eks is None or _has_chart(chosen):
            self._cluster(chosen, ground, start, eks)
        else:
            CfnOutput(self, "ClusterArn", value="none yet: see Chart")
        if chosen.budget_usd:
            MonthlyBudget(
                self, "Budget", usd=chosen.budget_usd, email=base.email, services=SERVICES
            )

    def _ground(self, chosen: MoeTrainingSettings, base: Base, data: s3.IBucket) -> _Ground:
        site = base.site(self)
        zones = tuple(base.availability_zones)
        nodes = ClusterSecurityGroup(self, "Nodes", site=site)
        place = Place(
            subnets=dict(zip(zones, site.vpc.private_subnets, strict=True)),
            zone=chosen.zone_in(zones),
            security_group=nodes,
        )
        if chosen.accounting:
            nodes.allow_database(chosen.accounting.port)
            PrivateEndpoints(self, "Login", site=site, services=["secretsmanager"])
        bucket, key = base.scripts_bucket(self)
        return _Ground(
            name=chosen.cluster_name(base.environment),
            site=site,
            place=place,
            bucket=bucket,
            key=key,
            log_group=self._log_group(site, retained=base.retained),
            storage=TrainingStorage(
                self,
                "Storage",
                site=site,
                subnet=place.subnets[place.zone],
                nodes=nodes,
                bucket=data,
                key=site.volume_key,
                size=chosen.lustre.size(),
            ),
        )

    def _log_group(self, site: Site, *, retained: bool) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            "Logs",
            retention=logs.RetentionDays.THREE_MONTHS,
            encryption_key=site.log_key,
            removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
        )

    def _eks(self, chosen: MoeTrainingSettings, ground: _Ground, base: Base) -> TrainingEks | None:
        if chosen.orchestrator != "eks":
            return None
        eks = training_eks(self, ground.name, chosen, ground.site, ground.place, base)
        role = TrainingRunRole(
            self,
            "RunRole",
            code_bucket=ground.bucket,
            code_key=ground.key,
            metric_namespace=NAMESPACE,
        )
        admit_pods(eks, chosen, role)
        return eks

    def _start(
        self,
        settings: MoeSettings,
        ground: _Ground,
        data: s3.IBucket,
        base: Base,
        eks: TrainingEks | None,
    ) -> Start:
        chosen = settings.training
        assert chosen is not None  # noqa: S101  as above
        mount, site = ground.storage.mount, ground.site
        told = parameter(self, base, data=data, log_group=ground.log_group, lustre=mount)
        role = ClusterRole(
            self,
            "Role",
            cluster=ground.name,
            place=ground.place,
            eks_arn=eks.arn if eks else None,
            needs=Needs(
                scripts_bucket=ground.bucket,
                scripts_key=ground.key,
                parameter=told,
                log_group=ground.log_group,
                metric_namespace=NAMESPACE,
                volume_key=site.volume_key,
                accounting_secret=chosen.accounting.secret_arn if chosen.accounting else None,
            ),
        )
        return Start(
            scripts=lifecycle_scripts(self, settings, chosen, base).url,
            entry=ENTRY,
            role_arn=role.role_arn,
            volume_key_arn=site.volume_key.key_arn,
            # On EKS pods mount it, through the CSI driver.
            lustre=None if eks else mount,
        )

    def _cluster(
        self, chosen: MoeTrainingSettings, ground: _Ground, start: Start, eks: TrainingEks | None
    ) -> None:
        accounting = chosen.accounting.database() if chosen.accounting else None
        cluster = HyperPodCluster(
            self,
            "Cluster",
            name=ground.name,
            groups=[group.node_group(name) for name, group in chosen.groups.items()],
            start=start,
            place=ground.place,
            orchestrator=Eks(cluster_arn=eks.arn) if eks else Slurm(accounting=accounting),
            care=Care(
                recovery=chosen.node_recovery,
                continuous=chosen.continuous,
                checkpoint_memory_percent=chosen.checkpoint_memory_percent,
            ),
        )
        # Nodes need all of these from their first second; the cluster refers to some of them only.
        cluster.node.add_dependency(self.node.find_child("Told"), ground.storage)
        cluster.node.add_dependency(self.node.find_child("Nodes"))
        watch = TrainingWatch(
            self,
            "Watch",
            namespace=NAMESPACE,
            cluster=ground.name,
            limits=chosen.alarms.limits(),
            topic=ground.site.alarm_topic,
        )
        NodeHealth(
            self,
            "Health",
            cluster=cluster,
            scripts=ground.log_group,
            namespace=NAMESPACE,
            watch=watch,
        )
        if eks:
            cluster.node.add_dependency(*eks.before_nodes)
            govern(self, eks, cluster, chosen)
        CfnOutput(self, "ClusterArn", value=cluster.arn)
        CfnOutput(self, "DashboardName", value=watch.dashboard.dashboard_name)

    def _put_out(
        self, chosen: MoeTrainingSettings, ground: _Ground, data: str, start: Start
    ) -> None:
        name, workers = next(iter(chosen.workers.items()))
        values = {
            "ClusterName": ground.name,
            "Orchestrator": chosen.orchestrator,
            "DataUrl": f"s3://{data}/data/",
            "CheckpointUrl": f"s3://{data}/checkpoints/",
            "ExecutionRoleArn": start.role_arn,
            "LogGroup": ground.log_group.log_group_name,
            "LifecycleScripts": start.scripts,
            "ControllerGroup": chosen.named("controller") or "none",
            "WorkerGroup": name,
            "WorkerType": workers.instance_type,
            "Workers": str(workers.count),
            "RanksPerNode": str(workers.ranks),
            "ExpertParallel": str(chosen.expert_parallel or workers.count * workers.ranks),
            "Partition": workers.partition or name,
            "LustrePath": ground.storage.mount.path,
        }
        for output, value in values.items():
            CfnOutput(self, output, value=value)


def _has_chart(chosen: MoeTrainingSettings) -> bool:
    return chosen.eks is not None and chosen.eks.chart is not None
