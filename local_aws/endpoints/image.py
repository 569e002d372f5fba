"""What stands for a serving image: an interpreter, the image's libraries, and its serving stack.

The interpreter sees nothing else of this environment: neither the checkout, which is installed in
it, nor a library that the archive forgot to bring along and the image has not.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

# What Neuron's PyTorch inference image has (with torch's CPU build in place of Neuron's):
# https://github.com/aws-neuron/deep-learning-containers, docker/pytorch/inference.
_LIBRARIES = ("boto3", "jinja2", "numpy", "safetensors", "tokenizers", "torch", "transformers")
# The stand-in for the image's own serving stack; it calls the functions of code/inference.py.
TOOLKIT = Path(__file__).parents[2] / "model_code" / "moe" / "serve" / "toolkit.py"


class Image:
    """One image, made when the first container needs it.

    Args:
        folder: Where it is made.
        toolkit: What answers /ping and /invocations.
    """

    def __init__(self, folder: Path, toolkit: Path = TOOLKIT) -> None:
        self._folder, self._toolkit = folder, toolkit

    @property
    def packages(self) -> Path:
        """The folder with its libraries."""
        return self._folder / "packages"

    def command(self, model: Path) -> list[str]:
        """Return what the image runs for the model in a folder."""
        self._prepare()
        python = str(self._folder / "bin" / "python")
        return [python, str(self._folder / "toolkit.py"), "--model-dir", str(model)]

    def _prepare(self) -> None:
        launcher = self._folder / "bin" / "python"
        if launcher.exists():
            return
        self.packages.mkdir(parents=True)
        for name in sorted(_with_requirements(_LIBRARIES)):
            self._link(name)
        (self._folder / "toolkit.py").write_bytes(self._toolkit.read_bytes())
        launcher.parent.mkdir()
        # -S: no site-packages, and so no .pth file that leads back to the checkout.
        base = getattr(sys, "_base_executable", sys.executable)
        launcher.write_text(f'#!/bin/sh\nexec "{base}" -S "$@"\n')
        launcher.chmod(0o755)

    def _link(self, name: str) -> None:
        """Link an installed package's folders and modules: too many files to copy."""
        files = metadata.files(name) or []
        tops = {file.parts[0]: file for file in files if file.parts[0] not in ("..", "__pycache__")}
        for top, file in tops.items():
            link = self.packages / top
            if not link.is_symlink():
                located = Path(str(file.locate()))
                link.symlink_to(located.parents[len(file.parts) - 1] / top)


def _with_requirements(names: tuple[str, ...]) -> set[str]:
    """Return packages that are installed here, with all that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # torch and what needs it are no part of a small venv
            continue
        found.add(name)
        for each in required:
            if "extra ==" not in each:
                waiting.append(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0])
    return found
