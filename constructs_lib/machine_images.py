"""The machine images of nodes. Without the CDK: settings are checked against them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Image:
    """A machine image.

    Args:
        disk: Device of its root volume.
        parameter: SSM parameter of AWS that names its newest version; left out, Amazon Linux 2023.
        least_gib: The size of its own volume, which a node's may not be below.
    """

    disk: str
    parameter: str | None = None
    least_gib: int = 8


AMAZON_LINUX = Image(disk="/dev/xvda")
# https://awsdocs-neuron.readthedocs-hosted.com/en/latest/deploy/environments/dlami.html: Amazon
# Linux 2023 is too old for torch 2.9, so Neuron's image with it is Ubuntu's.
NEURON = Image(
    disk="/dev/sda1",
    parameter="/aws/service/neuron/dlami/pytorch-2.9/ubuntu-24.04/latest/image_id",
    least_gib=100,
)
