"""Sliding-window attention: R7i nodes that decode, and a Lambda function for what comes rarely."""

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_ecr_assets as ecr_assets
from constructs import Construct

from constructs_lib import FunctionLimits, Viewers, WindowFunction, image_code, zip_code
from constructs_lib.window_function import HANDLER, Code
from stacks.base import Base, stack_name
from stacks.code import model_code_for
from stacks.fleet import decode_fleet
from stacks.sliding_window_settings import (
    SlidingWindowSettings,
    fleet_type,
    function_fit,
    function_size,
)
from stacks.wheelhouse import ROOT, function_libraries

_HANDLER = "model_code/sliding_window/handler"


class SlidingWindowStack(Stack):
    """A fleet of R7i nodes and a function, both with the same weights."""

    def __init__(
        self, scope: Construct, slug: str, *, settings: SlidingWindowSettings, base: Base
    ) -> None:
        super().__init__(scope, slug, stack_name=stack_name(base.environment, slug))
        region = self.region
        sized = settings.model_copy(update={"instance_type": fleet_type(settings, region)})
        fleet = decode_fleet(self, slug, settings=sized, base=base, bandwidth=True)
        fleet.watch.show("Window occupancy, % of all slots' windows", "WindowOccupancy")
        chosen = settings.function
        viewers = chosen.cloudfront_key_group
        function = WindowFunction(
            self,
            "WindowFunction",
            slug=slug,
            site=fleet.site,
            code=_code(slug, settings, base),
            model=settings.model,
            context=chosen.context,
            size=function_size(settings, function_fit(settings, region)),
            mode=chosen.mode,
            weights=fleet.weights,
            limits=FunctionLimits(
                duration_share=chosen.alarm_duration_share, errors=chosen.alarm_errors
            ),
            viewers=Viewers(key_group_id=viewers, web_acl_arn=chosen.cloudfront_web_acl_arn)
            if viewers
            else None,
            retained=base.retained,
        )
        CfnOutput(self, "Function", value=function.target.function_name)
        CfnOutput(self, "FunctionUrl", value=function.url.url)
        if function.edge:
            CfnOutput(
                self,
                "CloudFront",
                value=f"https://{function.edge.distribution.distribution_domain_name}",
                description="Sign requests; with a body, send its SHA-256 as x-amz-content-sha256",
            )


def _code(slug: str, settings: SlidingWindowSettings, base: Base) -> Code:
    function = settings.function
    if function.package == "image":
        arm = function.processor == "arm64"
        return image_code(
            root=ROOT,
            include=model_code_for(slug),
            dockerfile=f"{_HANDLER}/Dockerfile",
            platform=ecr_assets.Platform.LINUX_ARM64 if arm else ecr_assets.Platform.LINUX_AMD64,
            streaming=function.streaming,
            handler=HANDLER,
        )
    return zip_code(
        function_libraries(slug, function.python, function.processor, base.wheelhouses),
        root=ROOT,
        include=model_code_for(slug),
        bootstrap=f"{_HANDLER}/bootstrap",
    )
