"""`isomorph prices`: the planner's price file."""

import datetime
from dataclasses import asdict

import click

from isomorph import output
from isomorph.errors import UserError
from planner import PlanError
from planner.catalogue import read_prices
from planner.prices import refresh as refresh_prices

API_REGION = "us-east-1"  # the Price List API answers there, for every region


@click.group()
def prices() -> None:
    """Show or refresh the prices that plans use."""


@prices.command()
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def show(json_: bool) -> None:
    """Show each price with its source, its date, and whether it is old."""
    today = datetime.datetime.now(datetime.UTC).date()
    rows = [
        {**asdict(row), "date": row.date.isoformat(), "old": row.warning(today) is not None}
        for row in read_prices()
    ]
    if json_:
        output.as_json(rows)
        return
    output.table(
        ["item", "USD", "a", "region", "date", "old", "source"],
        [
            (
                *(str(row[key]) for key in ("item", "usd", "unit", "region", "date")),
                "old" if row["old"] else "",
                f"{row['source']}{' (interpolated)' if row['basis'] == 'interpolated' else ''}",
            )
            for row in rows
        ],
    )


@prices.command()
@click.option("--region", default="us-east-1", show_default=True, help="Whose prices.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def refresh(region: str, json_: bool) -> None:
    """Ask the AWS Price List API for every price; needs credentials that may read it."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("pricing", region_name=API_REGION)
        with output.step(f"ask for the prices of {region}"):
            rows = refresh_prices(client, region=region)
    except PlanError as error:
        raise UserError(str(error)) from None
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"the prices could not be asked for: {error}") from None
    if json_:
        output.as_json([asdict(row) for row in rows])
        return
    output.table(
        ["item", "before", "now", "outcome"],
        [(row.item, _usd(row.before), _usd(row.after), row.why or row.outcome) for row in rows],
    )


def _usd(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
