"""`isomorph plans search`: training plans that are on offer; buying stays with the user."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from isomorph import output
from isomorph.environments import load
from isomorph.errors import UserError


@click.group()
def plans() -> None:
    """Training plans: capacity that is bought ahead."""


@plans.command()
@click.option("--env", "name", required=True, help="The environment; its region is searched.")
@click.option("--instance-type", required=True, help="Such as ml.p5e.48xlarge.")
@click.option("--count", required=True, type=click.IntRange(1), help="Nodes.")
@click.option("--hours", required=True, type=click.IntRange(1), help="How long.")
@click.option("--within-days", default=56, show_default=True, type=click.IntRange(1, 180))
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def search(
    name: str, instance_type: str, count: int, hours: int, within_days: int, json_: bool
) -> None:
    """Show what AWS offers for a HyperPod cluster, with zone and price an hour.

    A bought plan's ARN and zone go to innovations.moe.training.groups.GROUP.plan.
    """
    from config import plan_instance_types

    if instance_type not in plan_instance_types():
        raise UserError(
            f"--instance-type is {instance_type!r}; training plans have "
            f"{', '.join(sorted(plan_instance_types()))}"
        )
    environment = load(name)
    begin = datetime.now(UTC)
    with environment.aws_errors():
        found = environment.client("sagemaker").search_training_plan_offerings(
            InstanceType=instance_type,
            InstanceCount=count,
            StartTimeAfter=begin,
            EndTimeBefore=begin + timedelta(days=within_days),
            DurationHours=hours,
            TargetResources=["hyperpod-cluster"],
        )["TrainingPlanOfferings"]
    rows = [_row(offer) for offer in found]
    if not rows:
        raise UserError(
            f"no plan of {count} x {instance_type} for {hours} hours is on offer in "
            f"{environment.config.region} within {within_days} days; try fewer nodes, other hours, "
            f"or another region"
        )
    if json_:
        output.as_json(rows)
        return
    output.table(
        ["offering", "zone", "nodes", "from", "hours", "upfront", "an hour", "a node-hour"],
        [
            (
                row["offering"],
                row["zone"],
                str(row["nodes"]),
                row["from"],
                f"{row['hours']:g}",
                f"{row['upfront']:,.2f} {row['currency']}",
                f"{row['an_hour']:,.2f}",
                f"{row['a_node_hour']:,.2f}",
            )
            for row in rows
        ],
    )
    output.say("buy one with `aws sagemaker create-training-plan`: it is paid upfront, and final")


def _row(offer: dict[str, Any]) -> dict[str, Any]:
    """Return an offer with its price an hour: the fee over the hours of its capacity."""
    parts = offer.get("ReservedCapacityOfferings", [])
    hours = float(offer.get("DurationHours", 0)) + float(offer.get("DurationMinutes", 0)) / 60
    nodes = max((int(part["InstanceCount"]) for part in parts), default=0)
    fee = float(offer.get("UpfrontFee", "nan"))
    starts = sorted(part["StartTime"] for part in parts if "StartTime" in part)
    return {
        "offering": offer["TrainingPlanOfferingId"],
        "zone": ", ".join(sorted({part.get("AvailabilityZone", "?") for part in parts})),
        "nodes": nodes,
        "from": starts[0].strftime("%Y-%m-%d %H:%M") if starts else "",
        "hours": hours,
        "upfront": fee,
        "currency": offer.get("CurrencyCode", "USD"),
        "an_hour": fee / hours if hours else float("nan"),
        "a_node_hour": fee / hours / nodes if hours and nodes else float("nan"),
    }
