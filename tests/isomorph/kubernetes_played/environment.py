"""An environment whose training cluster is the played one."""

import base64
import json
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.eks.models import eks_backends

from isomorph.environments import Environment
from tests.isomorph.kubernetes_played.server import CLUSTER, SECRETS, Played

OUTPUTS = {
    "ClusterName": CLUSTER, "EksCluster": CLUSTER, "Orchestrator": "eks", "Workers": "4",
    "ControllerGroup": "none", "WorkerType": "ml.p5e.48xlarge", "RanksPerNode": "8",
    "Namespace": "isomorph", "ServiceAccount": "isomorph", "DataUrl": "s3://training/data/",
    "LifecycleScripts": "s3://sagemaker-test/lifecycle/1",
}  # fmt: skip
TEAMS = {
    "Teams": "research,serving", "Namespace": "hyperpod-ns-research",
    "Queue": "hyperpod-ns-research-localqueue", "PriorityClass": "training-priority",
}  # fmt: skip
TOLD = {"parameter": "/told", "code": "s3://sagemaker-test/code.zip", "code_sha256": "0" * 64,
        "metric_namespace": "Isomorph/moe-training"}  # fmt: skip
LUSTRE = {"dns_name": "fs-0123.fsx.us-east-1.amazonaws.com", "mount_name": "abcd"}


# The models of services are read once.
_SESSIONS: dict[str, boto3.Session] = {}
_CLIENTS: dict[tuple[str, str, str | None], Any] = {}


class Caller:
    """Whoever runs the commands: with an access key, against some AWS."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, url: str | None = None) -> None:
        self.key, self.outputs = "MEMBERKEY", dict(OUTPUTS)
        self._url, self._sessions = url, _SESSIONS
        monkeypatch.setattr(Environment, "outputs", lambda *_: self.outputs)
        monkeypatch.setattr(Environment, "session", property(lambda _: self.session))
        monkeypatch.setattr(Environment, "client", lambda _, service: self.client(service))

    @property
    def session(self) -> boto3.Session:
        if self.key not in self._sessions:
            self._sessions[self.key] = boto3.Session(
                aws_access_key_id=self.key, region_name="us-east-1",
                aws_secret_access_key=SECRETS.get(self.key, "none"),
            )  # fmt: skip
        return self._sessions[self.key]

    def client(self, service: str) -> Any:
        key = (self.key, service, self._url)
        if key not in _CLIENTS:
            _CLIENTS[key] = self.session.client(service, endpoint_url=self._url)
        return _CLIENTS[key]

    def publish(self, **told: str) -> None:
        """Put what the stack tells the nodes where it does."""
        s3 = self.client("s3")
        for bucket in ("sagemaker-test", "training"):
            s3.create_bucket(Bucket=bucket)
        settings = json.dumps(TOLD | told)
        s3.put_object(Bucket="sagemaker-test", Key="lifecycle/1/settings.json", Body=settings)
        value = json.dumps({"lustre": LUSTRE})
        self.client("ssm").put_parameter(Name="/told", Type="String", Value=value, Overwrite=True)

    def describe(self, played: Played) -> None:
        """Let EKS name the played API as its cluster's endpoint."""
        network = {"subnetIds": ["subnet-1", "subnet-2"]}
        role = "arn:aws:iam::123456789012:role/eks"
        if CLUSTER not in eks_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].clusters:
            self.client("eks").create_cluster(
                name=CLUSTER, roleArn=role, resourcesVpcConfig=network
            )
        found = eks_backends[DEFAULT_ACCOUNT_ID]["us-east-1"].clusters[CLUSTER]
        found.endpoint = played.url
        found.certificate_authority = {"data": base64.b64encode(played.authority.encode()).decode()}
