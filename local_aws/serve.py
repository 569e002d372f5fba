"""The process of the embedded AWS."""

import asyncio
import logging
import os
import shutil
import signal
import sys

from local_aws.caches.server import kill_leftovers as kill_servers
from local_aws.clusters import spool
from local_aws.endpoints.container import kill_leftovers as kill_containers
from local_aws.machines.machine import kill_leftovers
from local_aws.settings import ACCOUNT, HOST, REGION, Settings

TRUSTED = "SSL_CERT_FILE"  # what OpenSSL reads in place of the system's certificates
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
    os.environ.update(_SETTINGS_OF_MINISTACK, GATEWAY_PORT=str(settings.port))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")

    from hypercorn.asyncio import serve as hypercorn
    from hypercorn.config import Config

    from local_aws.behind import put_moto_behind
    from local_aws.caches.runner import Caches
    from local_aws.clusters.api import answer_for_clusters
    from local_aws.clusters.filesystems import FileSystems
    from local_aws.clusters.runner import Clusters
    from local_aws.clusters.sessions import Sessions
    from local_aws.endpoints.api import EndpointsApi
    from local_aws.endpoints.runner import EndpointRunner
    from local_aws.front import Front
    from local_aws.functions.runner import FunctionRunner
    from local_aws.givens import give_s3_its_key, publish_images
    from local_aws.machines.autoscaling import AutoScalingApi, scopes
    from local_aws.machines.loadbalancing import LoadBalancing
    from local_aws.machines.runner import Runner
    from local_aws.resources import Runners, register_all
    from local_aws.resources.table import Aws

    clear(settings)
    caches = Caches(settings.caches_dir)
    trust = {TRUSTED: str(caches.trusted)}
    runner = Runner(
        endpoint=settings.endpoint,
        instances_dir=settings.instances_dir,
        scopes=scopes,
        environment=trust,
    )
    functions = FunctionRunner(
        endpoint=settings.endpoint, folder=settings.functions_dir, variables=trust
    )
    functions.install()
    endpoints = EndpointRunner(
        endpoint=settings.endpoint, folder=settings.endpoints_dir, variables=trust
    )
    file_systems = FileSystems(settings.endpoint, settings.filesystems_dir)
    clusters = Clusters(settings.endpoint, settings.clusters_dir, file_systems, trust)
    sessions = Sessions(settings.endpoint, clusters)
    AutoScalingApi(runner).install()
    LoadBalancing(runner).install()
    put_moto_behind()
    EndpointsApi(endpoints).install()
    publish_images()
    give_s3_its_key()
    answer_for_clusters(clusters, sessions, file_systems)
    register_all(
        Aws(settings.endpoint),
        Runners(runner, functions, caches, clusters, file_systems, endpoints),
    )

    config = Config()
    config.bind = [f"{HOST}:{settings.port}"]
    config.loglevel = "WARNING"
    config.graceful_timeout = 0.5
    config.keep_alive_timeout = 60

    async def main() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        front = Front(runner, functions, endpoints, clusters, sessions)
        await hypercorn(front, config, shutdown_trigger=stopped.wait)  # type: ignore[arg-type]

    runner.start()
    file_systems.start()
    endpoints.start()
    code = 0
    try:
        asyncio.run(main())
    except OSError as error:
        print(f"isomorph: cannot listen on port {settings.port}: {error}", file=sys.stderr)
        code = 1
    finally:
        runner.stop()
        functions.stop()
        endpoints.stop()
        caches.stop()
        clusters.stop()
        file_systems.stop()
        clear(settings)
        sys.stderr.flush()
        # A thread that waits for something in the control plane must not keep the process alive.
        os._exit(code)


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
    ):
        shutil.rmtree(folder, ignore_errors=True)
