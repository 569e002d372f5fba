"""The environments as they are shipped: all of them are synthesized once, for all tests here."""

import json
from pathlib import Path
from typing import Any

import pytest

from local_aws.describe import DESCRIBE, NOTHING_TO_SEE

import aws_cdk as cdk  # isort: skip

# Which resource types only a real account gets; the embedded deployment exercises the others.
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
def types(assembly_of_shipped: Path) -> dict[str, set[str]]:
    """The resource types of each shipped environment."""
    found: dict[str, set[str]] = {}
    for path in assembly_of_shipped.glob("assembly-*/*.template.json"):
        kinds = {row["Type"] for row in json.loads(path.read_text())["Resources"].values()}
        found.setdefault(path.parent.name.removeprefix("assembly-"), set()).update(kinds)
    return found


def test_every_type_that_local_deploys_can_be_seen_through_its_service(types) -> None:
    assert types["local"] <= {*DESCRIBE, *NOTHING_TO_SEE}


def test_a_type_that_local_does_not_deploy_is_listed_with_the_reason(types) -> None:
    assert (types["dev"] | types["prod"]) - types["local"] == set(ONLY_IN_ACCOUNTS)


def test_without_context_every_environment_is_built(shipped):
    stages = {child.node.id for child in shipped.node.children if hasattr(child, "stage_name")}
    assert stages == {"dev", "local", "prod"}


def test_synthesis_asks_the_account_nothing(assembly_of_shipped):
    # What is missing the CLI looks up, and then runs the app a second time.
    found = assembly_of_shipped.rglob("manifest.json")
    manifests = [json.loads(path.read_text()) for path in found]
    assert len(manifests) == 4
    assert [each["missing"] for each in manifests if "missing" in each] == []


def test_findings_are_acknowledged_on_single_resources_with_a_reason(shipped, assembly_of_shipped):
    key = cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
    for whole in (shipped, *shipped.node.children):  # an environment's is in no stack's metadata
        assert not [entry for entry in whole.node.metadata if entry.type == key], whole.node.path
    found = [
        (path, entry["data"])
        for manifest in assembly_of_shipped.rglob("manifest.json")
        for path, entries in metadata(manifest).items()
        for entry in entries
        if entry["type"] == key
    ]
    assert len(found) > 3
    for path, data in found:
        assert len(path.split("/")) > 3, f"{path}, a whole stack: {data}"
        for rule, reason in data.items():
            assert len(reason) > 30, f"{path}: {rule}: {reason}"


def metadata(manifest: Path) -> dict[str, Any]:
    """What constructs say of themselves, by path such as /local/gqa/Role."""
    found: dict[str, Any] = {}
    for artifact in json.loads(manifest.read_text())["artifacts"].values():
        found |= artifact.get("metadata", {})
        if name := artifact.get("additionalMetadataFile"):
            found |= json.loads((manifest.parent / name).read_text())
    return found
