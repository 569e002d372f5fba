"""A Lambda function that serves a model whose cache a window bounds."""

from typing import Any

from aws_cdk import Acknowledgment, Duration, RemovalPolicy, Size, Validations
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from constructs_lib.function_edge import FunctionEdge, Viewers
from constructs_lib.function_role import FunctionRole
from constructs_lib.function_size import FunctionMode, FunctionSize, ManagedInstances, refusals
from constructs_lib.function_watch import FunctionLimits, FunctionWatch
from constructs_lib.managed_capacity import ManagedCapacity
from constructs_lib.site import Site
from constructs_lib.weights import Weights

HANDLER = "model_code.sliding_window.handler.function.handle"
BOOTSTRAP = "/var/task/bootstrap"

Code = lambda_.AssetCode | lambda_.DockerImageCode


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
