"""The security gates: they pass on what is shipped, and fail on what they are there for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import FLAGS

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_logs as logs  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip

from app import build  # isort: skip

CFN_LINT = """
import gc
gc.disable()  # a fifth of its time
from cfnlint.runner.cli import main
main()
"""


@pytest.mark.gates
def test_without_context_every_environment_passes_every_gate_without_credentials(shipped):
    templates = {path.parent.name for path in shipped.folder.rglob("*.template.json")}
    assert templates == {"assembly-dev", "assembly-local", "assembly-prod"}
    assert "WARNING" not in shipped.done.stdout + shipped.done.stderr
    assert [path.name for path in shipped.scratch.iterdir()] == []


@pytest.mark.gates
def test_cfn_lint_has_nothing_to_say(shipped):
    # W3010 asks for Fn::GetAZs; an environment names its zones so that synthesis asks no network.
    # W3005: CDK's Function names its role as a dependency besides referring to it.
    templates = sorted(str(path) for path in shipped.folder.rglob("*.template.json"))
    done = subprocess.run(
        [sys.executable, "-c", CFN_LINT, "--ignore-checks", "W3010", "W3005", "--", *templates],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.gates
def test_cloudformations_own_validation_fails_the_synthesis(shipped):
    assert "does not match pattern" in (shipped.broken / "refusal").read_text()


@pytest.fixture(scope="module")
def refusal(wheels):
    """What the synthesis says of a bucket and a log group that are open."""
    app = build({**FLAGS, "env": "local"}, wheels)
    stack = app.node.find_child("local").node.find_child("gqa")
    s3.CfnBucket(stack, "OpenBucket")
    logs.CfnLogGroup(stack, "OpenLogs", retention_in_days=30)
    with pytest.raises(RuntimeError) as caught:
        app.synth()
    return str(caught.value)


def test_cdk_nag_fails_the_synthesis(refusal):
    assert "AwsSolutions-S1" in refusal


def test_our_own_rules_fail_the_synthesis(refusal):
    assert "Isomorph::LogGroups" in refusal


@pytest.mark.gates
def test_findings_are_acknowledged_on_single_resources_with_a_reason(shipped):
    assert shipped.done.stdout == ""  # it names what is acknowledged on more
    found = [
        (path, entry["data"])
        for manifest in shipped.folder.rglob("manifest.json")
        for path, entries in metadata(manifest).items()
        for entry in entries
        if entry["type"] == cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
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
