"""Synthesis in a process of its own, with all validation on, as `cdk` would start it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cdk_app import FLAGS, ROOT

EVERYTHING = """
import json, sys
from pathlib import Path
import aws_cdk
import app
built = app.build(json.loads(sys.argv[1]), Path(sys.argv[2]))
key = aws_cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
for whole in (built, *built.node.children):  # an environment's is in no stack's metadata
    for entry in whole.node.metadata:
        if entry.type == key:
            print("acknowledged on all of", whole.node.path)
built.synth()
"""


@dataclass(frozen=True)
class Synthesized:
    """What a synthesis left, where it keeps what is for itself, and how it ended."""

    folder: Path
    scratch: Path
    done: subprocess.CompletedProcess[str]


def synthesize(wheels: Path, folder: Path, script: str = EVERYTHING) -> Synthesized:
    """Run a script with the context of cdk.json: all validation on, no credentials anywhere."""
    scratch = folder.with_name(f"{folder.name}.tmp")
    scratch.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))
    }
    environment |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "CDK_OUTDIR": str(folder),
        "TMPDIR": str(scratch),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(FLAGS), str(wheels)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return Synthesized(folder, scratch, done)
