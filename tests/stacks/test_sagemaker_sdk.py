"""What the stack moe-serving asks of SageMaker, made once more by the SageMaker SDK's own classes.

The SDK is in a venv of its own: it brings pandas and scipy, and the app must not import it.
"""

import copy
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.cdk_app import ROOT, literal, only
from tests.stacks import sagemaker_venv

KINDS = ("Model", "EndpointConfig", "Endpoint")
# Of the template, and no part of a request that creates.
NOT_SENT = {"Tags", "RetainAllVariantProperties"}

SETTINGS: dict[str, dict[str, Any]] = {
    "one": {"max_instances": 2},
    "canary": {"instances": 2, "canary_percent": 25, "instance_type": "ml.inf2.8xlarge"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def resolved(value: Any) -> Any:
    """Return a property as it would be deployed, with text for what only a deployment knows."""
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)).startswith(("Fn::", "Ref")):
            return "x" + literal(value).replace("{", "-").replace("}", "-").replace("::", "-")
        return {key: resolved(each) for key, each in value.items() if key not in NOT_SENT}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def wanted_of(template: dict[str, Any]) -> dict[str, Any]:
    return {kind: resolved(only(template, f"AWS::SageMaker::{kind}")) for kind in KINDS}


@pytest.fixture(scope="module")
def wanted(synthesize_serving: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """What templates ask for, by a name; the last one has a property that SageMaker has not."""
    found = {
        name: wanted_of(synthesize_serving({"endpoint": settings})["moe-serving"])
        for name, settings in SETTINGS.items()
    }
    found["unknown"] = copy.deepcopy(found["one"])
    found["unknown"]["EndpointConfig"]["ProductionVariants"][0]["InferenceAmi"] = "x"
    return found


@pytest.fixture(scope="module")
def sent(wanted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the SDK makes of each, in one process: it takes seconds to import."""
    program = ROOT / "tests" / "stacks" / "sagemaker_sdk.py"
    done = subprocess.run(
        [sagemaker_venv.ensure(), program],
        input=json.dumps([*wanted.values()]), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(wanted, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_sdk_makes_the_same_requests(wanted, sent, name) -> None:
    assert "refused" not in sent[name], sent[name]
    for kind in KINDS:
        own = {**wanted[name][kind], f"{kind}Name": f"the-{kind.lower()}"}
        assert sent[name][kind] == own


def test_a_property_that_sagemaker_does_not_know_is_refused(sent) -> None:
    # Without this the check above could be true of anything.
    assert "inference_ami" in sent["unknown"]["refused"]
