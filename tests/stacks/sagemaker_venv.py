"""A venv with the SageMaker SDK, cached: `python -m tests.stacks.sagemaker_venv` makes it."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements-sagemaker.txt"


def ensure() -> Path:
    """Return the venv's interpreter; make the venv unless it is there."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = ROOT / ".isomorph" / "cache" / f"sagemaker-sdk-{version}-{digest}"
    interpreter, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        # One program imports a tenth of it: what it imports is compiled then.
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-compile", "-r", REQUIREMENTS], check=True)
        done.touch()
    return interpreter


if __name__ == "__main__":
    ensure()
