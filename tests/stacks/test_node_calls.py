"""The node's role against the calls that the node's code makes: nothing missing, nothing spare."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.loaders import Loader

from tests.cdk_app import ROOT, resources

NODE = ROOT / "model_code" / "common"
# What the nodes of each stack run besides.
OWN = {"gqa": ROOT / "model_code" / "gqa", "mla": ROOT / "model_code" / "mla"}
# Run by a person and not by a node: what puts weights into the bucket.
NOT_ON_NODES = {"push", "_is_there"}
# IAM's name where it is not service:Operation.
ACTIONS = {"s3:HeadObject": "s3:GetObject", "monitoring:PutMetricData": "cloudwatch:PutMetricData"}
# What reading takes beyond the call itself: the objects are under a key of ours.
BEYOND = {"s3:GetObject": {"kms:Decrypt"}, "secretsmanager:GetSecretValue": {"kms:Decrypt"}}
# Calls that a library makes for us.
LIBRARIES = {"watchtower": {"logs:CreateLogStream", "logs:PutLogEvents"}}
# Sessions for people, from the agent that the machine image brings.
SESSIONS = {
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
SERVICES = ("autoscaling", "cloudformation", "cloudwatch", "ec2", "elasticache", "kms", "logs",
            "s3", "secretsmanager", "ssm", "sts")  # fmt: skip


@cache
def operations() -> dict[str, list[str]]:
    """Return IAM actions by the name of the boto3 method, over the services that a node may use."""
    found: dict[str, list[str]] = {}
    for service in SERVICES:
        for operation in Loader().load_service_model(service, "service-2")["operations"]:
            action = f"{service}:{operation}"
            found.setdefault(xform_name(operation), []).append(ACTIONS.get(action, action))
    return found


@cache
def calls(path: Path) -> tuple[str, ...]:
    """Return the names of methods that are called in a file, but for what nodes do not run."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef) and node.name in NOT_ON_NODES:
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return tuple(walk(ast.parse(path.read_text())))


def made_by_python(own: Path) -> set[str]:
    known = operations()
    found = set()
    for path in (*NODE.rglob("*.py"), *own.rglob("*.py")):
        for name in calls(path):
            found |= set(known.get(name, []))
        for library, actions in LIBRARIES.items():
            if f"import {library}" in path.read_text():
                found |= actions
    return found


def made_by_scripts(*scripts: str) -> set[str]:
    found = set()
    for script in scripts:
        for service, command in re.findall(r"\baws (\w+) ([a-z-]+)", script):
            operation = "GetObject" if command == "cp" else _camel(command)
            found.add(f"{service}:{operation}")
    return found


def _camel(command: str) -> str:
    return "".join(word.capitalize() for word in command.split("-"))


@pytest.fixture(scope="module", params=sorted(OWN))
def slug(request):
    return request.param


@pytest.fixture(scope="module")
def needed(slug):
    user_data = (ROOT / "constructs_lib" / "user_data.py").read_text()
    boot = (NODE / "node" / "boot.sh").read_text()
    found = made_by_python(OWN[slug]) | made_by_scripts(user_data, boot)
    return found | SESSIONS | {more for action in found for more in BEYOND.get(action, ())}


@pytest.fixture(scope="module")
def allowed(templates, slug):
    [policy] = [
        policy
        for role in resources(templates[slug], "AWS::IAM::Role").values()
        for policy in role["Properties"]["Policies"]
        if policy["PolicyName"] == "Node"
    ]
    return {
        action
        for statement in policy["PolicyDocument"]["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str)
                       else statement["Action"])
    }  # fmt: skip


def test_the_calls_are_found(needed):
    # A scan that finds nothing would make the other tests true of any role.
    assert needed >= {
        "autoscaling:CompleteLifecycleAction",
        "cloudformation:SignalResource",
        "cloudwatch:PutMetricData",
        "logs:PutLogEvents",
        "s3:GetObject",
    }


def test_a_node_may_make_every_call_of_its_code(needed, allowed):
    missing = {each for each in needed if not any(fnmatchcase(each, given) for given in allowed)}
    assert missing == set()


def test_a_node_may_make_no_call_that_its_code_does_not(needed, allowed):
    assert allowed - needed == set()


def test_a_node_of_mla_reads_one_secret_with_one_key(templates):
    statements = [
        statement
        for role in resources(templates["mla"], "AWS::IAM::Role").values()
        for policy in role["Properties"]["Policies"]
        if policy["PolicyName"] == "Node"
        for statement in policy["PolicyDocument"]["Statement"]
    ]
    [read] = [each for each in statements if each["Action"] == "secretsmanager:GetSecretValue"]
    [secret] = resources(templates["mla"], "AWS::SecretsManager::Secret")
    assert read["Resource"] == {"Ref": secret}
    [key] = resources(templates["mla"], "AWS::KMS::Key")
    [decrypt] = [
        each
        for each in statements
        if each["Action"] == "kms:Decrypt" and "secretsmanager" in str(each["Condition"])
    ]
    assert decrypt["Resource"] == {"Fn::GetAtt": [key, "Arn"]}


def test_the_vpc_has_an_endpoint_for_every_service_that_a_node_calls(needed, templates, slug):
    # Without NAT a call to any other service would hang until it times out.
    endpoints = str(templates["foundation"]) + str(templates[slug])
    hosts = {"cloudwatch": "monitoring"}
    # S3 has its gateway; S3 itself asks KMS.
    services = {action.split(":")[0] for action in needed} - {"s3", "kms"}
    for service in services:
        name = hosts.get(service, service)
        assert f"com.amazonaws.us-east-1.{name}'" in endpoints, service
