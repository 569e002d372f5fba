"""The folder in which the Slurm daemons of a cluster meet: `spool` in the cluster's folder."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def make(folder: Path, *, sockets: bool) -> None:
    """Make a cluster's folder with its spool.

    Args:
        folder: The cluster's.
        sockets: Whether sockets will be in it. Their paths have room for 107 characters, so it is
            then in the system's folder for temporary files, with a link to it.
    """
    folder.mkdir(parents=True)
    if not sockets:
        (folder / "spool").mkdir()
        return
    made = Path(tempfile.mkdtemp(prefix="isomorph-slurm-"))
    (folder / "spool").symlink_to(made)


def remove(folder: Path) -> None:
    """Remove what `make` made of the spool, also after an embedded AWS that was killed."""
    with contextlib.suppress(OSError):
        shutil.rmtree(os.readlink(folder / "spool"), ignore_errors=True)
        (folder / "spool").unlink()
