"""Examples for the rules about HyperPod clusters and what they stand on."""

from typing import Any

from config import hyperpod_instance_types
from constructs_lib.rules import cluster_types

TYPES = cluster_types.rule(hyperpod_instance_types())
OWN = {"Fn::GetAtt": ["Nodes", "GroupId"]}
ROOT = {"EbsVolumeConfig": {"RootVolume": True, "VolumeKmsKeyId": "arn"}}
SECOND = {"EbsVolumeConfig": {"VolumeSizeInGB": 100, "VolumeKmsKeyId": "arn"}}
LOGS = [
    {"Type": each} for each in ("api", "audit", "authenticator", "controllerManager", "scheduler")
]


def cluster(*groups: dict[str, Any], network: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {"InstanceGroups": list(groups), "VpcConfig": network or {}}
    return {"X": {"Type": "AWS::SageMaker::Cluster", "Properties": properties}}


def disks(*volumes: dict[str, Any]) -> dict[str, Any]:
    return cluster({"InstanceStorageConfigs": list(volumes)})


def scripts(*parts: str) -> dict[str, Any]:
    uri = parts[0] if len(parts) == 1 else {"Fn::Join": ["", list(parts)]}
    return cluster({"LifeCycleConfig": {"SourceS3Uri": uri, "OnCreate": "on_create.sh"}})


def rule_of(kind: str, other: str, protocol: str = "-1") -> dict[str, Any]:
    properties = {"GroupId": OWN, other: OWN, "IpProtocol": protocol}
    return {"Type": f"AWS::EC2::SecurityGroup{kind}", "Properties": properties}


IN = {"In": rule_of("Ingress", "SourceSecurityGroupId")}
OUT = {"Out": rule_of("Egress", "DestinationSecurityGroupId")}
NODES = {"Nodes": {"Type": "AWS::EC2::SecurityGroup", "Properties": {}}}
ATTACHED = cluster(network={"SecurityGroupIds": [OWN]})
ELSEWHERE = cluster({"OverrideVpcConfig": {"SecurityGroupIds": [OWN]}})


def control_plane(**changes: Any) -> dict[str, Any]:
    properties = {
        "ResourcesVpcConfig": {"EndpointPublicAccess": False},
        "EncryptionConfig": [{"Resources": ["secrets"]}],
        "AccessConfig": {"AuthenticationMode": "API"},
        "Logging": {"ClusterLogging": {"EnabledTypes": LOGS}},
    }
    return {"X": {"Type": "AWS::EKS::Cluster", "Properties": {**properties, **changes}}}


def lustre(**properties: Any) -> dict[str, Any]:
    return {"X": {"Type": "AWS::FSx::FileSystem", "Properties": properties}}


KEEPS = {
    "ClusterScripts": [
        scripts("s3://sagemaker-ours/lifecycle"),
        scripts("s3://sagemaker-", "ours/lifecycle"),
        cluster({}),  # HyperPod's own software, without scripts
    ],
    "ClusterTypes": [
        cluster({"InstanceType": "ml.p5e.48xlarge"}, {"InstanceType": "ml.trn2.48xlarge"}),
        cluster({"InstanceType": "ml.p6e-gb200.36xlarge"}, {"InstanceType": "ml.r7i.large"}),
    ],
    "ClusterVolumes": [disks(ROOT), disks(ROOT, SECOND), lustre(KmsKeyId="arn")],
    "ControlPlane": [control_plane()],
    "EfaGroups": [{**ATTACHED, **NODES, **IN, **OUT}, {**ELSEWHERE, **NODES, **IN, **OUT}],
}

BREAKS = {
    "ClusterScripts": [
        scripts("s3://cdk-hnb659fds-assets-111122223333-us-east-1/lifecycle"),
        cluster({"LifeCycleConfig": {"OnCreate": "on_create.sh"}}),
    ],
    "ClusterTypes": [
        cluster({"InstanceType": "ml.inf2.48xlarge"}),
        cluster({"InstanceType": "ml.p5e.48xlarge"}, {"InstanceType": "ml.c7i.large"}),
    ],
    "ClusterVolumes": [
        disks(),
        disks(SECOND),  # the system's disk has AWS's key
        disks(ROOT, {"EbsVolumeConfig": {"VolumeSizeInGB": 100}}),
        lustre(StorageCapacity=1200),
    ],
    "ControlPlane": [
        control_plane(ResourcesVpcConfig={}),  # public, unless told otherwise
        control_plane(EncryptionConfig=[]),
        control_plane(AccessConfig={"AuthenticationMode": "API_AND_CONFIG_MAP"}),
        control_plane(Logging={"ClusterLogging": {"EnabledTypes": LOGS[:4]}}),
    ],
    "EfaGroups": [
        {**ATTACHED, **NODES, **IN},
        {**ATTACHED, **NODES, **OUT},
        {**ELSEWHERE, **NODES, **IN},
        {**ATTACHED, **NODES, **OUT, "In": rule_of("Ingress", "SourceSecurityGroupId", "tcp")},
        cluster(network={"SecurityGroupIds": [{"Fn::ImportValue": "somebody-elses"}]}),
    ],
}
