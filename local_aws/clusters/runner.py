"""Plays SageMaker HyperPod: clusters of nodes, each of which runs the lifecycle script once."""

import contextlib
import secrets
import shutil
import string
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local_aws.clients import client
from local_aws.clusters import spool
from local_aws.clusters.filesystems import FileSystems
from local_aws.clusters.networks import Network, claim
from local_aws.clusters.node import SCRIPTS, Node, make
from local_aws.clusters.slurmconf import slurm_conf
from local_aws.slurm import Slurm, find

_PATIENCE_S = 900.0
_PAUSE_S = 0.1
_LETTERS = string.ascii_lowercase + string.digits
_NAMED = ("InstanceGroupName", "InstanceType", "ExecutionRole", "LifeCycleConfig", "ThreadsPerCore",
          "SlurmConfig", "InstanceStorageConfigs", "TrainingPlanArn",
          "OnStartDeepHealthChecks", "CapacityRequirements", "NetworkInterface")  # fmt: skip


class ClusterError(Exception):
    """A cluster that cannot be made as it was asked for."""


@dataclass
class Cluster:
    """One cluster.

    Args:
        account: Whose.
        region: Where.
        identity: The last part of its ARN.
        network: Which of the loopback addresses its nodes have.
        properties: As the template has them.
        folder: With a folder for each node.
        slurm: What runs its jobs, or None for the stand-in.
    """

    account: str
    region: str
    identity: str
    network: Network
    properties: Mapping[str, Any]
    folder: Path
    slurm: Slurm | None = None
    status: str = "Creating"
    failure: str = ""
    created: float = field(default_factory=time.time)
    nodes: list[Node] = field(default_factory=list)
    addresses: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.properties["ClusterName"])

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:cluster/{self.identity}"

    @property
    def log_group(self) -> str:
        """Where HyperPod writes what lifecycle scripts print."""
        return f"/aws/sagemaker/Clusters/{self.name}/{self.identity}"

    def of(self, group: str) -> list[Node]:
        """Return the nodes of a group."""
        return [node for node in self.nodes if node.group == group]

    def describe(self) -> dict[str, Any]:
        """Return the answer of DescribeCluster."""
        groups = [
            {
                **{name: row[name] for name in _NAMED if name in row},
                "TargetCount": int(row["InstanceCount"]),
                "CurrentCount": len(self.of(row["InstanceGroupName"])),
                "Status": self.status,
            }
            for row in self.properties["InstanceGroups"]
        ]
        same = ("VpcConfig", "Orchestrator", "NodeRecovery", "NodeProvisioningMode")
        return {
            **self.summary(),
            "FailureMessage": self.failure,
            "InstanceGroups": groups,
            **{name: self.properties[name] for name in same if name in self.properties},
        }

    def summary(self) -> dict[str, Any]:
        """Return the row of ListClusters."""
        return {
            "ClusterArn": self.arn,
            "ClusterName": self.name,
            "ClusterStatus": self.status,
            "CreationTime": self.created,
        }


class Clusters:
    """Every cluster of every account and region.

    Args:
        endpoint: Of the embedded AWS.
        folder: Where the clusters' folders are made.
        file_systems: What nodes may mount.
        variables: What every node is told besides, such as whom to trust.
    """

    def __init__(
        self, endpoint: str, folder: Path, file_systems: FileSystems, variables: Mapping[str, str]
    ) -> None:
        self._endpoint, self._folder, self._variables = endpoint, folder, dict(variables)
        self._file_systems = file_systems
        self._slurm = find()
        self._clusters: dict[str, Cluster] = {}
        self._lock = threading.Lock()

    def all(self) -> list[Cluster]:
        """Return all clusters."""
        return list(self._clusters.values())

    def find(self, account: str, region: str, name: str) -> Cluster | None:
        """Return the cluster with that name or ARN."""
        for cluster in self.all():
            if (cluster.account, cluster.region) == (account, region) and name in (
                cluster.name,
                cluster.arn,
            ):
                return cluster
        return None

    def create(self, account: str, region: str, properties: Mapping[str, Any]) -> Cluster:
        """Make a cluster, and return when the lifecycle script has run on all its nodes.

        Raises:
            ClusterError: a script failed, or its files are not there; nothing is left but consoles.
        """
        if self.find(account, region, properties["ClusterName"]):
            raise ClusterError(f"there is a cluster {properties['ClusterName']!r} already")
        _refuse(properties)
        identity = "".join(secrets.choice(_LETTERS) for _ in range(12))
        with self._lock:
            folder = self._folder / identity
            slurm = self._slurm if self._slurm and self._slurm.fits(folder) else None
            cluster = Cluster(account, region, identity, claim(), properties, folder, slurm)
            self._clusters[cluster.arn] = cluster
        spool.make(cluster.folder, sockets=slurm is not None)
        self._logs(cluster, "create_log_group", logGroupName=cluster.log_group)
        try:
            self._fill(cluster)
        except Exception as error:
            cluster.status, cluster.failure = "Failed", str(error)
            self.delete(cluster, keep_consoles=True)
            raise
        cluster.status = "InService"
        return cluster

    def update(self, cluster: Cluster, properties: Mapping[str, Any]) -> None:
        """Change the counts of groups; a new node runs the script that its group has now."""
        _refuse(properties)
        before, cluster.properties, cluster.status = cluster.properties, properties, "Updating"
        try:
            self._fill(cluster)
        except Exception:
            cluster.properties = before
            self._fill(cluster)
            cluster.status = "InService"
            raise
        cluster.status = "InService"

    def delete(self, cluster: Cluster, *, keep_consoles: bool = False) -> None:
        """Switch all nodes off, and forget the cluster."""
        cluster.status = "Deleting"
        for node in cluster.nodes:
            self._end(node, keep_console=keep_consoles)
        self._clusters.pop(cluster.arn, None)
        cluster.network.release()
        spool.remove(cluster.folder)
        if not keep_consoles:
            shutil.rmtree(cluster.folder, ignore_errors=True)

    def stop(self) -> None:
        """Pull the plug of every node."""
        for cluster in self.all():
            for node in cluster.nodes:
                node.machine.cut_power()

    def describe(self) -> list[dict[str, Any]]:
        """Return every node with its processes' home, for people."""
        return [
            {
                "cluster": cluster.name,
                "group": node.group,
                "id": node.instance_id,
                "name": node.name,
                "address": node.address,
                "state": node.status,
                "slurm": cluster.slurm.version if cluster.slurm else "a stand-in for Slurm",
                "reason": node.reason() if node.status == "Failure" else None,
                "folder": str(node.machine.folder),
                "console": str(node.machine.folder / "console.log"),
            }
            for cluster in self.all()
            for node in cluster.nodes
        ]

    def _fill(self, cluster: Cluster) -> None:
        """Give each group as many nodes as it wants, and wait for the new ones."""
        new: list[Node] = []
        wanted = {row["InstanceGroupName"]: row for row in cluster.properties["InstanceGroups"]}
        for node in [*cluster.nodes]:
            row = wanted.get(node.group)
            if row is None or node not in cluster.of(node.group)[: int(row["InstanceCount"])]:
                cluster.nodes.remove(node)
                self._end(node)
        for group, row in wanted.items():
            for _ in range(int(row["InstanceCount"]) - len(cluster.of(group))):
                node = self._new(cluster, group, row)
                cluster.nodes.append(node)
                new.append(node)
        self._tell(cluster)
        for node in new:
            self._fetch(cluster, node)
            node.prepare(
                cluster.folder / "spool",
                self._file_systems.folders(cluster.account, cluster.region),
            )
            node.machine.boot()
        try:
            self._wait(new)
        finally:
            for node in new:
                self._publish(cluster, node)

    def _new(self, cluster: Cluster, group: str, row: Mapping[str, Any]) -> Node:
        cluster.addresses += 1
        block, last = divmod(cluster.addresses, 250)
        address = f"127.{cluster.network.number}.{block}.{last + 1}"
        return make(
            instance_id=f"i-{secrets.token_hex(9)[:17]}",
            folder=cluster.folder,
            group=group,
            properties=row,
            name=f"ip-{address.replace('.', '-')}",
            address=address,
            launched=time.time(),
            slurm=cluster.slurm,
            environment={
                **self._variables,
                "AWS_ENDPOINT_URL": self._endpoint,
                "AWS_ACCESS_KEY_ID": cluster.account,
                "AWS_SECRET_ACCESS_KEY": "local",
                "AWS_EC2_METADATA_DISABLED": "true",
                # Ranks of different nodes meet on the loopback network, and listen nowhere else.
                **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
            },
        )

    def _tell(self, cluster: Cluster) -> None:
        """Write what HyperPod tells every node of all others, and the controller's slurm.conf."""
        config = {
            "ClusterConfig": {"ClusterName": cluster.name, "ClusterArn": cluster.arn},
            "InstanceGroups": [
                {
                    "Name": row["InstanceGroupName"],
                    "InstanceType": row["InstanceType"],
                    "Instances": [
                        {
                            "InstanceName": f"{node.group}-{number}",
                            "AgentIpAddress": node.address,
                            "CustomerIpAddress": node.address,
                            "InstanceId": node.instance_id,
                        }
                        for number, node in enumerate(cluster.of(row["InstanceGroupName"]), start=1)
                    ],
                }
                for row in cluster.properties["InstanceGroups"]
            ],
        }
        meeting = (cluster.folder / "spool").resolve()
        conf = slurm_conf(cluster.name, cluster.nodes, cluster.slurm, meeting)
        for node in cluster.nodes:
            node.write_resources(config)
            if node.slurm_type == "Controller":
                (node.machine.folder / "opt/slurm/etc").mkdir(parents=True, exist_ok=True)
                node.write_slurm(conf)

    def _fetch(self, cluster: Cluster, node: Node) -> None:
        """Download the files of SourceS3Uri, as HyperPod does with the node's role."""
        config = node.properties["LifeCycleConfig"]
        uri = str(config["SourceS3Uri"])
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        target = node.machine.folder / SCRIPTS
        target.mkdir(parents=True, exist_ok=True)
        s3 = client("s3", self._endpoint, cluster.account, cluster.region)
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        try:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for row in (row for page in pages for row in page.get("Contents", [])):
                path = target / str(row["Key"])[len(prefix) :]
                if not path.resolve().is_relative_to(target.resolve()):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, row["Key"], str(path))
        except (BotoCoreError, ClientError) as error:
            raise ClusterError(f"the lifecycle scripts at {uri} cannot be read: {error}") from None
        if not (target / config["OnCreate"]).is_file():
            raise ClusterError(f"there is no {config['OnCreate']} at {uri}")

    def _wait(self, nodes: list[Node]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while any(node.status == "Pending" for node in nodes):
            for node in nodes:
                if node.status == "Failure":
                    raise ClusterError(_failed(node))
            if time.monotonic() > deadline:
                raise ClusterError(f"lifecycle scripts still run after {_PATIENCE_S:.0f} s")
            time.sleep(_PAUSE_S)
        for node in nodes:
            if node.status == "Failure":
                raise ClusterError(_failed(node))

    def _end(self, node: Node, *, keep_console: bool = False) -> None:
        node.machine.cut_power()
        with contextlib.suppress(FileNotFoundError):
            node.machine.remove(keep_console=keep_console)

    def _publish(self, cluster: Cluster, node: Node) -> None:
        """Put what a lifecycle script printed where HyperPod puts it."""
        with contextlib.suppress(FileNotFoundError):
            lines = (node.machine.folder / "console.log").read_text(errors="replace").splitlines()
            now = int(time.time() * 1000)
            stream = f"LifecycleConfig/{node.group}/{node.instance_id}"
            where = {"logGroupName": cluster.log_group, "logStreamName": stream}
            self._logs(cluster, "create_log_stream", **where)
            events = [{"timestamp": now, "message": line} for line in lines if line][-1000:]
            if events:
                self._logs(cluster, "put_log_events", **where, logEvents=events)

    def _logs(self, cluster: Cluster, operation: str, **given: Any) -> None:
        logs = client("logs", self._endpoint, cluster.account, cluster.region)
        with contextlib.suppress(ClientError):
            getattr(logs, operation)(**given)


def _failed(node: Node) -> str:
    return f"the lifecycle script failed on {node.group}/{node.instance_id}: {node.reason()}"


def _refuse(properties: Mapping[str, Any]) -> None:
    """Refuse what AWS would, or what is not played."""
    if "Eks" in (properties.get("Orchestrator") or {}):
        raise ClusterError("Orchestrator.Eks is not played here; Slurm is")
    for row in properties["InstanceGroups"]:
        config = row.get("LifeCycleConfig") or {}
        if not str(config.get("SourceS3Uri", "")).startswith("s3://sagemaker-"):
            raise ClusterError(
                f"SourceS3Uri {config.get('SourceS3Uri')!r} of {row['InstanceGroupName']} must "
                f"begin with s3://sagemaker-"
            )
        if "OnCreate" not in config:
            raise ClusterError(
                f"{row['InstanceGroupName']} has no OnCreate, the one that is played"
            )
