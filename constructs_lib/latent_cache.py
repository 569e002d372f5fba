"""The cache of latents that a fleet's nodes share: ElastiCache, in shards or serverless."""

from dataclasses import dataclass
from typing import Literal

from aws_cdk import Acknowledgment, RemovalPolicy, Stack, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.cache_access import Access, CacheAccess, Engine
from constructs_lib.cache_rotation import CacheRotation
from constructs_lib.closed_group import ClosedGroup
from constructs_lib.private_endpoints import PrivateEndpoints
from constructs_lib.site import Site

PORT = 6379
RESERVED_PERCENT = "20"  # for replication and snapshots; planner/caching.py counts on the rest
_VERSIONS = {"valkey": ("8.0", "valkey8"), "redis": ("7.1", "redis7")}
Policy = Literal["allkeys-lru", "volatile-ttl"]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A replication group. With replicas it is in cluster mode, and fails over by itself.

    Args:
        node_type: ElastiCache node type, such as cache.r7g.large.
        shards: Parts of the key space. More than one takes replicas.
        replicas: Further nodes of each shard, in other zones.
        policy: What goes when memory is full. `allkeys-lru`: what was read longest ago, so that a
            prefix that many share stays; `volatile-ttl`: what is closest to its end.
        snapshot_days: For how long daily snapshots are kept; 0 for none, as what is lost is
            computed again.
    """

    node_type: str
    shards: int
    replicas: int
    policy: Policy = "allkeys-lru"
    snapshot_days: int = 0

    @property
    def cluster(self) -> bool:
        """Whether it is in cluster mode, which ElastiCache has with failover alone."""
        return self.replicas > 0


@dataclass(frozen=True, kw_only=True)
class Serverless:
    """A serverless cache, and the most that it may grow to.

    Args:
        max_gb: Gigabytes that it holds.
        max_ecpu: Processing units a second: one is a kilobyte moved.
    """

    max_gb: int
    max_ecpu: int


@dataclass(frozen=True, kw_only=True)
class Login:
    """How nodes log in.

    Args:
        access: As a user of their own, or with the AUTH token; serverless knows users alone.
        password_length: 16 to 128.
        rotation_days: Between two passwords.
    """

    access: Access = "user"
    password_length: int = 64
    rotation_days: int = 30


class LatentCache(Construct):
    """Cache behind TLS, a login and two keys, that is reached from where it is told.

    Args:
        site: The network, keys and sinks that it is put into.
        engine: Valkey or Redis OSS.
        size: Nodes, or the limits of a serverless cache.
        login: How nodes log in.
        key: Encrypts what it holds and its secret.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        site: Site,
        engine: Engine,
        size: Nodes | Serverless,
        login: Login,
        key: kms.IKey,
    ) -> None:
        super().__init__(scope, construct_id)
        _check(size, login)
        self._site, self._engine, self._key = site, engine, key
        self.access = CacheAccess(
            self,
            "Access",
            engine=engine,
            access=login.access,
            password_length=login.password_length,
            key=key,
        )
        self.security_group = ClosedGroup(
            self, "SecurityGroup", vpc=site.vpc, description="Latent cache: from its nodes alone"
        )
        self.group_id = ""
        if isinstance(size, Serverless):
            self.cluster, self.node_ids = True, list[list[str]]()
            self.host, self.port = self._serverless(size)
        else:
            self.cluster = size.cluster
            self.host, self.port = self._replication_group(size)
            self.node_ids = _node_ids(self.group_id, size)
        # Not in the foundation: an interface endpoint costs money in every zone.
        services = ["secretsmanager", "elasticache"]
        self.endpoints = PrivateEndpoints(self, "Endpoints", site=site, services=services)
        self.rotation = CacheRotation(
            self,
            "Rotation",
            site=site,
            access=self.access,
            key=key,
            address=(self.host, self.port),
            group_id=self.group_id,
            days=login.rotation_days,
        )
        self.allow_from(self.rotation.security_group, "rotation")

    @property
    def url(self) -> str:
        """Where it is, for clients: no login in it."""
        return f"rediss://{self.host}:{self.port}"

    def allow_from(self, group: ec2.SecurityGroup, who: str) -> None:
        """Let the members of a security group reach the cache."""
        # A serverless cache answers reads of replicas one port further.
        ports = ec2.Port.tcp(PORT) if self.group_id else ec2.Port.tcp_range(PORT, PORT + 1)
        self.security_group.add_ingress_rule(group, ports, who)
        group.add_egress_rule(self.security_group, ports, "latent cache")

    def _replication_group(self, size: Nodes) -> tuple[str, str]:
        version, family = _VERSIONS[self._engine]
        subnets = elasticache.CfnSubnetGroup(
            self,
            "Subnets",
            description="isolated subnets",
            subnet_ids=[subnet.subnet_id for subnet in self._site.vpc.isolated_subnets],
        )
        parameters = elasticache.CfnParameterGroup(
            self,
            "Parameters",
            cache_parameter_group_family=family,
            description="a cache of latents",
            properties=_parameters(size),
        )
        access = self.access
        group = elasticache.CfnReplicationGroup(
            self,
            "Resource",
            replication_group_description="latents that the nodes of a fleet share",
            engine=self._engine,
            engine_version=version,
            cache_node_type=size.node_type,
            num_node_groups=size.shards,
            replicas_per_node_group=size.replicas,
            cluster_mode="enabled" if size.cluster else "disabled",
            automatic_failover_enabled=size.cluster,
            multi_az_enabled=size.cluster,
            cache_subnet_group_name=subnets.ref,
            cache_parameter_group_name=parameters.ref,
            security_group_ids=[self.security_group.security_group_id],
            port=PORT,
            transit_encryption_enabled=True,
            transit_encryption_mode="required",
            at_rest_encryption_enabled=True,
            kms_key_id=self._key.key_arn,
            auth_token=access.token,
            user_group_ids=[access.group.ref] if access.group else None,
            auto_minor_version_upgrade=True,
            snapshot_retention_limit=size.snapshot_days,
            notification_topic_arn=self._site.alarm_topic.topic_arn,
            log_delivery_configurations=[
                self._log("SlowLog", "slow-log"),
                self._log("EngineLog", "engine-log"),
            ],
        )
        _acknowledge(group, users=access.group is not None, cluster=size.cluster)
        self.group_id = group.ref
        if size.cluster:
            return (
                group.attr_configuration_end_point_address,
                group.attr_configuration_end_point_port,
            )
        return group.attr_primary_end_point_address, group.attr_primary_end_point_port

    def _log(
        self, construct_id: str, kind: str
    ) -> elasticache.CfnReplicationGroup.LogDeliveryConfigurationRequestProperty:
        made = logs.LogGroup(
            self,
            construct_id,
            encryption_key=self._site.log_key,
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        replication = elasticache.CfnReplicationGroup
        return replication.LogDeliveryConfigurationRequestProperty(
            destination_type="cloudwatch-logs",
            log_format="json",
            log_type=kind,
            destination_details=replication.DestinationDetailsProperty(
                cloud_watch_logs_details=replication.CloudWatchLogsDestinationDetailsProperty(
                    log_group=made.log_group_name
                )
            ),
        )

    def _serverless(self, size: Serverless) -> tuple[str, str]:
        cache = elasticache.CfnServerlessCache
        assert self.access.group is not None  # noqa: S101  _check() refuses a token
        made = cache(
            self,
            "Resource",
            serverless_cache_name=f"{Stack.of(self).stack_name}-latents".lower()[:40],
            description="latents that the nodes of a fleet share",
            engine=self._engine,
            major_engine_version=_VERSIONS[self._engine][0].split(".")[0],
            cache_usage_limits=cache.CacheUsageLimitsProperty(
                data_storage=cache.DataStorageProperty(unit="GB", maximum=size.max_gb),
                ecpu_per_second=cache.ECPUPerSecondProperty(maximum=size.max_ecpu),
            ),
            kms_key_id=self._key.key_arn,
            user_group_id=self.access.group.ref,
            security_group_ids=[self.security_group.security_group_id],
            subnet_ids=[subnet.subnet_id for subnet in self._site.vpc.isolated_subnets],
            snapshot_retention_limit=0,
        )
        return made.attr_endpoint_address, made.attr_endpoint_port


def _check(size: Nodes | Serverless, login: Login) -> None:
    if isinstance(size, Serverless):
        if login.access != "user":
            raise ValueError("a serverless cache cannot have an AUTH token; use access 'user'")
    elif size.shards > 1 and not size.replicas:
        raise ValueError(
            f"{size.shards} shards without replicas cannot be: cluster mode has failover, which "
            f"takes a second node; use replicas 1 or more, or one shard"
        )


def _acknowledge(group: elasticache.CfnReplicationGroup, *, users: bool, cluster: bool) -> None:
    reasons = {}
    if users:
        reasons["AEC6"] = "a user group stands in for the token: its user may do less, and no other"
    if not cluster:
        reasons["AEC4"] = "one node was asked for: when it is gone, latents are computed again"
    for rule, reason in reasons.items():
        acknowledgment = Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason)
        Validations.of(group).acknowledge(acknowledgment)


def _parameters(size: Nodes) -> dict[str, str]:
    """Return what a cache of large values that anyone may lose wants of its server."""
    return {
        "cluster-enabled": "yes" if size.cluster else "no",
        "maxmemory-policy": size.policy,
        # A value is a megabyte or so: freed by another thread, it holds up no command.
        "lazyfree-lazy-eviction": "yes",
        "lazyfree-lazy-expire": "yes",
        "lazyfree-lazy-server-del": "yes",
        "lazyfree-lazy-user-del": "yes",
        "activedefrag": "yes",
        "reserved-memory-percent": RESERVED_PERCENT,
    }


def _node_ids(group: str, size: Nodes) -> list[list[str]]:
    """Return the ids of the nodes of each shard, as ElastiCache makes them: metrics have them."""
    nodes = range(1, size.replicas + 2)
    if not size.cluster:
        return [[f"{group}-{node:03}" for node in nodes]]
    return [
        [f"{group}-{shard:04}-{node:03}" for node in nodes] for shard in range(1, size.shards + 1)
    ]
