"""Pools behind one load balancer: what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import json_of, new_stack, only
from tests.constructs_lib.conftest import KEY, MACHINES, SERVER, site

import aws_cdk as cdk  # isort: skip
from aws_cdk import aws_kms as kms  # isort: skip
from aws_cdk import aws_s3 as s3  # isort: skip

from constructs_lib import (  # isort: skip
    NEURON, CodeAsset, ExpertPools, Limits, Machines, Server, Variant, Weights, ZipAsset,
)  # fmt: skip


def build(tmp_path: Path, shares: dict[str, list[int]], default: str, **machines: Any) -> Any:
    (tmp_path / "code.py").write_text("")
    (tmp_path / "wheels.zip").write_bytes(b"wheels")
    stack = new_stack("test-moe-serving")
    wheels = ZipAsset(stack, "Wheels", path=tmp_path / "wheels.zip")
    ExpertPools(
        stack,
        "Pools",
        slug="moe",
        site=site(stack),
        pools={
            name: [
                Variant(
                    name=f"{name}-{number}",
                    percent=percent,
                    server=Server(**SERVER),
                    machines=Machines(**{**MACHINES, **machines}),
                    wheelhouse=wheels,
                )
                for number, percent in enumerate(percents)
            ]
            for name, percents in shares.items()
        },
        default=default,
        limits=Limits(latency_seconds=10, error_percent=5),
        code=CodeAsset(stack, "Code", root=tmp_path, include=["code.py"]),
        weights=Weights(
            stack,
            "Weights",
            pointer="/isomorph/test/moe/weights",
            bucket=s3.Bucket.from_bucket_name(stack, "Models", "models"),
            key=kms.Key.from_key_arn(stack, "ModelKey", KEY + "model"),
            prefix="moe",
        ),
        session=cdk.Duration.minutes(30),
        certificate_arn=None,
        retained=False,
    )
    return json_of(stack)


def test_shares_that_add_up_are_taken(tmp_path: Path) -> None:
    template = build(tmp_path, {"a": [90, 10], "b": [100]}, "a")
    listener = only(template, "AWS::ElasticLoadBalancingV2::Listener")
    shares = str(listener["DefaultActions"])
    assert "'Weight': 90" in shares
    assert "'Weight': 10" in shares


@pytest.mark.parametrize(
    ("shares", "default", "said"),
    [
        ({"a": [90, 20]}, "a", r"pool 'a': shares must add up to 100 percent, got 90 \+ 20"),
        ({"a": [110, -10]}, "a", r"pool 'a': shares must add up to 100 percent, got 110 \+ -10"),
        ({"a": [100]}, "b", "default must be one of the pools a, got 'b'"),
        ({f"p{n}": [100] for n in range(41)}, "p1", "got 41 pools; a listener's rules suffice"),
    ],
)
def test_fails_when(tmp_path: Path, shares: Any, default: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(tmp_path, shares, default)


def test_fails_when_a_disk_is_smaller_than_its_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got volume_gib=30; the machine image's own disk has 100"):
        build(tmp_path, {"a": [100]}, "a", image=NEURON)
