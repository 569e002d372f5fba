"""Settings of moe.training, and the cluster, file system and alarms that they make."""

from typing import Any

import pytest

from tests.cdk_app import literal, only, resources

from stacks.moe_training_groups import GroupSettings, PlanSettings  # isort: skip
from stacks.moe_training_parts import AccountingSettings, AlarmSettings, LustreSettings  # isort: skip
from stacks.moe_training_settings import MoeTrainingSettings  # isort: skip
from tests.stacks.conftest import MOE_GROUPS  # isort: skip
from tests.stacks.together import Together  # isort: skip

CLUSTER, SYSTEM = "AWS::SageMaker::Cluster", "AWS::FSx::FileSystem"
PLAN = "arn:aws:sagemaker:us-east-1:111122223333:training-plan/p5e-in-december"
SECRET = "arn:aws:secretsmanager:us-east-1:111122223333:secret:slurm-AbCdEf"
TWO = 16  # ranks of two nodes with eight accelerators


def cluster(name: str) -> Any:
    return lambda found: only(found, CLUSTER)[name]


def group(key: str, name: str = "workers") -> Any:
    def read(template: dict) -> Any:
        groups = only(template, CLUSTER)["InstanceGroups"]
        [found] = [each for each in groups if each["InstanceGroupName"] == name]
        return found.get(key)

    return read


def alarm(name: str, key: str = "Threshold") -> Any:
    def read(template: dict) -> Any:
        alarms = resources(template, "AWS::CloudWatch::Alarm").items()
        [found] = [each for logical_id, each in alarms if logical_id.startswith(f"Watch{name}")]
        return found["Properties"][key]

    return read


def output(name: str) -> Any:
    return lambda found: found["Outputs"][name]["Value"]


def volumes(template: dict) -> list[dict[str, Any]]:
    configs = group("InstanceStorageConfigs")(template)
    return [each["EbsVolumeConfig"] for each in configs if "EbsVolumeConfig" in each]


def slurm(found: dict) -> dict[str, Any]:
    return dict(only(found, CLUSTER)["Orchestrator"]["Slurm"])


def database(name: str) -> Any:
    return lambda found: slurm(found)["AccountingDatabase"][name]


def changed(**settings: Any) -> dict[str, Any]:
    """Return groups whose workers have other settings."""
    return {"groups": {**MOE_GROUPS, "workers": {**MOE_GROUPS["workers"], **settings}}}


P5E = {"instance_type": "ml.p5e.48xlarge", "plan": {"arn": PLAN, "zone": "us-east-1a"}}
DATABASE = {"endpoint": "db.internal", "secret_arn": SECRET}
ACCOUNTED = {"accounting": DATABASE, "continuous": True}

# Of a cluster with Slurm; what EKS has is in test_moe_training_eks.py.
TRACE: dict[str, tuple[Any, Any, Any]] = {
    "orchestrator": ({"orchestrator": "slurm"}, lambda found: "Slurm" in only(
        found, CLUSTER)["Orchestrator"], True),
    "architecture": ({"architecture": "deepseek-v3", **changed(processes_per_node=128)},
                     output("ExpertParallel"), "256"),
    "expert_parallel": ({"expert_parallel": 2, **changed(count=4)}, output("ExpertParallel"), "2"),
    "zone": ({"zone": "us-east-1c"}, lambda found: literal(only(found, CLUSTER)["VpcConfig"][
        "Subnets"][0]), "{test-foundation-PrivateSubnet3}"),
    "accounting": (ACCOUNTED, database("Endpoint"), "db.internal"),
    "node_recovery": ({"node_recovery": False}, cluster("NodeRecovery"), "None"),
    "continuous": ({"continuous": True}, cluster("NodeProvisioningMode"), "Continuous"),
    "budget_usd": ({"budget_usd": 1234}, lambda found: only(
        found, "AWS::Budgets::Budget")["Budget"]["BudgetLimit"]["Amount"], 1234),
}  # fmt: skip
GROUP_TRACE: dict[str, tuple[Any, Any, Any]] = {
    "role": ({"role": "workers"}, group("SlurmConfig"),
             {"NodeType": "Compute", "PartitionNames": ["workers"]}),
    "instance_type": ({"instance_type": "ml.m7i.large", "processes_per_node": 1},
                      group("InstanceType"), "ml.m7i.large"),
    "count": ({"count": 4}, group("InstanceCount"), 4),
    "min_count": ({"count": 4, "min_count": 2}, group("MinInstanceCount"), 2),
    "processes_per_node": ({"processes_per_node": 4}, output("RanksPerNode"), "4"),
    "volume_gib": ({"volume_gib": 321}, lambda found: volumes(found)[1]["VolumeSizeInGB"], 321),
    "zone": ({"zone": "us-east-1b"}, lambda found: literal(group("OverrideVpcConfig")(found)[
        "Subnets"][0]), "{test-foundation-PrivateSubnet2}"),
    "plan": (P5E, group("TrainingPlanArn"), PLAN),
    "capacity": ({"capacity": "on_demand"}, group("CapacityRequirements"), {"OnDemand": {}}),
    "interface": ({**P5E, "interface": "efa-only"}, group("NetworkInterface"),
                  {"InterfaceType": "efa-only"}),
    "partition": ({"partition": "large"}, lambda found: group("SlurmConfig")(found)[
        "PartitionNames"], ["large"]),
    "deep_health_checks": ({**P5E, "deep_health_checks": ["InstanceStress"]},
                           group("OnStartDeepHealthChecks"), ["InstanceStress"]),
    "threads_per_core": ({"threads_per_core": 1}, group("ThreadsPerCore"), 1),
}  # fmt: skip
SECTIONS: dict[str, tuple[Any, Any, Any]] = {
    "lustre.capacity_gib": ({"capacity_gib": 4800}, lambda found: only(found, SYSTEM)[
        "StorageCapacity"], 4800),
    "lustre.mb_s_per_tib": ({"mb_s_per_tib": 500}, lambda found: only(found, SYSTEM)[
        "LustreConfiguration"]["PerUnitStorageThroughput"], 500),
    "alarms.tokens_per_second": ({"tokens_per_second": 71}, alarm("Speed"), 71),
    "alarms.mfu_percent": ({"mfu_percent": 21}, alarm("Utilization"), 21),
    "alarms.expert_load": ({"expert_load": 2.5}, alarm("ExpertLoad"), 2.5),
    "alarms.gradient_norm": ({"gradient_norm": 7}, alarm("GradientNorm"), 7),
    "alarms.checkpoint_minutes": ({"checkpoint_minutes": 5}, alarm("CheckpointAge"), 300),
}  # fmt: skip
DATABASES: dict[str, tuple[Any, Any, Any]] = {
    "endpoint": ({}, database("Endpoint"), "db.internal"),
    "port": ({"port": 3307}, database("Port"), 3307),
    "name": ({"name": "jobs"}, database("Name"), "jobs"),
    "secret_arn": ({}, database("SecretArn"), SECRET),
}
# Told to the scripts (test_moe_training_scripts.py), or of EKS, or groups of settings themselves.
ELSEWHERE = {"python", "mlflow", "eks", "governance", "checkpoint_memory_percent"}
ITSELF = {"groups", "lustre", "alarms"}


@pytest.fixture(scope="module")
def plain(synthesize_training):
    return synthesize_training()


@pytest.fixture(scope="module")
def rows(synthesize_training):
    given = {name: given for name, (given, _, _) in TRACE.items()}
    return Together(given, synthesize_training, apart=("architecture",))


@pytest.fixture(scope="module")
def rows_of_a_group(synthesize_training):
    given = {name: changed(**given) for name, (given, _, _) in GROUP_TRACE.items()}
    return Together(
        given,
        synthesize_training,
        apart=("role",),
        # With a plan there is no capacity to buy.
        kind=lambda given: "plan" in given["groups"]["workers"],
    )


@pytest.fixture(scope="module")
def sections(synthesize_training):
    given = {name: {name.partition(".")[0]: given} for name, (given, _, _) in SECTIONS.items()}
    return Together(given, synthesize_training)


@pytest.fixture(scope="module")
def databases(synthesize_training):
    accounted = {"accounting": DATABASE, "continuous": True}
    given = {
        name: {**accounted, "accounting": {**DATABASE, **given}}
        for name, (given, _, _) in DATABASES.items()
    }
    return Together(given, synthesize_training)


def test_every_setting_is_followed():
    assert {*TRACE, *ELSEWHERE, *ITSELF} == set(MoeTrainingSettings.model_fields)
    assert {*GROUP_TRACE, "labels"} == set(GroupSettings.model_fields)
    assert set(DATABASES) == set(AccountingSettings.model_fields)
    assert set(SECTIONS) == {
        *(f"lustre.{name}" for name in LustreSettings.model_fields),
        *(f"alarms.{name}" for name in AlarmSettings.model_fields),
    }


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(rows, name):
    _, read, expected = TRACE[name]
    assert read(rows[name]) == expected


@pytest.mark.parametrize("name", GROUP_TRACE)
def test_setting_of_a_group_reaches_the_template(rows_of_a_group, name):
    _, read, expected = GROUP_TRACE[name]
    assert read(rows_of_a_group[name]) == expected


@pytest.mark.parametrize("name", SECTIONS)
def test_setting_of_a_section_reaches_the_template(sections, name):
    _, read, expected = SECTIONS[name]
    assert read(sections[name]) == expected


@pytest.mark.parametrize("name", DATABASES)
def test_setting_of_the_accounting_reaches_the_template(databases, name):
    _, read, expected = DATABASES[name]
    assert read(databases[name]) == expected


def test_every_setting_says_what_it_is():
    models = (MoeTrainingSettings, GroupSettings, PlanSettings, LustreSettings, AlarmSettings)
    for model in (*models, AccountingSettings):
        assert all(field.description for field in model.model_fields.values())


def test_a_section_without_training_makes_no_stack(wheels):
    from config import EnvironmentConfig, InnovationSettings
    from stacks.map_data import MOE
    from stacks.moe import MoeSettings

    settings = MoeSettings.model_construct(model="tiny-moe", training=None)
    assert not settings.wants("moe-training")
    assert InnovationSettings(model="tiny").wants("gqa")
    assert MOE.stacks_of({"model": "tiny-moe"}) == []
    assert MOE.stacks_of({"model": "tiny-moe", "training": {"groups": {}}}) == ["moe-training"]
    assert EnvironmentConfig


def test_commands_and_stages_agree_on_the_stacks_of_a_section():
    from stacks.registry import REGISTRY
    from stacks.settings import environments, selected

    for environment in environments():
        for innovation, settings in selected(environment):
            section = environment.innovations[innovation.slug]
            stacks = REGISTRY[innovation.slug].stacks
            wanted = [each for each in stacks if settings.wants(each)]
            assert innovation.stacks_of(section) == wanted


def test_one_cluster_has_groups_of_every_kind(synthesize_training):
    sold = {"ml.p5e.48xlarge": 2, "ml.p5en.48xlarge": 2, "ml.p6e-gb200.36xlarge": 4,
            "ml.trn2.48xlarge": 1}  # fmt: skip
    groups = {
        **{name: {"role": name, "instance_type": "ml.r7i.large"} for name in (
            "controller", "login", "data")},
        **{kind.split(".")[1]: {"role": "workers", "instance_type": kind, "count": count,
                                "plan": P5E["plan"], "interface": "efa-only"}
           for kind, count in sold.items()},
    }  # fmt: skip
    template = synthesize_training({"groups": groups})
    found = {each["InstanceType"]: each for each in only(template, CLUSTER)["InstanceGroups"]}
    assert len(only(template, CLUSTER)["InstanceGroups"]) == 7
    for kind, count in sold.items():
        each = found[kind]
        assert (each["InstanceCount"], each["TrainingPlanArn"]) == (count, PLAN)
        assert each["NetworkInterface"] == {"InterfaceType": "efa-only"}


def test_the_cluster_waits_for_what_its_nodes_need_from_the_first_second(plain):
    [found] = resources(plain, CLUSTER).values()
    waits = {plain["Resources"][name]["Type"] for name in found["DependsOn"]}
    assert {
        "AWS::SSM::Parameter",
        "AWS::FSx::FileSystem",
        "AWS::FSx::DataRepositoryAssociation",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::SecurityGroupEgress",
    } <= waits


def test_all_disks_are_under_our_key(plain):
    root, second = volumes(plain)
    assert root["RootVolume"] is True
    for volume in (root, second):
        assert volume["VolumeKmsKeyId"] == {"Fn::ImportValue": "test-foundation-VolumeKeyArn"}


def test_slurm_nodes_have_the_file_system_mounted_by_hyperpod(plain):
    for name in ("controller", "workers"):
        [mount] = [
            each["FsxLustreConfig"]
            for each in group("InstanceStorageConfigs", name)(plain)
            if "FsxLustreConfig" in each
        ]
        assert mount["MountPath"] == "/fsx"
        assert literal(mount["DnsName"]) != literal(mount["MountName"])


def test_data_comes_in_and_goes_out_and_checkpoints_only_go_out(plain):
    links = {
        each["Properties"]["FileSystemPath"]: each["Properties"]
        for each in resources(plain, "AWS::FSx::DataRepositoryAssociation").values()
    }
    bucket = "s3://{test-foundation-TrainingBucket}"
    assert literal(links["/data"]["DataRepositoryPath"]) == f"{bucket}/data/"
    assert set(links["/data"]["S3"]) == {"AutoImportPolicy", "AutoExportPolicy"}
    assert literal(links["/checkpoints"]["DataRepositoryPath"]) == f"{bucket}/checkpoints/"
    assert set(links["/checkpoints"]["S3"]) == {"AutoExportPolicy"}


def test_the_file_system_is_in_the_subnet_of_the_workers(synthesize_training):
    template = synthesize_training({"zone": "us-east-1b"})
    subnet = {"Fn::ImportValue": "test-foundation-PrivateSubnet2"}
    assert only(template, SYSTEM)["SubnetIds"] == [subnet]
    assert only(template, CLUSTER)["VpcConfig"]["Subnets"] == [subnet]


def test_lustre_has_its_ports_between_servers_and_nodes_and_no_others(plain):
    [servers] = [name for name in plain["Resources"] if name.startswith("StorageSecurityGroup")
                 and plain["Resources"][name]["Type"] == "AWS::EC2::SecurityGroup"]  # fmt: skip
    rules = resources(plain, "AWS::EC2::SecurityGroupIngress").values()
    ports = {
        (each["Properties"]["FromPort"], each["Properties"]["ToPort"])
        for each in rules
        if servers in str(each["Properties"]["GroupId"])
    }
    assert ports == {(988, 988), (1018, 1023)}


def test_nodes_reach_aws_by_endpoints_and_s3_alone(plain):
    rules = [
        each["Properties"] for each in resources(plain, "AWS::EC2::SecurityGroupEgress").values()
    ]
    assert not [each for each in rules if "CidrIp" in each]
    assert {each["DestinationPrefixListId"] for each in rules if "DestinationPrefixListId" in each}


def test_an_accounting_database_is_reached_in_the_vpc_and_its_login_by_an_endpoint(
    synthesize_training,
):
    template = synthesize_training({**ACCOUNTED, "accounting": {**DATABASE, "port": 3307}})
    [rule] = [
        each["Properties"]
        for each in resources(template, "AWS::EC2::SecurityGroupEgress").values()
        if each["Properties"].get("FromPort") == 3307
    ]
    assert (rule["CidrIp"], rule["ToPort"]) == ("10.0.0.0/16", 3307)
    endpoint = only(template, "AWS::EC2::VPCEndpoint")
    assert literal(endpoint["ServiceName"]).endswith("secretsmanager")


def test_another_orchestrator_or_zone_makes_another_name():
    given = {"groups": MOE_GROUPS}
    names = {
        MoeTrainingSettings.model_validate({**given, **more}).cluster_name("prod")
        for more in ({}, {"zone": "us-east-1b"}, {"orchestrator": "eks"})
    }
    assert len(names) == 3
    same = MoeTrainingSettings.model_validate({**given, "continuous": True})
    assert same.cluster_name("prod") in names


def test_metric_filters_count_findings_of_hyperpod_and_scripts_that_gave_up(plain):
    filters = [each["Properties"] for each in resources(plain, "AWS::Logs::MetricFilter").values()]
    theirs, ours = sorted(filters, key=lambda each: isinstance(each["LogGroupName"], dict)
                          and "Ref" in each["LogGroupName"])  # fmt: skip
    name = output("ClusterName")(plain)
    assert f"/aws/sagemaker/Clusters/{name}" in str(theirs["LogGroupName"])
    assert theirs["FilterPattern"] == '"HealthMonitoringAgentDetectionEvent"'
    assert ours["FilterPattern"] == '{ $.event = "phase" && $.state = "failed" }'
    watched = {
        each["Properties"].get("MetricName")
        for each in resources(plain, "AWS::CloudWatch::Alarm").values()
    }
    assert {each["MetricTransformations"][0]["MetricName"] for each in filters} <= watched


def test_alarms_look_at_what_a_run_publishes_for_this_cluster(plain):
    name = output("ClusterName")(plain)
    own = [
        each["Properties"]
        for each in resources(plain, "AWS::CloudWatch::Alarm").values()
        if "Dimensions" in each["Properties"]
    ]
    assert {each["MetricName"] for each in own} == {
        "ExpertLoadMaxOverMean", "GradientNorm", "NonFiniteSteps", "DroppedTokens", "CheckpointAge",
    }  # fmt: skip
    for each in own:
        assert each["Namespace"] == "Isomorph/moe-training"
        assert each["Dimensions"] == [{"Name": "Cluster", "Value": name}]
        assert each["TreatMissingData"] == "notBreaching"  # no run is no alarm


def test_the_budget_counts_the_services_of_the_cluster(synthesize_training):
    template = synthesize_training({"budget_usd": 100})
    budget = only(template, "AWS::Budgets::Budget")
    assert "Amazon SageMaker" in budget["Budget"]["CostFilters"]["Service"]
    assert "someone@example.com" in str(budget["NotificationsWithSubscribers"])


def test_without_a_budget_there_is_none(plain):
    assert resources(plain, "AWS::Budgets::Budget") == {}
