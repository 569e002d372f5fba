import datetime
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from planner import plan
from planner.doctor import Environment, Finding, Group, Subnet, groups_of, offline, online
from planner.doctor.quotas import quotas
from tests.planner.common import TODAY

ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


def environment(**change: Any) -> Environment:
    fields: dict[str, Any] = {"name": "dev", "region": "us-east-1", "availability_zones": ZONES}
    return Environment(**(fields | change))


def problems(env: Environment) -> list[str]:
    return [f.what for f in offline(env, today=TODAY) if f.level == "problem"]


def p5(**change: Any) -> Group:
    fields: dict[str, Any] = {
        "service": "hyperpod",
        "instance_type": "ml.p5.48xlarge",
        "count": 4,
        "orchestrator": "slurm",
    }
    return Group(**(fields | change))


def test_a_sound_environment_has_no_problem() -> None:
    subnets = tuple(Subnet(zone=zone, free_addresses=4000) for zone in ZONES)
    env = environment(subnets=subnets, groups=(p5(zone="us-east-1b"),), runtimes=("python3.13",))
    assert problems(env) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"region": "mars-1", "availability_zones": ()}, "dev: region mars-1 is in no price list"),
        ({"availability_zones": ("us-west-2a",)}, "dev: zone us-west-2a is not in us-east-1"),
        ({"groups": (p5(instance_type="ml.inf2.48xlarge"),)},
         "hyperpod does not accept ml.inf2.48xlarge"),
        ({"groups": (Group(service="endpoint", instance_type="ml.c8i.large", count=1),)},
         "endpoint does not accept ml.c8i.large"),
        ({"groups": (Group(service="ec2", instance_type="trn2.48xlarge", count=1,
                           plan_arn="arn:x"),)},
         "trn2.48xlarge is not sold in us-east-1"),
        ({"region": "us-east-2", "availability_zones": ("us-east-2a",),
          "groups": (p5(instance_type="ml.p5e.48xlarge"),)},
         "ml.p5e.48xlarge is asked for without a training plan"),
        ({"groups": (p5(zone="us-east-1f"),)},
         "the group of ml.p5.48xlarge is in us-east-1f, subnets are in us-east-1a, us-east-1b, "
         "us-east-1c"),
        ({"groups": (p5(plan_zone="us-east-1f"),),
          "subnets": (Subnet(zone="us-east-1a", free_addresses=999),)},
         "the training plan of ml.p5.48xlarge is in us-east-1f, subnets are in us-east-1a"),
        ({"groups": (p5(zone="us-east-1a", plan_zone="us-east-1b"),)},
         "ml.p5.48xlarge is placed in us-east-1a, its training plan is in us-east-1b"),
        ({"groups": (p5(),), "subnets": (Subnet(zone="us-east-1a", free_addresses=127),)},
         "subnets in all zones have 127 free addresses, the machines take 128"),
        ({"groups": (p5(orchestrator="eks", zone="us-east-1a"),),
          "subnets": (Subnet(zone="us-east-1a", free_addresses=323),
                      Subnet(zone="us-east-1b", free_addresses=999))},
         "subnets in us-east-1a have 323 free addresses, the machines take 324"),
        ({"runtimes": ("python3.9",)}, "runtime python3.9 ended on 2025-12-15"),
        ({"runtimes": ("python9",)}, "Lambda has no runtime python9"),
    ],
)  # fmt: skip
def test_a_problem_is_found_before_it_is_deployed(change: dict[str, Any], what: str) -> None:
    assert problems(environment(**change)) == [what]


@pytest.mark.parametrize(
    ("change", "what", "level"),
    [
        ({"groups": (Group(service="ec2", instance_type="t2.micro", count=1),)},
         "t2.micro is not in the catalogue", "unknown"),
        ({"groups": (Group(service="ec2", instance_type="p6e-gb200.36xlarge", count=1,
                           plan_arn="arn:x"),)},
         "no price list names the regions of p6e-gb200.36xlarge", "note"),
        ({"images": ("763104351884.dkr.ecr.us-east-1.amazonaws.com/vllm:9.9",)},
         "image 763104351884.dkr.ecr.us-east-1.amazonaws.com/vllm:9.9 is not among the known tags",
         "unknown"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_told_as_such(change: dict[str, Any], what: str, level: str) -> None:
    found = {f.what: f.level for f in offline(environment(**change), today=TODAY)}
    assert found[what] == level


def test_a_known_image_and_a_living_runtime_are_no_finding() -> None:
    env = environment(
        images=("x.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313",),
        runtimes=("python3.13",),
    )
    assert offline(env, today=TODAY) == []


def test_a_runtime_that_ends_within_half_a_year_is_a_note() -> None:
    env = environment(runtimes=("python3.11",))
    [found] = offline(env, today=datetime.date(2027, 3, 1))
    assert (found.what, found.level) == ("runtime python3.11 ends on 2027-06-30", "note")


def test_quotas_are_named_as_service_quotas_names_them() -> None:
    needed = quotas(
        [
            p5(), p5(count=2),
            Group(service="endpoint", instance_type="ml.inf2.xlarge", count=3),
            Group(service="training", instance_type="ml.p5en.48xlarge", count=1),
            Group(service="ec2", instance_type="c7i.large", count=5),
            Group(service="ec2", instance_type="p5.48xlarge", count=1),
            Group(service="ec2", instance_type="inf2.xlarge", count=1),
            Group(service="ec2", instance_type="trn1.2xlarge", count=1),
            Group(service="ec2", instance_type="unheard.of", count=1),
        ]
    )  # fmt: skip
    assert {quota.name: quota.needed for quota in needed} == {
        "ml.p5.48xlarge for cluster usage": 6,
        "ml.inf2.xlarge for endpoint usage": 3,
        "ml.p5en.48xlarge for training job usage": 1,
        "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances": 10,
        "Running On-Demand P instances": 192,
        "Running On-Demand Inf instances": 4,
        "Running On-Demand Trn instances": 8,
    }


def test_a_plans_machines_refusals_and_old_prices_are_findings() -> None:
    made = plan("qwen3-30b-a3b", "dtype=int8", today=TODAY.replace(year=2027))
    what = [f.what for f in offline(environment(), made, today=TODAY)]
    assert any("of the quota 'ml.p5en.48xlarge for cluster usage'" in text for text in what)
    assert any("moe: SageMaker HyperPod cannot take it: not sold" in text for text in what)
    assert any("days old" in text for text in what)
    assert not [text for text in what if text.startswith("the plan is for")]


def test_a_plan_for_another_region_is_a_problem() -> None:
    env = environment(region="us-east-2", availability_zones=("us-east-2a",))
    what = [f.what for f in offline(env, plan("llama-3-8b", today=TODAY), today=TODAY)]
    assert "the plan is for us-east-1, dev is in us-east-2" in what


def test_every_finding_says_what_why_how_and_which_incident() -> None:
    made = plan("deepseek-v3", today=TODAY)
    for finding in offline(environment(runtimes=("python3.9",)), made, today=TODAY):
        assert all((finding.what, finding.why, finding.fix, finding.incident))
        assert "\n" not in finding.what + finding.fix


def stubbed(service: str) -> tuple[Any, Stubber]:
    client = boto3.client(
        service, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    stub = Stubber(client)
    stub.activate()
    return client, stub


def asked(service: str, operation: str, answer: dict[str, Any], **expected: Any) -> Any:
    client, stub = stubbed(service)
    stub.add_response(operation, answer, expected or None)
    return client


def found(env: Environment, service: str, client: Any) -> list[Finding]:
    return [
        finding for finding in online(env, {service: client})
        if not finding.what.endswith("was not checked") or finding.what.startswith(service)
    ]  # fmt: skip


QUOTA = "ml.p5.48xlarge for cluster usage"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"QuotaName": QUOTA, "Value": 0.0}], [f"quota '{QUOTA}' is 0, 4 is needed"]),
        ([], [f"quota '{QUOTA}' is 0, 4 is needed"]),
        ([{"QuotaName": QUOTA, "Value": 4.0}], []),
    ],
)
def test_a_quota_below_the_need_is_a_problem(rows: list[Any], what: list[str]) -> None:
    client = asked(
        "service-quotas", "list_service_quotas", {"Quotas": rows}, ServiceCode="sagemaker"
    )
    assert [f.what for f in found(environment(groups=(p5(),)), "service-quotas", client)] == what


@pytest.mark.parametrize(
    ("zones", "count"), [(["us-east-1b", "us-east-1f"], 0), (["us-east-1f"], 1), ([], 1)]
)
def test_an_instance_must_be_offered_in_a_zone_of_the_environment(
    zones: list[str], count: int
) -> None:
    rows = [{"InstanceType": "p5.48xlarge", "Location": zone} for zone in zones]
    client = asked(
        "ec2", "describe_instance_type_offerings", {"InstanceTypeOfferings": rows},
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": ["p5.48xlarge"]}],
    )  # fmt: skip
    answer = found(environment(groups=(p5(),)), "ec2", client)
    assert len(answer) == count
    if count:
        assert "p5.48xlarge is offered in" in answer[0].what


def test_a_training_plan_offering_tells_its_zone_and_price() -> None:
    offer = {
        "TrainingPlanOfferingId": "x", "TargetResources": ["hyperpod-cluster"],
        "UpfrontFee": "1234.5",
        "ReservedCapacityOfferings": [
            {"InstanceType": "ml.p5e.48xlarge", "InstanceCount": 4,
             "AvailabilityZone": "us-east-2a"}
        ],
    }  # fmt: skip
    client = asked(
        "sagemaker", "search_training_plan_offerings", {"TrainingPlanOfferings": [offer]},
        InstanceType="ml.p5e.48xlarge", InstanceCount=4, DurationHours=24,
        TargetResources=["hyperpod-cluster"],
    )  # fmt: skip
    env = environment(groups=(p5(instance_type="ml.p5e.48xlarge"),))
    [finding] = found(env, "sagemaker", client)
    assert finding.level == "note"
    assert finding.what.endswith("4 x ml.p5e.48xlarge for hyperpod-cluster from 1234.5 USD")
    assert "us-east-2a" in finding.why


def test_no_training_plan_offering_is_a_problem() -> None:
    client = asked("sagemaker", "search_training_plan_offerings", {"TrainingPlanOfferings": []})
    env = environment(groups=(p5(instance_type="ml.trn2.48xlarge"),))
    [finding] = found(env, "sagemaker", client)
    assert finding.level == "problem"
    assert finding.what.startswith("no training plan of 24 h is offered for 4 x ml.trn2.48xlarge")


def test_a_bedrock_model_without_access_is_a_problem() -> None:
    answer = {
        "modelId": "meta.x", "agreementAvailability": {"status": "AVAILABLE"},
        "authorizationStatus": "NOT_AUTHORIZED", "entitlementAvailability": "AVAILABLE",
        "regionAvailability": "NOT_AVAILABLE",
    }  # fmt: skip
    client = asked("bedrock", "get_foundation_model_availability", answer, modelId="meta.x")
    [finding] = found(environment(models=("meta.x",)), "bedrock", client)
    assert finding.what == "Bedrock model meta.x: not authorized, not in this region"


def test_denied_actions_are_named() -> None:
    results = [
        {"EvalActionName": "sagemaker:CreateCluster", "EvalDecision": "implicitDeny"},
        {"EvalActionName": "iam:PassRole", "EvalDecision": "allowed"},
    ]
    client = asked(
        "iam", "simulate_principal_policy", {"EvaluationResults": results},
        PolicySourceArn="arn:aws:iam::111122223333:role/deploy",
        ActionNames=["sagemaker:CreateCluster", "iam:PassRole"],
    )  # fmt: skip
    env = environment(
        role_arn="arn:aws:iam::111122223333:role/deploy",
        actions=("sagemaker:CreateCluster", "iam:PassRole"),
    )
    [finding] = found(env, "iam", client)
    assert finding.what.endswith("role/deploy may not sagemaker:CreateCluster")


def test_a_refusal_of_aws_is_a_finding_and_the_other_checks_go_on() -> None:
    refused, stub = stubbed("service-quotas")
    stub.add_client_error("list_service_quotas", "AccessDeniedException", "no")
    offered = asked(
        "ec2", "describe_instance_type_offerings", {"InstanceTypeOfferings": []},
        LocationType=ANY, Filters=ANY,
    )  # fmt: skip
    findings = online(environment(groups=(p5(),)), {"service-quotas": refused, "ec2": offered})
    assert [f.level for f in findings] == ["unknown", "problem"]
    assert "AccessDeniedException" in findings[0].why


def test_what_has_no_client_is_said_not_to_be_checked() -> None:
    findings = online(environment(groups=(p5(),), models=("meta.x",)), {})
    assert [f.what for f in findings] == [
        f"{service} was not checked" for service in ("service-quotas", "ec2", "bedrock")
    ]


def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(AttributeError):
        online(environment(groups=(p5(),)), {"service-quotas": object()})


def test_the_machines_of_a_plan_are_its_groups() -> None:
    services = {group.service for group in groups_of(plan("qwen3-30b-a3b", today=TODAY))}
    assert services == {"hyperpod", "endpoint", "ec2", "training"}
