"""The CloudFormation types that the control plane lacks."""

from local_aws.machines.runner import Runner
from local_aws.resources.alarm import ALARM
from local_aws.resources.bucket import BUCKET
from local_aws.resources.fleet import fleet
from local_aws.resources.network import NETWORK
from local_aws.resources.table import Aws, register
from local_aws.resources.watching import WATCHING


def register_all(aws: Aws, runner: Runner) -> None:
    """Teach the control plane every type of the tables."""
    for kind in (ALARM, BUCKET, *NETWORK, *WATCHING, *fleet(runner)):
        register(aws, kind)
