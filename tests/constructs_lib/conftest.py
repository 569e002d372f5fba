from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import json_of, new_stack

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_ec2 as ec2  # isort: skip
from aws_cdk import aws_kms as kms  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip
from aws_cdk import aws_sns as sns  # isort: skip

from constructs_lib import (  # isort: skip
    CodeAsset, DecodeFleet, Limits, Machines, Server, Site, Weights, ZipAsset,
)  # fmt: skip

KEY = "arn:aws:kms:us-east-1:111122223333:key/"
MACHINES = {
    "instance_type": "c7i.large",
    "volume_gib": 30,
    "min_capacity": 2,
    "max_capacity": 6,
    "warm_pool": 0,
    "requests_in_flight_target": 6,
    "boot_minutes": 15,
}
SERVER = {
    "environment": "test",
    "model": "tiny",
    "engine": "llama.cpp",
    "dtype": "auto",
    "python": "python3.11",
    "port": 8080,
    "slots": 8,
    "context": 2048,
    "queue": 64,
    "deadline_s": 60,
}


def site(stack: cdk.Stack) -> Site:
    vpc = ec2.Vpc.from_vpc_attributes(
        stack,
        "Vpc",
        vpc_id="vpc-1",
        availability_zones=["us-east-1a", "us-east-1b", "us-east-1c"],
        private_subnet_ids=["subnet-a", "subnet-b", "subnet-c"],
        private_subnet_route_table_ids=["rtb-a", "rtb-b", "rtb-c"],
    )
    return Site(
        vpc=vpc,
        cidr="10.0.0.0/16",
        endpoints=ec2.SecurityGroup.from_security_group_id(stack, "Ends", "sg-ends", mutable=False),
        s3_prefix_list="pl-63a5400a",
        volume_key=kms.Key.from_key_arn(stack, "VolumeKey", KEY + "volume"),
        log_key=kms.Key.from_key_arn(stack, "LogKey", KEY + "log"),
        access_logs=s3.Bucket.from_bucket_name(stack, "AccessLogs", "access-logs"),
        alarm_topic=sns.Topic.from_topic_arn(
            stack, "Alarms", "arn:aws:sns:us-east-1:111122223333:alarms"
        ),
    )


@pytest.fixture(scope="module")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a fleet with some values changed, and returns its template."""
    root = tmp_path_factory.mktemp("code")
    (root / "code.py").write_text("")
    wheels = root / "wheels.zip"
    wheels.write_bytes(b"wheels")

    def make(
        *, certificate_arn: str | None = None, retained: bool = False, **changes: Any
    ) -> dict[str, Any]:
        stack = new_stack("test-gqa")
        machines = {key: changes.pop(key, value) for key, value in MACHINES.items()}
        server = {key: changes.pop(key, value) for key, value in SERVER.items()}
        limits = {"latency_seconds": 10, "error_percent": 5}
        limits = {key: changes.pop(key, value) for key, value in limits.items()}
        assert not changes, f"no such value: {changes}"
        DecodeFleet(
            stack,
            "DecodeFleet",
            slug="gqa",
            site=site(stack),
            server=Server(**server),
            machines=Machines(**machines),
            limits=Limits(**limits),
            code=CodeAsset(stack, "Code", root=root, include=["code.py"]),
            wheelhouse=ZipAsset(stack, "Wheels", path=Path(wheels)),
            weights=Weights(
                stack,
                "Weights",
                pointer="/isomorph/test/gqa/weights",
                bucket=s3.Bucket.from_bucket_name(stack, "Models", "models"),
                key=kms.Key.from_key_arn(stack, "ModelKey", KEY + "model"),
                prefix="gqa",
            ),
            certificate_arn=certificate_arn,
            retained=retained,
        )
        return json_of(stack)

    return make


@pytest.fixture(scope="module")
def fleet(make_fleet: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return make_fleet()
