import pytest

from tests.cdk_app import only, resources
from tests.constructs_lib.fleet import (
    BALANCER,
    CERTIFICATE,
    LISTENER,
    TARGETS,
    attributes,
)


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
