"""Fleets that keep different experts warm, behind one internal load balancer.

Tokens are routed to experts inside of the engine, layer by layer. The load balancer routes
requests, to the pool whose experts are warm for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elb
from constructs import Construct, IConstruct

from constructs_lib.bounds import MOST_POOLS
from constructs_lib.code_asset import CodeAsset, ZipAsset
from constructs_lib.decode_fleet import DecodeFleet, Server
from constructs_lib.fleet_group import Machines
from constructs_lib.fleet_watch import Limits
from constructs_lib.front_door import FrontDoor, node_targets
from constructs_lib.site import Site
from constructs_lib.weights import Weights

POOL_HEADER = "x-isomorph-pool"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Nodes that take a share of a pool's requests: the pool's own, or its canary's.

    Args:
        name: Unique over all pools; value of the dimension Fleet of their metrics.
        percent: Their share of the pool's requests.
        server: What they are told.
        machines: Which, and how many.
        wheelhouse: The wheels that their code needs.
        pointer: Where their weights are. Left out, where every pool's are.
    """

    name: str
    percent: int
    server: Server
    machines: Machines
    wheelhouse: ZipAsset
    pointer: str | None = None


@dataclass(frozen=True)
class PoolEntrance:
    """The part of a load balancer that is one variant's."""

    front: FrontDoor
    targets: elb.ApplicationTargetGroup
    attachment: IConstruct

    @property
    def balancer(self) -> elb.ApplicationLoadBalancer:
        """The load balancer, which other pools are behind as well."""
        return self.front.balancer

    @property
    def url(self) -> str:
        """Where callers reach the load balancer."""
        return self.front.url

    def request_count(self, period: Duration) -> cloudwatch.Metric:
        """Return the number of requests to this variant."""
        return self.targets.metrics.request_count(period=period)

    def allow_to(self, nodes: ec2.ISecurityGroup, port: int) -> None:
        """Open the way from the load balancer to the nodes."""
        self.front.allow_to(nodes, port)


class ExpertPools(Construct):
    """One fleet a pool, two with a canary; rules on a header and on the path choose the pool.

    A request with `x-isomorph-pool: NAME`, or below /pools/NAME/, goes to that pool; the load
    balancer takes the prefix away. Any other goes to the default pool. A caller that keeps cookies
    stays with one node, whose cache has seen its experts.

    Args:
        slug: The innovation.
        site: The network, keys and sinks that it is put into.
        pools: The variants of each pool, by its name.
        default: The pool of requests that name none.
        limits: When to raise an alarm.
        code: The nodes' code.
        weights: What they serve, where a variant does not say otherwise.
        session: How long a caller stays with one node.
        certificate_arn: Certificate for HTTPS. Left out, the load balancer speaks HTTP.
        retained: Keep logs, and protect the load balancer from deletion.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        slug: str,
        site: Site,
        pools: Mapping[str, Sequence[Variant]],
        default: str,
        limits: Limits,
        code: CodeAsset,
        weights: Weights,
        session: Duration,
        certificate_arn: str | None,
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        _check(pools, default)
        self._vpc, self._session = site.vpc, session
        every = [variant for variants in pools.values() for variant in variants]
        self._targets = {variant.name: self._target_group(variant) for variant in every}
        self.front = FrontDoor(
            self,
            "FrontDoor",
            site=site,
            name=Stack.of(self).stack_name,
            node_port=every[0].server.port,
            certificate_arn=certificate_arn,
            deadline_seconds=max(variant.server.deadline_s for variant in every),
            deletion_protection=retained,
            otherwise=self._forward(pools[default]),
        )
        rules = {
            name: self._rules(name, variants, 10 * number)
            for number, (name, variants) in enumerate(pools.items(), start=1)
        }
        self.fleets = {
            variant.name: DecodeFleet(
                self,
                f"Fleet-{variant.name}",
                slug=slug,
                site=site,
                server=variant.server,
                machines=variant.machines,
                limits=limits,
                code=code,
                wheelhouse=variant.wheelhouse,
                weights=weights,
                entrance=PoolEntrance(self.front, self._targets[variant.name], rules[name]),
                name=variant.name,
                pointer=variant.pointer,
                retained=retained,
            )
            for name, variants in pools.items()
            for variant in variants
        }

    def _target_group(self, variant: Variant) -> elb.ApplicationTargetGroup:
        return node_targets(
            self,
            f"Targets-{variant.name}",
            vpc=self._vpc,
            port=variant.server.port,
            deadline_seconds=variant.server.deadline_s,
            session=self._session,
        )

    def _forward(self, variants: Sequence[Variant]) -> elb.ListenerAction:
        """Share requests among the variants; a caller with cookies stays with one of them."""
        if len(variants) == 1:
            return elb.ListenerAction.forward([self._targets[variants[0].name]])
        return elb.ListenerAction.weighted_forward(
            [
                elb.WeightedTargetGroup(
                    target_group=self._targets[variant.name], weight=variant.percent
                )
                for variant in variants
            ],
            stickiness_duration=self._session,
        )

    def _rules(self, name: str, variants: Sequence[Variant], priority: int) -> IConstruct:
        header = self._rule(
            f"Header-{name}",
            variants,
            priority,
            elb.ListenerCondition.http_header(POOL_HEADER, [name]),
        )
        path = self._rule(
            f"Path-{name}",
            variants,
            priority + 1,
            elb.ListenerCondition.path_patterns([f"/pools/{name}/*"]),
        )
        rule = path.node.default_child
        assert isinstance(rule, elb.CfnListenerRule)  # noqa: S101  what a rule is made of
        rule.transforms = [
            elb.CfnListenerRule.TransformProperty(
                type="url-rewrite",
                url_rewrite_config=elb.CfnListenerRule.RewriteConfigObjectProperty(
                    rewrites=[
                        elb.CfnListenerRule.RewriteConfigProperty(
                            regex=f"^/pools/{name}/(.*)$", replace="/$1"
                        )
                    ]
                ),
            )
        ]
        path.node.add_dependency(header)
        return path

    def _rule(
        self,
        construct_id: str,
        variants: Sequence[Variant],
        priority: int,
        condition: elb.ListenerCondition,
    ) -> elb.ApplicationListenerRule:
        return elb.ApplicationListenerRule(
            self,
            construct_id,
            listener=self.front.listener,
            priority=priority,
            conditions=[condition],
            action=self._forward(variants),
        )


def _check(pools: Mapping[str, Sequence[Variant]], default: str) -> None:
    if default not in pools:
        raise ValueError(f"default must be one of the pools {', '.join(pools)}, got {default!r}")
    if len(pools) > MOST_POOLS:
        raise ValueError(f"got {len(pools)} pools; a listener's rules suffice for {MOST_POOLS}")
    for name, variants in pools.items():
        shares = [variant.percent for variant in variants]
        if sum(shares) != 100 or min(shares) < 0:
            raise ValueError(
                f"pool {name!r}: shares must add up to 100 percent, got "
                f"{' + '.join(map(str, shares))}"
            )
