"""Buckets that take access logs."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources, statements, text

_DELIVERY = {"logging.s3.amazonaws.com", "logdelivery.elasticloadbalancing.amazonaws.com"}


def _check(template: Template) -> Iterator[Breach]:
    takes_logs = set()
    for _, bucket in resources(template, "AWS::S3::Bucket"):
        target = bucket.get("LoggingConfiguration", {}).get("DestinationBucketName")
        if isinstance(target, dict):
            takes_logs.add(target.get("Ref"))
    for _, policy in resources(template, "AWS::S3::BucketPolicy"):
        for statement in statements(policy):
            principal = statement.get("Principal")
            if isinstance(principal, dict) and text(principal.get("Service", "")) in _DELIVERY:
                takes_logs.add(policy["Bucket"].get("Ref"))
    for logical_id, bucket in resources(template, "AWS::S3::Bucket"):
        if logical_id in takes_logs and _algorithms(bucket) - {"AES256"}:
            yield Breach(logical_id, "Properties.BucketEncryption")


def _algorithms(bucket: Template) -> set[str]:
    rules = bucket.get("BucketEncryption", {}).get("ServerSideEncryptionConfiguration", [])
    return {rule.get("ServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules}


RULE = Rule(
    id="LogBucketEncryption",
    says="S3 and load balancers deliver access logs only to buckets with SSE-S3; under a KMS key "
    "the logs are lost without an error.",
    fix="encrypt the bucket with s3.BucketEncryption.S3_MANAGED",
    check=_check,
)
