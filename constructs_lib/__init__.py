"""Reusable constructs. They take plain values and CDK interfaces, and know no environment."""

from constructs_lib.code_asset import CodeAsset, ZipAsset
from constructs_lib.data_bucket import AccessLogBucket, DataBucket
from constructs_lib.data_key import DataKey
from constructs_lib.decode_fleet import DecodeFleet, Server
from constructs_lib.fleet_group import Machines
from constructs_lib.fleet_watch import Limits
from constructs_lib.latent_cache import LatentCache, Login, Nodes, Serverless
from constructs_lib.latent_watch import CacheLimits, LatentWatch
from constructs_lib.monthly_budget import MonthlyBudget
from constructs_lib.private_vpc import PrivateVpc
from constructs_lib.site import Site
from constructs_lib.weights import NO_WEIGHTS, Weights

__all__ = [
    "NO_WEIGHTS",
    "AccessLogBucket",
    "CacheLimits",
    "CodeAsset",
    "DataBucket",
    "DataKey",
    "DecodeFleet",
    "LatentCache",
    "LatentWatch",
    "Limits",
    "Login",
    "Machines",
    "MonthlyBudget",
    "Nodes",
    "PrivateVpc",
    "Server",
    "Serverless",
    "Site",
    "Weights",
    "ZipAsset",
]
