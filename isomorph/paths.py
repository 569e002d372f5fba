"""Where a checkout keeps what it makes: below itself, in folders that git ignores."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".isomorph" / "cache"  # wheelhouses and weights: kept by `isomorph down`
CDK = ROOT / "node_modules" / ".bin" / "cdk"
CDK_OUT = ROOT / "cdk.out"


def state() -> Path:
    """Return the folder of the embedded AWS, which `isomorph down` removes."""
    return Path(os.environ.get("ISOMORPH_STATE", ROOT / ".isomorph" / "local"))


def venv_bin() -> Path:
    """Return the folder of this Python's commands (pip, aws)."""
    return Path(sys.prefix) / "bin"
