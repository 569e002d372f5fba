"""AWS clients for what runs on the hardware."""

import os
from typing import Any

import boto3
from botocore.config import Config


def client(service: str, *, attempts: int = 5, connections: int = 10) -> Any:
    """Return a client for the machine's region, with timeouts that a server can live with.

    boto3 takes its region from AWS_DEFAULT_REGION; machines are told AWS_REGION, as Lambda's are.
    """
    config = Config(
        connect_timeout=3,
        read_timeout=10,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=connections,
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return boto3.client(service, region_name=region, config=config)
