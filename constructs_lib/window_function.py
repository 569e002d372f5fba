"""A Lambda function that serves a model whose cache a window bounds."""

from dataclasses import dataclass
from typing import Any

from aws_cdk import Acknowledgment, Duration, RemovalPolicy, Size, Validations
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from constructs_lib.function_edge import FunctionEdge, Viewers
from constructs_lib.function_role import FunctionRole
from constructs_lib.function_watch import FunctionLimits, FunctionWatch
from constructs_lib.managed_capacity import ManagedCapacity, ManagedInstances
from constructs_lib.site import Site
from constructs_lib.weights import Weights

HANDLER = "model_code.sliding_window.handler.function.handle"
BOOTSTRAP = "/var/task/bootstrap"
_SNAPSHOT_TMP_MIB = 512  # the most of /tmp that SnapStart takes
_SNAPSHOT_PYTHON = (3, 12)  # the first of Python's runtimes with SnapStart
_MANAGED_LEAST_MIB = 2048

Code = lambda_.AssetCode | lambda_.DockerImageCode


@dataclass(frozen=True, kw_only=True)
class FunctionSize:
    """What the function gets.

    Args:
        memory_mib: Memory, and with it the share of processors.
        ephemeral_mib: /tmp, where the weights lie.
        timeout_seconds: The longest invocation.
        architecture: x86_64 or arm64.
        python: Version of the managed runtime, such as 3.14.
    """

    memory_mib: int
    ephemeral_mib: int
    timeout_seconds: int
    architecture: str
    python: str


@dataclass(frozen=True, kw_only=True)
class FunctionMode:
    """How the function answers and scales.

    Args:
        streaming: Answers token by token through our own runtime; else at once, through AWS's.
        reserved_concurrency: Invocations at once at most, which bounds the bill; None: the
            account's.
        provisioned_concurrency: Environments that are kept loaded; 0 for none.
        snap_start: Whether new environments start from a snapshot.
        managed: Machines of ours that Lambda runs it on; None: Lambda's own.
    """

    streaming: bool
    reserved_concurrency: int | None = None
    provisioned_concurrency: int = 0
    snap_start: bool = False
    managed: ManagedInstances | None = None


def refusals(size: FunctionSize, mode: FunctionMode, *, image: bool) -> list[str]:
    """Return what Lambda would refuse of a function, one line each.

    Sources: Lambda's developer guide, "Lambda SnapStart" and "Lambda Managed Instances".
    """
    found = []
    if mode.snap_start:
        version = tuple(int(part) for part in size.python.split("."))
        for wrong, why in (
            (mode.provisioned_concurrency, "not together with provisioned_concurrency; choose one"),
            (image, "not for images; set package to zip"),
            (
                size.ephemeral_mib > _SNAPSHOT_TMP_MIB,
                f"not with {size.ephemeral_mib} MiB of /tmp; at most {_SNAPSHOT_TMP_MIB}: smaller "
                f"weights, or provisioned_concurrency",
            ),
            (version < _SNAPSHOT_PYTHON, f"not with Python {size.python}; 3.12 or newer"),
            (
                mode.streaming,
                "not with our own runtime, which takes part in no snapshot; set streaming to false",
            ),
        ):
            if wrong:
                found.append(f"snap_start: {why}")
    if mode.managed:
        if mode.snap_start or mode.provisioned_concurrency or mode.reserved_concurrency:
            found.append(
                "managed_instances: they keep environments of their own; without snap_start, "
                "provisioned_concurrency and reserved_concurrency"
            )
        if size.memory_mib < _MANAGED_LEAST_MIB:
            found.append(
                f"managed_instances: memory_mib is {size.memory_mib}; at least {_MANAGED_LEAST_MIB}"
            )
    reserved = mode.reserved_concurrency
    if reserved is not None and mode.provisioned_concurrency > reserved:
        found.append(
            f"provisioned_concurrency: got {mode.provisioned_concurrency}; at most "
            f"reserved_concurrency, which is {reserved}"
        )
    return found


class WindowFunction(Construct):
    """Function, URL, dead letters, log group, alarms, dashboard.

    Until weights are pushed it is there and answers 503.

    Args:
        slug: The innovation that it serves: the namespace of its figures.
        site: Network, keys and sinks.
        code: As a zip, or as an image.
        model: Name under which the model is offered.
        context: Tokens of a request with its answer.
        size: What it gets.
        mode: How it answers and scales.
        weights: What it serves.
        limits: When to raise an alarm.
        viewers: Who may call through CloudFront; None for no distribution.
        retained: Keep logs.

    Raises:
        ValueError: A combination that Lambda refuses.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        slug: str,
        site: Site,
        code: Code,
        model: str,
        context: int,
        size: FunctionSize,
        mode: FunctionMode,
        weights: Weights,
        limits: FunctionLimits,
        viewers: Viewers | None = None,
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        image = isinstance(code, lambda_.DockerImageCode)
        if wrong := refusals(size, mode, image=image):
            raise ValueError("; ".join(wrong))
        self._site, self._size, self._mode, self._retained = site, size, mode, retained
        namespace = f"Isomorph/{slug}"
        self.log_group = self._log_group("Logs")
        self.dead_letters = self._queue()
        self.role = FunctionRole(
            self,
            "Role",
            weights=weights,
            log_group=self.log_group,
            dead_letters=self.dead_letters,
        )
        environment = {
            "ISOMORPH_MODEL": model,
            "ISOMORPH_WEIGHTS": weights.value,
            "ISOMORPH_CONTEXT": str(context),
            "ISOMORPH_METRIC_NAMESPACE": namespace,
        }
        self.function = self._function(code, environment)
        if mode.managed:
            self._manage(mode.managed)
        self.target = self._target()
        self.url = self.target.add_function_url(
            auth_type=lambda_.FunctionUrlAuthType.AWS_IAM,
            invoke_mode=lambda_.InvokeMode.RESPONSE_STREAM
            if mode.streaming
            else lambda_.InvokeMode.BUFFERED,
        )
        self.edge = FunctionEdge(self, "Edge", url=self.url, viewers=viewers) if viewers else None
        self.watch = FunctionWatch(
            self,
            "Watch",
            function=self.function,
            dead_letters=self.dead_letters,
            timeout_seconds=size.timeout_seconds,
            model=model,
            metric_namespace=namespace,
            limits=limits,
            topic=site.alarm_topic,
        )

    def _function(self, code: Code, environment: dict[str, str]) -> lambda_.Function:
        size, mode = self._size, self._mode
        common: dict[str, Any] = {
            "role": self.role.without_policy_updates(),  # its rights are a part of the role
            "memory_size": size.memory_mib,
            "ephemeral_storage_size": Size.mebibytes(size.ephemeral_mib),
            "timeout": Duration.seconds(size.timeout_seconds),
            "architecture": architecture(size.architecture),
            "log_group": self.log_group,
            "dead_letter_queue": self.dead_letters,
            "reserved_concurrent_executions": mode.reserved_concurrency,
        }
        if isinstance(code, lambda_.DockerImageCode):
            return lambda_.DockerImageFunction(
                self, "Function", code=code, environment=environment, **common
            )
        if mode.streaming:  # Lambda then starts this in place of the runtime's own client
            environment = {**environment, "AWS_LAMBDA_EXEC_WRAPPER": BOOTSTRAP}
        runtime = getattr(lambda_.Runtime, f"PYTHON_{size.python.replace('.', '_')}")
        function = lambda_.Function(
            self,
            "Function",
            code=code,
            handler=HANDLER,
            runtime=runtime,
            environment=environment,
            snap_start=lambda_.SnapStartConf.ON_PUBLISHED_VERSIONS if mode.snap_start else None,
            **common,
        )
        Validations.of(function).acknowledge(
            Acknowledgment(
                id="AwsSolutions-L1",
                reason="the runtime is the Python that the function's compiled libraries were "
                "downloaded for; `python` in the settings changes both together",
            )
        )
        return function

    def _target(self) -> lambda_.Function | lambda_.Alias:
        """Return what is called: an alias where environments belong to a published version."""
        if not self._mode.provisioned_concurrency and not self._mode.snap_start:
            return self.function
        return lambda_.Alias(
            self,
            "Live",
            alias_name="live",
            version=self.function.current_version,
            provisioned_concurrent_executions=self._mode.provisioned_concurrency or None,
        )

    def _manage(self, instances: ManagedInstances) -> None:
        capacity = ManagedCapacity(
            self,
            "Capacity",
            site=self._site,
            instances=instances,
            architecture=architecture(self._size.architecture),
            log_group=self._log_group("CapacityLogs"),
        )
        # One request at a time in an environment: its model has one slot.
        capacity.provider.add_function(self.function, per_execution_environment_max_concurrency=1)

    def _log_group(self, construct_id: str) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            construct_id,
            encryption_key=self._site.log_key,
            retention=logs.RetentionDays.THREE_MONTHS,
            removal_policy=RemovalPolicy.RETAIN if self._retained else RemovalPolicy.DESTROY,
        )

    def _queue(self) -> sqs.Queue:
        """Return the queue of asynchronous events that failed three times."""
        queue = sqs.Queue(
            self,
            "DeadLetters",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=Duration.days(14),
            removal_policy=RemovalPolicy.RETAIN if self._retained else RemovalPolicy.DESTROY,
        )
        Validations.of(queue).acknowledge(
            Acknowledgment(id="AwsSolutions-SQS3", reason="it is itself the dead-letter queue")
        )
        return queue


def architecture(name: str) -> lambda_.Architecture:
    """Return CDK's word for x86_64 or arm64."""
    known = {"x86_64": lambda_.Architecture.X86_64, "arm64": lambda_.Architecture.ARM_64}
    return known[name]
