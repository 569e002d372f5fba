"""`isomorph check`: read an environment's file."""

from typing import Any

import click

from config import load_environments
from isomorph import output
from stacks.map_data import INNOVATIONS
from stacks.settings import SETTINGS, selected


@click.command()
@click.argument("name", metavar="ENV")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def check(name: str, json_: bool) -> None:
    """Read config/ENV.yaml, refuse what is wrong in it, and say what it turns on."""
    [config] = load_environments(name, settings=SETTINGS)
    remarks = [
        f"innovations.{innovation.slug}: {remark}"
        for innovation, settings in selected(config)
        for remark in settings.remarks(config.region)
    ]
    rows: list[dict[str, Any]] = [
        {
            "innovation": innovation.slug,
            "on": innovation.slug in config.innovations,
            "status": innovation.status,
            "model": config.innovations.get(innovation.slug, {}).get("model"),
        }
        for innovation in INNOVATIONS
    ]
    if json_:
        output.as_json(
            {
                "environment": name,
                "region": config.region,
                "aws": config.aws,
                "innovations": rows,
                "remarks": remarks,
            }
        )
        return
    click.echo(
        f"config/{name}.yaml is right: {config.aws}, {config.region}, data {config.data}, "
        f"at most ${config.budget.monthly_usd:,.0f} a month"
    )
    output.table(
        ["", "innovation", "status", "model"],
        [
            ("on" if row["on"] else "off", row["innovation"], row["status"], row["model"] or "")
            for row in rows
        ],
    )
    for remark in remarks:
        click.echo(f"config/{name}.yaml: {remark}")
