"""What the nodes of a training cluster are told: in a file beside their scripts, and a parameter.

The file is an asset, so it can say only what synthesis knows. What a deployment makes (bucket, log
group, file system) is in a parameter, which the file names.
"""

import json
from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_ssm as ssm

from constructs_lib import CodeAsset, LifecycleScripts, LustreMount, ZipAsset
from stacks.base import Base
from stacks.code import model_code_for
from stacks.moe import MoeSettings
from stacks.moe_training_groups import GroupSettings
from stacks.moe_training_settings import MoeTrainingSettings, engine_of
from stacks.wheelhouse import HOST, ROOT, TRAIN, python_command, wheelhouse

SCRIPTS = ROOT / "model_code" / "moe" / "lifecycle"
ENTRY = "on_create.sh"
NAMESPACE = "Isomorph/moe-training"
FILE = "settings.json"


def parameter_name(environment: str) -> str:
    """Return the name of the parameter that the file names."""
    return f"/isomorph/{environment}/moe/training"


def lifecycle_scripts(
    stack: Stack, settings: MoeSettings, chosen: MoeTrainingSettings, base: Base
) -> LifecycleScripts:
    """Return the scripts with the file that tells them what to do."""
    code = CodeAsset(stack, "Code", root=ROOT, include=model_code_for("moe"))
    told: dict[str, Any] = {
        "environment": base.environment,
        "region": stack.region,
        "cluster": chosen.cluster_name(base.environment),
        "orchestrator": chosen.orchestrator,
        "parameter": parameter_name(base.environment),
        "model": settings.model,
        "python": python_command(chosen.python),
        "metric_namespace": NAMESPACE,
        "mlflow": chosen.mlflow,
        "accounting": int(_keeps_accounts(chosen)),
        "expert_parallel": chosen.expert_parallel,
        # On this machine jobs belong to whoever started it, and nothing restarts a node.
        "user": None if chosen.python == HOST else "ubuntu",
        "srun_options": None if chosen.python == HOST else "--auto-resume=1",
        "groups": {name: _group(name, each) for name, each in chosen.groups.items()},
        **_asset("code", base, code),
        **_wheels(stack, chosen, base),
    }
    text = json.dumps(told, indent=2, sort_keys=True) + "\n"
    return LifecycleScripts(
        stack, "Scripts", files=sorted(SCRIPTS.glob("*.sh")), texts={FILE: text}
    )


def parameter(
    stack: Stack, base: Base, *, data: s3.IBucket, log_group: logs.ILogGroup, lustre: LustreMount
) -> ssm.StringParameter:
    """Return the parameter with what a deployment makes."""
    told = {
        "data_bucket": data.bucket_name,
        "log_group": log_group.log_group_name,
        "lustre": {
            "dns_name": lustre.dns_name,
            "mount_name": lustre.mount_name,
            "mount_path": lustre.path,
        },
    }
    return ssm.StringParameter(
        stack,
        "Told",
        parameter_name=parameter_name(base.environment),
        string_value=stack.to_json_string(told),
        description="what nodes of the training cluster are told that a deployment made",
    )


def bucket_parameter(stack: Stack, base: Base, data: s3.IBucket) -> str:
    """Return the data bucket's name by way of a parameter of this stack.

    An output with an import chains one stack's exports to another's, which cfn-lint refuses.
    """
    parameter = ssm.StringParameter(
        stack,
        "DataBucket",
        parameter_name=f"{parameter_name(base.environment)}/bucket",
        string_value=data.bucket_name,
        description="bucket of training data (data/) and checkpoints (checkpoints/)",
    )
    return parameter.string_value


def _keeps_accounts(chosen: MoeTrainingSettings) -> bool:
    """Tell whether the controller keeps Slurm's accounts in a MariaDB; this machine has none."""
    return chosen.orchestrator == "slurm" and chosen.accounting is None and chosen.python != HOST


def _wheels(stack: Stack, chosen: MoeTrainingSettings, base: Base) -> dict[str, str]:
    engine = engine_of(chosen)
    if engine is None:
        return {}
    path = wheelhouse("moe", chosen.python, engine, base.wheelhouses, TRAIN)
    return _asset("wheelhouse", base, ZipAsset(stack, "Wheelhouse", path=path))


def _group(name: str, group: GroupSettings) -> dict[str, Any]:
    return {
        "role": group.role,
        "partition": group.partition or name,
        "devices": group.devices,
        "ranks": group.ranks,
        "count": group.count,
    }


def _asset(name: str, base: Base, asset: ZipAsset) -> dict[str, str]:
    # The asset's own url has tokens; all assets of this stack are in the lifecycle bucket.
    return {
        name: f"s3://{base.lifecycle_bucket}/{asset.object_key}",
        f"{name}_sha256": asset.sha256,
    }
