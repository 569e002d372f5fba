"""The process of the embedded AWS."""

import asyncio
import functools
import logging
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import botocore.session

from local_aws.caches.server import kill_leftovers as kill_servers
from local_aws.clusters import spool
from local_aws.endpoints.container import kill_leftovers as kill_containers
from local_aws.machines.machine import kill_leftovers
from local_aws.settings import ACCOUNT, HOST, REGION, Settings

if TYPE_CHECKING:
    from local_aws.front import Front

# What the control plane reads when it is imported.
_SETTINGS_OF_MINISTACK = {
    "BIND_HOST": HOST,
    "IOT_MTLS_ENABLED": "0",  # or it listens on every address
    "SFTP_ENABLED": "0",
    "MINISTACK_ACCOUNT_ID": ACCOUNT,
    "MOTO_ACCOUNT_ID": ACCOUNT,
    "MINISTACK_REGION": REGION,
    "MINISTACK_WORKER_THREADS": "512",  # one for each request that waits for a target
    "REDIS_HOST": HOST,
    "LOG_LEVEL": "WARNING",
}


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; does not return."""
    os.environ.update(
        _SETTINGS_OF_MINISTACK,
        GATEWAY_PORT=str(settings.port),
        STATE_DIR=str(settings.state_dir / "ministack"),  # or a folder in /tmp that anybody knows
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # Parts of the control plane make sessions of boto3, each of which reads megabytes of JSON anew.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)
    from local_aws.players import Players  # not before those settings are there

    clear(settings)
    players = Players(settings)
    players.install()
    players.start()
    code = 0
    loop = asyncio.new_event_loop()  # not asyncio.run, which waits for the loop's threads
    try:
        loop.run_until_complete(_listen(players.front(), settings.port))
    except OSError as error:
        print(f"isomorph: cannot listen on port {settings.port}: {error}", file=sys.stderr)
        code = 1
    finally:
        players.stop()
        clear(settings)
        sys.stderr.flush()
        # A thread that waits for something in the control plane must not keep the process alive.
        os._exit(code)


async def _listen(front: "Front", port: int) -> None:
    """Answer on `port` until SIGTERM or SIGINT."""
    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.loglevel = "WARNING"
    config.graceful_timeout = 0.5
    config.keep_alive_timeout = 60
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    trigger = asyncio.create_task(stopped.wait())
    server = asyncio.create_task(
        hypercorn(front, config, shutdown_trigger=stopped.wait)  # type: ignore[arg-type]
    )
    await asyncio.wait({server, trigger}, return_when=asyncio.FIRST_COMPLETED)
    # A request that waits for a target or a function may do so for minutes.
    await asyncio.wait({server}, timeout=2 * config.graceful_timeout)
    if server.done():
        await server


def clear(settings: Settings) -> None:
    """Remove all machines and caches, also those of an embedded AWS that was killed here."""
    for machines in (settings.instances_dir, *settings.clusters_dir.glob("*/")):
        kill_leftovers(machines)
        spool.remove(machines)
    kill_servers(settings.caches_dir)
    kill_containers(settings.endpoints_dir)
    for folder in (
        *(settings.instances_dir, settings.functions_dir, settings.caches_dir),
        *(settings.clusters_dir, settings.filesystems_dir, settings.endpoints_dir),
        settings.cli_dir,
        settings.state_dir / "kernels",
    ):
        shutil.rmtree(folder, ignore_errors=True)
