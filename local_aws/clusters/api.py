"""What SageMaker, Systems Manager and FSx answer about clusters, sessions and file systems."""

from typing import Any

from ministack.core.responses import get_account_id, get_region

from local_aws.clusters.filesystems import FileSystems
from local_aws.clusters.runner import Cluster, Clusters
from local_aws.clusters.sessions import Sessions
from local_aws.operations import Asked, Operation, RefusedError, answer


class ClusterApi:
    """The operations of SageMaker on clusters.

    Args:
        clusters: What there is.
    """

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    def operations(self) -> dict[str, Operation]:
        """Return each operation by its name."""
        return {
            "DescribeCluster": lambda asked: self._find(asked).describe(),
            "DescribeClusterNode": self._describe_node,
            "ListClusterNodes": self._list_nodes,
            "ListClusters": self._list,
            "CreateCluster": self._by_stacks,
            "UpdateCluster": self._by_stacks,
            "DeleteCluster": self._by_stacks,
        }

    def _find(self, asked: Asked) -> Cluster:
        name = str(asked.get("ClusterName"))
        found = self._clusters.find(str(get_account_id()), str(get_region()), name)
        if found is None:
            raise RefusedError("ResourceNotFound", f"Cluster with name {name} not found")
        return found

    def _list(self, asked: Asked) -> dict[str, Any]:
        scope = (str(get_account_id()), str(get_region()))
        mine = [each for each in self._clusters.all() if (each.account, each.region) == scope]
        wanted = asked.get("NameContains", "")
        return {"ClusterSummaries": [each.summary() for each in mine if wanted in each.name]}

    def _list_nodes(self, asked: Asked) -> dict[str, Any]:
        wanted = asked.get("InstanceGroupNameContains", "")
        rows = [node.summary() for node in self._find(asked).nodes if wanted in node.group]
        return {"ClusterNodeSummaries": rows}

    def _describe_node(self, asked: Asked) -> dict[str, Any]:
        for node in self._find(asked).nodes:
            if node.instance_id == asked.get("NodeId"):
                return {"NodeDetails": {**node.summary(), "PrivatePrimaryIp": node.address}}
        raise RefusedError("ResourceNotFound", f"there is no node {asked.get('NodeId')}")

    def _by_stacks(self, _: Asked) -> dict[str, Any]:
        raise RefusedError(
            "ValidationException", "clusters are made, changed and deleted by stacks here"
        )


def answer_for_clusters(clusters: Clusters, sessions: Sessions, systems: FileSystems) -> None:
    """Let the three services answer for what is played here; call it after `put_moto_behind`."""
    answer("sagemaker", ClusterApi(clusters).operations())
    answer("fsx", systems.operations())
    answer("ssm", {"StartSession": sessions.start, "TerminateSession": sessions.terminate})
