"""What places jobs on the nodes of a HyperPod cluster: Slurm on nodes of its own, or EKS."""

from dataclasses import dataclass
from typing import Literal

from aws_cdk import aws_sagemaker as sagemaker


@dataclass(frozen=True, kw_only=True)
class AccountingDatabase:
    """MySQL-compatible database that outlives the cluster's controller.

    Args:
        endpoint: Its host name.
        port: Where it listens.
        secret_arn: Secret with user name and password.
        name: Of the schema; left out, HyperPod's.
    """

    endpoint: str
    port: int
    secret_arn: str
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Slurm on the cluster's own nodes.

    Args:
        strategy: Whether HyperPod alone writes partitions (Managed, which refuses a configuration
            that was changed by hand), writes over what is there, or merges.
        accounting: Database of jobs and users; left out, one on the controller.
    """

    strategy: Literal["Managed", "Overwrite", "Merge"] = "Managed"
    accounting: AccountingDatabase | None = None

    def property(self) -> sagemaker.CfnCluster.OrchestratorProperty:
        """Return this in CloudFormation's words."""
        cluster, database = sagemaker.CfnCluster, self.accounting
        return cluster.OrchestratorProperty(
            slurm=cluster.ClusterOrchestratorSlurmConfigProperty(
                slurm_config_strategy=self.strategy,
                accounting_database=cluster.ClusterAccountingDatabaseProperty(
                    endpoint=database.endpoint,
                    port=database.port,
                    secret_arn=database.secret_arn,
                    name=database.name,
                )
                if database
                else None,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Eks:
    """An EKS cluster beside it.

    Args:
        cluster_arn: Its ARN.
    """

    cluster_arn: str

    def property(self) -> sagemaker.CfnCluster.OrchestratorProperty:
        """Return this in CloudFormation's words."""
        cluster = sagemaker.CfnCluster
        return cluster.OrchestratorProperty(
            eks=cluster.ClusterOrchestratorEksConfigProperty(cluster_arn=self.cluster_arn)
        )
