"""Control planes of EKS. cdk-nag knows the classes of another library version, and sees none."""

from collections.abc import Iterator

from constructs_lib.rules.rule import Breach, Rule, Template, resources

_LOGS = {"api", "audit", "authenticator", "controllerManager", "scheduler"}


def _check(template: Template) -> Iterator[Breach]:
    for logical_id, cluster in resources(template, "AWS::EKS::Cluster"):
        network = cluster.get("ResourcesVpcConfig", {})
        if network.get("EndpointPublicAccess") is not False:
            yield Breach(logical_id, "Properties.ResourcesVpcConfig.EndpointPublicAccess")
        if not cluster.get("EncryptionConfig"):
            yield Breach(logical_id, "Properties.EncryptionConfig")
        if cluster.get("AccessConfig", {}).get("AuthenticationMode") != "API":
            yield Breach(logical_id, "Properties.AccessConfig.AuthenticationMode")
        kinds = cluster.get("Logging", {}).get("ClusterLogging", {}).get("EnabledTypes", [])
        if not {kind["Type"] for kind in kinds} >= _LOGS:
            yield Breach(logical_id, "Properties.Logging")


RULE = Rule(
    id="ControlPlane",
    says="A control plane of Kubernetes must have no public endpoint, secrets under a key of ours, "
    "access by IAM alone, and all of its logs.",
    fix="endpoint_access=PRIVATE, secrets_encryption_key, authentication mode API, cluster_logging",
    check=_check,
)
