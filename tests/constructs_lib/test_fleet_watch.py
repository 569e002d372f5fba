import pytest

from tests.cdk_app import literal, only, resources


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
    for metric in (
        "RequestsInFlight",
        "QueueDepth",
        "TokensPerSecond",
        "TimeToFirstToken",
        "MemoryHeadroom",
    ):
        assert f'"Isomorph/gqa","{metric}","Fleet","test-gqa"' in body
