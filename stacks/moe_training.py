"""Training of a mixture of experts: a HyperPod cluster, and what its nodes need."""

import hashlib
import json
from typing import Any

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_logs as logs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from constructs_lib import (
    ClusterRole,
    ClusterSecurityGroup,
    CodeAsset,
    HyperPodCluster,
    LifecycleScripts,
    LifecycleSynthesizer,
    NodeGroup,
    Start,
)
from stacks.base import Base
from stacks.code import model_code_for
from stacks.moe import MoeSettings
from stacks.moe_training_settings import MoeTrainingSettings
from stacks.wheelhouse import ROOT

SCRIPTS = ROOT / "model_code" / "moe" / "lifecycle"
ENTRY = "on_create.sh"
NAMESPACE = "Isomorph/moe-training"


class MoeTrainingStack(Stack):
    """A cluster that trains, with its scripts, storage and metrics."""

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: MoeSettings, base: Base
    ) -> None:
        # Its assets go to the lifecycle bucket, where HyperPod looks for scripts.
        super().__init__(
            scope,
            construct_id,
            synthesizer=LifecycleSynthesizer(base.lifecycle_bucket),
        )
        chosen = settings.training
        assert chosen is not None  # noqa: S101  wants() says that this half is there
        site, name = base.site(self), cluster_name(base.environment, chosen)
        data, log_group = base.training_bucket(self), self._log_group(site.log_key, base)
        code = CodeAsset(self, "Code", root=ROOT, include=model_code_for("moe"))
        parameter = f"/isomorph/{base.environment}/moe/training"
        scripts = LifecycleScripts(
            self,
            "Scripts",
            files=sorted(SCRIPTS.glob("*.sh")),
            texts={
                "settings.json": _json(
                    environment=base.environment,
                    region=self.region,
                    cluster=name,
                    orchestrator=chosen.orchestrator,
                    parameter=parameter,
                    model=settings.model,
                    code=f"s3://{base.lifecycle_bucket}/{code.object_key}",
                    code_sha256=code.sha256,
                    metric_namespace=NAMESPACE,
                    groups={
                        name: {
                            "role": each.role,
                            "partition": each.partition or name,
                            "devices": each.devices,
                        }
                        for name, each in chosen.groups.items()
                    },
                )
            },
        )
        told = ssm.StringParameter(
            self,
            "Told",
            parameter_name=parameter,
            string_value=self.to_json_string(
                {"data_bucket": data.bucket_name, "log_group": log_group.log_group_name}
            ),
            description="what nodes of the cluster are told that is not known before a deployment",
        )
        role = ClusterRole(self, "Role", log_group=log_group, metric_namespace=NAMESPACE)
        cluster = HyperPodCluster(
            self,
            "Cluster",
            name=name,
            groups=[_group(name, each) for name, each in chosen.groups.items()],
            start=Start(
                scripts=scripts.url,
                entry=ENTRY,
                role_arn=role.role_arn,
                volume_key_arn=site.volume_key.key_arn,
            ),
            subnet=site.vpc.private_subnets[0],
            security_group=ClusterSecurityGroup(self, "Nodes", site=site),
        )
        cluster.node.add_dependency(told, role)
        outputs = {
            "ClusterName": name,
            "ClusterArn": cluster.arn,
            "Orchestrator": chosen.orchestrator,
            "DataBucket": data.bucket_name,
            "CheckpointBucket": data.bucket_name,
            "ExecutionRoleArn": role.role_arn,
            "LogGroup": log_group.log_group_name,
            "LifecycleScripts": scripts.url,
            "WorkerGroup": next(iter(chosen.workers)),
        }
        for output, value in outputs.items():
            CfnOutput(self, output, value=value)

    def _log_group(self, key: Any, base: Base) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            "Logs",
            retention=logs.RetentionDays.THREE_MONTHS,
            encryption_key=key,
            removal_policy=RemovalPolicy.RETAIN if base.retained else RemovalPolicy.DESTROY,
        )


def cluster_name(environment: str, settings: MoeTrainingSettings) -> str:
    """Return the cluster's name: another one where CloudFormation must replace the cluster."""
    create_only = json.dumps([settings.orchestrator, settings.zone])
    return f"{environment}-moe-{hashlib.sha256(create_only.encode()).hexdigest()[:6]}"


def _json(**values: Any) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _group(name: str, group: Any) -> NodeGroup:
    return NodeGroup(
        name=name,
        role=group.role,
        instance_type=group.instance_type,
        count=group.count,
        min_count=group.min_count,
        volume_gib=group.volume_gib,
        plan_arn=group.plan.arn if group.plan else None,
        partition=group.partition,
        deep_health_checks=group.deep_health_checks,
    )
