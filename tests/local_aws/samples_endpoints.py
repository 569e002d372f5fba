"""An endpoint with all that the stack moe-serving gives one, and the model that it serves."""

import io
import tarfile

from tests.local_aws.templates import Template, assumed_by, attribute, ref, resource

BUCKET = "given-models"
INFERENCE = """
import json, os, sys, time

def model_fn(model_dir):
    if os.environ.get("BREAK"):
        sys.stderr.write("isomorph: told to break\\n")
        os._exit(3)
    if os.environ.get("FAIL"):
        raise ValueError("told to fail")
    if os.environ.get("HANG"):
        time.sleep(3600)
    return model_dir

def input_fn(body, content_type):
    return json.loads(body)

def predict_fn(data, model, context):
    if "exit" in data:
        os._exit(1)
    if "fail" in data:
        raise ValueError(data["fail"])
    return {"got": data, "pid": os.getpid(), "given": os.environ.get("GIVEN"), "model": model,
            "environment": dict(os.environ), "path": sys.path, "cwd": os.getcwd()}

def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""


def archive(program: str = INFERENCE) -> bytes:
    """Return a model.tar.gz with that code/inference.py."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        content = program.encode()
        entry = tarfile.TarInfo("code/inference.py")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def variant(**changes: object) -> dict[str, object]:
    """Return a production variant."""
    return {
        "VariantName": "contract-variant",
        "ModelName": attribute("Model", "ModelName"),
        "InstanceType": "ml.inf2.xlarge",
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1,
        "InferenceAmiVersion": "al2-ami-sagemaker-inference-neuron-2",
        "VolumeSizeInGB": 21,
        "ModelDataDownloadTimeoutInSeconds": 300,
        "ContainerStartupHealthCheckTimeoutInSeconds": 300,
        "EnableSSMAccess": False,
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        **changes,
    }


def model(**environment: str) -> Template:
    """Return a model whose container gets these variables."""
    source = {
        "S3Uri": f"s3://{BUCKET}/model.gz",
        "S3DataType": "S3Object",
        "CompressionType": "Gzip",
    }
    return resource(
        "SageMaker::Model",
        ExecutionRoleArn=attribute("EndpointRole", "Arn"),
        EnableNetworkIsolation=False,
        PrimaryContainer={
            "Image": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference-neuronx:1",
            "ModelDataSource": {"S3DataSource": source},
            "Environment": {"SAGEMAKER_PROGRAM": "inference.py", "GIVEN": "this", **environment},
        },
        VpcConfig={"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        Tags=[{"Key": "project", "Value": "contract"}],
    )


ENDPOINTS: Template = {
    "EndpointRole": resource("IAM::Role", AssumeRolePolicyDocument=assumed_by("sagemaker")),
    "Model": model(),
    "Config": resource("SageMaker::EndpointConfig", KmsKeyId="key", ProductionVariants=[variant()]),
    "Endpoint": resource(
        "SageMaker::Endpoint",
        EndpointConfigName=attribute("Config", "EndpointConfigName"),
        RetainAllVariantProperties=True,
        DeploymentConfig={
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "ALL_AT_ONCE",
                    "WaitIntervalInSeconds": 60,
                },
                "TerminationWaitInSeconds": 60,
                "MaximumExecutionTimeoutInSeconds": 600,
            },
            "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "any"}]},
        },
    ),
    "EndpointTarget": resource(
        "ApplicationAutoScaling::ScalableTarget",
        ServiceNamespace="sagemaker",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        ResourceId={
            "Fn::Join": [
                "/",
                ["endpoint", attribute("Endpoint", "EndpointName"), "variant", "contract-variant"],
            ]
        },
        MinCapacity=1,
        MaxCapacity=3,
        Tags=[{"Key": "project", "Value": "contract"}],
    ),
    "EndpointPolicy": resource(
        "ApplicationAutoScaling::ScalingPolicy",
        PolicyName="Invocations",
        PolicyType="TargetTrackingScaling",
        ScalingTargetId=ref("EndpointTarget"),
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 100,
            "ScaleInCooldown": 900,
            "ScaleOutCooldown": 60,
            "PredefinedMetricSpecification": {
                "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
            },
        },
    ),
}
