"""Nodes of a cluster that are ill or did not come up, counted from their logs."""

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.hyperpod_cluster import HyperPodCluster
from constructs_lib.training_watch import TrainingWatch

# What HyperPod's health monitoring agent writes into the cluster's own log group when it finds
# something:
# sagemaker/latest/dg/sagemaker-hyperpod-eks-resiliency-health-monitoring-agent.html
_AGENT = logs.FilterPattern.all_terms("HealthMonitoringAgentDetectionEvent")
# What our lifecycle scripts write into ours when a phase failed for good.
_SCRIPTS = logs.FilterPattern.literal('{ $.event = "phase" && $.state = "failed" }')


class NodeHealth(Construct):
    """Counts findings about nodes in two log groups, and raises an alarm on the first.

    HyperPod makes its own log group with the cluster, so the filter comes after it.

    Args:
        cluster: Whose nodes they are.
        scripts: Where the lifecycle scripts write.
        namespace: Of the counts.
        watch: Raises the alarms, shows the counts.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: HyperPodCluster,
        scripts: logs.ILogGroup,
        namespace: str,
        watch: TrainingWatch,
    ) -> None:
        super().__init__(scope, construct_id)
        self._namespace, self._cluster = namespace, cluster.name
        theirs = logs.LogGroup.from_log_group_name(self, "Cluster", cluster.log_group_name)
        found = self._count("UnhealthyNodes", theirs, _AGENT)
        failed = self._count("FailedPhases", scripts, _SCRIPTS)
        watch.alarms.above("UnhealthyNodes", found, 0, periods=1)
        watch.alarms.above("FailedPhases", failed, 0, periods=1)
        watch.show("Findings of HyperPod about nodes", found)
        watch.show("Lifecycle scripts that gave up", failed)

    def _count(
        self, name: str, group: logs.ILogGroup, pattern: logs.IFilterPattern
    ) -> cloudwatch.Metric:
        # The agent's lines say no cluster, so its name is in the metric's and not a dimension.
        metric = f"{name}-{self._cluster}"
        logs.MetricFilter(
            self,
            name,
            log_group=group,
            filter_pattern=pattern,
            metric_namespace=self._namespace,
            metric_name=metric,
            metric_value="1",
        )
        return cloudwatch.Metric(
            namespace=self._namespace,
            metric_name=metric,
            statistic="Sum",
            period=Duration.minutes(1),
        )
