"""Namespaces that runs live in on EKS, and what a namespace needs before a run can.

That is made once, by an admin (`isomorph access`): a volume of the file system and its claim, the
service account whose pods act as the stack's role, and the rights of those who run. A volume is an
object of the whole cluster, and who may create volumes may mount a node's disks: therefore it is
not made with each run, by whoever starts it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError

APP = CLAIM = "isomorph"
SHARED = "/fsx"
_ROLE = "isomorph-runs"
_SIZE = "1200Gi"  # asked for by Kubernetes, read by nobody
_RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Place:
    """A namespace.

    Args:
        namespace: Its name.
        team: Whose it is, where there are teams.
        queue: Kueue's queue of the team.
    """

    namespace: str
    team: str | None = None
    queue: str | None = None

    def job(self, name: str) -> str:
        """Return what commands call a run of a name here."""
        return f"{self.team}/{name}" if self.team else name


@dataclass(frozen=True)
class Published:
    """What the stack told the nodes, and where their file system is."""

    told: dict[str, Any]
    lustre: dict[str, str]


def places(outputs: Mapping[str, str]) -> list[Place]:
    """Return the teams' namespaces as task governance names them, or the one without teams."""
    teams = [team for team in outputs.get("Teams", "").split(",") if team]
    if not teams:
        return [Place(outputs["Namespace"], None, outputs.get("Queue"))]
    return [Place(f"hyperpod-ns-{team}", team, f"hyperpod-ns-{team}-localqueue") for team in teams]


def place_of(outputs: Mapping[str, str], team: str | None) -> Place:
    """Return a team's namespace, or the first.

    Raises:
        UserError: there is no such team.
    """
    there = places(outputs)
    for place in there:
        if team in (None, place.team):
            return place
    known = ", ".join(place.team for place in there if place.team) or "none"
    raise UserError(
        f"--team is {team!r}; teams of {outputs['ClusterName']}: {known} "
        f"(innovations.moe.training.governance.teams)"
    )


def published(environment: Environment, outputs: Mapping[str, str]) -> Published:
    """Return what the stack told the nodes: in a file beside their scripts, and a parameter.

    Raises:
        UserError: it cannot be read, or names no file system.
    """
    bucket, _, prefix = outputs["LifecycleScripts"].removeprefix("s3://").partition("/")
    with environment.aws_errors():
        s3, ssm = environment.client("s3"), environment.client("ssm")
        body = s3.get_object(Bucket=bucket, Key=f"{prefix}/settings.json")["Body"].read()
        told = json.loads(body)
        value = ssm.get_parameter(Name=told["parameter"])["Parameter"]["Value"]
    lustre = json.loads(value).get("lustre")
    if not lustre:
        raise UserError(f"{told['parameter']} names no file system; deploy the stack again")
    return Published(told, lustre)


def volume(place: Place, lustre: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a static volume of the FSx CSI driver, and the namespace's claim on it."""
    name = f"{place.namespace}-{CLAIM}"
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": _SIZE},
                "volumeMode": "Filesystem",
                "accessModes": ["ReadWriteMany"],
                "mountOptions": ["flock", "noatime"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": place.namespace, "name": CLAIM},
                "csi": {
                    "driver": "fsx.csi.aws.com",
                    "volumeHandle": lustre["dns_name"].partition(".")[0],
                    "volumeAttributes": {
                        "dnsname": lustre["dns_name"],
                        "mountname": lustre["mount_name"],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": place.namespace},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": {"storage": _SIZE}},
            },
        },
    ]


def access(outputs: Mapping[str, str], lustre: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return all that the namespaces need before there are runs, in the order of its making.

    A team's namespace is made by task governance; the one without teams by nobody else.
    """
    made: list[dict[str, Any]] = []
    for place in places(outputs):
        if place.team is None:
            name = {"name": place.namespace}
            made.append({"apiVersion": "v1", "kind": "Namespace", "metadata": name})
        account = {"name": outputs["ServiceAccount"], "namespace": place.namespace}
        made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account,
                     "automountServiceAccountToken": False})  # fmt: skip
        made += [*volume(place, lustre), *_rights(place)]
    return made


def _rights(place: Place) -> list[dict[str, Any]]:
    """Return what the commands need in a namespace, for the group of the access entries."""
    own = {"name": _ROLE, "namespace": place.namespace}
    rules: list[tuple[str, list[str], list[str]]] = [
        ("", ["pods"], ["get", "list"]),
        ("", ["pods/log", "persistentvolumeclaims"], ["get"]),
        ("kubeflow.org", ["pytorchjobs"], ["get", "list", "create", "patch", "delete"]),
    ]
    if place.queue:
        rules += [
            ("kueue.x-k8s.io", ["workloads"], ["get", "list", "patch"]),
            ("kueue.x-k8s.io", ["localqueues"], ["get"]),
        ]
    version = f"{_RBAC}/v1"
    return [
        {
            "apiVersion": version,
            "kind": "Role",
            "metadata": own,
            "rules": [
                {"apiGroups": [group], "resources": resources, "verbs": verbs}
                for group, resources, verbs in rules
            ],
        },
        {
            "apiVersion": version,
            "kind": "RoleBinding",
            "metadata": own,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": _ROLE},
            # As stacks/moe_training_teams.py names it.
            "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": f"{APP}:{place.namespace}"}],
        },
    ]
