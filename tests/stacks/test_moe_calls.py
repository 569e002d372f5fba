"""The roles of pools' nodes and of the endpoint against the calls that their code makes."""

from typing import Any

import pytest

from tests.cdk_app import ROOT, literal, resources
from tests.stacks import test_node_calls as nodes

CODE = ROOT / "model_code"
MOE = [CODE / "moe" / name for name in ("serve", "experts", "route")]
# What SageMaker does with the role: the image, the container's logs, its network interface, and the
# encrypted volume. https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html
PLATFORM = {
    *("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetAuthorizationToken"),
    "ecr:GetDownloadUrlForLayer",
    *("ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission"),
    *("ec2:DeleteNetworkInterface", "ec2:DeleteNetworkInterfacePermission"),
    *("ec2:DescribeDhcpOptions", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups"),
    *("ec2:DescribeSubnets", "ec2:DescribeVpcs"),
    *("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams"),
    *("logs:PutLogEvents", "kms:CreateGrant"),
}


@pytest.fixture(scope="module")
def template(synthesize_serving) -> dict[str, Any]:
    pools = {name: {"instance_type": "r7i.large"} for name in ("code", "prose")}
    found: dict[str, Any] = synthesize_serving({"pools": pools, "endpoint": {}})["moe-serving"]
    return found


def statements(template: dict[str, Any], policy: str) -> list[list[dict[str, Any]]]:
    """Return the statements of each role's inline policy of that name."""
    return [
        each["PolicyDocument"]["Statement"]
        for role in resources(template, "AWS::IAM::Role").values()
        for each in role["Properties"].get("Policies", [])
        if each["PolicyName"] == policy
    ]


def actions(found: list[dict[str, Any]]) -> set[str]:
    given = [each["Action"] for each in found]
    return {one for each in given for one in ([each] if isinstance(each, str) else each)}


def needed_by(*folders: Any) -> set[str]:
    found = set().union(*(nodes.made_by_python(folder) for folder in folders))
    return found | {more for action in found for more in nodes.BEYOND.get(action, ())}


def test_a_node_of_a_pool_may_make_the_calls_of_its_code_and_no_others(template) -> None:
    user_data = (ROOT / "constructs_lib" / "user_data.py").read_text()
    boot = (CODE / "common" / "node" / "boot.sh").read_text()
    needed = needed_by(*MOE) | nodes.made_by_scripts(user_data, boot) | nodes.SESSIONS
    roles = statements(template, "Node")
    assert len(roles) == 2
    for found in roles:
        assert actions(found) == needed


def test_the_endpoint_may_make_the_calls_of_its_code_and_of_sagemaker_and_no_others(
    template,
) -> None:
    of_nodes = nodes.made_by_python(CODE / "common" / "node")
    lifecycle = {name for name in of_nodes if name.startswith(("autoscaling:", "cloudformation:"))}
    [found] = statements(template, "Endpoint")
    assert actions(found) == (needed_by(*MOE) - lifecycle) | PLATFORM


def test_the_endpoints_role_reads_only_its_archive_and_the_weights(template) -> None:
    [found] = statements(template, "Endpoint")
    [read] = [each for each in found if each["Action"] == "s3:GetObject"]
    reads = [literal(each) for each in read["Resource"]]
    assert len(reads) == 2
    assert reads[0].endswith(".gz")
    assert reads[1].endswith("/moe/*")


def test_only_sagemaker_in_this_account_takes_the_endpoints_role(template) -> None:
    [role] = [
        each["Properties"]
        for each in resources(template, "AWS::IAM::Role").values()
        if each["Properties"].get("Policies", [{}])[0].get("PolicyName") == "Endpoint"
    ]
    [trust] = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "111122223333"}}


def test_the_hours_change_one_endpoint(synthesize_serving) -> None:
    night = {"stop": "20:00", "start": "07:00"}
    made = synthesize_serving({"endpoint": {"max_instances": 2, "night": night}})["moe-serving"]
    [found] = statements(made, "Hours")
    [of_sagemaker] = [each for each in found if "sagemaker:CreateEndpoint" in each["Action"]]
    endpoint, config = of_sagemaker["Resource"]
    assert made["Resources"][endpoint["Ref"]]["Type"] == "AWS::SageMaker::Endpoint"
    assert made["Resources"][config["Ref"]]["Type"] == "AWS::SageMaker::EndpointConfig"
    [machine] = resources(made, "AWS::StepFunctions::StateMachine").values()
    called = literal(machine["Properties"]["DefinitionString"])
    for action in ("createEndpoint", "deleteEndpoint", "registerScalableTarget"):
        assert action in called
