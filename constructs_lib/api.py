"""All that other packages use of this one; they import it from `constructs_lib` itself."""

from constructs_lib.code_asset import CodeAsset, ZipAsset
from constructs_lib.data_bucket import AccessLogBucket, DataBucket
from constructs_lib.data_key import DataKey
from constructs_lib.decode_fleet import DecodeFleet, Server
from constructs_lib.endpoint_alarms import EndpointAlarms, EndpointLimits
from constructs_lib.endpoint_hours import EndpointHours, Night
from constructs_lib.expert_pools import ExpertPools, Variant
from constructs_lib.expert_watch import ExpertLimits, ExpertWatch
from constructs_lib.fleet_group import Machines
from constructs_lib.fleet_watch import Limits
from constructs_lib.function_code import image_code, zip_code
from constructs_lib.function_edge import FunctionEdge, Viewers
from constructs_lib.function_role import FunctionRole
from constructs_lib.function_size import (
    FunctionMode,
    FunctionSize,
    ManagedInstances,
    refusals,
)
from constructs_lib.function_watch import FunctionLimits, FunctionWatch
from constructs_lib.hyperpod_cluster import Care, HyperPodCluster
from constructs_lib.hyperpod_groups import LustreMount, NodeGroup, Place, Start
from constructs_lib.hyperpod_network import ClusterSecurityGroup
from constructs_lib.hyperpod_orchestrator import AccountingDatabase, Eks, Slurm
from constructs_lib.hyperpod_role import ClusterRole, Needs
from constructs_lib.inferentia_endpoint import (
    Canary,
    Container,
    EndpointMachines,
    EndpointScaling,
    InferentiaEndpoint,
)
from constructs_lib.latent_cache import LatentCache, Login, Nodes, Serverless
from constructs_lib.latent_watch import CacheLimits, LatentWatch
from constructs_lib.lifecycle_bucket import LifecycleBucket, lifecycle_bucket_name
from constructs_lib.lifecycle_scripts import LifecycleScripts
from constructs_lib.lifecycle_synthesizer import LifecycleSynthesizer
from constructs_lib.machine_images import NEURON
from constructs_lib.managed_capacity import ManagedCapacity
from constructs_lib.model_archive import ModelArchive
from constructs_lib.monthly_budget import MonthlyBudget
from constructs_lib.neuron_images import INFERENCE, NEURON_IMAGES, NeuronImage
from constructs_lib.node_health import NodeHealth
from constructs_lib.private_endpoints import PrivateEndpoints
from constructs_lib.private_vpc import PrivateVpc
from constructs_lib.site import Site
from constructs_lib.task_governance import Policy, TaskGovernance, Team
from constructs_lib.training_eks import TrainingEks
from constructs_lib.training_run import TrainingRunRole
from constructs_lib.training_storage import Lustre, TrainingStorage
from constructs_lib.training_watch import TrainingLimits, TrainingWatch
from constructs_lib.weights import NO_WEIGHTS, Weights
from constructs_lib.window_function import WindowFunction

__all__ = [
    "INFERENCE",
    "NEURON",
    "NEURON_IMAGES",
    "NO_WEIGHTS",
    "AccessLogBucket",
    "AccountingDatabase",
    "CacheLimits",
    "Canary",
    "Care",
    "ClusterRole",
    "ClusterSecurityGroup",
    "CodeAsset",
    "Container",
    "DataBucket",
    "DataKey",
    "DecodeFleet",
    "Eks",
    "EndpointAlarms",
    "EndpointHours",
    "EndpointLimits",
    "EndpointMachines",
    "EndpointScaling",
    "ExpertLimits",
    "ExpertPools",
    "ExpertWatch",
    "FunctionEdge",
    "FunctionLimits",
    "FunctionMode",
    "FunctionRole",
    "FunctionSize",
    "FunctionWatch",
    "HyperPodCluster",
    "InferentiaEndpoint",
    "LatentCache",
    "LatentWatch",
    "LifecycleBucket",
    "LifecycleScripts",
    "LifecycleSynthesizer",
    "Limits",
    "Login",
    "Lustre",
    "LustreMount",
    "Machines",
    "ManagedCapacity",
    "ManagedInstances",
    "ModelArchive",
    "MonthlyBudget",
    "Needs",
    "NeuronImage",
    "Night",
    "NodeGroup",
    "NodeHealth",
    "Nodes",
    "Place",
    "Policy",
    "PrivateEndpoints",
    "PrivateVpc",
    "Server",
    "Serverless",
    "Site",
    "Slurm",
    "Start",
    "TaskGovernance",
    "Team",
    "TrainingEks",
    "TrainingLimits",
    "TrainingRunRole",
    "TrainingStorage",
    "TrainingWatch",
    "Variant",
    "Viewers",
    "Weights",
    "WindowFunction",
    "ZipAsset",
    "image_code",
    "lifecycle_bucket_name",
    "refusals",
    "zip_code",
]
