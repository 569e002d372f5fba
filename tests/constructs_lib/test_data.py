"""Keys, buckets and the budget."""

import pytest

from tests.cdk_app import json_of, literal, new_stack, only, resources

from aws_cdk import Duration  # isort: skip
from constructs_lib import AccessLogBucket, DataBucket, DataKey, MonthlyBudget  # isort: skip

SERVICE_ROLE = (
    "arn:aws:iam::111122223333:role/aws-service-role/autoscaling.amazonaws.com/"
    "AWSServiceRoleForAutoScaling"
)


@pytest.fixture
def key():
    return DataKey(new_stack(), "Key", description="test", retained=False)


def added(key: DataKey) -> list[dict]:
    """Return the key's statements but the one that leaves the rest to IAM."""
    return only(json_of(key.stack), "AWS::KMS::Key")["KeyPolicy"]["Statement"][1:]


def test_a_key_rotates(key):
    assert only(json_of(key.stack), "AWS::KMS::Key")["EnableKeyRotation"] is True


def test_a_key_serves_nobody_until_told_to(key):
    assert added(key) == []


@pytest.mark.parametrize(("retained", "policy"), [(True, "Retain"), (False, "Delete")])
def test_a_key_outlives_its_stack_where_data_is_retained(retained, policy):
    stack = new_stack()
    DataKey(stack, "Key", description="test", retained=retained)
    [resource] = resources(json_of(stack), "AWS::KMS::Key").values()
    assert resource["DeletionPolicy"] == policy


def test_cloudwatch_logs_may_use_the_key_for_this_accounts_log_groups_only(key):
    key.allow_log_groups()
    [statement] = added(key)
    assert literal(statement["Principal"]["Service"]) == "logs.us-east-1.amazonaws.com"
    assert statement["Condition"] == {
        "ArnLike": {
            "kms:EncryptionContext:aws:logs:arn": (
                "arn:aws:logs:us-east-1:111122223333:log-group:*"
            )
        }
    }


def test_auto_scaling_may_use_the_key_for_volumes(key):
    key.allow_auto_scaling_volumes()
    use, grant = added(key)
    assert use["Action"] == [
        "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*",
    ]  # fmt: skip
    assert grant["Action"] == "kms:CreateGrant"
    assert grant["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


def test_the_auto_scaling_role_is_a_condition_so_that_the_key_does_not_need_it_to_exist(key):
    key.allow_auto_scaling_volumes()
    for statement in added(key):
        assert statement["Principal"] == {"AWS": "*"}
        assert statement["Condition"]["ArnEquals"] == {"aws:PrincipalArn": SERVICE_ROLE}
        assert statement["Condition"]["StringEquals"] == {"kms:CallerAccount": "111122223333"}


def test_alarms_of_this_account_and_auto_scaling_may_publish_to_encrypted_topics(key):
    key.allow_alarm_topics()
    alarms, scaling = added(key)
    assert alarms["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert alarms["Condition"] == {"StringEquals": {"aws:SourceAccount": "111122223333"}}
    assert scaling["Condition"]["ArnEquals"] == {"aws:PrincipalArn": SERVICE_ROLE}
    assert alarms["Action"] == scaling["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]


@pytest.fixture(scope="module")
def buckets():
    stack = new_stack()
    key = DataKey(stack, "Key", description="test", retained=False)
    logs = AccessLogBucket(stack, "Logs", keep=Duration.days(30), retained=False)
    DataBucket(stack, "Models", key=key, access_logs=logs, tiered=True, retained=True)
    DataBucket(stack, "Artifacts", key=key, access_logs=logs, retained=False)
    return json_of(stack)


def named(template: dict, kind: str, prefix: str) -> dict:
    [found] = [
        resource for name, resource in resources(template, kind).items() if name.startswith(prefix)
    ]
    return found


def test_the_access_log_bucket_is_under_sse_s3(buckets):
    encryption = named(buckets, "AWS::S3::Bucket", "Logs")["Properties"]["BucketEncryption"]
    [rule] = encryption["ServerSideEncryptionConfiguration"]
    assert rule == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}


def test_load_balancers_of_this_account_may_deliver_their_logs(buckets):
    policy = named(buckets, "AWS::S3::BucketPolicy", "Logs")["Properties"]["PolicyDocument"]
    [statement] = [
        each
        for each in policy["Statement"]
        if each["Principal"] == {"Service": "logdelivery.elasticloadbalancing.amazonaws.com"}
    ]
    assert statement["Action"] == "s3:PutObject"
    assert literal(statement["Resource"]).endswith("/load-balancers/*")
    assert statement["Condition"]["ArnLike"] == {
        "aws:SourceArn": "arn:aws:elasticloadbalancing:us-east-1:111122223333:loadbalancer/*"
    }


@pytest.mark.parametrize("name", ["Logs", "Models", "Artifacts"])
def test_every_bucket_refuses_what_does_not_come_over_tls(buckets, name):
    policy = named(buckets, "AWS::S3::BucketPolicy", name)["Properties"]["PolicyDocument"]
    denied = [each["Condition"] for each in policy["Statement"] if each["Effect"] == "Deny"]
    assert {"Bool": {"aws:SecureTransport": "false"}} in denied
    assert {"NumericLessThan": {"s3:TlsVersion": 1.2}} in denied


@pytest.mark.parametrize("name", ["Logs", "Models", "Artifacts"])
def test_no_bucket_can_be_public(buckets, name):
    block = named(buckets, "AWS::S3::Bucket", name)["Properties"]["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    assert len(block) == 4


@pytest.mark.parametrize("name", ["Models", "Artifacts"])
def test_data_buckets_are_versioned_and_under_our_key(buckets, name):
    properties = named(buckets, "AWS::S3::Bucket", name)["Properties"]
    [rule] = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert rule["BucketKeyEnabled"] is True


def test_models_move_to_intelligent_tiering_on_day_0(buckets):
    properties = named(buckets, "AWS::S3::Bucket", "Models")["Properties"]
    [rule] = properties["LifecycleConfiguration"]["Rules"]
    assert rule["Transitions"] == [{"StorageClass": "INTELLIGENT_TIERING", "TransitionInDays": 0}]
    assert "IntelligentTieringConfigurations" not in properties


@pytest.mark.parametrize("name", ["Models", "Artifacts"])
def test_old_versions_and_broken_uploads_do_not_stay(buckets, name):
    properties = named(buckets, "AWS::S3::Bucket", name)["Properties"]
    [rule] = properties["LifecycleConfiguration"]["Rules"]
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}


def test_a_retained_bucket_stays_and_a_disposable_one_goes(buckets):
    assert named(buckets, "AWS::S3::Bucket", "Models")["DeletionPolicy"] == "Retain"
    assert named(buckets, "AWS::S3::Bucket", "Artifacts")["DeletionPolicy"] == "Delete"


def budget(email: str | None) -> dict:
    stack = new_stack()
    MonthlyBudget(stack, "Budget", usd=250.5, email=email)
    return only(json_of(stack), "AWS::Budgets::Budget")


def test_the_budget_has_the_limit_of_the_environment():
    assert budget(None)["Budget"]["BudgetLimit"] == {"Amount": 250.5, "Unit": "USD"}


def test_someone_hears_of_80_percent_spent_and_of_a_forecast_above_the_limit():
    notices = budget("a@example.com")["NotificationsWithSubscribers"]
    assert [
        (each["Notification"]["NotificationType"], each["Notification"]["Threshold"])
        for each in notices
    ] == [("ACTUAL", 80), ("FORECASTED", 100)]
    assert {each["Subscribers"][0]["Address"] for each in notices} == {"a@example.com"}


def test_a_budget_without_an_address_notifies_nobody():
    assert "NotificationsWithSubscribers" not in budget(None)
