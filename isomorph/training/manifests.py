"""What Kubernetes is told of a run on an EKS-orchestrated cluster, as data.

A PyTorchJob of Kubeflow's training operator, which HyperPod's Helm chart installs; torchrun's
elastic settings come from the operator as PET_ variables. With teams, Kueue admits it: task
governance names a team's queue and priorities.
https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-hyperpod-eks-resiliency.html has the
annotations of auto-resume.
"""

import json
from collections.abc import Mapping
from typing import Any

from isomorph.environments import Environment
from isomorph.training.jobs import Submission
from isomorph.training.places import APP, CLAIM, SHARED, Place, Published

# AWS's own containers; the account is that of most regions.
IMAGE = "763104351884.dkr.ecr.{region}.amazonaws.com/pytorch-training:2.10.0-gpu-py313"
_PORT = 29400
_GRACE_S = 120  # to save a checkpoint when a pod is deleted: what Spot gives too
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


def job(
    environment: Environment,
    outputs: Mapping[str, str],
    place: Place,
    published: Published,
    wanted: Submission,
) -> dict[str, Any]:
    """Return the PyTorchJob of a run.

    Args:
        environment: Where the cluster is.
        outputs: Of the stack moe-training.
        place: The namespace that it runs in.
        published: What the stack told the nodes.
        wanted: The run; each of its pods has a whole node.
    """
    run, nodes = wanted.run, wanted.nodes
    labels = {"app": APP, "isomorph/run": wanted.name}
    if place.queue:
        labels["kueue.x-k8s.io/queue-name"] = place.queue
    if priority := outputs.get("PriorityClass"):
        labels["kueue.x-k8s.io/priority-class"] = priority
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": wanted.name,
            "namespace": place.namespace,
            "labels": labels,
            "annotations": {
                "sagemaker.amazonaws.com/enable-job-auto-resume": "true",
                "sagemaker.amazonaws.com/job-max-retry-count": str(run.restarts),
            },
        },
        "spec": {
            # Not in the elastic policy too: the operator's webhook refuses both together.
            "nprocPerNode": str(run.ranks),
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "rdzvPort": _PORT,
                "minReplicas": nodes,
                "maxReplicas": nodes,
                "maxRestarts": run.restarts,
            },
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": run.restarts},
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": nodes,
                    "restartPolicy": "OnFailure",
                    "template": {
                        "metadata": {"labels": labels, **_near_each_other(outputs)},
                        "spec": _pod(environment, outputs, wanted, published.told),
                    },
                }
            },
        },
    }


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


def _pod(
    environment: Environment,
    outputs: Mapping[str, str],
    wanted: Submission,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    region = environment.config.region
    variables = {
        "CODE_URL": told["code"],
        "CODE_SHA256": told["code_sha256"],
        "AWS_REGION": region,
        "ISOMORPH_METRIC_NAMESPACE": told["metric_namespace"],
        "ISOMORPH_CLUSTER": outputs["ClusterName"],
        "ISOMORPH_SHARED": SHARED,
        "MLFLOW_TRACKING_URI": told.get("mlflow") or "",
        "FI_PROVIDER": "efa",
        "JOB_NAME": wanted.name,
        **dict(word.split("=", 1) for word in wanted.run.words()),
    }
    devices = _devices(outputs["WorkerType"])
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": IMAGE.format(region=region),
        "command": ["bash", "-c", _SCRIPT],
        "env": [{"name": key, "value": str(value)} for key, value in variables.items()],
        "resources": {"requests": devices, "limits": devices},
        "volumeMounts": [
            {"name": "lustre", "mountPath": SHARED},
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
            {"name": "lustre", "persistentVolumeClaim": {"claimName": CLAIM}},
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
