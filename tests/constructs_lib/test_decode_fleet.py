from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

GROUP = "AWS::AutoScaling::AutoScalingGroup"
TEMPLATE = "AWS::EC2::LaunchTemplate"
BALANCER = "AWS::ElasticLoadBalancingV2::LoadBalancer"
LISTENER = "AWS::ElasticLoadBalancingV2::Listener"
TARGETS = "AWS::ElasticLoadBalancingV2::TargetGroup"
CERTIFICATE = "arn:aws:acm:us-east-1:111122223333:certificate/x"


def data(template: dict) -> dict:
    return only(template, TEMPLATE)["LaunchTemplateData"]


def env(template: dict) -> dict[str, str]:
    """Return what the user data writes into fleet.env."""
    script = literal(data(template)["UserData"])
    body = script.partition("<<ENV\n")[2].partition("\nENV\n")[0]
    return dict(line.split("=", 1) for line in body.splitlines())


def attributes(template: dict, kind: str) -> dict[str, str]:
    name = "LoadBalancerAttributes" if kind == BALANCER else "TargetGroupAttributes"
    return {each["Key"]: each["Value"] for each in only(template, kind)[name]}


def if_weights(template: dict, value: Any) -> list[Any]:
    [condition, there, missing] = value["Fn::If"]
    [pointer] = [name for name in template["Parameters"] if name.startswith("WeightsPointer")]
    assert template["Conditions"][condition] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": pointer}, "none"]}]
    }
    assert template["Parameters"][pointer] == {
        "Type": "AWS::SSM::Parameter::Value<String>",
        "Default": "/isomorph/test/gqa/weights",
        "Description": "SSM parameter that says where the weights are, or `none`",
    }
    return [there, missing]


# --- what a node is


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


# --- who may talk to whom


def rules(template: dict, direction: str) -> set[tuple[str, str, int]]:
    """Return (group, other end, port) of every rule that lets something through."""
    other = "Source" if direction == "Ingress" else "Destination"
    found = set()
    for name, resource in resources(template, "AWS::EC2::SecurityGroup").items():
        for rule in resource["Properties"].get(f"SecurityGroup{direction}", []):
            if rule["CidrIp"] != "255.255.255.255/32":
                found.add((name, rule["CidrIp"], rule["FromPort"]))
    for resource in resources(template, f"AWS::EC2::SecurityGroup{direction}").values():
        rule = resource["Properties"]
        end = rule.get(f"{other}PrefixListId") or rule[f"{other}SecurityGroupId"]
        end = end["Fn::GetAtt"][0] if isinstance(end, dict) else end
        found.add((rule["GroupId"]["Fn::GetAtt"][0], end, rule["FromPort"]))
    return {(_short(name), _short(end), port) for name, end, port in found}


def _short(name: str) -> str:
    if name.startswith("DecodeFleetFrontDoor"):
        return "balancer"
    return "nodes" if name.startswith("DecodeFleetSecurityGroup") else name


def test_the_balancer_is_called_from_inside_the_vpc_and_nodes_from_the_balancer(fleet):
    assert rules(fleet, "Ingress") == {
        ("balancer", "10.0.0.0/16", 80),
        ("nodes", "balancer", 8080),
    }


def test_nodes_reach_endpoints_and_s3_and_the_balancer_reaches_nodes(fleet):
    assert rules(fleet, "Egress") == {
        ("balancer", "nodes", 8080),
        ("nodes", "sg-ends", 443),
        ("nodes", "pl-63a5400a", 443),
    }


def test_every_group_has_an_egress_rule_of_its_own_so_ec2_adds_none(fleet):
    for resource in resources(fleet, "AWS::EC2::SecurityGroup").values():
        [rule] = resource["Properties"]["SecurityGroupEgress"]
        assert rule["CidrIp"] == "255.255.255.255/32"


# --- how nodes come and go


def test_there_is_no_node_until_there_are_weights(fleet):
    assert if_weights(fleet, only(fleet, GROUP)["MinSize"]) == ["2", "0"]


def test_a_deployment_does_not_put_back_what_scaling_changed(fleet):
    assert "DesiredCapacity" not in only(fleet, GROUP)


def test_the_group_spans_the_private_subnets_of_all_zones(fleet):
    assert only(fleet, GROUP)["VPCZoneIdentifier"] == ["subnet-a", "subnet-b", "subnet-c"]


def test_the_load_balancer_decides_whether_a_node_is_healthy(fleet):
    group = only(fleet, GROUP)
    assert group["HealthCheckType"] == "ELB"
    assert [each["Ref"] for each in group["TargetGroupARNs"]] == list(resources(fleet, TARGETS))


def test_creation_waits_until_the_first_nodes_answer(fleet):
    [group] = resources(fleet, GROUP).values()
    signal = group["CreationPolicy"]["ResourceSignal"]
    assert if_weights(fleet, signal["Count"]) == [2, 0]
    assert signal["Timeout"] == "PT15M"


def test_an_update_replaces_one_node_at_a_time_and_waits_for_its_signal(fleet):
    [group] = resources(fleet, GROUP).values()
    update = group["UpdatePolicy"]["AutoScalingRollingUpdate"]
    assert if_weights(fleet, update["MinInstancesInService"]) == [2, 0]
    assert update["MaxBatchSize"] == 1
    assert update["WaitOnResourceSignals"] is True
    assert "Launch" not in update["SuspendProcesses"]


def test_a_fleet_at_its_maximum_gives_one_node_up_to_be_updated(make_fleet):
    template = make_fleet(min_capacity=2, max_capacity=2)
    [group] = resources(template, GROUP).values()
    kept = group["UpdatePolicy"]["AutoScalingRollingUpdate"]["MinInstancesInService"]
    assert if_weights(template, kept) == [1, 0]


def test_hooks_are_in_the_group_so_that_its_first_nodes_have_them(fleet):
    hooks = only(fleet, GROUP)["LifecycleHookSpecificationList"]
    assert [
        (each["LifecycleHookName"], each["DefaultResult"], each["HeartbeatTimeout"])
        for each in hooks
    ] == [("launch", "ABANDON", 900), ("drain", "CONTINUE", 120)]


def test_the_group_scales_on_requests_in_flight_per_node(fleet):
    policy = only(fleet, "AWS::AutoScaling::ScalingPolicy")
    assert policy["TargetTrackingConfiguration"] == {
        "TargetValue": 6,
        "CustomizedMetricSpecification": {
            "Namespace": "Isomorph/gqa",
            "MetricName": "RequestsInFlight",
            "Statistic": "Average",
            "Dimensions": [{"Name": "Fleet", "Value": "test-gqa"}],
        },
    }


def test_a_fleet_of_fixed_size_has_no_scaling_policy(make_fleet):
    template = make_fleet(min_capacity=1, max_capacity=1)
    assert resources(template, "AWS::AutoScaling::ScalingPolicy") == {}


def test_a_warm_pool_is_stopped_and_waits_for_weights(make_fleet):
    template = make_fleet(warm_pool=3)
    [pool] = resources(template, "AWS::AutoScaling::WarmPool").values()
    assert pool["Properties"]["PoolState"] == "Stopped"
    assert pool["Properties"]["MinSize"] == 3
    assert pool["Properties"]["MaxGroupPreparedCapacity"] == 5
    assert pool["Condition"] in template["Conditions"]


def test_there_is_no_warm_pool_unless_asked_for(fleet):
    assert resources(fleet, "AWS::AutoScaling::WarmPool") == {}


def test_the_topic_hears_of_machines_that_come_go_and_fail(fleet):
    [notices] = only(fleet, GROUP)["NotificationConfigurations"]
    assert notices["TopicARN"] == "arn:aws:sns:us-east-1:111122223333:alarms"
    assert len(notices["NotificationTypes"]) == 4


# --- the front door


def test_the_load_balancer_is_internal(fleet):
    assert only(fleet, BALANCER)["Scheme"] == "internal"


def test_access_logs_go_below_the_prefix_that_the_bucket_allows(fleet):
    found = attributes(fleet, BALANCER)
    assert found["access_logs.s3.enabled"] == "true"
    assert found["access_logs.s3.bucket"] == "access-logs"
    assert found["access_logs.s3.prefix"] == "load-balancers/test-gqa"


def test_malformed_headers_are_dropped(fleet):
    assert attributes(fleet, BALANCER)["routing.http.drop_invalid_header_fields.enabled"] == "true"


@pytest.mark.parametrize(("retained", "protected"), [(True, "true"), (False, "false")])
def test_the_load_balancer_is_protected_where_data_is_retained(make_fleet, retained, protected):
    found = attributes(make_fleet(retained=retained), BALANCER)
    assert found["deletion_protection.enabled"] == protected


def test_neither_balancer_nor_draining_cuts_off_a_request_before_its_deadline(make_fleet):
    template = make_fleet(deadline_s=120)
    assert attributes(template, BALANCER)["idle_timeout.timeout_seconds"] == "125"
    found = attributes(template, TARGETS)
    assert found["deregistration_delay.timeout_seconds"] == "125"


def test_a_request_goes_to_the_node_with_the_fewest(fleet):
    found = attributes(fleet, TARGETS)
    assert found["load_balancing.algorithm.type"] == "least_outstanding_requests"
    assert "slow_start.duration_seconds" not in found  # refused together with it


def test_health_is_asked_of_the_server_itself(fleet):
    assert only(fleet, TARGETS)["HealthCheckPath"] == "/health"


def test_with_a_certificate_it_speaks_https_only(make_fleet):
    template = make_fleet(certificate_arn=CERTIFICATE)
    listener = only(template, LISTENER)
    assert (listener["Port"], listener["Protocol"]) == (443, "HTTPS")
    assert listener["Certificates"] == [{"CertificateArn": CERTIFICATE}]
    assert "TLS13" in listener["SslPolicy"]
    assert ("balancer", "10.0.0.0/16", 443) in rules(template, "Ingress")


def test_without_a_certificate_it_speaks_http(fleet):
    listener = only(fleet, LISTENER)
    assert (listener["Port"], listener["Protocol"]) == (80, "HTTP")


# --- what a node may do


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


# --- what is watched


def alarm(template: dict, name: str) -> dict:
    [found] = [
        resource
        for logical_id, resource in resources(template, "AWS::CloudWatch::Alarm").items()
        if logical_id.startswith(f"DecodeFleetWatch{name}")
    ]
    return found


def test_every_alarm_tells_the_topic_when_it_starts_and_when_it_ends(fleet):
    topic = ["arn:aws:sns:us-east-1:111122223333:alarms"]
    for found in resources(fleet, "AWS::CloudWatch::Alarm").values():
        assert found["Properties"]["AlarmActions"] == found["Properties"]["OKActions"] == topic


def test_having_no_healthy_node_is_an_alarm_only_where_there_are_weights(fleet):
    found = alarm(fleet, "NoHealthyNode")
    assert found["Condition"] in fleet["Conditions"]
    assert found["Properties"]["MetricName"] == "HealthyHostCount"
    assert found["Properties"]["TreatMissingData"] == "breaching"


@pytest.mark.parametrize(
    ("name", "changes", "threshold"),
    [
        ("Errors", {"error_percent": 2}, 2),
        ("Latency", {"latency_seconds": 4}, 4),
        ("Queue", {"queue": 10}, 5),
        ("CannotGrow", {"requests_in_flight_target": 3}, 3),
    ],
)
def test_alarms_go_off_above_what_was_asked_for(make_fleet, name, changes, threshold):
    properties = alarm(make_fleet(**changes), name)["Properties"]
    assert properties["Threshold"] == threshold
    assert properties["ComparisonOperator"] == "GreaterThanThreshold"


def test_a_fleet_that_cannot_grow_is_one_that_is_busy_at_its_maximum(fleet):
    metrics = alarm(fleet, "CannotGrow")["Properties"]["Metrics"]
    assert [each["Expression"] for each in metrics if "Expression" in each] == [
        "IF(nodes >= 6, busy, 0)"
    ]


def test_what_the_server_publishes_is_on_the_dashboard(fleet):
    body = literal(only(fleet, "AWS::CloudWatch::Dashboard")["DashboardBody"])
    for metric in ("RequestsInFlight", "QueueDepth", "TokensPerSecond", "TimeToFirstToken"):
        assert f'"Isomorph/gqa","{metric}","Fleet","test-gqa"' in body
