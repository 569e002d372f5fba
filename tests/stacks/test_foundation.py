import pytest

from tests.cdk_app import literal, only, resources

# Renaming one of these replaces it, and what is in it is gone or out of reach.
PINNED = {
    "AWS::KMS::Key": ["LogKeyE83D0C1B", "ModelKey797AAF76", "VolumeKeyB3FBD601"],
    "AWS::S3::Bucket": [
        "AccessLogs8B620ECA",
        "Artifacts82DD59A1",
        "Lifecycle5C7F7473",
        "ModelsC55D3500",
        "Training1DBE9C16",
    ],
    "AWS::EC2::VPC": ["Network6E62CE96"],
    "AWS::EC2::Subnet": [
        "NetworkisolatedSubnet1Subnet1AB6B7E3",
        "NetworkisolatedSubnet2SubnetD46ECDC5",
        "NetworkisolatedSubnet3Subnet7994FBEF",
        "NetworkprivateSubnet1Subnet4DC0902B",
        "NetworkprivateSubnet2Subnet9EE5D9E3",
        "NetworkprivateSubnet3SubnetAB514F75",
    ],
    "AWS::SSM::Parameter": ["Weightsgqa", "Weightsmla", "Weightsmoe", "Weightsslidingwindow"],
}


@pytest.fixture(scope="module")
def foundation(templates):
    return templates["foundation"]


@pytest.fixture(scope="module")
def retained(synthesize):
    return synthesize(None, data="retained")["foundation"]


def exports(template: dict) -> dict[str, str]:
    return {name: output["Export"]["Name"] for name, output in template["Outputs"].items()}


def test_the_logical_ids_of_what_has_state_never_change(foundation):
    assert {kind: sorted(resources(foundation, kind)) for kind in PINNED} == PINNED


def test_there_is_a_key_for_each_kind_of_data(foundation):
    uses = {
        resource["Properties"]["Description"]
        for resource in resources(foundation, "AWS::KMS::Key").values()
    }
    assert uses == {"models, artifacts", "disks of nodes", "logs, alarms"}


def test_only_the_model_bucket_is_tiered(foundation):
    tiered = [
        name
        for name, resource in resources(foundation, "AWS::S3::Bucket").items()
        if "INTELLIGENT_TIERING" in str(resource["Properties"])
    ]
    assert tiered == ["ModelsC55D3500"]


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("AWS::S3::Bucket", 5), ("AWS::KMS::Key", 3), ("AWS::Logs::LogGroup", 1)],
)
def test_data_stays_where_the_environment_says_so_and_only_there(foundation, retained, kind, kept):
    def stay(template: dict) -> list[str]:
        return [
            name
            for name, resource in resources(template, kind).items()
            if resource["DeletionPolicy"] == "Retain"
        ]

    assert len(stay(retained)) == kept
    assert stay(foundation) == []


def test_the_weights_pointer_of_each_serving_innovation_starts_as_none(foundation):
    found = [each["Properties"] for each in resources(foundation, "AWS::SSM::Parameter").values()]
    assert sorted(found, key=lambda each: each["Name"]) == [
        {
            "Name": f"/isomorph/test/{slug}/weights",
            "Type": "String",
            "Value": "none",
            "Description": f"Where the weights of {slug} are; `isomorph weights push` sets it",
        }
        for slug in ("gqa", "mla", "moe", "sliding_window")
    ]


def test_tags_leave_the_pointer_alone_or_a_deployment_would_reset_it(foundation, synthesize):
    changed = synthesize(None, tags={"team": "other"})["foundation"]
    kind = "AWS::SSM::Parameter"
    assert resources(changed, kind) == resources(foundation, kind)


def test_switching_an_innovation_off_does_not_change_the_foundation(foundation, synthesize):
    # What others import is always exported, so a stack can go without an update here.
    assert synthesize(None)["foundation"] == foundation


def test_exports_have_names_of_their_own(foundation):
    names = exports(foundation)
    assert names["ModelBucket"] == "test-foundation-ModelBucket"
    assert set(names) >= {"ModelBucket", "ArtifactBucket", "VpcId", "PrivateSubnet3"}


def test_the_s3_endpoint_lets_through_our_buckets_our_assets_and_the_nodes_packages(foundation):
    [gateway] = [
        resource["Properties"]
        for resource in resources(foundation, "AWS::EC2::VPCEndpoint").values()
        if resource["Properties"]["VpcEndpointType"] == "Gateway"
    ]
    ours, others, scripts = gateway["PolicyDocument"]["Statement"]
    assert {literal(arn).partition("/")[0] for arn in ours["Resource"]} == {
        "{['ModelsC55D3500', 'Arn']}",
        "{['Artifacts82DD59A1', 'Arn']}",
        "{['Training1DBE9C16', 'Arn']}",
    }
    assert {literal(arn).partition("/")[0] for arn in scripts["Resource"]} == {
        "{['Lifecycle5C7F7473', 'Arn']}"
    }
    assert "s3:PutObject" not in scripts["Action"]  # a node must not change what nodes run
    assert others["Action"] == "s3:GetObject"
    assert others["Resource"] == [
        "arn:aws:s3:::al2023-repos-us-east-1-de612dc2/*",
        "arn:aws:s3:::cdk-hnb659fds-assets-111122223333-us-east-1/*",
        "arn:aws:s3:::prod-us-east-1-starport-layer-bucket/*",
    ]


def test_the_address_of_the_budget_hears_of_alarms_as_well(foundation):
    subscription = only(foundation, "AWS::SNS::Subscription")
    assert subscription["Endpoint"] == "someone@example.com"
    assert subscription["Protocol"] == "email"


def test_nobody_is_subscribed_where_there_is_no_address(synthesize):
    local = synthesize(None, aws="embedded", account="000000000000", budget={"monthly_usd": 1})[
        "foundation"
    ]
    assert resources(local, "AWS::SNS::Subscription") == {}
    assert resources(local, "AWS::Budgets::Budget")


def test_alarms_are_encrypted_and_come_from_this_account(foundation):
    assert "KmsMasterKeyId" in only(foundation, "AWS::SNS::Topic")
    document = only(foundation, "AWS::SNS::TopicPolicy")["PolicyDocument"]
    [publish] = [each for each in document["Statement"] if each["Effect"] == "Allow"]
    assert publish["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert publish["Condition"] == {"StringEquals": {"aws:SourceAccount": "111122223333"}}


@pytest.mark.parametrize(("gateways", "found"), [(0, 0), (2, 2)])
def test_nat_gateways_are_as_many_as_asked_for(synthesize, gateways, found):
    template = synthesize(None, nat_gateways=gateways)["foundation"]
    assert len(resources(template, "AWS::EC2::NatGateway")) == found


def test_zones_are_those_of_the_environment(synthesize):
    zones = ["us-east-1b", "us-east-1d", "us-east-1f"]
    template = synthesize(None, availability_zones=zones)["foundation"]
    found = resources(template, "AWS::EC2::Subnet").values()
    assert {resource["Properties"]["AvailabilityZone"] for resource in found} == set(zones)


def test_the_budget_is_that_of_the_environment(synthesize):
    template = synthesize(None, budget={"monthly_usd": 77, "email": "a@b.c"})["foundation"]
    budget = only(template, "AWS::Budgets::Budget")["Budget"]
    assert budget["BudgetLimit"] == {"Amount": 77, "Unit": "USD"}


@pytest.mark.parametrize("kind", ["AWS::KMS::Key", "AWS::S3::Bucket", "AWS::EC2::VPC"])
def test_everything_carries_the_tags_of_the_environment(foundation, kind):
    for resource in resources(foundation, kind).values():
        tags = {tag["Key"]: tag["Value"] for tag in resource["Properties"]["Tags"]}
        assert tags["team"] == "inference"
        assert tags["isomorph:environment"] == "test"


def test_account_and_region_are_those_of_the_environment(synthesize):
    zones = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
    template = synthesize(
        None, account="444455556666", region="eu-west-1", availability_zones=zones
    )["foundation"]
    assert "cdk-hnb659fds-assets-444455556666-eu-west-1" in str(template)
    assert "us-east-1" not in str(template)
