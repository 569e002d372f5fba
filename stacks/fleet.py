"""What every stack with a fleet of decoding nodes has: the fleet, its weights, its outputs."""

from collections.abc import Mapping, Sequence

from aws_cdk import CfnOutput, Stack, Token
from aws_cdk import aws_iam as iam

from constructs_lib import CodeAsset, DecodeFleet, Machines, Site, Weights, ZipAsset
from stacks.base import Base
from stacks.code import model_code_for
from stacks.fleet_settings import FleetSettings
from stacks.innovation import weights_parameter
from stacks.wheelhouse import ROOT, wheelhouse


def decode_fleet(
    stack: Stack,
    slug: str,
    *,
    settings: FleetSettings,
    base: Base,
    site: Site | None = None,
    more: Mapping[str, str] | None = None,
    statements: Sequence[iam.PolicyStatement] = (),
    bandwidth: bool = False,
) -> DecodeFleet:
    """Return the fleet of an innovation with its weights, and put out what commands read of it.

    Args:
        stack: What it becomes a part of.
        slug: The innovation.
        settings: Of the fleet.
        base: The foundation.
        site: Handles of the foundation inside of the stack, if it has made them already.
        more: What the servers are told besides, by the names of their variables.
        statements: What the nodes may do besides.
        bandwidth: Whether the nodes are set up for reading memory: huge pages, all NUMA nodes.
    """
    size, remarks = settings.planned(stack.region), settings.remarks(stack.region)
    if size is not None:
        CfnOutput(stack, "Size", value="; ".join([*size.reasons, *remarks]))
    settings = settings.sized(stack.region)
    bucket, key = base.model_bucket(stack)
    weights = Weights(
        stack,
        "ModelWeights",
        pointer=weights_parameter(base.environment, slug),
        bucket=bucket,
        key=key,
        prefix=slug,
    )
    fleet = DecodeFleet(
        stack,
        "DecodeFleet",
        slug=slug,
        site=site or base.site(stack),
        server=settings.server(
            environment=base.environment,
            model=settings.model,
            python=settings.python,
            quantization=settings.quantization,
            more=more or {},
        ),
        machines=_machines(settings),
        limits=settings.limits,
        code=CodeAsset(
            stack,
            "Code",
            root=ROOT,
            include=model_code_for(slug),
        ),
        wheelhouse=ZipAsset(
            stack,
            "Wheelhouse",
            path=wheelhouse(slug, settings.python, settings.engine, base.wheelhouses),
        ),
        weights=weights,
        statements=statements,
        certificate_arn=settings.certificate_arn,
        bandwidth=bandwidth,
        retained=base.retained,
    )
    _put_out(stack, slug, fleet, weights, engine=settings.engine, environment=base.environment)
    return fleet


def _put_out(
    stack: Stack, slug: str, fleet: DecodeFleet, weights: Weights, *, engine: str, environment: str
) -> None:
    CfnOutput(stack, "Endpoint", value=fleet.door.url)
    CfnOutput(stack, "Fleet", value=fleet.group.name)
    put_out_weights(stack, slug, weights, engine=engine, environment=environment)


def put_out_weights(
    stack: Stack, slug: str, weights: Weights, *, engine: str, environment: str
) -> None:
    """Put out what decodes, and which weights: or the command that pushes some."""
    CfnOutput(stack, "Engine", value=engine)
    push = f"isomorph weights push {environment} {slug} FOLDER"
    missing = f"none yet: run `{push}`, then deploy again"
    state = Token.as_string(weights.if_present(weights.value, missing))
    CfnOutput(stack, "Weights", value=state)


def _machines(settings: FleetSettings) -> Machines:
    return Machines(
        instance_type=settings.instance_type,
        volume_gib=settings.volume_gib,
        min_capacity=settings.min_capacity,
        max_capacity=settings.max_capacity,
        warm_pool=settings.warm_pool,
        requests_in_flight_target=settings.requests_in_flight_target,
        boot_minutes=settings.boot_minutes,
    )
