"""The map: which services an innovation is placed on, with what, and why."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from model_code.common.architecture import Architecture
from planner.caching import CacheFit, fit_cache
from planner.catalogue import GIB, Instance, instances
from planner.choosing import cheapest
from planner.functions import FunctionFit, fit_function
from planner.load import Load
from planner.pricing import Cost, Service, machines
from planner.ranking import layout_details, notes, rank, sold
from planner.roofline import Demand
from planner.serving import Layout, Misfit
from planner.sizing import MOST_OF_A_FLEET, fleet_size
from planner.training import TrainingFit, fit_training

Confidence = Literal["measured", "modelled", "bound"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Something to deploy for one innovation.

    Args:
        service: In AWS's words, with the part that it plays.
        confidence: Of the speed behind the count: measured, modelled or bound.
        always_on: Whether it bills while nobody asks anything.
        settings: What the environment's section of this slug would say.
    """

    slug: str
    service: str
    instance_type: str
    count: int
    cost: Cost
    confidence: Confidence
    reasons: tuple[str, ...]
    always_on: bool
    details: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A service of the map that cannot take this model and load: by how much, and what would."""

    slug: str
    service: str
    instance_type: str
    reason: str
    remedy: str


class Placer:
    """Places the innovations of one model under one load."""

    def __init__(
        self, architecture: Architecture, load: Load, region: str, today: datetime.date
    ) -> None:
        self.architecture, self.load, self.region, self.today = architecture, load, region, today
        self.demand = Demand(
            architecture, dtype=load.dtype, kv_dtype=load.kv_dtype, context=load.context
        )
        self.candidates, self.misfits = rank(self.demand, load, region, today)
        self.placements: list[Placement] = []
        self.refusals: list[Refusal] = []

    def place(self) -> None:
        """Place every innovation that the model has."""
        for slug in self.architecture.innovations:
            getattr(self, f"_{slug}")()

    def _moe(self) -> None:
        self._train("moe", "SageMaker HyperPod", "hyperpod", ("p5e", "p5en", "p6-b200", "p6-b300"))
        self._serve("moe", "SageMaker endpoint", "endpoint", ("inf2", "trn2", "p5e", "p5en"))

    def _mla(self) -> None:
        found = fit_cache(self.architecture, self.load, self.region)
        if isinstance(found, Misfit):
            self._refuse("mla", "ElastiCache", found)
        else:
            self._cache(found)
        self._serve("mla", "EC2 memory-optimised", "ec2", ("r7i", "r8i"))

    def _gqa(self) -> None:
        self._serve("gqa", "EC2 Auto Scaling with AMX", "ec2", ("c7i", "c8i", "r7i", "r8i"))

    def _sliding_window(self) -> None:
        self._serve("sliding_window", "EC2 high memory bandwidth", "ec2", ("r7i", "r8i"))
        found = fit_function(self.architecture, self.load, self.region)
        if isinstance(found, Misfit):
            self._refuse("sliding_window", "Lambda", found)
        else:
            self._function(found)

    def _normalization(self) -> None:
        families = ("p5en", "p5", "p6-b200", "p6-b300", "p5e")
        self._train("normalization", "SageMaker training job", "training", families)

    def _refuse(self, slug: str, service: str, misfit: Misfit) -> None:
        self.refusals.append(
            Refusal(
                slug=slug,
                service=service,
                instance_type=misfit.instance,
                reason=misfit.reason,
                remedy=misfit.remedy,
            )
        )

    def _offered(self, service: Service, families: Iterable[str]) -> list[Instance]:
        return [
            instance
            for family in families
            for instance in instances().values()
            if instance.family == family and (service == "ec2" or service in instance.services)
        ]

    def _serve(self, slug: str, service: str, kind: Service, families: tuple[str, ...]) -> None:
        refused = False
        for family in families:
            found = cheapest(
                self.demand,
                self.load,
                self._offered(kind, (family,)),
                service=kind,
                region=self.region,
                today=self.today,
            )
            if isinstance(found, tuple):
                self._serving(slug, service, *found)
                return
            if found is not None and not refused:
                self._refuse(slug, f"{service} ({family})", found)  # the map's own choice
                refused = True

    def _serving(self, slug: str, service: str, layout: Layout, cost: Cost) -> None:
        instance, load = layout.instance, self.load
        reasons = [
            f"memory a device: {layout.weight_bytes / GIB:.2f} GiB weights + "
            f"{layout.kv_bytes / GIB:.2f} cache of {min(layout.batch, layout.slots)} sequences + "
            f"{layout.activation_bytes / GIB:.2f} activations <= "
            f"{layout.usable_bytes / GIB:.2f} usable of {instance.device_bytes / GIB:.1f}",
            f"layout: {layout.kind} parallel over {layout.devices} of {instance.devices} devices, "
            f"{layout.stages} stage(s); {layout.slots} sequences fit a replica",
            f"replicas: {layout.replicas} for {load.concurrent} sequences in flight and "
            f"{load.requests_per_s:.3g} prompts/s of {layout.speed.prefill_s:.3g} s each",
            f"speed: a step of {layout.batch} takes {layout.speed.step_s * 1e3:.3g} ms "
            f"({layout.speed.limit}-bound; {layout.speed.bound_s * 1e3:.3g} ms at the peak), so "
            f"{layout.tokens_per_s:.3g} tokens/s a sequence, asked {load.tokens_per_s:g}",
            *cost.notes,
            *notes(instance),
        ]
        cheapest = self.candidates[0] if self.candidates else None
        if cheapest and cheapest.layout.instance.family != instance.family:
            reasons.append(
                f"{slug} goes on {service} in the map; of all that can serve it, "
                f"{cheapest.layout.instance.name} x {cheapest.layout.count} ranks first"
            )
        self.placements.append(
            Placement(
                slug=slug,
                service=service,
                instance_type=f"ml.{instance.name}" if "SageMaker" in service else instance.name,
                count=layout.count,
                cost=cost,
                confidence="modelled",
                reasons=tuple(reasons),
                always_on=True,
                details={"role": "serving", **layout_details(layout)},
                settings=self._fleet_settings(layout) if slug == "gqa" else {},
            )
        )

    def _fleet_settings(self, layout: Layout) -> dict[str, Any]:
        """Return the section of a fleet; nothing where the environment's settings end."""
        if layout.instance.family != "c7i" or 2 * layout.count > MOST_OF_A_FLEET:
            return {}
        size = fleet_size(self.demand, self.load, layout)
        return {"model": self.architecture.name, **size.settings()}

    def _train(self, slug: str, service: str, kind: Service, families: tuple[str, ...]) -> None:
        refused = False
        for instance in self._offered(kind, families):
            found = sold(instance, self.region) or fit_training(
                self.architecture, self.load, instance
            )
            if isinstance(found, TrainingFit):
                self._training(slug, service, kind, found)
                return
            if not refused:
                self._refuse(slug, service, found)
                refused = True

    def _training(self, slug: str, service: str, kind: Service, found: TrainingFit) -> None:
        cost = machines(
            found.instance, found.nodes, service=kind, region=self.region, today=self.today
        )
        load = self.load
        reasons = (
            f"memory a device: {found.state_bytes / GIB:.2f} GiB state (16 bytes a parameter over "
            f"{found.nodes * found.instance.devices} devices) + {found.gathered_bytes / GIB:.2f} "
            f"gathered layers + {found.activation_bytes / GIB:.2f} activations of one sequence of "
            f"{load.sequence:,}, recomputed <= {found.usable_bytes / GIB:.2f} usable; "
            f"{found.memory_nodes} node(s) hold it",
            f"time: {found.flops:.3g} operations for {load.train_tokens:,} tokens take "
            f"{found.days:.2g} days at a modelled share of the peak ({found.bound_days:.2g} at the "
            f"peak); asked {load.train_days:g}",
            *cost.notes,
        )
        self.placements.append(
            Placement(
                slug=slug,
                service=service,
                instance_type=f"ml.{found.instance.name}",
                count=found.nodes,
                cost=cost,
                confidence="modelled",
                reasons=reasons,
                always_on=kind == "hyperpod",
                details={
                    "role": "training",
                    "days": found.days,
                    "days_bound": found.bound_days,
                    "fsdp": found.nodes * found.instance.devices,
                    "expert_parallel": found.expert_parallel,
                    "flops": found.flops,
                    "usd_total": None
                    if cost.usd_per_hour is None
                    else cost.usd_per_hour * 24 * found.days,
                },
                settings={
                    "model": self.architecture.name,
                    "instance_type": f"ml.{found.instance.name}",
                    "instance_count": found.nodes,
                },
            )
        )

    def _cache(self, found: CacheFit) -> None:
        load, size = self.load, self.architecture.latent_bytes_per_token(self.load.kv_dtype)
        reasons = (
            f"{found.tokens:,} tokens x {size:,} bytes = {found.bytes / GIB:,.1f} GiB: the larger "
            f"of {load.concurrent} x {load.context:,} in flight and {load.requests_per_s:.3g} "
            f"prompts/s x {load.prompt:,} tokens x {load.ttl_s:g} s",
            f"{found.shards} shard(s) of {found.node.usable_gib} GiB, 80% of it for values, and "
            f"{found.replicas} replica each; {found.gbps:.3g} Gbit/s when each prompt is written "
            f"and read once",
            *(
                ("no price of this node type is at hand",)
                if found.usd_per_hour is None
                else (f"{found.usd_per_hour / found.nodes:.4g} USD an hour a node",)
            ),
            *(
                (f"the same in ElastiCache Serverless: {found.serverless_usd_per_hour:.4g} USD/h",)
                if found.serverless_usd_per_hour is not None
                else ()
            ),
        )
        self.placements.append(
            Placement(
                slug="mla",
                service="ElastiCache",
                instance_type=found.node.name,
                count=found.nodes,
                cost=Cost(usd_per_hour=found.usd_per_hour),
                confidence="bound",
                reasons=reasons,
                always_on=True,
                details={
                    "role": "cache",
                    "shards": found.shards,
                    "replicas_per_shard": found.replicas,
                    "bytes": found.bytes,
                    "value_bytes": found.value_bytes,
                    "serverless_usd_per_hour": found.serverless_usd_per_hour,
                },
                settings={
                    "model": self.architecture.name,
                    "cache": {
                        "node_type": found.node.name,
                        "shards": found.shards,
                        "replicas": found.replicas,
                        **({"dtype": "fp8"} if load.kv_dtype == "fp8" else {}),
                    },
                },
            )
        )

    def _function(self, found: FunctionFit) -> None:
        load = self.load
        reasons = (
            f"{found.weight_bytes / 2**20:,.0f} MiB weights in {found.dtype} + "
            f"{found.kv_bytes / 2**20:,.1f} MiB cache of {load.context:,} tokens, windows applied "
            f"+ runtime fit {found.memory_mib:,} MiB; image {found.image_gb:.2f} GB of 10",
            f"{found.seconds:.3g} s a request at {found.tokens_per_s:.3g} tokens/s (6 vCPUs as on "
            f"C7i: what Lambda runs on is not published); {found.concurrency} at once",
            *(
                ()
                if found.usd_per_million is None
                else (
                    f"a million such requests: {found.usd_per_million:,.0f} USD, idle costs none",
                )
            ),
        )
        self.placements.append(
            Placement(
                slug="sliding_window",
                service="Lambda",
                instance_type="lambda",
                count=found.concurrency,
                cost=Cost(usd_per_hour=found.usd_per_hour),
                confidence="modelled",
                reasons=reasons,
                always_on=False,
                details={
                    "role": "function",
                    "dtype": found.dtype,
                    "memory_mib": found.memory_mib,
                    "usd_per_request": found.usd_per_request,
                    "usd_per_million": found.usd_per_million,
                    "ephemeral_mib": found.ephemeral_mib,
                },
                settings={"model": self.architecture.name, "memory_mib": found.memory_mib},
            )
        )
