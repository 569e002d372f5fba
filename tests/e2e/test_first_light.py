"""The whole way: a real `cdk deploy` to the embedded AWS, and a real model behind it."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from isomorph.environments import Environment, load
from local_aws.describe import DESCRIBE
from tests.e2e.conftest import ROOT, Command

pytestmark = pytest.mark.e2e
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def local(up: dict[str, Any], variables: dict[str, str]) -> Environment:
    """The deployed environment, as commands see it."""
    os.environ["ISOMORPH_STATE"] = variables["ISOMORPH_STATE"]
    return load("local")


def cdk(local: Environment, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the pinned CDK CLI against the embedded AWS."""
    command = [str(ROOT / "node_modules/.bin/cdk"), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **local.variables, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_the_deployed_model_knows_paris(up: dict[str, Any]) -> None:
    [row] = up["innovations"]
    assert row["innovation"] == "gqa"
    assert "Paris" in row["answer"]["text"]


def test_every_resource_of_the_templates_is_visible(local: Environment) -> None:
    cloudformation = local.client("cloudformation")
    unseen = []
    for slug in ("foundation", "gqa"):
        pages = cloudformation.get_paginator("list_stack_resources")
        for page in pages.paginate(StackName=local.stack(slug)):
            for resource in page["StackResourceSummaries"]:
                kind = resource["ResourceType"]
                if kind == "AWS::CDK::Metadata":
                    continue
                assert kind in DESCRIBE, f"{kind} has no way to be seen"
                if not DESCRIBE[kind](local.client, resource["PhysicalResourceId"]):
                    unseen.append(f"{kind} {resource['LogicalResourceId']}")
    assert unseen == []
