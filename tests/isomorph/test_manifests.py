"""Manifests of a run on EKS, held to the models that Kubernetes' and Kubeflow's clients ship."""

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from isomorph.environments import Environment, load
from isomorph.training.eks_jobs import EksJobs
from isomorph.training.jobs import Submission
from isomorph.training.submit import Run
from tests.isomorph.kubernetes_played.schemas import check, check_object

OUTPUTS = {
    "ClusterName": "prod-moe-123456", "WorkerType": "ml.p5e.48xlarge", "Namespace": "isomorph",
    "ServiceAccount": "isomorph", "LifecycleScripts": "s3://sagemaker-test/lifecycle/1",
}  # fmt: skip
TEAMS = {"Queue": "hyperpod-ns-research-localqueue", "PriorityClass": "training-priority",
         "Namespace": "hyperpod-ns-research", "Teams": "research,pretraining"}  # fmt: skip
NEAR = {"Topology": "topology.k8s.aws/network-node-layer-3"}
RUN = Run(
    config="deepseek-v3", data="corpus", texts=0, vocabulary=129280, held_out=0, steps=10, ranks=8,
    restarts=3, checkpoint_every=50, expert_parallel=64, batch=0, seed=0, peak_tflops=989.0,
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    with mock_aws():

        def client(_: Environment, service: str) -> Any:
            return boto3.client(service, region_name="us-east-1", **keys)

        monkeypatch.setattr(Environment, "client", client)
        found = load("prod")
        client(found, "s3").create_bucket(Bucket="sagemaker-test")
        told = {
            "parameter": "/told",
            "code": "s3://sagemaker-test/code.zip",
            "code_sha256": "0" * 64,
            "metric_namespace": "Isomorph/moe-training",
        }
        client(found, "s3").put_object(
            Bucket="sagemaker-test", Key="lifecycle/1/settings.json", Body=json.dumps(told)
        )
        lustre = {"dns_name": "fs-0123.fsx.us-east-1.amazonaws.com", "mount_name": "abcd"}
        client(found, "ssm").put_parameter(
            Name="/told", Type="String", Value=json.dumps({"lustre": lustre})
        )
        yield found


def made(environment: Environment, **changed: Any) -> list[dict[str, Any]]:
    given = {"name": "moe-deepseek-v3", "nodes": 16, "team": None, **changed}
    jobs = EksJobs(environment, given.pop("outputs", OUTPUTS))
    found = json.loads(jobs.manifests(Submission(run=RUN, **given)))
    assert (found["apiVersion"], found["kind"]) == ("v1", "List")
    return list(found["items"])


@pytest.mark.parametrize("outputs", [OUTPUTS, OUTPUTS | TEAMS, OUTPUTS | TEAMS | NEAR])
def test_every_field_is_one_that_kubernetes_knows(environment, outputs):
    documents = made(environment, outputs=outputs)
    kinds = [document["kind"] for document in documents]
    assert kinds == ["PersistentVolume", "PersistentVolumeClaim", "PyTorchJob"]
    models = ["V1PersistentVolume", "V1PersistentVolumeClaim", "KubeflowOrgV1PyTorchJob"]
    for document, kind in zip(documents, models, strict=True):
        check(kind, document, document["kind"])
    job = documents[2]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    check("V1PodSpec", job, "pod")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(replicas=2),
        lambda job: job["spec"]["elasticPolicy"].update(maxRestarts="3"),
        lambda job: job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"].pop(
            "containers"
        ),
    ],
)
def test_the_check_finds_what_is_wrong(environment, spoil):
    job = made(environment)[2]
    spoil(job)
    with pytest.raises((AssertionError, ValueError)):
        check("KubeflowOrgV1PyTorchJob", job, "job")


def test_kueue_admits_it_for_the_team_with_its_priority(environment):
    job = made(environment, outputs=OUTPUTS | TEAMS, team="pretraining")[2]
    assert job["metadata"]["namespace"] == "hyperpod-ns-pretraining"
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "hyperpod-ns-pretraining-localqueue"
    assert labels["kueue.x-k8s.io/priority-class"] == "training-priority"
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["template"]["metadata"]["labels"] == labels
    assert "kueue.x-k8s.io/queue-name" not in made(environment)[2]["metadata"]["labels"]


def test_kueue_prefers_nodes_that_are_near_each_other_if_a_topology_is_named(environment):
    def annotations(outputs: dict[str, str]) -> Any:
        worker = made(environment, outputs=outputs)[2]["spec"]["pytorchReplicaSpecs"]["Worker"]
        return worker["template"]["metadata"].get("annotations")

    assert annotations(OUTPUTS | TEAMS) is None
    assert annotations(OUTPUTS | TEAMS | NEAR) == {
        "kueue.x-k8s.io/podset-preferred-topology": "topology.k8s.aws/network-node-layer-3"
    }


def test_a_pod_that_is_deleted_has_the_time_to_save(environment):
    worker = made(environment)[2]["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] == 120


def test_a_pod_takes_a_whole_node_and_the_pinned_code(environment):
    worker = made(environment)[2]["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == 16
    [container] = worker["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {
        "nvidia.com/gpu": "8",
        "vpc.amazonaws.com/efa": "32",
    }
    variables = {row["name"]: row["value"] for row in container["env"]}
    assert variables["CODE_SHA256"] == "0" * 64
    assert (variables["JOB_CONFIG"], variables["JOB_EXPERT_PARALLEL"]) == ("deepseek-v3", "64")
    read = (Path(__file__).parents[2] / "model_code/moe/lifecycle/pod.sh").read_text()
    assert set(re.findall(r"\$(JOB_\w+)", read)) <= set(variables)
    [volume, claim, _] = made(environment)
    assert volume["spec"]["csi"]["volumeHandle"] == "fs-0123"
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]


def test_the_operators_webhook_takes_the_number_of_ranks_once(environment):
    job = made(environment)[2]
    assert job["spec"]["nprocPerNode"] == "8"
    check_object(job)
    job["spec"]["elasticPolicy"]["nProcPerNode"] = 8
    with pytest.raises(AssertionError, match="must not be used with"):
        check_object(job)
