"""`isomorph list`: the innovations of the map."""

import click

from config import load_environments
from isomorph import output
from stacks.map_data import INNOVATIONS


@click.command("list")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
def list_(json_: bool) -> None:
    """Show the innovations of the map: real or planned, where they run, where they are on."""
    environments = load_environments()
    rows = [
        {
            "innovation": innovation.slug,
            "title": innovation.title,
            "status": innovation.status,
            "stacks": list(innovation.stack_ids),
            "runs_on": innovation.runs_on,
            "on": [config.name for config in environments if innovation.slug in config.innovations],
        }
        for innovation in INNOVATIONS
    ]
    if json_:
        output.as_json(rows)
        return
    output.table(
        ["innovation", "status", "on in", "runs on"],
        [
            (str(row["innovation"]), str(row["status"]), ", ".join(row["on"]), str(row["runs_on"]))
            for row in rows
        ],
    )
