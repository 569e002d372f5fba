"""What AWS has where, from the tables that ship with botocore: no network, no credentials."""

from functools import cache
from typing import Any


@cache
def _loader() -> Any:
    from botocore.loaders import Loader  # a tenth of a second, which most commands need not wait

    return Loader()


@cache
def regions() -> dict[str, str]:
    """Return every region with its partition, such as `us-east-1: aws`."""
    partitions = _loader().load_data("partitions")["partitions"]
    return {
        region: partition["id"]
        for partition in partitions
        for region in partition["regions"]
        if not region.endswith("-global")
    }


@cache
def hyperpod_instance_types() -> frozenset[str]:
    """Return every type that a HyperPod cluster takes, such as ml.p5e.48xlarge."""
    model = _loader().load_service_model("sagemaker", "service-2")
    return frozenset(model["shapes"]["ClusterInstanceType"]["enum"])


@cache
def ec2_instance_types() -> frozenset[str]:
    """Return every EC2 instance type that this botocore knows."""
    model = _loader().load_service_model("ec2", "service-2")
    return frozenset(model["shapes"]["InstanceType"]["enum"])


@cache
def plan_instance_types() -> frozenset[str]:
    """Return every type that is sold in training plans."""
    model = _loader().load_service_model("sagemaker", "service-2")
    return frozenset(model["shapes"]["ReservedCapacityInstanceType"]["enum"])
