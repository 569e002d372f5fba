from tests.cdk_app import literal, only, resources
from tests.constructs_lib.fleet import (
    GROUP,
    data,
    env,
)


def test_a_node_takes_tokens_for_its_metadata_over_one_hop(fleet):
    assert data(fleet)["MetadataOptions"] == {
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }


def test_a_nodes_disk_is_gp3_under_the_volume_key(fleet):
    [disk] = data(fleet)["BlockDeviceMappings"]
    assert disk["Ebs"] == {
        "Encrypted": True,
        "KmsKeyId": "arn:aws:kms:us-east-1:111122223333:key/volume",
        "VolumeSize": 30,
        "VolumeType": "gp3",
    }


def test_nobody_can_log_in_with_a_key(fleet):
    assert "KeyName" not in data(fleet)


def test_a_node_runs_amazon_linux_2023_on_x86(fleet):
    parameter = fleet["Parameters"][data(fleet)["ImageId"]["Ref"]]
    assert parameter["Default"].startswith("/aws/service/ami-amazon-linux-latest/al2023-ami")
    assert parameter["Default"].endswith("x86_64")


def test_a_node_is_told_everything_that_its_server_reads(fleet):
    [group] = resources(fleet, GROUP)
    [logs] = resources(fleet, "AWS::Logs::LogGroup")
    assert env(fleet) == {
        "AWS_REGION": "$AWS_REGION",
        "ISOMORPH_WEIGHTS": "${POINTER%%#*}",
        "ISOMORPH_WEIGHTS_SHA256": "${POINTER##*=}",
        "ISOMORPH_SLUG": "gqa",
        "ISOMORPH_ENVIRONMENT": "test",
        "ISOMORPH_FLEET": "test-gqa",
        "ISOMORPH_PYTHON": "python3.11",
        "ISOMORPH_ENGINE": "llama.cpp",
        "ISOMORPH_DTYPE": "auto",
        "ISOMORPH_QUANTIZATION": "none",
        "ISOMORPH_MODEL": "tiny",
        "ISOMORPH_PORT": "8080",
        "ISOMORPH_SLOTS": "8",
        "ISOMORPH_CONTEXT": "2048",
        "ISOMORPH_QUEUE": "64",
        "ISOMORPH_DEADLINE_S": "60",
        "ISOMORPH_METRIC_NAMESPACE": "Isomorph/gqa",
        "ISOMORPH_LOG_GROUP": "{" + logs + "}",
        "ISOMORPH_STACK": "test-gqa",
        "ISOMORPH_SIGNAL_RESOURCE": group,
        "ISOMORPH_LAUNCH_HOOK": "launch",
        "ISOMORPH_DRAIN_HOOK": "drain",
    }


def test_new_weights_make_a_new_launch_template_version(fleet):
    [pointer] = [name for name in fleet["Parameters"] if name.startswith("WeightsPointer")]
    assert "POINTER='{" + pointer + "}'" in literal(data(fleet)["UserData"])


def allowed(template: dict) -> dict[str, list[dict]]:
    [policy] = only(template, "AWS::IAM::Role")["Policies"]
    found: dict[str, list[dict]] = {}
    for statement in policy["PolicyDocument"]["Statement"]:
        actions = statement["Action"]
        for action in actions if isinstance(actions, list) else [actions]:
            found.setdefault(action, []).append(statement)
    return found


def test_the_policy_is_part_of_the_role_so_that_no_node_boots_without_it(fleet):
    assert resources(fleet, "AWS::IAM::Policy") == {}
    assert "ManagedPolicyArns" not in only(fleet, "AWS::IAM::Role")


def test_a_node_reads_its_two_assets_and_its_own_weights(fleet):
    [statement] = allowed(fleet)["s3:GetObject"]
    read = [literal(resource) for resource in statement["Resource"]]
    assert read[2] == "arn:aws:s3:::models/gqa/*"
    assert [arn.rpartition("/")[0] for arn in read[:2]] == [
        "arn:aws:s3:::cdk-hnb659fds-assets-111122223333-us-east-1"
    ] * 2
    assert not any("*" in arn for arn in read[:2])


def test_a_node_decrypts_weights_through_s3_only(fleet):
    [statement] = allowed(fleet)["kms:Decrypt"]
    assert statement["Resource"] == "arn:aws:kms:us-east-1:111122223333:key/model"
    assert statement["Condition"] == {
        "StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}
    }


def test_a_node_publishes_to_its_own_namespace(fleet):
    [statement] = allowed(fleet)["cloudwatch:PutMetricData"]
    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": "Isomorph/gqa"}}


def test_a_node_signals_its_own_stack_and_completes_hooks_of_its_own_fleet(fleet):
    [signal] = allowed(fleet)["cloudformation:SignalResource"]
    [complete] = allowed(fleet)["autoscaling:CompleteLifecycleAction"]
    assert signal["Resource"] == {"Ref": "AWS::StackId"}
    assert complete["Resource"] == (
        "arn:aws:autoscaling:us-east-1:111122223333:"
        "autoScalingGroup:*:autoScalingGroupName/test-gqa-*"
    )


def test_a_node_may_do_nothing_else(fleet):
    assert set(allowed(fleet)) == {
        "autoscaling:CompleteLifecycleAction",
        "autoscaling:DescribeAutoScalingInstances",
        "cloudformation:SignalResource",
        "cloudwatch:PutMetricData",
        "kms:Decrypt",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "s3:GetObject",
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    }
