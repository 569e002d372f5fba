"""`isomorph doctor`: find what a deployment would find out, before it starts."""

from dataclasses import asdict
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError

from isomorph import environments, output
from isomorph.errors import UserError
from planner import Plan, PlanError
from planner import plan as make_plan
from planner.doctor import Environment, Finding, Group, Subnet, offline, online
from stacks.settings import environments as checked
from stacks.settings import selected

SERVICES = ("service-quotas", "ec2", "sagemaker", "bedrock", "iam")


@click.command()
@click.argument("name", metavar="ENV")
@click.option("--model", help="Check the machines of this model's plan too.")
@click.option("--load", "load", multiple=True, metavar="NAME=VALUE", help="Of that plan.")
@click.option("--online", "ask", is_flag=True, help="Ask AWS too; reads only.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def doctor(name: str, model: str | None, load: tuple[str, ...], ask: bool, json_: bool) -> None:
    """Check ENV without deploying it. Exit code 1 when there is a problem."""
    environment = environments.load(name)
    made: Plan | None = None
    if model is not None:
        try:
            made = make_plan(
                model, [part for text in load for part in text.split(",")],
                region=environment.config.region,
            )  # fmt: skip
        except PlanError as error:
            raise UserError(str(error)) from None
    env = _described(environment, ask=ask)
    findings = offline(env, made)
    if ask:
        clients = {service: environment.client(service) for service in SERVICES}
        findings += online(env, clients, made)
    _show(findings, json_=json_)
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        raise click.exceptions.Exit(1)


def _described(environment: environments.Environment, *, ask: bool) -> Environment:
    """Return what the doctor needs of an environment, in plain values."""
    [config] = checked(environment.name)
    groups = []
    for _, settings in selected(config):
        kind, most = getattr(settings, "instance_type", None), getattr(settings, "max_capacity", 1)
        if kind is not None:
            service = "endpoint" if kind.startswith("ml.") else "ec2"
            groups.append(Group(service=service, instance_type=kind, count=most))  # type: ignore[arg-type]
    return Environment(
        name=config.name,
        region=config.region,
        availability_zones=config.availability_zones,
        subnets=_subnets(environment) if ask else (),
        groups=tuple(groups),
    )


def _subnets(environment: environments.Environment) -> tuple[Subnet, ...]:
    """Return the subnets of a deployed foundation; none when it cannot be asked."""
    try:
        answer: dict[str, Any] = environment.client("ec2").describe_subnets(
            Filters=[
                {
                    "Name": "tag:aws:cloudformation:stack-name",
                    "Values": [environment.stack("foundation")],
                }
            ]
        )
    except (BotoCoreError, ClientError):
        return ()  # the checks that follow say that AWS could not be asked
    return tuple(
        Subnet(zone=row["AvailabilityZone"], free_addresses=row["AvailableIpAddressCount"])
        for row in answer["Subnets"]
    )


def _show(findings: list[Finding], *, json_: bool) -> None:
    if json_:
        output.as_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        click.echo(f"{finding.level}: {finding.what}")
        click.echo(f"  because  {finding.why}")
        click.echo(f"  do       {finding.fix}")
        click.echo(f"  or else  {finding.incident}")
    counts = {
        level: sum(finding.level == level for finding in findings)
        for level in ("problem", "note", "unknown")
    }
    output.say(
        f"{counts['problem']} problems, {counts['note']} notes, {counts['unknown']} not checked"
    )
