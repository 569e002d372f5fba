"""A fleet of EC2 nodes that decode, behind an internal load balancer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib.closed_group import ClosedGroup
from constructs_lib.code_asset import CodeAsset, ZipAsset
from constructs_lib.fleet_group import FleetGroup, Machines
from constructs_lib.fleet_watch import FleetWatch, Limits
from constructs_lib.front_door import Entrance, FrontDoor
from constructs_lib.node_role import NodeRole
from constructs_lib.site import Site
from constructs_lib.user_data import render_user_data
from constructs_lib.weights import Weights

# boot.sh and the node's service take these up.
_BANDWIDTH = {"ISOMORPH_HUGE_PAGES": "always", "ISOMORPH_NUMA": "interleave"}


@dataclass(frozen=True, kw_only=True)
class Server:
    """What every node's server is told.

    Args:
        environment: Shown in its logs.
        model: Name under which the model is offered.
        engine: What decodes.
        dtype: What the native engine computes in: auto, float32 or bfloat16.
        python: Command that starts the node's Python, such as python3.11.
        port: Where it listens.
        slots: Requests that it works on at once.
        context: Tokens that a request may have, its answer included.
        queue: Requests that may wait; one more is refused with 429.
        deadline_s: The longest that a request may take.
        quantization: What the native engine keeps its matrices in: none, int8 or int4.
        more: What this innovation's server is told besides, by the names of its variables.
    """

    environment: str
    model: str
    engine: str
    dtype: str
    python: str
    port: int
    slots: int
    context: int
    queue: int
    deadline_s: int
    quantization: str = "none"
    more: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, str | int]:
        """Return the lines of fleet.env."""
        common = {key: value for key, value in asdict(self).items() if key != "more"}
        return {f"ISOMORPH_{key.upper()}": value for key, value in common.items()} | {**self.more}


class DecodeFleet(Construct):
    """Nodes that fetch their code, wheels and weights from S3 and serve a model.

    Args:
        slug: The innovation that it serves: its code's folder, its metrics' namespace.
        site: The network, keys and sinks that it is put into.
        server: What every node's server is told.
        machines: Which machines, and how many.
        limits: When to raise an alarm.
        code: The nodes' code, with its boot.sh.
        wheelhouse: The wheels that the code needs, for the nodes' Python.
        weights: What it serves. Until there are any, the fleet has no node.
        statements: What its nodes may do besides.
        bandwidth: Whether the nodes' memory is set up for reading weights: huge pages, and pages
            spread over all NUMA nodes.
        certificate_arn: Certificate for HTTPS. Left out, the load balancer speaks HTTP.
        entrance: Its part of a load balancer that several fleets share. Left out, it gets its own.
        name: Value of the dimension Fleet of its metrics. Left out, the stack's name.
        pointer: Where its weights are. Left out, where the pointer of `weights` says.
        retained: Keep logs, and protect the load balancer from deletion.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        slug: str,
        site: Site,
        server: Server,
        machines: Machines,
        limits: Limits,
        code: CodeAsset,
        wheelhouse: ZipAsset,
        weights: Weights,
        statements: Sequence[iam.PolicyStatement] = (),
        certificate_arn: str | None = None,
        bandwidth: bool = False,
        entrance: Entrance | None = None,
        name: str | None = None,
        pointer: str | None = None,
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        self.site, self.weights, self.namespace = site, weights, f"Isomorph/{slug}"
        self._server, self._name = server, name or Stack.of(self).stack_name
        self.log_group = self._make_logs(retained=retained)
        self.role = NodeRole(
            self,
            "Role",
            object_arns=[code.object_arn, wheelhouse.object_arn],
            weights=weights,
            metric_namespace=self.namespace,
            log_group=self.log_group,
            statements=statements,
        )
        self.security_group = ClosedGroup(
            self,
            "SecurityGroup",
            vpc=site.vpc,
            description="Nodes: requests from the load balancer, HTTPS to AWS",
        )
        self.security_group.allow_to_aws(site)
        self.door = entrance or self._make_door(certificate_arn, protected=retained)
        self.door.allow_to(self.security_group, server.port)
        self.group = self._make_group(machines)
        settings = self._settings(slug) | (_BANDWIDTH if bandwidth else {})
        self.group.launch(
            role=self.role,
            security_group=self.security_group,
            user_data=render_user_data(
                region=Stack.of(self).region,
                pointer=pointer or weights.value,
                stack=Stack.of(self).stack_name,
                resource=self.group.logical_id,
                code=(code.url, code.sha256),
                wheelhouse=(wheelhouse.url, wheelhouse.sha256),
                settings=settings | self.group.signal_settings,
            ),
        )
        self.watch = self._make_watch(limits)

    def _make_logs(self, *, retained: bool) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            "Logs",
            encryption_key=self.site.log_key,
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
        )

    def _make_door(self, certificate_arn: str | None, *, protected: bool) -> Entrance:
        return FrontDoor(
            self,
            "FrontDoor",
            site=self.site,
            name=Stack.of(self).stack_name,
            node_port=self._server.port,
            certificate_arn=certificate_arn,
            deadline_seconds=self._server.deadline_s,
            deletion_protection=protected,
        )

    def _make_group(self, machines: Machines) -> FleetGroup:
        return FleetGroup(
            self,
            "Group",
            site=self.site,
            machines=machines,
            weights=self.weights,
            door=self.door,
            metric_namespace=self.namespace,
            fleet=self._name,
            drain_seconds=self._server.deadline_s + 60,
        )

    def _settings(self, slug: str) -> dict[str, str | int]:
        """Return what the nodes' fleet.env says of the server and of its place."""
        return {
            "ISOMORPH_SLUG": slug,
            "ISOMORPH_FLEET": self._name,
            **self._server.settings(),
            "ISOMORPH_METRIC_NAMESPACE": self.namespace,
            "ISOMORPH_LOG_GROUP": self.log_group.log_group_name,
            "ISOMORPH_STACK": Stack.of(self).stack_name,
        }

    def _make_watch(self, limits: Limits) -> FleetWatch:
        return FleetWatch(
            self,
            "Watch",
            door=self.door,
            group=self.group,
            weights=self.weights,
            metric_namespace=self.namespace,
            fleet=self._name,
            limits=limits,
            queue=self._server.queue,
            topic=self.site.alarm_topic,
        )
