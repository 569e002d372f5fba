"""A training cluster on EKS: control plane, add-ons, access, teams, and the order of all that."""

from typing import Any

import pytest
from botocore.loaders import Loader

from tests.cdk_app import literal, only, resources

from stacks.moe_training_parts import EksSettings, GovernanceSettings, TeamSettings  # isort: skip
from tests.stacks.together import Together  # isort: skip
from tests.stacks.test_moe_training import CLUSTER, group, output  # isort: skip

EKS, ADDON, QUOTA = "AWS::EKS::Cluster", "AWS::EKS::Addon", "AWS::SageMaker::ComputeQuota"
ENTRY, ROLE = "AWS::EKS::AccessEntry", "AWS::IAM::Role"
SCHEDULER = "AWS::SageMaker::ClusterSchedulerConfig"
ADMIN = "arn:aws:iam::111122223333:role/platform"
MEMBER = "arn:aws:iam::111122223333:role/research"
TEAM: dict[str, Any] = {"nodes": 1, "members": [MEMBER]}
WORKERS = {"role": "workers", "instance_type": "ml.r7i.2xlarge", "count": 4}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "orchestrator": "eks",
        "groups": {"workers": {**WORKERS, **changes.pop("workers", {})}},
        "eks": {"admins": [ADMIN], "chart": "abcdef0", **changes.pop("eks", {})},
        **changes,
    }


def governed(team: dict[str, Any] | None = None, **governance: Any) -> dict[str, Any]:
    teams = {"research": {**TEAM, **(team or {})}, "serving": {"nodes": 1}}
    return settings(governance={"teams": teams, **governance})


def scheduler(name: str) -> Any:
    return lambda found: only(found, SCHEDULER)["SchedulerConfig"][name]


def quota(found: dict, team: str = "research") -> dict[str, Any]:
    [one] = [
        each["Properties"]
        for each in resources(found, QUOTA).values()
        if each["Properties"]["ComputeQuotaTarget"]["TeamName"] == team
    ]
    return dict(one)


def sharing(found: dict) -> dict[str, Any]:
    return dict(quota(found)["ComputeQuotaConfig"]["ResourceSharingConfig"])


def entries(found: dict) -> dict[str, Any]:
    listed = [each["Properties"] for each in resources(found, ENTRY).values()]
    by_role = {each["PrincipalArn"]: each for each in listed}
    assert len(by_role) == len(listed)  # EKS takes one entry of a role
    return by_role


def groups(found: dict, principal: str = MEMBER) -> list[str]:
    entry = entries(found)[principal]
    assert "AccessPolicies" not in entry
    return list(entry["KubernetesGroups"])


def addons(found: dict) -> dict[str, dict[str, Any]]:
    return {each["Properties"]["AddonName"]: each for each in resources(found, ADDON).values()}


TRACE: dict[str, tuple[Any, Any, Any]] = {
    "eks.version": (settings(eks={"version": "1.33"}),
                    lambda found: only(found, EKS)["Version"], "1.33"),
    "eks.admins": (settings(),
                   lambda found: entries(found)[ADMIN]["AccessPolicies"][0]["AccessScope"],
                   {"Type": "cluster"}),
    "eks.members": (settings(eks={"members": [MEMBER]}), groups, ["isomorph:isomorph"]),
    "eks.chart": (settings(eks={"chart": "1234567"}), output("Chart"),
                  "chart 1234567 is installed"),
    "governance.priorities": (governed(priorities={"urgent": 99}), scheduler("PriorityClasses"),
                              [{"Name": "urgent", "Weight": 99}]),
    "governance.fair_share": (governed(fair_share=False), scheduler("FairShare"), "Disabled"),
    "governance.idle_sharing": (governed(idle_sharing=True), scheduler("IdleResourceSharing"),
                                "Enabled"),
    "governance.topology": (governed(topology="topology.k8s.aws/network-node-layer-3"),
                            output("Topology"), "topology.k8s.aws/network-node-layer-3"),
    "governance.teams": (governed(), lambda found: len(resources(found, QUOTA)), 2),
    "team.nodes": (governed({"nodes": 3}),
                   lambda found: quota(found)["ComputeQuotaConfig"]["ComputeQuotaResources"],
                   [{"InstanceType": "ml.r7i.2xlarge", "Count": 3}]),
    "team.weight": (governed({"weight": 40}),
                    lambda found: quota(found)["ComputeQuotaTarget"]["FairShareWeight"], 40),
    "team.sharing": (governed({"sharing": "Lend"}), sharing, {"Strategy": "Lend"}),
    "team.borrow_percent": (governed({"borrow_percent": 120}), sharing,
                            {"Strategy": "LendAndBorrow", "BorrowLimit": 120}),
    "team.preempt": (governed({"preempt": False}),
                     lambda found: quota(found)["ComputeQuotaConfig"]["PreemptTeamTasks"], "Never"),
    "team.members": (governed(), groups, ["isomorph:hyperpod-ns-research"]),
    "checkpoint_memory_percent": (
        settings(checkpoint_memory_percent=30),
        lambda found: only(found, CLUSTER)["TieredStorageConfig"],
        {"Mode": "Enable", "InstanceMemoryAllocationPercentage": 30}),
    "labels": (settings(workers={"labels": {"rack": "one"}}), group("KubernetesConfig"),
               {"Labels": {"rack": "one"}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(synthesize_training):
    return synthesize_training(governed())


def test_every_setting_of_eks_is_followed():
    models = {"eks": EksSettings, "governance": GovernanceSettings, "team": TeamSettings}
    own = {f"{name}.{field}" for name, model in models.items() for field in model.model_fields}
    assert own == set(TRACE) - {"checkpoint_memory_percent", "labels"}
    for model in models.values():
        assert all(field.description for field in model.model_fields.values())


@pytest.fixture(scope="module")
def rows(synthesize_training):
    given = {name: given for name, (given, _, _) in TRACE.items()}
    return Together(
        given,
        synthesize_training,
        apart=("team.sharing",),
        kind=lambda given: "governance" in given,
    )


@pytest.mark.parametrize("name", TRACE)
def test_setting_reaches_the_template(rows, name):
    _, read, expected = TRACE[name]
    assert read(rows[name]) == expected


def test_the_control_plane_is_private_and_shares_the_nodes_group(plain):
    network = only(plain, EKS)["ResourcesVpcConfig"]
    assert (network["EndpointPrivateAccess"], network["EndpointPublicAccess"]) == (True, False)
    assert network["SecurityGroupIds"] == only(plain, CLUSTER)["VpcConfig"]["SecurityGroupIds"]
    assert only(plain, EKS)["AccessConfig"]["AuthenticationMode"] == "API"
    assert only(plain, EKS)["AccessConfig"]["BootstrapClusterCreatorAdminPermissions"] is False


def test_eks_has_no_nodes_of_its_own_and_no_custom_resource(plain):
    types = {each["Type"] for each in plain["Resources"].values()}
    assert not [each for each in types if each.startswith("Custom::") or "Nodegroup" in each]
    assert "AWS::Lambda::Function" not in types


def test_its_log_group_has_our_key_and_an_end(plain):
    name = output("ClusterName")(plain)
    [group] = [
        each["Properties"]
        for each in resources(plain, "AWS::Logs::LogGroup").values()
        if each["Properties"].get("LogGroupName") == f"/aws/eks/{name}/cluster"
    ]
    assert group["RetentionInDays"] == 90
    assert "KmsKeyId" in group


def test_nodes_come_after_the_network_and_operators_after_nodes(plain):
    found = addons(plain)
    [cluster] = resources(plain, CLUSTER)
    waits = plain["Resources"][cluster]["DependsOn"]
    for name in ("vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent"):
        [logical_id] = [key for key, each in plain["Resources"].items() if each is found[name]]
        assert logical_id in waits
    later = set(found) - {"vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent"}
    assert later == {
        "aws-fsx-csi-driver", "cert-manager", "amazon-sagemaker-hyperpod-training-operator",
        "amazon-sagemaker-hyperpod-taskgovernance",
    }  # fmt: skip
    for name in later:
        assert cluster in found[name]["DependsOn"]


def test_a_role_has_one_entry_with_the_groups_of_all_its_namespaces(synthesize_training):
    found = synthesize_training(governed() | {"eks": {**settings()["eks"], "members": [MEMBER]}})
    own = ["isomorph:hyperpod-ns-research", "isomorph:hyperpod-ns-serving"]
    assert groups(found) == own
    admin = synthesize_training(governed({"members": [ADMIN]}))
    assert list(entries(admin)) == [ADMIN]
    assert "KubernetesGroups" not in entries(admin)[ADMIN]


def test_quotas_come_after_the_scheduler_and_that_after_its_addon(plain):
    [scheduler_id] = resources(plain, SCHEDULER)
    for each in resources(plain, QUOTA).values():
        assert each["DependsOn"] == [scheduler_id]
    [addon] = plain["Resources"][scheduler_id]["DependsOn"]
    assert plain["Resources"][addon]["Properties"]["AddonName"].endswith("taskgovernance")


@pytest.fixture(scope="module")
def whole(synthesize_training):
    """With every property that a group can have on EKS."""
    workers = {
        "instance_type": "ml.p5.48xlarge", "count": 2, "min_count": 1, "capacity": "spot",
        "interface": "efa-only", "deep_health_checks": ["InstanceStress"], "labels": {"a": "b"},
        "threads_per_core": 1, "zone": "us-east-1b",
    }  # fmt: skip
    more = {"continuous": True, "checkpoint_memory_percent": 30}
    teams = {"teams": {"research": TEAM, "serving": {"nodes": 1}}}
    return synthesize_training(settings(governance=teams, workers=workers, **more))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (CLUSTER, "CreateClusterRequest"),
        (QUOTA, "CreateComputeQuotaRequest"),
        (SCHEDULER, "CreateClusterSchedulerConfigRequest"),
    ],
)
def test_what_is_asked_for_is_what_sagemakers_api_takes(whole, kind, shape):
    shapes = Loader().load_service_model("sagemaker", "service-2")["shapes"]

    def check(value: Any, name: str) -> None:
        known = shapes[name]
        if known["type"] == "structure":
            assert set(known.get("required", [])) <= set(value)
            for key, inner in value.items():
                check(inner, known["members"][key]["shape"])
        elif known["type"] == "list":
            for inner in value:
                check(inner, known["member"]["shape"])
        elif "enum" in known:
            assert value in known["enum"]
        elif known["type"] == "integer":
            assert known.get("min", value) <= value <= known.get("max", value)

    for each in resources(whole, kind).values():
        given = {key: value for key, value in each["Properties"].items() if key != "Tags"}
        check(given, shape)


def test_pods_of_each_team_act_as_a_role_that_fetches_code_and_publishes(plain):
    found = [
        each["Properties"] for each in resources(plain, "AWS::EKS::PodIdentityAssociation").values()
    ]
    assert {each["Namespace"] for each in found} == {"hyperpod-ns-research", "hyperpod-ns-serving"}
    assert {each["ServiceAccount"] for each in found} == {"isomorph"}
    [role] = {str(each["RoleArn"]) for each in found}
    [properties] = [
        each["Properties"] for name, each in resources(plain, ROLE).items() if name in role
    ]
    trust = properties["AssumeRolePolicyDocument"]["Statement"][0]
    assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
    assert set(trust["Action"]) == {"sts:AssumeRole", "sts:TagSession"}
    [policy] = properties["Policies"]
    actions = {each["Action"] for each in policy["PolicyDocument"]["Statement"]}
    assert actions == {"s3:GetObject", "kms:Decrypt", "cloudwatch:PutMetricData"}


def test_commands_are_told_where_and_how_to_submit(plain):
    read = {name: output(name)(plain) for name in ("Namespace", "Queue", "PriorityClass", "Teams")}
    assert read == {
        "Teams": "research,serving",
        "Namespace": "hyperpod-ns-research",
        "Queue": "hyperpod-ns-research-localqueue",
        "PriorityClass": "training-priority",
    }
    assert literal(output("ControllerGroup")(plain)) == "none"


def test_without_the_chart_there_is_a_control_plane_and_no_node(synthesize_training):
    template = synthesize_training(settings(eks={"chart": None}))
    assert resources(template, CLUSTER) == {}
    assert len(resources(template, EKS)) == 1
    assert set(addons(template)) == {"vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent"}
    assert "helm install" in output("Chart")(template)
    assert "isomorph access moe --env test" in output("Chart")(template)
    assert output("ClusterArn")(template) == "none yet: see Chart"


def test_groups_on_eks_have_neither_slurm_nor_a_mount(plain):
    assert group("SlurmConfig")(plain) is None
    assert not [
        each for each in group("InstanceStorageConfigs")(plain) if "FsxLustreConfig" in each
    ]


def test_the_pods_addresses_and_images_are_the_nodes_business(plain):
    [role] = [name for name in resources(plain, ROLE) if name.startswith("Role")]
    [policy] = plain["Resources"][role]["Properties"]["Policies"]
    actions = {
        action
        for each in policy["PolicyDocument"]["Statement"]
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    }
    assert {"ec2:AssignPrivateIpAddresses", "ecr:BatchGetImage",
            "eks-auth:AssumeRoleForPodIdentity"} <= actions  # fmt: skip
