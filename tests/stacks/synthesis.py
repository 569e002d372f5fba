"""Synthesis in a process of its own, with all validation on, as `cdk` would start it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cdk_app import FLAGS, ROOT

SCRIPT = """
import gc, json, sys
gc.disable()  # as app.py does
from pathlib import Path
import aws_cdk
from aws_cdk import aws_s3
import app
context, broken = json.loads(sys.argv[1]), Path(sys.argv[3])
built = app.build(context, Path(sys.argv[2]))
key = aws_cdk.Validations.ACKNOWLEDGED_RULES_METADATA_KEY
for whole in (built, *built.node.children):  # an environment's is in no stack's metadata
    for entry in whole.node.metadata:
        if entry.type == key:
            print("acknowledged on all of", whole.node.path)
built.synth()

# In the same process, where the engine that validates runs already: to start it takes seconds.
app = aws_cdk.App(context=context, outdir=str(broken))
aws_s3.CfnBucket(aws_cdk.Stack(app, "stack"), "Bucket", bucket_name="UPPER_case")
try:
    app.synth()
except RuntimeError as error:
    (broken / "refusal").write_text(str(error))
"""


@dataclass(frozen=True)
class Synthesized:
    """What a synthesis left, where it keeps what is for itself, and how it ended.

    Args:
        folder: With the templates.
        scratch: What it had for temporary files.
        broken: With `refusal`: why a bucket was refused that has a name which none may have.
        done: The process.
    """

    folder: Path
    scratch: Path
    broken: Path
    done: subprocess.CompletedProcess[str]


def synthesize(wheels: Path, folder: Path) -> Synthesized:
    """Synthesize everything with all validation on and no credentials anywhere."""
    scratch, broken = (folder.with_name(f"{folder.name}.{name}") for name in ("tmp", "broken"))
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
        [sys.executable, "-c", SCRIPT, json.dumps(FLAGS), str(wheels), str(broken)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return Synthesized(folder, scratch, broken, done)
