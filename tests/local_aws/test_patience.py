"""The CDK CLI looks every five seconds: it is answered when there is something to see."""

from typing import Any

import boto3
import pytest
from botocore.config import Config

from local_aws import daemon, patience
from tests.local_aws.conftest import Emulator
from tests.local_aws.templates import ref, resource

WAITS = {
    "Resources": {
        "Handle": resource("CloudFormation::WaitConditionHandle"),
        "Wait": resource("CloudFormation::WaitCondition", Handle=ref("Handle"), Timeout="2"),
    }
}


def status(emulator: Emulator, agent: str, stack: str) -> str:
    given = daemon.environment(emulator.running)
    client: Any = boto3.client(
        "cloudformation",
        endpoint_url=given["AWS_ENDPOINT_URL"],
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        region_name=given["AWS_REGION"],
        config=Config(user_agent_extra=agent),
    )
    return str(client.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])


def test_the_cli_hears_of_a_stack_when_it_has_settled(emulator: Emulator) -> None:
    emulator.begin("waits", WAITS)
    identity = emulator.client("cloudformation").describe_stacks(StackName="waits")
    assert status(emulator, "another/1.0", "waits") == "CREATE_IN_PROGRESS"
    assert status(emulator, "aws-cdk/2.1000.0", "waits") == "ROLLBACK_COMPLETE"
    arn = identity["Stacks"][0]["StackId"]
    assert status(emulator, "aws-cdk/2.1000.0", arn) == "ROLLBACK_COMPLETE"


def test_a_change_set_that_is_under_review_keeps_nobody_waiting(emulator: Emulator) -> None:
    emulator.client("cloudformation").create_change_set(
        StackName="reviewed",
        ChangeSetName="first",
        ChangeSetType="CREATE",
        TemplateBody='{"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}',
    )
    assert status(emulator, "aws-cdk/2.1000.0", "reviewed") == "REVIEW_IN_PROGRESS"


@pytest.mark.parametrize(
    ("stack_status", "waits"),
    [("DELETE_IN_PROGRESS", True), ("UPDATE_ROLLBACK_IN_PROGRESS", True),
     ("DELETE_COMPLETE", False), ("REVIEW_IN_PROGRESS", False)],
)  # fmt: skip
def test_it_waits_for_what_is_going_on(
    monkeypatch: pytest.MonkeyPatch, stack_status: str, waits: bool
) -> None:
    row = {"StackName": "goes", "StackId": "arn:goes", "StackStatus": stack_status}
    monkeypatch.setattr(patience.cloudformation, "_stacks", {"goes": row})
    assert patience._changing("goes") == patience._changing("arn:goes") == waits
    assert not patience._changing("another")
