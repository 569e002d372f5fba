"""Run in a venv with the SageMaker SDK: makes what a template asks for with the SDK's resources.

Reads a list of {"Model": {...}, "EndpointConfig": {...}, "Endpoint": {...}} and prints for each the
requests that the SDK's own classes made of them, each checked by their types and by botocore, or
{"refused": why}.
"""

import contextlib
import json
import re
import sys
from typing import Any

import boto3
from botocore.exceptions import UnStubbedResponseError
from botocore.stub import Stubber
from sagemaker.core import resources
from sagemaker.core.shapes import shapes

ANSWERS = {"Model": "ModelArn", "EndpointConfig": "EndpointConfigArn", "Endpoint": "EndpointArn"}
SHAPES = {
    "primary_container": shapes.ContainerDefinition,
    "production_variants": shapes.ProductionVariant,
    "vpc_config": shapes.VpcConfig,
    "deployment_config": shapes.DeploymentConfig,
    "tags": shapes.Tag,
}
KEPT = {"environment"}  # its keys are the user's


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def plain(value: Any, name: str = "") -> Any:
    """Return a template's value with the SDK's names."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict) and name not in KEPT:
        return {snake(key): plain(each, snake(key)) for key, each in value.items()}
    return value


def shaped(name: str, value: Any) -> Any:
    shape = SHAPES.get(name)
    if shape is None:
        return value
    return [shape(**each) for each in value] if isinstance(value, list) else shape(**value)


def create(kind: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Make one resource with the SDK, and return the request that it would send."""
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="x",
                          aws_secret_access_key="x")  # fmt: skip
    sent: dict[str, Any] = {}
    client.meta.events.register("before-parameter-build.*", lambda params, **_: sent.update(params))
    resources.Base.get_sagemaker_client = classmethod(lambda *_, **__: client)
    given = {name: shaped(name, value) for name, value in plain(properties).items()}
    named = {f"{snake(kind)}_name": f"the-{kind.lower()}", **given}
    with Stubber(client) as stubber:
        arn = f"arn:aws:sagemaker:us-east-1:111122223333:{kind.lower()}/x"
        stubber.add_response(f"create_{snake(kind)}", {ANSWERS[kind]: arn}, None)
        with contextlib.suppress(UnStubbedResponseError):  # made, it would now be described
            getattr(resources, kind).create(**named)
        stubber.assert_no_pending_responses()
    return sent


def attempt(wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    try:
        return {kind: create(kind, given) for kind, given in wanted.items()}
    except Exception as error:  # the types', botocore's or a class's own
        return {"refused": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps([attempt(wanted) for wanted in json.load(sys.stdin)]))
