"""Small models that are trained here, on a text that is here: no package ships their kind."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from isomorph import packages
from isomorph.errors import UserError
from isomorph.paths import CACHE, ROOT

# Model -> the module that trains it, from config/models/MODEL.json, in a minute or so.
TRAINED = {
    "tiny-deepseek": "model_code.mla.train_tiny",
    "tiny-moe": "model_code.moe.train_tiny",
}
_NEEDED = ("torch", "tokenizers", "safetensors")


def fetch(model: str) -> tuple[Path, bool]:
    """Return the folder with the weights of a model, and whether they had to be trained.

    Raises:
        UserError: torch is not installed, or the training failed.
    """
    home = CACHE / "weights" / model
    if any(home.glob("*.safetensors")):  # the folder is written whole or not at all
        return home, False
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(
            f"{model} is trained here, which needs {', '.join(missing)}: run `make torch`"
        )
    with packages.scratch(home.parent) as scratch:
        command = [
            *(sys.executable, "-m", TRAINED[model], "--out", str(scratch / model)),
            *("--config", str(ROOT / "config" / "models" / f"{model}.json")),
        ]
        # To model code that variable is where kernels are built: not in the embedded AWS's folder.
        variables = {name: value for name, value in os.environ.items() if name != "ISOMORPH_STATE"}
        run = subprocess.run(  # noqa: S603  ours
            command, cwd=ROOT, env=variables, capture_output=True, text=True
        )
        if run.returncode:
            said = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{model} could not be trained: {said}")
        if not home.is_dir():  # somebody else's training may have been faster
            (scratch / model).rename(home)
    return home, True
