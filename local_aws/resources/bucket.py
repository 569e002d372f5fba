"""S3 buckets with the properties that the control plane drops, and refused while they hold data."""

import re
from collections.abc import Callable
from typing import Any

from ministack.services.cloudformation import provisioners

from local_aws.resources.table import Aws, Made, Properties, Resource, Type

_BY_CONTROL_PLANE = {
    "BucketName",
    "CorsConfiguration",
    "NotificationConfiguration",
    "PublicAccessBlockConfiguration",
    "VersioningConfiguration",
    "WebsiteConfiguration",
}


def _renamed(given: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in given.items()}


def _integers(given: dict[str, Any]) -> dict[str, Any]:
    whole = ("Days", "NoncurrentDays", "NewerNoncurrentVersions", "DaysAfterInitiation")
    return {name: int(value) if name in whole else value for name, value in given.items()}


def _lifecycle_rule(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule of a template as the API wants it."""
    made: dict[str, Any] = {"Status": rule["Status"], "Filter": {"Prefix": rule.get("Prefix", "")}}
    if "Id" in rule:
        made["ID"] = rule["Id"]
    if "ExpirationInDays" in rule:
        made["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    if "ExpiredObjectDeleteMarker" in rule:
        deletes = str(rule["ExpiredObjectDeleteMarker"]).lower() == "true"
        made["Expiration"] = {"ExpiredObjectDeleteMarker": deletes}
    if "Transitions" in rule:
        made["Transitions"] = [
            _integers(_renamed(one, TransitionInDays="Days")) for one in rule["Transitions"]
        ]
    if "NoncurrentVersionTransitions" in rule:
        made["NoncurrentVersionTransitions"] = [
            _integers(_renamed(one, TransitionInDays="NoncurrentDays"))
            for one in rule["NoncurrentVersionTransitions"]
        ]
    for same in ("NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload"):
        if same in rule:
            made[same] = _integers(rule[same])
    known = {*made, "Id", "Prefix", "ExpirationInDays", "ExpiredObjectDeleteMarker"}
    if unknown := sorted(set(rule) - known):
        raise ValueError(f"{', '.join(unknown)} of a lifecycle rule is not played here")
    return made


def _encryption_rule(rule: dict[str, Any]) -> dict[str, Any]:
    return _renamed(rule, ServerSideEncryptionByDefault="ApplyServerSideEncryptionByDefault")


def _put_lifecycle(s3: Any, bucket: str, given: Any) -> None:
    rules = [_lifecycle_rule(rule) for rule in given["Rules"]]
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})


def _put_encryption(s3: Any, bucket: str, given: Any) -> None:
    rules = [_encryption_rule(rule) for rule in given["ServerSideEncryptionConfiguration"]]
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": rules})


def _put_logging(s3: Any, bucket: str, given: Any) -> None:
    target = {
        "TargetBucket": given.get("DestinationBucketName", bucket),
        "TargetPrefix": given.get("LogFilePrefix", ""),
    }
    status = {"LoggingEnabled": target} if given else {}
    s3.put_bucket_logging(Bucket=bucket, BucketLoggingStatus=status)


def _put_ownership(s3: Any, bucket: str, given: Any) -> None:
    s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=given)


def _put_acl(s3: Any, bucket: str, given: Any) -> None:
    if given != "Private":  # which is what a bucket has, also one that allows no ACL
        canned = re.sub(r"(?<!^)(?=[A-Z])", "-", given).lower()  # LogDeliveryWrite
        s3.put_bucket_acl(Bucket=bucket, ACL=canned)


def _put_tags(s3: Any, bucket: str, given: Any) -> None:
    tags = [{"Key": tag["Key"], "Value": str(tag["Value"])} for tag in given]
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})


# Property -> how it is put, and what the API calls taking it away (an ACL goes with its bucket).
_APPLIED: dict[str, tuple[Callable[[Any, str, Any], None], str | None]] = {
    "BucketEncryption": (_put_encryption, "delete_bucket_encryption"),
    "LifecycleConfiguration": (_put_lifecycle, "delete_bucket_lifecycle"),
    "OwnershipControls": (_put_ownership, "delete_bucket_ownership_controls"),
    "AccessControl": (_put_acl, None),  # after the ownership, which may forbid it
    "Tags": (_put_tags, "delete_bucket_tagging"),
}


def _apply(aws: Aws, bucket: str, properties: Properties, *, made: bool) -> None:
    s3 = aws.client("s3")
    for name, (put, delete) in _APPLIED.items():
        if name in properties:
            put(s3, bucket, properties[name])
        elif not made and delete:
            getattr(s3, delete)(Bucket=bucket)
    if "LoggingConfiguration" in properties or not made:
        _put_logging(s3, bucket, properties.get("LoggingConfiguration", {}))


def _create(aws: Aws, resource: Resource) -> Made:
    bucket, attributes = provisioners._s3_create(
        resource.logical_id, resource.properties, resource.stack
    )
    try:
        _apply(aws, bucket, resource.properties, made=True)
    except Exception:
        provisioners._s3_delete(bucket, {})
        raise
    return Made(bucket, attributes)


def _update(aws: Aws, bucket: str, resource: Resource) -> Made:
    _, attributes = provisioners._s3_update(
        bucket, resource.before, resource.properties, resource.stack
    )
    versioning = resource.properties.get("VersioningConfiguration", {"Status": "Suspended"})
    if versioning["Status"] == "Suspended" and _is_versioned(aws, bucket):
        aws.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning)
    _apply(aws, bucket, resource.properties, made=False)
    return Made(bucket, attributes)


def _is_versioned(aws: Aws, bucket: str) -> bool:
    return "Status" in aws.client("s3").get_bucket_versioning(Bucket=bucket)


def _delete(aws: Aws, bucket: str, properties: Properties) -> None:
    held = aws.client("s3").list_object_versions(Bucket=bucket, MaxKeys=1)
    if held.get("Versions") or held.get("DeleteMarkers"):
        raise ValueError(f"The bucket you tried to delete is not empty: {bucket}")
    aws.client("s3").delete_bucket(Bucket=bucket)
    provisioners._s3_delete(bucket, properties)


BUCKET = Type(
    "AWS::S3::Bucket",
    frozenset({*_BY_CONTROL_PLANE, *_APPLIED, "LoggingConfiguration"}),
    _create,
    _delete,
    _update,
)
