"""What every account has without making it: the public machine images, and S3's own key."""

from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import s3, ssm

_IMAGE = "ami-0c2023a1b2c3d4e5f"
_PREFIX = "/aws/service/ami-amazon-linux-latest/al2023-ami"
_KERNELS = ("kernel-default", "kernel-6.1", "kernel-6.12")
_PROCESSORS = ("x86_64", "arm64")
_SSE = "x-amz-server-side-encryption"
_KEY = f"{_SSE}-aws-kms-key-id"


def publish_images() -> None:
    """Let Systems Manager answer for Amazon Linux 2023, of every kernel and processor."""
    for kernel in _KERNELS:
        for processor in _PROCESSORS:
            ssm._PUBLIC_AMI_PARAMETERS[f"{_PREFIX}-{kernel}-{processor}"] = _IMAGE
            ssm._PUBLIC_AMI_PARAMETERS[f"{_PREFIX}-minimal-{kernel}-{processor}"] = _IMAGE


def give_s3_its_key() -> None:
    """Let a write that asks for KMS without naming a key use the one that AWS manages."""
    resolve = s3._resolve_sse_write_headers

    def resolve_with_key(headers: dict[str, str], bucket: str) -> Any:
        if headers.get(_SSE) == "aws:kms" and not headers.get(_KEY):
            key = f"arn:aws:kms:{get_region()}:{get_account_id()}:alias/aws/s3"
            headers = {**headers, _KEY: key}
        return resolve(headers, bucket)

    s3._resolve_sse_write_headers = resolve_with_key
