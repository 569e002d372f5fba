"""What Kubernetes is told of a run on an EKS-orchestrated cluster, as data.

A PyTorchJob of Kubeflow's training operator, which HyperPod's Helm chart installs; torchrun's
elastic settings come from the operator as PET_ variables. With teams, Kueue admits it: task
governance names a team's queue and priorities. The file system is a static volume of the FSx CSI
driver. https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-hyperpod-eks-resiliency.html has
the annotations of auto-resume.
"""

import json
from collections.abc import Mapping
from typing import Any

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.training.submit import Run

# AWS's own containers; the account is that of most regions.
IMAGE = "763104351884.dkr.ecr.{region}.amazonaws.com/pytorch-training:2.10.0-gpu-py313"
_SHARED = "/fsx"
_PORT = 29400
_GRACE_S = 120  # to save a checkpoint when the job is deleted: what Spot gives too
_SCRIPT = """\
set -Eeuo pipefail
python3 - <<'PYTHON'
import hashlib, io, os, sys, zipfile
import boto3
bucket, _, key = os.environ["CODE_URL"].removeprefix("s3://").partition("/")
content = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
if hashlib.sha256(content).hexdigest() != os.environ["CODE_SHA256"]:
    sys.exit("isomorph: " + os.environ["CODE_URL"] + " does not have its sha256")
zipfile.ZipFile(io.BytesIO(content)).extractall("/tmp/code")
PYTHON
cd /tmp/code
exec bash model_code/moe/lifecycle/pod.sh
"""


def manifests(
    environment: Environment,
    outputs: Mapping[str, str],
    run: Run,
    *,
    name: str,
    nodes: int,
    team: str | None,
) -> list[dict[str, Any]]:
    """Return the volume, its claim and the job.

    Args:
        environment: Where the cluster is.
        outputs: Of the stack moe-training.
        run: What is trained, and how.
        name: Of the job and of its checkpoints.
        nodes: Pods, each with a whole node.
        team: Whose quota it takes; left out, the first team's, if there are teams.

    Raises:
        UserError: the settings that the stack published cannot be read.
    """
    told, lustre = _published(environment, outputs)
    namespace = f"hyperpod-ns-{team}" if team else outputs["Namespace"]
    claim = f"{name}-lustre"
    labels = {"app": "isomorph", "isomorph/run": name}
    queue = f"hyperpod-ns-{team}-localqueue" if team else outputs.get("Queue")
    if queue:
        labels["kueue.x-k8s.io/queue-name"] = queue
    if priority := outputs.get("PriorityClass"):
        labels["kueue.x-k8s.io/priority-class"] = priority
    volume = _volume(claim, lustre, namespace)
    job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                "sagemaker.amazonaws.com/enable-job-auto-resume": "true",
                "sagemaker.amazonaws.com/job-max-retry-count": str(run.restarts),
            },
        },
        "spec": {
            "nprocPerNode": str(run.ranks),
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "rdzvPort": _PORT,
                "minReplicas": nodes,
                "maxReplicas": nodes,
                "maxRestarts": run.restarts,
                "nProcPerNode": run.ranks,
            },
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": run.restarts},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": nodes,
                    "restartPolicy": "OnFailure",
                    "template": {
                        "metadata": {"labels": labels, **_near_each_other(outputs)},
                        "spec": _pod(environment, outputs, run, told, name=name, claim=claim),
                    },
                }
            },
        },
    }
    return [*volume, job]


def _near_each_other(outputs: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the annotation by which Kueue prefers nodes that are near each other.

    https://kueue.sigs.k8s.io/docs/tasks/run/topology_aware_scheduling
    """
    topology = outputs.get("Topology")
    if not topology:
        return {}
    return {"annotations": {"kueue.x-k8s.io/podset-preferred-topology": topology}}


def dump(documents: list[dict[str, Any]]) -> str:
    """Return the documents as one List, in JSON, which `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}, indent=2) + "\n"


def _published(
    environment: Environment, outputs: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the stack told the nodes: in a file beside their scripts, and a parameter."""
    bucket, _, prefix = outputs["LifecycleScripts"].removeprefix("s3://").partition("/")
    with environment.aws_errors():
        s3, ssm = environment.client("s3"), environment.client("ssm")
        body = s3.get_object(Bucket=bucket, Key=f"{prefix}/settings.json")["Body"].read()
        told = json.loads(body)
        value = ssm.get_parameter(Name=told["parameter"])["Parameter"]["Value"]
    lustre = json.loads(value).get("lustre")
    if not lustre:
        raise UserError(f"{told['parameter']} names no file system; deploy the stack again")
    return told, lustre


def _volume(name: str, lustre: Mapping[str, str], namespace: str) -> list[dict[str, Any]]:
    """Return a static volume of the CSI driver, and the claim on it."""
    storage = {"requests": {"storage": "1200Gi"}}  # asked for by Kubernetes, read by nobody
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                "capacity": {"storage": "1200Gi"},
                "volumeMode": "Filesystem",
                "accessModes": ["ReadWriteMany"],
                "mountOptions": ["flock", "noatime"],
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": name},
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
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": f"{namespace}-{name}",
                "resources": storage,
            },
        },
    ]


def _pod(
    environment: Environment,
    outputs: Mapping[str, str],
    run: Run,
    told: Mapping[str, Any],
    *,
    name: str,
    claim: str,
) -> dict[str, Any]:
    region = environment.config.region
    variables = {
        "CODE_URL": told["code"],
        "CODE_SHA256": told["code_sha256"],
        "AWS_REGION": region,
        "ISOMORPH_METRIC_NAMESPACE": told["metric_namespace"],
        "ISOMORPH_CLUSTER": outputs["ClusterName"],
        "ISOMORPH_SHARED": _SHARED,
        "MLFLOW_TRACKING_URI": told.get("mlflow") or "",
        "FI_PROVIDER": "efa",
        "JOB_NAME": name,
        **dict(word.split("=", 1) for word in run.words()),
    }
    devices = _devices(outputs["WorkerType"])
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": IMAGE.format(region=region),
        "command": ["bash", "-c", _SCRIPT],
        "env": [{"name": key, "value": str(value)} for key, value in variables.items()],
        "resources": {"requests": devices, "limits": devices},
        "volumeMounts": [
            {"name": "lustre", "mountPath": _SHARED},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - memory for NCCL
        ],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    return {
        "serviceAccountName": outputs["ServiceAccount"],
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": _GRACE_S,
        "nodeSelector": {
            "node.kubernetes.io/instance-type": outputs["WorkerType"],
            "sagemaker.amazonaws.com/node-health-status": "Schedulable",
        },
        "containers": [container],
        "volumes": [
            {"name": "lustre", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _devices(instance_type: str) -> dict[str, str]:
    """Return what a pod takes of a node: all accelerators, all EFA cards."""
    from planner.catalogue import instances

    found = instances().get(instance_type.removeprefix("ml."))
    if found is None or found.runtime == "cpu":
        return {"cpu": str(found.vcpus - 2)} if found else {}
    resource = {"cuda": "nvidia.com/gpu", "neuron": "aws.amazon.com/neuron"}[found.runtime]
    efa = {"vpc.amazonaws.com/efa": str(found.efa)} if found.efa else {}
    return {resource: str(found.devices), **efa}
