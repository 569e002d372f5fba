"""Small models that are trained on this machine, where no package ships one of their kind."""

import subprocess
import sys
from pathlib import Path

from isomorph import packages, samples
from isomorph.errors import UserError
from isomorph.paths import ROOT

# Model -> the module that trains it, from config/models/MODEL.json, in a minute or so.
TRAINED = {"tiny-deepseek": "model_code.mla.train_tiny"}


def fetch(model: str) -> tuple[Path, bool]:
    """Return the folder with the weights of a model, and whether it had to be trained.

    Raises:
        UserError: torch is not installed, or the training failed.
    """
    home = samples.folder(model)
    if home.is_dir():
        return home, False
    module = TRAINED[model]
    with packages.scratch(home.parent) as scratch:
        made = scratch / model
        config = ROOT / "config" / "models" / f"{model}.json"
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", module, "--config", str(config), "--out", str(made)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed nothing"]
            hint = "; run `make torch`" if "torch" in lines[-1] else ""
            raise UserError(f"{module} could not train {model}: {lines[-1]}{hint}")
        made.rename(home)
    return home, True
