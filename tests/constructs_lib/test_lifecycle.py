"""The bucket of lifecycle scripts, and the synthesizer that sends assets there."""

import pytest

from tests.cdk_app import ENV, json_of, new_app, new_stack, only, resources

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip

from constructs_lib import (  # isort: skip
    DataKey, LifecycleBucket, LifecycleScripts, LifecycleSynthesizer, lifecycle_bucket_name,
)  # fmt: skip

NAME = "sagemaker-test-111122223333-us-east-1"
ROLES = ("cdk-hnb659fds-file-publishing-role-111122223333-us-east-1",
         "cdk-hnb659fds-deploy-role-111122223333-us-east-1")  # fmt: skip


@pytest.fixture(scope="module")
def bucket():
    stack = new_stack()
    LifecycleBucket(
        stack,
        "Lifecycle",
        name=NAME,
        key=DataKey(stack, "Key", description="scripts", retained=False),
        access_logs=s3.Bucket.from_bucket_name(stack, "Logs", "logs"),
        retained=False,
    )
    return json_of(stack)


def allowed(statements: list[dict], role: str) -> tuple[set[str], dict]:
    [found] = [
        each
        for each in statements
        if str(each.get("Condition", {}).get("ArnEquals", {})).find(role) >= 0
    ]
    actions = found["Action"]
    return {actions} if isinstance(actions, str) else set(actions), found


def test_its_name_is_one_that_hyperpod_reads_and_s3_takes():
    longest = lifecycle_bucket_name("a" * 20, "111122223333", "ap-southeast-1")
    assert longest.startswith("sagemaker-")
    assert len(longest) <= 63


def test_the_bootstraps_roles_may_publish_and_read_templates_and_no_more(bucket):
    document = only(bucket, "AWS::S3::BucketPolicy")["PolicyDocument"]
    publish, _ = allowed(document["Statement"], ROLES[0])
    deploy, _ = allowed(document["Statement"], ROLES[1])
    assert publish == {
        "s3:AbortMultipartUpload", "s3:GetBucketLocation", "s3:GetEncryptionConfiguration",
        "s3:GetObject", "s3:ListBucket", "s3:PutObject",
    }  # fmt: skip
    assert deploy == {"s3:GetObject"}


def test_they_may_use_the_key_for_this_bucket_alone(bucket):
    statements = only(bucket, "AWS::KMS::Key")["KeyPolicy"]["Statement"]
    for role, actions in zip(
        ROLES, ({"kms:Decrypt", "kms:GenerateDataKey*"}, {"kms:Decrypt"}), strict=True
    ):
        found, statement = allowed(statements, role)
        assert found == actions
        assert statement["Condition"]["StringEquals"] == {"kms:CallerAccount": "111122223333"}
        context = str(statement["Condition"]["StringLike"]["kms:EncryptionContext:aws:s3:arn"])
        assert NAME in context


def test_the_reason_for_its_name_is_on_the_bucket(bucket):
    [found] = resources(bucket, "AWS::S3::Bucket").values()
    assert found["Properties"]["BucketName"] == NAME


def test_files_keep_their_names_below_a_digest_of_them_all(tmp_path):
    def prefix(text: str) -> str:
        (tmp_path / "on_create.sh").write_text(text)
        stack = cdk.Stack(new_app(), "stack", env=ENV, synthesizer=LifecycleSynthesizer(NAME))
        scripts = LifecycleScripts(
            stack, "Scripts", files=[tmp_path / "on_create.sh"], texts={"settings.json": "{}"}
        )
        assert scripts.names == ["on_create.sh", "settings.json"]
        assert scripts.url == f"s3://{NAME}/{scripts.prefix}"
        return scripts.prefix

    assert prefix("echo one") == prefix("echo one") != prefix("echo two")


def test_the_synthesizer_sends_the_template_along(tmp_path):
    app = new_app()
    cdk.Stack(app, "stack", env=ENV, synthesizer=LifecycleSynthesizer(NAME))
    [artifact] = [each for each in app.synth().stacks if each.stack_name == "stack"]
    assert str(artifact.stack_template_asset_object_url).startswith(f"s3://{NAME}/")
