"""`isomorph diff`: what a deployment would change, with replacements named."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from botocore.exceptions import ClientError

from isomorph import cdk, environments, output
from isomorph.errors import UserError
from isomorph.paths import state
from planner import PlanError
from planner.replacements import Change, refuse
from planner.replacements import diff as compare


@click.command()
@click.argument("name", metavar="ENV")
@click.option("--allow-replace", is_flag=True, help="Accept replacements that lose data.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def diff(name: str, allow_replace: bool, json_: bool) -> None:
    """Show what deploying ENV would change; refuse what would lose data."""
    environment = environments.load(name)
    rows: list[tuple[str, Change]] = []
    for stack, template in sorted(_synthesized(environment).items()):
        deployed = _deployed(environment, stack)
        if deployed is None:
            output.say(f"{stack}: not deployed, everything in it is new")
            continue
        rows += [(stack, change) for change in compare(deployed, template)]
    if json_:
        output.as_json([{"stack": s, **asdict(c), "loses_data": c.loses_data} for s, c in rows])
    else:
        for stack, change in rows:
            click.echo(f"{stack}: {change}")
        output.say(f"{len(rows)} changes")
    try:
        refuse([change for _, change in rows], allow=allow_replace)
    except PlanError as error:
        raise UserError(str(error)) from None


def _synthesized(environment: environments.Environment) -> dict[str, Mapping[str, Any]]:
    """Return the templates that the checkout gives for an environment, by stack name."""
    context = ["-c", f"env={environment.name}"]
    if environment.embedded:  # what is not brought up here may have nothing built
        there = [slug for slug in environment.stack_ids() if environment.describe(slug)]
        context += ["-c", f"slugs={','.join(there)}"] if there else []
    with tempfile.TemporaryDirectory() as folder:
        cdk.run(
            ["synth", "--quiet", *context, "--output", folder],
            environment={"CDK_VALIDATION": "false"},
            log=state() / "cdk.log",
        )
        return {
            path.name.removesuffix(".template.json"): json.loads(path.read_text())
            for path in sorted(Path(folder).rglob("*.template.json"))
            if path.name.startswith(f"{environment.name}-")
        }


def _deployed(environment: environments.Environment, stack: str) -> Mapping[str, Any] | None:
    with environment.aws_errors():
        try:
            body = environment.client("cloudformation").get_template(StackName=stack)
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
    template = body["TemplateBody"]
    found: Mapping[str, Any] = json.loads(template) if isinstance(template, str) else template
    return found
