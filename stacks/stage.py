"""One environment: the foundation, then whatever its file turns on."""

from pathlib import Path

import aws_cdk as cdk
from constructs import Construct

from config import EnvironmentConfig
from constructs_lib import PrivateVpc, lifecycle_bucket_name
from stacks.base import Base
from stacks.foundation import Foundation
from stacks.registry import DEPLOYABLE, REGISTRY
from stacks.settings import selected
from stacks.wheelhouse import FOLDER


class ToolkitStage(cdk.Stage):
    """Everything that one environment file turns on.

    Args:
        environment: The environment's file.
        wheelhouses: Folder of the built wheels.
    """

    def __init__(
        self, scope: Construct, environment: EnvironmentConfig, *, wheelhouses: Path = FOLDER
    ) -> None:
        chosen = list(selected(environment))  # what is wrong is said before anything is made
        env = cdk.Environment(account=environment.account, region=environment.region)
        super().__init__(scope, environment.name, env=env)
        foundation = Foundation(
            self,
            "foundation",
            environment=environment,
            serving=[each.innovation.slug for each in DEPLOYABLE if each.innovation.serves_weights],
        )
        base = Base(
            environment=environment.name,
            lifecycle_bucket=lifecycle_bucket_name(
                environment.name, environment.account, environment.region
            ),
            cidr=PrivateVpc.CIDR,
            availability_zones=environment.availability_zones,
            s3_prefix_list=environment.s3_prefix_list,
            retained=environment.data == "retained",
            wheelhouses=wheelhouses,
            email=environment.budget.email,
        )
        for innovation, settings in chosen:
            deployable = REGISTRY[innovation.slug]
            wanted = [name for name in deployable.stacks if settings.wants(name)]
            for name in wanted:
                stack = deployable.stacks[name]
                built = stack(self, name, settings=settings, base=base)
                built.add_stack_dependency(foundation, "imports its exports")
                _tag(built, {"isomorph:innovation": innovation.slug})
        _tag(self, {**environment.tags, "isomorph:environment": environment.name})


def _tag(scope: Construct, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        # A command moves the value of a weights pointer. A tag that changes on it would make
        # CloudFormation update the parameter, and put the value back to `none`.
        cdk.Tags.of(scope).add(key, value, exclude_resource_types=["AWS::SSM::Parameter"])
