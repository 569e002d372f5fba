"""The function's role against the calls that its code makes: nothing missing, nothing spare."""

import ast

import pytest

from tests.cdk_app import ROOT, resources
from tests.stacks.test_node_calls import BEYOND, calls, operations

HANDLER = ROOT / "model_code" / "sliding_window" / "handler"
COMMON = ROOT / "model_code" / "common"
# Lambda's own, with the function's role: its log, and what failed asynchronously.
LAMBDA = {"logs:CreateLogStream", "logs:PutLogEvents", "sqs:SendMessage"}


def imported() -> set[str]:
    """Return the modules of ours that the handler loads, directly or through others."""
    found: set[str] = set()
    waiting = [*HANDLER.glob("*.py")]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("model_code."):
                path = ROOT / f"{node.module.replace('.', '/')}.py"
                path = path if path.is_file() else path.with_suffix("") / "__init__.py"
                if str(path) not in found:
                    found.add(str(path))
                    waiting.append(path)
    return found


@pytest.fixture(scope="module")
def needed():
    known = operations()
    from pathlib import Path

    files = [Path(name) for name in imported()] + [*HANDLER.glob("*.py")]
    found = {action for file in files for name in calls(file) for action in known.get(name, [])}
    return found | LAMBDA | {more for action in found for more in BEYOND.get(action, ())}


@pytest.fixture(scope="module")
def statements(synthesize_window):
    template = synthesize_window({})["sliding_window"]
    [role] = [
        each["Properties"]
        for each in resources(template, "AWS::IAM::Role").values()
        if "lambda.amazonaws.com" in str(each["Properties"]["AssumeRolePolicyDocument"])
    ]
    assert "ManagedPolicyArns" not in role
    [policy] = role["Policies"]
    assert not resources(template, "AWS::IAM::Policy")
    return policy["PolicyDocument"]["Statement"]


def allowed(statements) -> set[str]:
    return {
        action
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str)
                       else statement["Action"])
    }  # fmt: skip


def test_the_calls_are_found(needed):
    # A scan that finds nothing would make the next test true of any role.
    assert needed >= {"s3:GetObject", "kms:Decrypt"}


def test_the_function_may_do_what_its_code_does_and_nothing_else(needed, statements):
    assert allowed(statements) == needed


def test_no_right_is_for_everything(statements):
    assert all(statement["Resource"] != "*" for statement in statements)
