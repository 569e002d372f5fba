"""Which resource types the embedded deployment exercises, and which only a real account gets."""

import json

import pytest

from local_aws.describe import DESCRIBE, NOTHING_TO_SEE
from tests.stacks.synthesis import Synthesized

pytestmark = pytest.mark.gates

ONLY_IN_ACCOUNTS = {
    "AWS::CloudFront::Distribution": "nobody is far from the embedded AWS",
    "AWS::CloudFront::OriginAccessControl": "comes with the distribution",
    "AWS::Lambda::Alias": "only provisioned concurrency needs one, and that bills while idle",
    "AWS::Lambda::Version": "comes with the alias",
    "AWS::EKS::AccessEntry": "comes with EKS",
    "AWS::EKS::Addon": "comes with EKS",
    "AWS::EKS::Cluster": "local has no Kubernetes; its cluster is Slurm's",
    "AWS::EKS::PodIdentityAssociation": "comes with EKS",
    "AWS::SageMaker::ClusterSchedulerConfig": "HyperPod has task governance on EKS alone",
    "AWS::SageMaker::ComputeQuota": "HyperPod has task governance on EKS alone",
    "AWS::AutoScaling::WarmPool": "local has one machine, and stopped machines are not played",
    "AWS::Scheduler::Schedule": "a local endpoint costs nothing at night",
    "AWS::StepFunctions::StateMachine": "comes with the schedule",
    "AWS::SNS::Subscription": "local has nobody to write to",
}


@pytest.fixture(scope="module")
def types(shipped: Synthesized) -> dict[str, set[str]]:
    """The resource types of each shipped environment."""
    found: dict[str, set[str]] = {}
    for path in shipped.folder.glob("assembly-*/*.template.json"):
        kinds = {row["Type"] for row in json.loads(path.read_text())["Resources"].values()}
        found.setdefault(path.parent.name.removeprefix("assembly-"), set()).update(kinds)
    return found


def test_every_type_that_local_deploys_can_be_seen_through_its_service(types) -> None:
    assert types["local"] <= {*DESCRIBE, *NOTHING_TO_SEE}


def test_a_type_that_local_does_not_deploy_is_listed_with_the_reason(types) -> None:
    assert (types["dev"] | types["prod"]) - types["local"] == set(ONLY_IN_ACCOUNTS)
