"""The security gates: they pass on what is shipped, and fail on what they are there for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cdk_app import FLAGS, ROOT

from aws_cdk import aws_logs as logs  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip

from app import build  # isort: skip

SYNTHESIZE = """
import json, sys
from pathlib import Path
import app
app.build(json.loads(sys.argv[1]), Path(sys.argv[2])).synth()
"""
BREAK_A_PROPERTY = """
import json, sys
import aws_cdk
from aws_cdk import aws_s3
app = aws_cdk.App(context=json.loads(sys.argv[1]))
aws_s3.CfnBucket(aws_cdk.Stack(app, "stack"), "Bucket", bucket_name="UPPER_case")
app.synth()
"""


def synthesize(wheels: Path, outdir: Path, script: str = SYNTHESIZE, **context: str):
    """Run the app as `cdk` would: all validation on, no credentials anywhere."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))
    }
    environment |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(outdir / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(outdir / "none"),
        "CDK_OUTDIR": str(outdir),
    }
    return subprocess.run(
        [sys.executable, "-c", script, json.dumps({**FLAGS, **context}), str(wheels)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def assembly(wheels, tmp_path_factory):
    outdir = tmp_path_factory.mktemp("assembly") / "cdk.out"
    done = synthesize(wheels, outdir)
    assert done.returncode == 0, done.stderr
    return outdir, done


@pytest.mark.gates
def test_every_environment_passes_every_gate_without_credentials(assembly):
    outdir, done = assembly
    templates = {path.parent.name for path in outdir.rglob("*.template.json")}
    assert templates == {"assembly-dev", "assembly-local", "assembly-prod"}
    assert "WARNING" not in done.stdout + done.stderr


@pytest.mark.gates
def test_cfn_lint_has_nothing_to_say(assembly):
    # W3010 asks for Fn::GetAZs; an environment names its zones so that synthesis asks no network.
    # W3005: CDK's Function names its role as a dependency besides referring to it.
    outdir, _ = assembly
    tool = Path(sys.executable).parent / "cfn-lint"
    templates = sorted(str(path) for path in outdir.rglob("*.template.json"))
    done = subprocess.run(
        [tool, "--ignore-checks", "W3010", "W3005", "--", *templates],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.gates
def test_cloudformations_own_validation_fails_the_synthesis(wheels, tmp_path):
    done = synthesize(wheels, tmp_path / "cdk.out", BREAK_A_PROPERTY)
    assert done.returncode != 0
    assert "does not match pattern" in done.stdout + done.stderr


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
