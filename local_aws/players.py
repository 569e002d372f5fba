"""Everything in the process that plays a service, made, wired together, started and stopped.

Importing this imports the control plane, which then reads its settings from the environment.
"""

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
from local_aws.machines.cli import CliServer
from local_aws.machines.image.aws import FOLDER as CLI_FOLDER
from local_aws.machines.loadbalancing import LoadBalancing
from local_aws.machines.runner import Runner
from local_aws.patience import hold_back_from_the_cli
from local_aws.resources import Runners, register_all
from local_aws.resources.table import Aws
from local_aws.settings import KERNELS, UNPACKED, Settings

TRUSTED = "SSL_CERT_FILE"  # what OpenSSL reads in place of the system's certificates


class Players:
    """The runners, and what they add to the control plane.

    Args:
        settings: Where they listen, and where they keep what they start.
    """

    def __init__(self, settings: Settings) -> None:
        endpoint = settings.endpoint
        self._endpoint = endpoint
        self._caches = Caches(settings.caches_dir)
        told = {
            TRUSTED: str(self._caches.trusted),
            KERNELS: str(settings.kernels_dir),
            UNPACKED: str(settings.unpacked_dir),
        }
        on_machines = {**told, CLI_FOLDER: str(settings.cli_dir)}
        self._cli = CliServer(settings.cli_dir)
        self._machines = Runner(
            endpoint=endpoint,
            instances_dir=settings.instances_dir,
            scopes=scopes,
            environment=on_machines,
        )
        self._functions = FunctionRunner(
            endpoint=endpoint, folder=settings.functions_dir, variables=told
        )
        self._endpoints = EndpointRunner(
            endpoint=endpoint, folder=settings.endpoints_dir, variables=told
        )
        self._file_systems = FileSystems(endpoint, settings.filesystems_dir)
        self._clusters = Clusters(endpoint, settings.clusters_dir, self._file_systems, on_machines)
        self._sessions = Sessions(endpoint, self._clusters)

    def install(self) -> None:
        """Put them in the control plane's place, each for its service and its types."""
        self._functions.install()
        AutoScalingApi(self._machines).install()
        LoadBalancing(self._machines).install()
        put_moto_behind()
        hold_back_from_the_cli()
        EndpointsApi(self._endpoints).install()
        publish_images()
        give_s3_its_key()
        answer_for_clusters(self._clusters, self._sessions, self._file_systems)
        register_all(
            Aws(self._endpoint),
            Runners(
                self._machines,
                self._functions,
                self._caches,
                self._clusters,
                self._file_systems,
                self._endpoints,
            ),
        )

    def front(self) -> Front:
        """Return the application that answers for all of them."""
        return Front(
            self._machines, self._functions, self._endpoints, self._clusters, self._sessions
        )

    def start(self) -> None:
        """Start the threads that step them."""
        self._cli.start()
        self._machines.start()
        self._file_systems.start()
        self._endpoints.start()

    def stop(self) -> None:
        """End them and all that they started."""
        self._machines.stop()
        self._functions.stop()
        self._endpoints.stop()
        self._caches.stop()
        self._clusters.stop()
        self._file_systems.stop()
        self._cli.stop()
