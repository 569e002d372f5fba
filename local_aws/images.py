"""The public parameters that name Amazon's machine images."""

from ministack.services import ssm

_IMAGE = "ami-0c2023a1b2c3d4e5f"
_PREFIX = "/aws/service/ami-amazon-linux-latest/al2023-ami"
_KERNELS = ("kernel-default", "kernel-6.1", "kernel-6.12")
_PROCESSORS = ("x86_64", "arm64")


def publish_images() -> None:
    """Let Systems Manager answer for Amazon Linux 2023, of every kernel and processor."""
    for kernel in _KERNELS:
        for processor in _PROCESSORS:
            ssm._PUBLIC_AMI_PARAMETERS[f"{_PREFIX}-{kernel}-{processor}"] = _IMAGE
            ssm._PUBLIC_AMI_PARAMETERS[f"{_PREFIX}-minimal-{kernel}-{processor}"] = _IMAGE
