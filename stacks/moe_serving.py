"""Serving of a mixture of experts: pools behind one load balancer, and an Inferentia endpoint."""

from pathlib import Path

from aws_cdk import CfnOutput, Duration, Stack
from constructs import Construct

from constructs_lib import (
    INFERENCE,
    NEURON,
    Canary,
    CodeAsset,
    Container,
    EndpointHours,
    EndpointLimits,
    EndpointMachines,
    EndpointScaling,
    ExpertLimits,
    ExpertPools,
    ExpertWatch,
    InferentiaEndpoint,
    Machines,
    ModelArchive,
    Night,
    Server,
    Variant,
    Weights,
    ZipAsset,
)
from constructs_lib.code_asset import source_files
from constructs_lib.machine_images import AMAZON_LINUX
from planner import resolve
from planner.neuron import NEURON_FAMILIES, NeuronSize
from stacks.base import Base, stack_name
from stacks.code import model_code_for
from stacks.fleet import put_out_weights
from stacks.innovation import weights_parameter
from stacks.moe import MoeSettings
from stacks.moe_serving_settings import EndpointSettings, PoolSettings, family
from stacks.moe_serving_size import endpoint_size, volume_gib
from stacks.wheelhouse import ROOT, wheelhouse

SLUG = "moe"
NAMESPACE = f"Isomorph/{SLUG}"
INFERENCE_PY = ROOT / "model_code" / SLUG / "serve" / "inference.py"
# Where Neuron's machine image keeps torch-neuronx; its version is that of the image.
NEURON_VENV = "/opt/aws_neuronx_venv_pytorch_2_9_nxd_inference"


class MoeServingStack(Stack):
    """Pools, an endpoint, or both: each serves the weights that one pointer names."""

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: MoeSettings, base: Base
    ) -> None:
        super().__init__(scope, construct_id, stack_name=stack_name(base.environment, construct_id))
        assert settings.serving is not None  # noqa: S101  wants() says that this half is there
        self._settings, self._base, self._model = settings.serving, base, settings.model
        self._architecture = resolve(self._settings.architecture or settings.model)
        self._site, bucket_and_key = base.site(self), base.model_bucket(self)
        self._bucket = bucket_and_key[0]
        self._weights = Weights(
            self,
            "ModelWeights",
            pointer=weights_parameter(base.environment, SLUG),
            bucket=bucket_and_key[0],
            key=bucket_and_key[1],
            prefix=SLUG,
        )
        pools = self._pools() if self._settings.pools else None
        endpoint = self._endpoint(self._settings.endpoint) if self._settings.endpoint else None
        fleets = [*(pools.fleets if pools else ()), *([self._endpoint_name] if endpoint else ())]
        ExpertWatch(
            self,
            "ExpertWatch",
            fleets=fleets,
            endpoint=endpoint.alarms if endpoint else None,
            metric_namespace=NAMESPACE,
            limits=ExpertLimits(
                hit_percent=self._settings.alarm_hit_percent,
                stall_percent=self._settings.alarm_stall_percent,
            ),
            topic=self._site.alarm_topic,
        )
        put_out_weights(
            self, SLUG, self._weights, engine=self._settings.engine, environment=base.environment
        )

    @property
    def _endpoint_name(self) -> str:
        return f"{self.stack_name}-endpoint"

    def _pools(self) -> ExpertPools:
        settings = self._settings
        self._wheelhouses: dict[tuple[str, str], ZipAsset] = {}
        pools = ExpertPools(
            self,
            "ExpertPools",
            slug=SLUG,
            site=self._site,
            pools={name: self._variants(name, pool) for name, pool in settings.pools.items()},
            default=settings.first_pool,
            limits=settings.limits,
            code=CodeAsset(self, "Code", root=ROOT, include=model_code_for(SLUG)),
            weights=self._weights,
            session=Duration.minutes(settings.session_minutes),
            certificate_arn=settings.certificate_arn,
            retained=self._base.retained,
        )
        prefix = f"{self.stack_name}-"
        groups = [
            f"{name.removeprefix(prefix)}={fleet.group.name}"
            for name, fleet in pools.fleets.items()
        ]
        CfnOutput(self, "Endpoint", value=pools.front.url)
        CfnOutput(self, "Pools", value=",".join(settings.pools))
        CfnOutput(self, "DefaultPool", value=settings.first_pool)
        CfnOutput(self, "Fleets", value=",".join(groups))
        return pools

    def _variants(self, name: str, pool: PoolSettings) -> list[Variant]:
        canary = pool.canary
        own = self._variant(name, name, pool, 100 - (canary.percent if canary else 0))
        if canary is None:
            return [own]
        given: dict[str, int | str] = {
            "min_capacity": canary.capacity,
            "max_capacity": canary.capacity,
            "warm_pool": 0,
        }
        if canary.instance_type:
            given["instance_type"] = canary.instance_type
        tried = pool.model_copy(update=given)
        return [
            own,
            self._variant(name, f"{name}-canary", tried, canary.percent, pointer=canary.weights),
        ]

    def _variant(
        self,
        pool_name: str,
        name: str,
        pool: PoolSettings,
        percent: int,
        pointer: str | None = None,
    ) -> Variant:
        neuron = family(pool.instance_type) in NEURON_FAMILIES
        return Variant(
            name=f"{self.stack_name}-{name}",
            percent=percent,
            server=self._server(pool_name, pool.instance_type),
            machines=Machines(
                instance_type=pool.instance_type,
                volume_gib=pool.volume_gib
                or volume_gib(self._settings, self._architecture, neuron=neuron),
                min_capacity=pool.min_capacity,
                max_capacity=pool.max_capacity,
                warm_pool=pool.warm_pool,
                requests_in_flight_target=pool.requests_in_flight_target,
                boot_minutes=self._settings.boot_minutes,
                image=NEURON if neuron else AMAZON_LINUX,
            ),
            wheelhouse=self._wheelhouse(pool.instance_type),
            pointer=pointer,
        )

    def _wheelhouse(self, instance_type: str) -> ZipAsset:
        python, engine = wanted = self._settings.wheels_of(instance_type)
        if wanted not in self._wheelhouses:
            self._wheelhouses[wanted] = ZipAsset(
                self,
                f"Wheelhouse-{engine}",
                path=wheelhouse(SLUG, python, engine, self._base.wheelhouses),
            )
        return self._wheelhouses[wanted]

    def _server(self, pool: str, instance_type: str) -> Server:
        settings = self._settings
        python, engine = settings.wheels_of(instance_type)
        neuron = engine == "neuron"
        more = {
            "ISOMORPH_POOL": pool,
            "ISOMORPH_POOLS": ",".join(settings.pools),
            "ISOMORPH_DEVICE": "neuron" if neuron else "cpu",
            **self._expert_settings(),
            **({"ISOMORPH_NEURON_VENV": NEURON_VENV} if neuron else {}),
        }
        return settings.server(
            environment=self._base.environment,
            model=self._model,
            python=python,
            quantization="none" if neuron else settings.quantization,
            more=more,
        )

    def _expert_settings(self) -> dict[str, str]:
        mib = self._settings.expert_mib
        return {
            "ISOMORPH_EXPERT_MIB": "" if mib is None else str(mib),
            "ISOMORPH_EXPERT_SOURCE": self._settings.expert_source,
        }

    def _endpoint(self, chosen: EndpointSettings) -> InferentiaEndpoint:
        size = endpoint_size(self._settings, self._architecture, self.region)
        machines, grows = _endpoint_machines(chosen, size), _grows(chosen, size)
        endpoint = InferentiaEndpoint(
            self,
            "InferentiaEndpoint",
            site=self._site,
            variant=self.stack_name,
            container=Container(
                image=INFERENCE,
                archive=ModelArchive(self, "ModelArchive", files=endpoint_files()),
                environment=self._container_environment(size),
            ),
            weights=self._weights,
            machines=machines,
            grows=grows,
            canary=Canary(percent=chosen.canary_percent, minutes=chosen.canary_minutes),
            limits=EndpointLimits(
                latency_seconds=chosen.alarm_latency_seconds, errors=chosen.alarm_errors
            ),
            metric_namespace=NAMESPACE,
        )
        if chosen.night:
            EndpointHours(
                self,
                "EndpointHours",
                endpoint=endpoint,
                machines=machines,
                grows=grows,
                night=Night(**chosen.night.model_dump()),
                weights=self._weights,
                log_key=self._site.log_key,
                retained=self._base.retained,
            )
        CfnOutput(self, "SageMakerEndpoint", value=endpoint.name, condition=self._weights.present)
        CfnOutput(self, "Size", value="; ".join(size.reasons))
        return endpoint

    def _container_environment(self, size: NeuronSize) -> dict[str, str]:
        settings = self._settings
        return {
            "SAGEMAKER_PROGRAM": INFERENCE_PY.name,
            "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
            "SAGEMAKER_REGION": self.region,
            "AWS_REGION": self.region,
            "ISOMORPH_MODEL": self._model,
            "ISOMORPH_ENGINE": settings.engine,
            "ISOMORPH_DEVICE": "neuron",
            "ISOMORPH_DTYPE": settings.dtype,
            "ISOMORPH_SLOTS": str(settings.slots),
            "ISOMORPH_CONTEXT": str(settings.context),
            "ISOMORPH_QUEUE": str(settings.queue),
            "ISOMORPH_DEADLINE_S": str(settings.deadline_seconds),
            "ISOMORPH_STATE": "/tmp/isomorph",  # noqa: S108  the container's own
            "ISOMORPH_FLEET": self._endpoint_name,
            "ISOMORPH_METRIC_NAMESPACE": NAMESPACE,
            "ISOMORPH_COMPILED": f"s3://{self._bucket.bucket_name}/{SLUG}/compiled/",
            "ISOMORPH_TENSOR_PARALLEL": str(size.cores),
            "NEURON_RT_NUM_CORES": str(size.machine_cores),
            **self._expert_settings(),
        }


def endpoint_files() -> dict[str, Path]:
    """Return what the endpoint's archive holds: the entry point, and the model code."""
    code = source_files(ROOT, model_code_for(SLUG))
    files = {f"code/{path.relative_to(ROOT).as_posix()}": path for path in code}
    return {**files, f"code/{INFERENCE_PY.name}": INFERENCE_PY}


def _endpoint_machines(chosen: EndpointSettings, size: NeuronSize) -> EndpointMachines:
    instances = chosen.instances or size.instances
    return EndpointMachines(
        instance_type=size.instance_type,
        instances=instances,
        most_instances=chosen.max_instances or instances,
        volume_gib=chosen.volume_gib or size.volume_gib,
        download_seconds=size.download_seconds,
        startup_seconds=size.startup_seconds,
    )


def _grows(chosen: EndpointSettings, size: NeuronSize) -> EndpointScaling:
    replicas = max(1, size.machine_cores // size.cores)
    return EndpointScaling(
        invocations=chosen.invocations,
        concurrency=max(1, size.slots * replicas * 3 // 4),
        out_seconds=chosen.scale_out_seconds,
        in_seconds=chosen.scale_in_seconds,
    )
