"""What nodes start with: scripts where HyperPod finds them, what these are told, what they may."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cdk_app import ROOT, json_of, literal, new_app, only, resources

from config import EnvironmentConfig  # isort: skip
from stacks.stage import ToolkitStage  # isort: skip
from tests.stacks.conftest import ENVIRONMENT, MOE  # isort: skip
from tests.stacks.test_moe_training import CLUSTER, SECRET  # isort: skip
from tests.stacks.test_moe_training_eks import settings as on_eks  # isort: skip
from tests.stacks.test_node_calls import calls, made_by_scripts, operations  # isort: skip

SCRIPTS = ROOT / "model_code" / "moe" / "lifecycle"
BUCKET = "sagemaker-test-111122223333-us-east-1"
# HyperPod's own calls with the role of its nodes: AmazonSageMakerClusterInstanceRolePolicy, and
# what its documentation adds for a VPC, for disks under a key of ours, and for pods.
SERVICE = {
    "cloudwatch:PutMetricData", "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission", "ec2:CreateTags", "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
    "ec2:DescribeVpcs", "ec2:DetachNetworkInterface", "kms:CreateGrant", "kms:DescribeKey",
    "logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents",
    "s3:GetObject", "s3:ListBucket", "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}  # fmt: skip
PODS = {
    "ec2:AssignPrivateIpAddresses", "ec2:AttachNetworkInterface", "ec2:DescribeInstanceTypes",
    "ec2:DescribeInstances", "ec2:DescribeTags", "ec2:ModifyNetworkInterfaceAttribute",
    "ec2:UnassignPrivateIpAddresses", "ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage",
    "ecr:GetAuthorizationToken", "ecr:GetDownloadUrlForLayer", "eks-auth:AssumeRoleForPodIdentity",
}  # fmt: skip
# Reading what is under a key of ours.
BEYOND = {"kms:Decrypt"}
TRAINER = ROOT / "model_code" / "moe" / "train"
# For runs that a person starts elsewhere with --data s3://...: on a cluster data are in a folder.
NOT_ON_NODES = {"data_s3.py"}


class Assembly:
    """One synthesized stack, with what the CLI would publish for it."""

    def __init__(self, wheels: Path, training: dict[str, Any] | None = None) -> None:
        on = {"moe": {**MOE, "training": {**MOE["training"], **(training or {})}}}
        environment = EnvironmentConfig(**{**ENVIRONMENT, "innovations": on})
        app = new_app()
        stage = ToolkitStage(app, environment, wheelhouses=wheels)
        stack = stage.node.find_child("moe-training")
        self.template = json_of(stack)
        folder = Path(app.synth().directory) / f"assembly-{environment.name}"
        [manifest] = [path for path in folder.glob("*.assets.json") if "moetraining" in path.name]
        files = json.loads(manifest.read_text())["files"].values()
        #: What is published, by bucket and key; the content's path.
        self.published: dict[tuple[str, str], Path] = {
            (to["bucketName"], to["objectKey"]): folder / file["source"]["path"]
            for file in files
            for to in file["destinations"].values()
        }

    @property
    def prefix(self) -> str:
        """Where HyperPod is told to look."""
        groups = only(self.template, CLUSTER)["InstanceGroups"]
        [uri] = {each["LifeCycleConfig"]["SourceS3Uri"] for each in groups}
        return str(uri)

    def scripts(self) -> dict[str, str]:
        """Return what lies below the prefix, by name."""
        bucket, _, folder = self.prefix.removeprefix("s3://").partition("/")
        return {
            key.removeprefix(f"{folder}/"): path.read_text()
            for (where, key), path in self.published.items()
            if where == bucket and key.startswith(f"{folder}/")
        }

    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts()["settings.json"]))

    def actions(self) -> set[str]:
        [role] = [
            each["Properties"]
            for name, each in resources(self.template, "AWS::IAM::Role").items()
            if name.startswith("Role")
        ]
        [policy] = role["Policies"]
        found = [each["Action"] for each in policy["PolicyDocument"]["Statement"]]
        return {name for one in found for name in ([one] if isinstance(one, str) else one)}


def made_by_trainer() -> set[str]:
    """Return the calls of the trainer's files, each of the services whose clients the file has."""
    known, found = operations(), set()
    for path in TRAINER.rglob("*.py"):
        services = set(re.findall(r"""\bclient\(\s*["'](\w+)["']""", path.read_text()))
        if services and path.name not in NOT_ON_NODES:
            made = {action for name in calls(path) for action in known.get(name, [])}
            found |= {action for action in made if action.partition(":")[0] in services}
    return found


def parameter_of(template: dict[str, Any]) -> dict[str, Any]:
    """Return the parameter that the scripts read."""
    [found] = [
        each["Properties"]
        for each in resources(template, "AWS::SSM::Parameter").values()
        if each["Properties"]["Name"].endswith("/training")
    ]
    return dict(found)


@pytest.fixture(scope="module")
def assembly(wheels):
    return Assembly(wheels)


def test_everything_is_published_to_the_bucket_that_hyperpod_reads(assembly):
    assert {bucket for bucket, _ in assembly.published} == {BUCKET}
    assert assembly.prefix.startswith(f"s3://{BUCKET}/lifecycle/")


def test_every_script_lies_unpacked_below_the_prefix(assembly):
    ours = {path.name: path.read_text() for path in SCRIPTS.glob("*.sh")}
    found = assembly.scripts()
    assert {name: text for name, text in found.items() if name != "settings.json"} == ours
    assert "on_create.sh" in ours


def test_every_file_that_a_script_mentions_is_there(assembly):
    found = assembly.scripts()
    mentioned = {
        name
        for text in found.values()
        for name in re.findall(r"\b[a-z][a-z_]*\.(?:sh|json)\b", text)
        if (SCRIPTS / name).exists() or name == "settings.json"
    }
    called = set(re.findall(r"\bphase [\w-]+ (\w+\.sh)", found["on_create.sh"]))
    assert called
    assert called | mentioned <= set(found)


def test_the_entry_is_the_script_that_groups_name(assembly):
    for each in only(assembly.template, CLUSTER)["InstanceGroups"]:
        assert each["LifeCycleConfig"]["OnCreate"] == "on_create.sh"


def test_another_setting_makes_another_prefix(wheels, assembly):
    other = Assembly(wheels, {"expert_parallel": 1})
    assert other.prefix != assembly.prefix


def test_scripts_are_told_what_synthesis_knows(assembly):
    told = assembly.told()
    assert told["cluster"] == only(assembly.template, CLUSTER)["ClusterName"]
    assert (told["region"], told["orchestrator"], told["accounting"]) == ("us-east-1", "slurm", 1)
    assert (told["python"], told["user"], told["mlflow"]) == ("python3.11", "ubuntu", None)
    assert told["groups"]["workers"] == {
        "role": "workers", "partition": "workers", "devices": 1, "ranks": 1, "count": 2,
    }  # fmt: skip
    for name in ("code", "wheelhouse"):
        bucket, _, key = told[name].removeprefix("s3://").partition("/")
        assert (bucket, key) in assembly.published


def test_python_and_mlflow_reach_the_scripts(wheels):
    given = {"python": "3.11", "mlflow": "https://mlflow.internal:5000"}
    told = Assembly(wheels, given).told()
    assert (told["python"], told["mlflow"]) == ("python3.11", given["mlflow"])


def test_an_accounting_database_leaves_none_to_the_scripts(wheels):
    database = {"endpoint": "db.internal", "secret_arn": SECRET}
    found = Assembly(wheels, {"accounting": database, "continuous": True})
    assert found.told()["accounting"] == 0
    assert "secretsmanager:GetSecretValue" in found.actions()


def test_the_parameter_has_what_a_deployment_makes(assembly):
    parameter = parameter_of(assembly.template)
    assert parameter["Name"] == assembly.told()["parameter"] == "/isomorph/test/moe/training"
    text = literal(parameter["Value"])
    assert '"data_bucket":"{test-foundation-TrainingBucket}"' in text
    for name in ("log_group", "dns_name", "mount_name", '"mount_path":"/fsx"'):
        assert name in text


def test_commands_find_data_and_checkpoints_without_asking_the_foundation(assembly):
    outputs = assembly.template["Outputs"]
    for name, prefix in (("DataUrl", "data"), ("CheckpointUrl", "checkpoints")):
        url = outputs[name]["Value"]
        assert "Fn::ImportValue" not in str(url)
        assert literal(url).startswith("s3://")
        assert literal(url).endswith(f"/{prefix}/")


def test_no_secret_is_in_scripts_or_parameter(wheels):
    database = {"endpoint": "db.internal", "secret_arn": SECRET}
    found = Assembly(wheels, {"accounting": database, "continuous": True})
    assert SECRET not in "".join(found.scripts().values())
    assert "secret" not in literal(parameter_of(found.template)["Value"])


def test_the_role_may_do_what_scripts_and_hyperpod_call_and_nothing_else(assembly):
    scripts = [text for name, text in assembly.scripts().items() if name.endswith(".sh")]
    made = made_by_scripts(*scripts)
    assert made >= {"ssm:GetParameter", "s3:GetObject", "logs:PutLogEvents"}
    assert made_by_trainer() == {"cloudwatch:PutMetricData"}
    assert assembly.actions() == made | SERVICE | BEYOND | made_by_trainer()


def test_on_nodes_the_trainer_has_its_data_in_a_folder_and_takes_no_others():
    for name in ("ranks.sh", "pod.sh"):
        assert re.search(r'--data "\$(SHARED|DATA)', (SCRIPTS / name).read_text())
    assert 'DATA="$ISOMORPH_SHARED/data/' in (SCRIPTS / "pod.sh").read_text()


def test_the_scan_finds_a_call_that_a_script_gets_besides(assembly):
    # A scan that cannot find one would make the comparison true of any role.
    more = made_by_scripts("if ! aws ec2 describe-tags --filters Name=key,Values=x; then :; fi")
    assert more == {"ec2:DescribeTags"}
    assert not more & assembly.actions()


def test_pods_may_do_what_their_manifest_and_the_trainer_call_and_nothing_else(wheels):
    from isomorph.training import manifests

    container = set(re.findall(r"\.(get_object|put_object|list_objects_v2)\(", manifests._SCRIPT))
    assert container == {"get_object"}
    [role] = [
        each["Properties"]
        for name, each in resources(Assembly(wheels, on_eks()).template, "AWS::IAM::Role").items()
        if name.startswith("RunRole")
    ]
    [policy] = role["Policies"]
    actions = {each["Action"] for each in policy["PolicyDocument"]["Statement"]}
    assert actions == {"s3:GetObject"} | BEYOND | made_by_trainer()


def test_on_eks_the_role_may_serve_pods_besides(wheels, assembly):
    assert Assembly(wheels, on_eks()).actions() - assembly.actions() == PODS


def test_the_role_is_limited_to_this_clusters_things(assembly):
    [role] = [
        each["Properties"]
        for name, each in resources(assembly.template, "AWS::IAM::Role").items()
        if name.startswith("Role")
    ]
    name = only(assembly.template, CLUSTER)["ClusterName"]
    everywhere = set()
    for each in role["Policies"][0]["PolicyDocument"]["Statement"]:
        actions = [each["Action"]] if isinstance(each["Action"], str) else each["Action"]
        where = literal(each["Resource"]) if not isinstance(each["Resource"], list) else ""
        if each["Resource"] == "*":
            everywhere |= set(actions)
        if "logs:CreateLogGroup" in actions:
            assert where.endswith(f"log-group:/aws/sagemaker/Clusters/{name}/*")
        if "s3:GetObject" in actions:
            assert where == f"arn:aws:s3:::{BUCKET}/*"
        if "cloudwatch:PutMetricData" in actions:
            namespaces = each["Condition"]["StringEquals"]["cloudwatch:namespace"]
            assert set(namespaces) == {"Isomorph/moe-training", "/aws/sagemaker/Clusters"}
    assert not {each for each in everywhere if "Describe" not in each} - {
        "cloudwatch:PutMetricData", "ec2:DetachNetworkInterface",
        *(each for each in SERVICE if each.startswith("ssmmessages:")),
    }  # fmt: skip
