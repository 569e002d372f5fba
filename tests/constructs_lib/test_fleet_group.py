from tests.cdk_app import only, resources
from tests.constructs_lib.fleet import (
    GROUP,
    TARGETS,
    if_weights,
)


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
