"""SageMaker's models and endpoints, and how Application Auto Scaling would scale them."""

import time
import uuid
from typing import Any

from local_aws.endpoints.runner import EndpointRunner
from local_aws.resources.table import Aws, Made, Properties, Resource, Type

MODEL, CONFIG = "AWS::SageMaker::Model", "AWS::SageMaker::EndpointConfig"
ENDPOINT = "AWS::SageMaker::Endpoint"
_CONTAINER = frozenset({"Environment", "Image", "ModelDataSource", "ModelDataUrl"})
_VARIANT = frozenset(
    {
        *("ContainerStartupHealthCheckTimeoutInSeconds", "EnableSSMAccess", "InferenceAmiVersion"),
        *("InitialInstanceCount", "InitialVariantWeight", "InstanceType", "ModelName"),
        *("ModelDataDownloadTimeoutInSeconds", "RoutingConfig", "VariantName", "VolumeSizeInGB"),
    }
)
_WHOLE = frozenset(
    {
        *("ContainerStartupHealthCheckTimeoutInSeconds", "InitialInstanceCount"),
        *("ModelDataDownloadTimeoutInSeconds", "VolumeSizeInGB"),
    }
)
_TARGET = ("ServiceNamespace", "ScalableDimension", "ResourceId")
_SETTLES_SECONDS = 3700.0  # more than the longest start that a variant may have


def _only(given: Properties, known: frozenset[str], what: str) -> None:
    if unplayed := sorted(set(given) - known):
        raise ValueError(f"{what}: {', '.join(unplayed)} is not played here")


def _named(name: str) -> str:
    return name.rpartition("/")[2]  # of an ARN


def _fresh_name(resource: Resource) -> str:
    """Return a name that no other has: a replacement stands beside what it replaces."""
    return f"{resource.name(54)}-{uuid.uuid4().hex[:8]}"


def _create_model(aws: Aws, resource: Resource) -> Made:
    given = dict(resource.properties)
    _only(given["PrimaryContainer"], _CONTAINER, f"{MODEL}: PrimaryContainer")
    name = given.pop("ModelName", None) or _fresh_name(resource)
    answer = aws.client("sagemaker").create_model(ModelName=name, **given)
    return Made(answer["ModelArn"], {"ModelName": name, "Id": answer["ModelArn"]})


def _delete_model(aws: Aws, arn: str, _: Properties) -> None:
    aws.client("sagemaker").delete_model(ModelName=_named(arn))


def _variant(given: Properties) -> dict[str, Any]:
    _only(given, _VARIANT, f"{CONFIG}: ProductionVariants")
    return {name: int(value) if name in _WHOLE else value for name, value in given.items()}


def _create_config(aws: Aws, resource: Resource) -> Made:
    given = dict(resource.properties)
    given["ProductionVariants"] = [_variant(one) for one in given["ProductionVariants"]]
    name = given.pop("EndpointConfigName", None) or _fresh_name(resource)
    answer = aws.client("sagemaker").create_endpoint_config(EndpointConfigName=name, **given)
    arn = answer["EndpointConfigArn"]
    return Made(arn, {"EndpointConfigName": name, "Id": arn})


def _delete_config(aws: Aws, arn: str, _: Properties) -> None:
    aws.client("sagemaker").delete_endpoint_config(EndpointConfigName=_named(arn))


def _settled(aws: Aws, name: str, busy: str) -> dict[str, Any]:
    """Wait until an endpoint has left a state, and return it."""
    deadline = time.monotonic() + _SETTLES_SECONDS
    while True:
        found: dict[str, Any] = aws.client("sagemaker").describe_endpoint(EndpointName=name)
        if found["EndpointStatus"] != busy:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"the endpoint {name} is still {busy}")
        time.sleep(0.1)


def _create_endpoint(aws: Aws, resource: Resource) -> Made:
    given, sagemaker = resource.properties, aws.client("sagemaker")
    name = given.get("EndpointName") or resource.name(63)
    asked = {"EndpointName": name, "EndpointConfigName": given["EndpointConfigName"]}
    arn = sagemaker.create_endpoint(**asked, **_picked(given, "DeploymentConfig", "Tags"))[
        "EndpointArn"
    ]
    found = _settled(aws, name, "Creating")
    if found["EndpointStatus"] != "InService":
        sagemaker.delete_endpoint(EndpointName=name)
        raise ValueError(f"the endpoint is {found['EndpointStatus']}: {found['FailureReason']}")
    return Made(arn, {"EndpointName": name, "Id": arn})


def _update_endpoint(aws: Aws, arn: str, resource: Resource) -> Made:
    given, name = resource.properties, _named(arn)
    retain = str(given.get("RetainAllVariantProperties", False)).lower() == "true"
    aws.client("sagemaker").update_endpoint(
        EndpointName=name,
        EndpointConfigName=given["EndpointConfigName"],
        RetainAllVariantProperties=retain,
        **_picked(given, "DeploymentConfig"),
    )
    found = _settled(aws, name, "Updating")
    if found["EndpointConfigName"] != given["EndpointConfigName"]:
        raise ValueError(f"the endpoint went back to what it was: {found['FailureReason']}")
    return Made(arn, {"EndpointName": name, "Id": arn})


def _picked(properties: Properties, *names: str) -> dict[str, Any]:
    return {name: properties[name] for name in names if name in properties}


def _register(aws: Aws, resource: Resource) -> Made:
    given = resource.properties
    asked = _picked(given, *_TARGET)
    sizes = {name: int(given[name]) for name in ("MinCapacity", "MaxCapacity")}
    tags = {tag["Key"]: tag["Value"] for tag in given.get("Tags", [])}
    told = {"Tags": tags} if tags else {}
    aws.client("application-autoscaling").register_scalable_target(**asked, **sizes, **told)
    name = "|".join(str(asked[key]) for key in ("ResourceId", "ScalableDimension",
                                                "ServiceNamespace"))  # fmt: skip
    return Made(name, {"Id": name})


def _reregister(aws: Aws, _: str, resource: Resource) -> Made:
    return _register(aws, resource)


def _target_of(name: str) -> dict[str, str]:
    resource, dimension, namespace = name.split("|")
    return {"ResourceId": resource, "ScalableDimension": dimension, "ServiceNamespace": namespace}


def _deregister(aws: Aws, name: str, _: Properties) -> None:
    aws.client("application-autoscaling").deregister_scalable_target(**_target_of(name))


def _put_policy(aws: Aws, resource: Resource) -> Made:
    given = resource.properties
    tracking = dict(given["TargetTrackingScalingPolicyConfiguration"])
    tracking["TargetValue"] = float(tracking["TargetValue"])
    for cooldown in ("ScaleInCooldown", "ScaleOutCooldown"):
        if cooldown in tracking:
            tracking[cooldown] = int(tracking[cooldown])
    arn = aws.client("application-autoscaling").put_scaling_policy(
        PolicyName=given["PolicyName"],
        PolicyType=given["PolicyType"],
        TargetTrackingScalingPolicyConfiguration=tracking,
        **_target_of(given["ScalingTargetId"]),
    )["PolicyARN"]
    return Made(arn, {"Arn": arn})


def _reput_policy(aws: Aws, _: str, resource: Resource) -> Made:
    return _put_policy(aws, resource)


def _delete_policy(aws: Aws, _: str, properties: Properties) -> None:
    aws.client("application-autoscaling").delete_scaling_policy(
        PolicyName=properties["PolicyName"], **_target_of(properties["ScalingTargetId"])
    )


def endpoints(runner: EndpointRunner) -> tuple[Type, ...]:
    """Return the types of an endpoint; deleting one waits until its containers have ended."""

    def delete(aws: Aws, arn: str, _: Properties) -> None:
        key = (aws.account, aws.region, _named(arn))
        if runner.get(key):
            runner.remove(key)

    return (
        Type(
            MODEL,
            frozenset(
                {
                    *("EnableNetworkIsolation", "ExecutionRoleArn", "ModelName"),
                    *("PrimaryContainer", "Tags", "VpcConfig"),
                }
            ),
            _create_model,
            _delete_model,
        ),
        Type(
            CONFIG,
            frozenset({"EndpointConfigName", "KmsKeyId", "ProductionVariants", "Tags"}),
            _create_config,
            _delete_config,
        ),
        Type(
            ENDPOINT,
            frozenset(
                {
                    *("DeploymentConfig", "EndpointConfigName", "EndpointName"),
                    *("RetainAllVariantProperties", "Tags"),
                }
            ),
            _create_endpoint,
            delete,
            _update_endpoint,
        ),
        Type(
            "AWS::ApplicationAutoScaling::ScalableTarget",
            frozenset({*_TARGET, "MaxCapacity", "MinCapacity", "Tags"}),
            _register,
            _deregister,
            _reregister,
        ),
        Type(
            "AWS::ApplicationAutoScaling::ScalingPolicy",
            frozenset(
                {
                    *("PolicyName", "PolicyType", "ScalingTargetId"),
                    "TargetTrackingScalingPolicyConfiguration",
                }
            ),
            _put_policy,
            _delete_policy,
            _reput_policy,
        ),
    )
