"""The EKS cluster that a HyperPod cluster's nodes join: private, with its add-ons."""

from collections.abc import Mapping, Sequence

from aws_cdk import Acknowledgment, RemovalPolicy, Stack, Validations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_eks as eks_v1
from aws_cdk import aws_eks_v2 as eks
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct, IDependable

from constructs_lib.data_key import DataKey
from constructs_lib.private_endpoints import PrivateEndpoints
from constructs_lib.site import Site

# What nodes, the VPC CNI and HyperPod's operators call besides the foundation's endpoints:
# docs.aws.amazon.com/eks/latest/userguide/private-clusters.html, and for the training operator
# sagemaker/latest/dg/sagemaker-eks-operator-install.html.
SERVICES = ("ec2", "ecr.api", "ecr.dkr", "eks", "eks-auth", "sagemaker.api", "sts")
# Before there are nodes.
NETWORK_ADDONS = ("vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent")
# Wait for nodes to run on.
NODE_ADDONS = ("aws-fsx-csi-driver", "cert-manager")
OPERATOR = "amazon-sagemaker-hyperpod-training-operator"
OPERATOR_NAMESPACE, OPERATOR_ACCOUNT = "aws-hyperpod", "hp-training-operator-controller-manager"


class TrainingEks(Construct):
    """EKS cluster without nodes of its own. API access alone, no public endpoint.

    Args:
        name: Physical name; its log group has it.
        version: Of Kubernetes; HyperPod takes 1.28 to 1.34.
        site: Network.
        security_group: Of the nodes; the control plane's interfaces have it as well.
        admins: ARNs of the roles that may do everything in it.
        retained: Keep its logs and its key when its stack is destroyed.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        version: str,
        site: Site,
        security_group: ec2.ISecurityGroup,
        admins: Sequence[str],
        retained: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        self.name = name
        log_group = _log_group(self, name, site, retained=retained)
        key = DataKey(self, "Key", description="secrets of Kubernetes", retained=retained)
        self.cluster = eks.Cluster(
            self,
            "Cluster",
            cluster_name=name,
            version=eks.KubernetesVersion.of(version),
            vpc=site.vpc,
            vpc_subnets=[ec2.SubnetSelection(subnets=site.vpc.private_subnets)],
            security_group=security_group,
            endpoint_access=eks.EndpointAccess.PRIVATE,
            secrets_encryption_key=key,
            cluster_logging=list(eks.ClusterLoggingTypes),
            default_capacity_type=eks.DefaultCapacityType.NODEGROUP,
            default_capacity=0,
            bootstrap_cluster_creator_admin_permissions=False,
            bootstrap_self_managed_addons=False,
            output_config_command=False,
            role=_control_plane_role(self),
        )
        self.cluster.node.add_dependency(log_group)
        Validations.of(self.cluster).acknowledge(
            Acknowledgment(
                id="Annotation::@aws-cdk/aws-eks:clusterMustManuallyTagSubnet",
                reason="the tag is for load balancers of Kubernetes, and a cluster that trains has "
                "none",
            )
        )
        self.arn = self.cluster.cluster_arn
        self.endpoints = PrivateEndpoints(self, "Endpoints", site=site, services=SERVICES)
        self._admins = tuple(admins)
        for number, principal in enumerate(admins, start=1):
            self._admit(f"Admin{number}", principal)
        network = [self.add_addon(addon) for addon in NETWORK_ADDONS]
        # What must be there before nodes; the other add-ons wait for them.
        self.before_nodes: list[Construct] = [self.cluster, self.endpoints, *network]

    def admit(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Let roles in as members of Kubernetes groups, whose rights are Kubernetes' business.

        EKS' own access policies know no custom resources, such as a PyTorchJob, and cannot be
        added to: docs.aws.amazon.com/eks/latest/userguide/access-policies.html. A role has one
        entry in a cluster; an admin's has every right already.

        Args:
            groups: By the roles' ARNs.
        """
        members = [principal for principal in groups if principal not in self._admins]
        for number, principal in enumerate(members, start=1):
            eks_v1.CfnAccessEntry(
                self,
                f"Member{number}",
                cluster_name=self.cluster.cluster_name,
                principal_arn=principal,
                kubernetes_groups=list(groups[principal]),
            )

    def add_addon(
        self,
        name: str,
        *,
        accounts: Mapping[str, iam.IRole] | None = None,
        after: IDependable | None = None,
    ) -> eks_v1.CfnAddon:
        """Add an EKS add-on in the version that EKS takes for the newest.

        Args:
            name: Of the add-on.
            accounts: What its service accounts may do, by their names.
            after: What must be there first, such as nodes.
        """
        addon = eks_v1.CfnAddon(
            self,
            name,
            addon_name=name,
            cluster_name=self.cluster.cluster_name,
            resolve_conflicts="OVERWRITE",
            preserve_on_delete=False,
            pod_identity_associations=[
                eks_v1.CfnAddon.PodIdentityAssociationProperty(
                    service_account=account, role_arn=role.role_arn
                )
                for account, role in (accounts or {}).items()
            ]
            or None,
        )
        if after is not None:
            addon.node.add_dependency(after)
        return addon

    def add_operator(self, cluster_arn: str, after: IDependable) -> None:
        """Add what runs HyperPodPyTorchJobs; it asks SageMaker which nodes are healthy."""
        role = iam.Role(
            self,
            "OperatorRole",
            assumed_by=pods(),
            inline_policies={
                "Operator": iam.PolicyDocument(
                    statements=[
                        iam.PolicyStatement(
                            actions=["sagemaker:DescribeClusterNode"], resources=[cluster_arn]
                        )
                    ]
                )
            },
        )
        basis = [self.add_addon(each, after=after) for each in NODE_ADDONS]
        operator = self.add_addon(OPERATOR, accounts={OPERATOR_ACCOUNT: role}, after=after)
        for addon in basis:
            operator.node.add_dependency(addon)

    def give_role(self, name: str, namespace: str, account: str, role: iam.IRole) -> None:
        """Let pods of a service account act as a role."""
        eks_v1.CfnPodIdentityAssociation(
            self,
            f"Pods{name}",
            cluster_name=self.cluster.cluster_name,
            namespace=namespace,
            service_account=account,
            role_arn=role.role_arn,
        )

    def _admit(self, name: str, principal: str) -> None:
        """Let a role do everything."""
        entry = eks_v1.CfnAccessEntry
        policy = "cluster-access-policy/AmazonEKSClusterAdminPolicy"
        entry(
            self,
            name,
            cluster_name=self.cluster.cluster_name,
            principal_arn=principal,
            access_policies=[
                entry.AccessPolicyProperty(
                    policy_arn=f"arn:{Stack.of(self).partition}:eks::aws:{policy}",
                    access_scope=entry.AccessScopeProperty(type="cluster"),
                )
            ],
        )


def pods() -> iam.IPrincipal:
    """Return who assumes a role of pods, which EKS Pod Identity tags with where they run."""
    return iam.SessionTagsPrincipal(iam.ServicePrincipal("pods.eks.amazonaws.com"))


def _log_group(scope: Construct, name: str, site: Site, *, retained: bool) -> logs.LogGroup:
    """Return the control plane's log group; EKS would make one that keeps everything for ever."""
    group = logs.LogGroup(
        scope,
        "Logs",
        log_group_name=f"/aws/eks/{name}/cluster",
        retention=logs.RetentionDays.THREE_MONTHS,
        encryption_key=site.log_key,
        removal_policy=RemovalPolicy.RETAIN if retained else RemovalPolicy.DESTROY,
    )
    reason = "EKS writes to a group of this name, and would make it without key or retention"
    Validations.of(group.node.default_child or group).acknowledge(
        Acknowledgment(id="Isomorph::FixedNames", reason=reason)
    )
    return group


def _control_plane_role(scope: Construct) -> iam.Role:
    role = iam.Role(
        scope,
        "ControlPlaneRole",
        assumed_by=iam.ServicePrincipal("eks.amazonaws.com"),
        managed_policies=[iam.ManagedPolicy.from_aws_managed_policy_name("AmazonEKSClusterPolicy")],
    )
    policy = "arn:<AWS::Partition>:iam::aws:policy/AmazonEKSClusterPolicy"
    Validations.of(role).acknowledge(
        Acknowledgment(
            id=f"AwsSolutions-IAM4[Policy::{policy}]",
            reason="EKS asks for this policy by name, and changes it with what its control plane "
            "calls",
        )
    )
    return role
