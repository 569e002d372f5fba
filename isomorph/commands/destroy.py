"""`isomorph destroy`: remove what an environment deployed, data included where it is disposable."""

from typing import Any

import click

from isomorph import cdk, output
from isomorph.environments import Environment, load, slug_of
from isomorph.errors import UserError
from isomorph.paths import state


@click.command()
@click.argument("name", metavar="ENV")
@click.argument("slugs", nargs=-1, metavar="[SLUG ...]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def destroy(name: str, slugs: tuple[str, ...], yes: bool, json_: bool) -> None:
    """Destroy the stacks SLUG ... of ENV, or all of ENV with its foundation.

    Buckets are emptied first, with all versions, where the environment says `data: disposable`;
    where it says `data: retained`, CloudFormation leaves them.
    """
    environment = load(name)
    on = environment.stack_ids()
    named = {slug: environment.stacks_of(slug) for slug in slugs if slug != "foundation"}
    unknown = [slug for slug, stacks in named.items() if not stacks]
    if unknown:
        raise UserError(f"{name} has no {', '.join(unknown)}; it has: {', '.join(on)}, foundation")
    asked = [stack for slug in slugs for stack in named.get(slug, [slug])] or [*on, "foundation"]
    deployed = [stack for stack in (*on, "foundation") if environment.describe(stack) is not None]
    stacks = [stack for stack in asked if stack in deployed]
    if not stacks:
        output.say(f"nothing to destroy: of {', '.join(asked)} nothing is deployed to {name}")
    else:
        if not yes:
            click.confirm(f"Destroy {', '.join(map(environment.stack, stacks))}?", abort=True)
        if "foundation" in stacks and environment.config.data == "disposable":
            _empty_buckets(environment)
        _destroy(environment, stacks, deployed)
    if json_:
        output.as_json({"destroyed": [environment.stack(stack) for stack in stacks]})


def _destroy(environment: Environment, stacks: list[str], deployed: list[str]) -> None:
    """Let the CDK CLI destroy `stacks`, from an app of what is deployed alone."""
    # What is not deployed would be synthesized, too, and want its wheels.
    slugs = dict.fromkeys(slug_of(stack) for stack in deployed if stack != "foundation")
    with output.step(f"cdk destroy {' '.join(stacks)}"):
        cdk.run(
            [
                *("destroy", "-c", f"env={environment.name}", "-c", f"slugs={','.join(slugs)}"),
                *("--force", "--output", str(state() / "destroyed")),  # cdk.out may be another's
                *(f"{environment.name}/{stack}" for stack in stacks),
            ],
            # Nor is what goes to be checked once more.
            environment={**environment.variables, "CDK_VALIDATION": "false"},
            log=state() / "cdk.log",
        )


def _empty_buckets(environment: Environment) -> None:
    """Remove every version of every object from the foundation's buckets."""
    resource = environment.session.resource(
        "s3", endpoint_url=environment.variables.get("AWS_ENDPOINT_URL")
    )
    with environment.aws_errors():
        pages: Any = environment.client("cloudformation").get_paginator("list_stack_resources")
        for page in pages.paginate(StackName=environment.stack("foundation")):
            for row in page["StackResourceSummaries"]:
                if row["ResourceType"] == "AWS::S3::Bucket" and "PhysicalResourceId" in row:
                    with output.step(f"empty {row['PhysicalResourceId']}"):
                        resource.Bucket(row["PhysicalResourceId"]).object_versions.delete()
