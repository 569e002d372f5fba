"""What the stack moe-serving asks of SageMaker, made once more by the SageMaker SDK's own classes.

The SDK is in a venv of its own: it brings pandas and scipy, and the app must not import it.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import ROOT, literal, only
from tests.stacks import sagemaker_venv

KINDS = ("Model", "EndpointConfig", "Endpoint")
# Of the template, and no part of a request that creates.
NOT_SENT = {"Tags", "RetainAllVariantProperties"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of a venv with the SDK."""
    return sagemaker_venv.ensure()


def resolved(value: Any) -> Any:
    """Return a property as it would be deployed, with text for what only a deployment knows."""
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)).startswith(("Fn::", "Ref")):
            return "x" + literal(value).replace("{", "-").replace("}", "-").replace("::", "-")
        return {key: resolved(each) for key, each in value.items() if key not in NOT_SENT}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def made_by_the_sdk(python: Path, template: dict[str, Any]) -> tuple[Any, Any]:
    wanted = {kind: resolved(only(template, f"AWS::SageMaker::{kind}")) for kind in KINDS}
    program = ROOT / "tests" / "stacks" / "sagemaker_sdk.py"
    done = subprocess.run(
        [python, program], input=json.dumps(wanted), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return wanted, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"max_instances": 2},
        {"instances": 2, "canary_percent": 25, "instance_type": "ml.inf2.8xlarge"},
    ],
)
def test_the_sdk_makes_the_same_requests(synthesize_serving, python, settings) -> None:
    template = synthesize_serving({"endpoint": settings})["moe-serving"]
    wanted, sent = made_by_the_sdk(python, template)
    for kind in KINDS:
        name = sent[kind].pop(f"{kind}Name")
        assert name == f"the-{kind.lower()}"
        assert sent[kind] == wanted[kind]


def test_a_property_that_sagemaker_does_not_know_is_refused(synthesize_serving, python) -> None:
    # Without this the check above could be true of anything.
    template = synthesize_serving({"endpoint": {}})["moe-serving"]
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::SageMaker::EndpointConfig":
            resource["Properties"]["ProductionVariants"][0]["InferenceAmi"] = "x"
    with pytest.raises(AssertionError, match="inference_ami"):
        made_by_the_sdk(python, template)
