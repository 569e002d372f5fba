"""Hours in which an endpoint is not there, and costs nothing."""

from dataclasses import dataclass
from typing import Any

from aws_cdk import CfnResource, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from constructs_lib.acknowledge import acknowledge_wildcards
from constructs_lib.inferentia_endpoint import (
    DIMENSION,
    EndpointMachines,
    EndpointScaling,
    InferentiaEndpoint,
    tracked,
)
from constructs_lib.weights import Weights

_DELIVER = (
    *("logs:CreateLogDelivery", "logs:DeleteLogDelivery", "logs:DescribeLogGroups"),
    *("logs:DescribeResourcePolicies", "logs:GetLogDelivery", "logs:ListLogDeliveries"),
    *("logs:PutResourcePolicy", "logs:UpdateLogDelivery"),
)
_TRACE = (
    *("xray:GetSamplingRules", "xray:GetSamplingTargets"),
    *("xray:PutTelemetryRecords", "xray:PutTraceSegments"),
)


@dataclass(frozen=True, kw_only=True)
class Night:
    """When an endpoint goes and comes back.

    Args:
        stop: Hours and minutes, such as 20:00.
        start: The same.
        timezone: Of both, such as Europe/Berlin.
        days: On which it comes back, such as MON-FRI: it goes on any day.
    """

    stop: str
    start: str
    timezone: str
    days: str

    def expressions(self) -> dict[str, str]:
        """Return the schedules, by what they do."""
        return {
            "stop": _cron(self.stop, "*"),
            "start": _cron(self.start, self.days),
        }


def _cron(time: str, days: str) -> str:
    hour, _, minute = time.partition(":")
    day_of_month = "*" if days == "*" else "?"
    day_of_week = "?" if days == "*" else days
    return f"cron({int(minute)} {int(hour)} {day_of_month} * {day_of_week} *)"


class EndpointHours(Construct):
    """Deletes an endpoint in the evening, and makes it again with its scaling in the morning.

    A variant has at least one machine while its endpoint exists. Deleting the endpoint takes its
    scalable target away as well, so the state machine registers that again. A deployment while the
    endpoint is away fails and is rolled back: deploy by day.

    Args:
        endpoint: Which.
        machines: As the endpoint's.
        grows: As the endpoint's.
        night: When.
        weights: Until there are any, there is no endpoint.
        log_key: Encrypts the log.
        retained: Keep the log when the stack is destroyed.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        endpoint: InferentiaEndpoint,
        machines: EndpointMachines,
        grows: EndpointScaling,
        night: Night,
        weights: Weights,
        log_key: kms.IKey,
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        self._endpoint = endpoint
        log = logs.LogGroup(
            self,
            "Logs",
            encryption_key=log_key,
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
        )
        machine = sfn.CfnStateMachine(
            self,
            "Resource",
            role_arn=self._role(log).role_arn,
            definition_string=Stack.of(self).to_json_string(_states(endpoint, machines, grows)),
            logging_configuration=sfn.CfnStateMachine.LoggingConfigurationProperty(
                level="ALL",
                destinations=[
                    sfn.CfnStateMachine.LogDestinationProperty(
                        cloud_watch_logs_log_group=(
                            sfn.CfnStateMachine.CloudWatchLogsLogGroupProperty(
                                log_group_arn=log.log_group_arn
                            )
                        )
                    )
                ],
            ),
            tracing_configuration=sfn.CfnStateMachine.TracingConfigurationProperty(enabled=True),
        )
        self._schedules(machine, night)
        for part in self.node.find_all():
            if isinstance(part, CfnResource):  # what names the endpoint comes and goes with it
                part.cfn_options.condition = weights.present

    def _schedules(self, machine: sfn.CfnStateMachine, night: Night) -> None:
        role = iam.Role(
            self,
            "SchedulerRole",
            assumed_by=_service("scheduler", self),
            inline_policies={"Start": _document(["states:StartExecution"], machine.ref)},
        )
        for what, expression in night.expressions().items():
            scheduler.CfnSchedule(
                self,
                what.capitalize(),
                description=f"{what} the endpoint",
                flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
                schedule_expression=expression,
                schedule_expression_timezone=night.timezone,
                target=scheduler.CfnSchedule.TargetProperty(
                    arn=machine.ref, role_arn=role.role_arn, input=f'{{"do": "{what}"}}'
                ),
            )

    def _role(self, log: logs.ILogGroup) -> iam.Role:
        targets = Stack.of(self).format_arn(
            service="application-autoscaling", resource="scalable-target", resource_name="*"
        )
        endpoint = ["sagemaker:CreateEndpoint", "sagemaker:DeleteEndpoint",
                    "sagemaker:DescribeEndpoint"]  # fmt: skip
        register = ["application-autoscaling:PutScalingPolicy",
                    "application-autoscaling:RegisterScalableTarget"]  # fmt: skip
        role = iam.Role(
            self,
            "Role",
            assumed_by=_service("states", self),
            inline_policies={
                "Hours": iam.PolicyDocument(
                    statements=[
                        iam.PolicyStatement(
                            actions=endpoint,
                            resources=[self._endpoint.arn, self._endpoint.config.ref],
                        ),
                        iam.PolicyStatement(
                            actions=register,
                            resources=[targets],
                            conditions={
                                "StringEquals": {
                                    "application-autoscaling:service-namespace": "sagemaker"
                                }
                            },
                        ),
                        iam.PolicyStatement(actions=[*_DELIVER, *_TRACE], resources=["*"]),
                    ]
                )
            },
        )
        acknowledge_wildcards(
            role,
            {
                targets: "a scalable target gets its id when it is registered, every morning",
                "*": "log deliveries and traces cannot be limited to resources",
            },
        )
        return role


def _states(
    endpoint: InferentiaEndpoint, machines: EndpointMachines, grows: EndpointScaling
) -> dict[str, Any]:
    name = {"EndpointName": endpoint.name}
    scaled = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": endpoint.resource_id,
        "ScalableDimension": DIMENSION,
    }
    most = {"MinCapacity": machines.instances, "MaxCapacity": machines.most_instances}
    states: dict[str, Any] = {
        "Do": {
            "Type": "Choice",
            "Choices": [{"Variable": "$.do", "StringEquals": "stop", "Next": "Stop"}],
            "Default": "Start",
        },
        # Deleted by hand, or there already: both are as they should be.
        "Stop": _call("sagemaker:deleteEndpoint", name, "Done", unless="Done"),
        "Start": _call(
            "sagemaker:createEndpoint",
            {**name, "EndpointConfigName": endpoint.config.attr_endpoint_config_name},
            "Wait",
            unless="Wait",
        ),
        "Wait": {"Type": "Wait", "Seconds": 60, "Next": "Look"},
        "Look": _call("sagemaker:describeEndpoint", name, "Serves"),
        "Serves": {
            "Type": "Choice",
            "Choices": [
                {"Variable": "$.EndpointStatus", "StringEquals": "InService", "Next": "Register"},
                {"Variable": "$.EndpointStatus", "StringEquals": "Failed", "Next": "Failed"},
            ],
            "Default": "Wait",
        },
        "Register": _call(
            "applicationautoscaling:registerScalableTarget", {**scaled, **most}, "Invocations"
        ),
    }
    for policy, after in (("Invocations", "Concurrency"), ("Concurrency", "Done")):
        metric, value = tracked(grows)[policy]
        states[policy] = _call(
            "applicationautoscaling:putScalingPolicy",
            {
                **scaled,
                "PolicyName": policy,
                "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": {
                    "TargetValue": value,
                    "ScaleInCooldown": grows.in_seconds,
                    "ScaleOutCooldown": grows.out_seconds,
                    "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
                },
            },
            after,
        )
    states["Failed"] = {"Type": "Fail", "Error": "EndpointFailed"}
    states["Done"] = {"Type": "Succeed"}
    return {"StartAt": "Do", "States": states}


def _call(
    action: str, parameters: dict[str, Any], after: str, unless: str | None = None
) -> dict[str, Any]:
    """Return a state that calls an API; a refusal of a request that is met already goes on."""
    state = {
        "Type": "Task",
        "Resource": f"arn:aws:states:::aws-sdk:{action}",
        "Parameters": parameters,
        "Retry": [{"ErrorEquals": ["States.TaskFailed"], "MaxAttempts": 3, "IntervalSeconds": 10,
                   "BackoffRate": 2}],
        "ResultPath": "$",
        "Next": after,
    }  # fmt: skip
    if unless:
        state["Catch"] = [{"ErrorEquals": ["States.TaskFailed"], "Next": unless}]
    return state


def _service(name: str, scope: Construct) -> iam.ServicePrincipal:
    account = {"StringEquals": {"aws:SourceAccount": Stack.of(scope).account}}
    return iam.ServicePrincipal(f"{name}.amazonaws.com", conditions=account)


def _document(actions: list[str], *resources: str) -> iam.PolicyDocument:
    return iam.PolicyDocument(
        statements=[iam.PolicyStatement(actions=actions, resources=list(resources))]
    )
