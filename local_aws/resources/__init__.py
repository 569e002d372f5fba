"""The CloudFormation types that the control plane lacks."""

from dataclasses import dataclass

from local_aws.caches.runner import Caches
from local_aws.clusters.filesystems import FileSystems
from local_aws.clusters.runner import Clusters
from local_aws.endpoints.runner import EndpointRunner
from local_aws.functions.runner import FunctionRunner
from local_aws.machines.runner import Runner
from local_aws.resources.bucket import BUCKET
from local_aws.resources.cache import caches_types, keep_passwords
from local_aws.resources.cluster import clusters_types
from local_aws.resources.endpoint import endpoints
from local_aws.resources.fleet import fleet
from local_aws.resources.function import function
from local_aws.resources.listeners import LISTENERS, show_shares
from local_aws.resources.network import NETWORK
from local_aws.resources.rotation import ROTATION, rotate_with_functions
from local_aws.resources.table import Aws, register
from local_aws.resources.watching import WATCHING, keep_metric_math


@dataclass(frozen=True)
class Runners:
    """Who plays what types of a template make."""

    machines: Runner
    functions: FunctionRunner
    caches: Caches
    clusters: Clusters
    file_systems: FileSystems
    endpoints: EndpointRunner


def register_all(aws: Aws, runners: Runners) -> None:
    """Teach the control plane every type of the tables."""
    keep_metric_math()
    keep_passwords()
    show_shares()
    rotate_with_functions(aws.endpoint)
    played = (
        *fleet(runners.machines),
        function(runners.functions),
        *caches_types(runners.caches),
        *clusters_types(runners.clusters, runners.file_systems),
        *endpoints(runners.endpoints),
    )
    for kind in (BUCKET, *LISTENERS, *NETWORK, *WATCHING, *ROTATION, *played):
        register(aws, kind)
