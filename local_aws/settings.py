"""Where one embedded AWS listens and keeps its state."""

import os
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
ACCOUNT = "000000000000"
REGION = "us-east-1"
MACHINES = "/_isomorph/machines"  # the path that lists them
ENDPOINTS = "/_isomorph/endpoints"  # the path that lists containers of endpoints
FUNCTIONS = "/_isomorph/functions"  # the path that lists execution environments of functions
# What the AWS CLI starts for a session.
PLUGIN = Path(__file__).parent / "clusters" / "plugin" / "session-manager-plugin"
NODES = "/_isomorph/nodes"  # the path that lists nodes of clusters
SESSIONS = "/_isomorph/sessions/"  # ... that streams what a session's command prints
# Machines of one host have one processor: what one compiled for it, the others use.
KERNELS = "ISOMORPH_KERNELS_CACHE"
# ... and one disk: what one unpacked of its wheels, the others link to. uv's own variable.
UNPACKED = "UV_CACHE_DIR"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One embedded AWS.

    Args:
        port: Port of the only endpoint. It listens on the loopback address alone.
        state_dir: Folder for its log, its pid and its machines. Removed on stop.
    """

    port: int
    state_dir: Path

    @property
    def endpoint(self) -> str:
        """The URL for clients: `localhost`, since template URLs with an address are misread."""
        return f"http://localhost:{self.port}"

    @property
    def pid_file(self) -> Path:
        """The file that says which process serves."""
        return self.state_dir / "emulator.json"

    @property
    def log_file(self) -> Path:
        """What the process prints."""
        return self.state_dir / "emulator.log"

    @property
    def instances_dir(self) -> Path:
        """The folder with one folder for each machine."""
        return self.state_dir / "instances"

    @property
    def cli_dir(self) -> Path:
        """The folder with the socket of the process that has the AWS CLI loaded."""
        return self.state_dir / "cli"

    @property
    def caches_dir(self) -> Path:
        """The folder with the caches' servers and certificates."""
        return self.state_dir / "caches"

    @property
    def functions_dir(self) -> Path:
        """The folder with one folder for each execution environment of a function."""
        return self.state_dir / "functions"

    @property
    def endpoints_dir(self) -> Path:
        """The folder with the containers of endpoints, and what stands for their image."""
        return self.state_dir / "endpoints"

    @property
    def clusters_dir(self) -> Path:
        """The folder with one folder for each cluster, and one for each of its nodes in it."""
        return self.state_dir / "clusters"

    @property
    def filesystems_dir(self) -> Path:
        """The folder with one folder for each FSx file system."""
        return self.state_dir / "filesystems"

    @property
    def kernels_dir(self) -> Path:
        """The folder with the kernels that machines compiled, or the one that KERNELS names."""
        return Path(os.environ.get(KERNELS) or self.state_dir / "kernels")

    @property
    def unpacked_dir(self) -> Path:
        """The folder with the wheels that machines unpacked, or the one that UNPACKED names."""
        return Path(os.environ.get(UNPACKED) or self.state_dir / "unpacked")
