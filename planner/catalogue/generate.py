"""Writes offerings.json and create_only.json: `python -m planner.catalogue.generate`.

They come from botocore and cfn-lint. The planner reads the two files, never these libraries: they
are slow to load, and cfn-lint is not there at run time. A test says when the files no longer agree
with what is installed.
"""

import importlib.resources
import json
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

from planner.catalogue import HERE, names

SERVICES = {
    "hyperpod": "ClusterInstanceType",
    "endpoint": "ProductionVariantInstanceType",
    "training": "TrainingInstanceType",
    "training_plan": "ReservedCapacityInstanceType",
}


def services() -> dict[str, list[str]]:
    """Return which of the catalogue's instances each SageMaker service accepts."""
    shapes = Loader().load_service_model("sagemaker", "service-2")["shapes"]
    return {
        service: [name for name in names() if f"ml.{name}" in set(shapes[shape]["enum"])]
        for service, shape in SERVICES.items()
    }


def regions() -> tuple[str, dict[str, list[str]]]:
    """Return the date of cfn-lint's price-list data, and the regions of each instance and node.

    Instances that are sold as plans or Capacity Blocks only are in no price list, so not here.
    """
    schemas = importlib.resources.files("cfnlint.data.schemas")
    date = json.loads((schemas / "version.json").read_text())["schema_date"][:10]
    found: dict[str, list[str]] = {}
    for folder, file in (
        ("aws_ec2_instance", "instancetype_enum.json"),
        ("aws_elasticache_cachecluster", "cachenodetype_enum.json"),
    ):
        lists = json.loads((schemas / "extensions" / folder / file).read_text())
        for region, values in lists.items():
            if region in ("all", "description"):
                continue
            for name in values["enum"]:
                found.setdefault(name, []).append(region)
    return date, {name: sorted(found[name]) for name in sorted(found) if name in set(names(True))}


def create_only() -> dict[str, list[str]]:
    """Return the properties of each CloudFormation type that cannot change without replacement."""
    schemas = importlib.resources.files("cfnlint.data.schemas")
    types = json.loads((schemas / "providers" / "us-east-1.json").read_text())
    found = {}
    for name, digest in sorted(types.items()):
        schema = json.loads((schemas / "resources" / f"{digest}.json").read_text())
        paths = [
            path.removeprefix("/properties/") for path in schema.get("createOnlyProperties", [])
        ]
        if paths:
            found[name] = sorted(paths)
    return found


def additional(file: str) -> dict[str, Any]:
    """Return one of cfn-lint's own tables."""
    folder = importlib.resources.files("cfnlint.data.AdditionalSpecs")
    table: dict[str, Any] = json.loads((folder / file).read_text())
    return table


def generated() -> dict[str, Any]:
    """Return what both files hold, by file name."""
    from botocore import __version__ as botocore_version

    date, by_region = regions()
    return {
        "offerings.json": {
            "sources": {
                "services": f"enumerations of botocore {botocore_version}",
                "regions": f"price lists as in cfn-lint's schemas of {date}",
            },
            "date": date,
            "services": services(),
            "regions": by_region,
            "lambda_runtimes": {
                runtime: row["deprecated"]
                for runtime, row in additional("LmbdRuntimeLifecycle.json").items()
            },
        },
        "create_only.json": {
            "source": f"CloudFormation resource schemas as in cfn-lint's of {date}",
            "types": create_only(),
            "stateful": sorted(additional("StatefulResources.json")["ResourceTypes"]),
        },
    }


def main() -> None:
    """Write both files."""
    for file, content in generated().items():
        rows = json.dumps(content, indent=1, sort_keys=True)
        Path(HERE / file).write_text(rows + "\n")


if __name__ == "__main__":
    main()
