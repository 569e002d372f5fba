"""What a fleet needs of the place that it is put into."""

from dataclasses import dataclass

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns


@dataclass(frozen=True, kw_only=True)
class Site:
    """Network, keys and sinks, as handles: a fleet changes none of them.

    Args:
        vpc: Its private subnets take the nodes and the load balancer.
        cidr: Addresses of the VPC, from where the load balancer may be called.
        endpoints: Security group of the interface endpoints.
        s3_prefix_list: Id of the region's managed prefix list for S3.
        volume_key: Encrypts the nodes' disks; Auto Scaling may use it.
        log_key: Encrypts log groups.
        access_logs: Takes the load balancer's access logs.
        alarm_topic: Hears of alarms and of machines that come and go.
    """

    vpc: ec2.IVpc
    cidr: str
    endpoints: ec2.ISecurityGroup
    s3_prefix_list: str
    volume_key: kms.IKey
    log_key: kms.IKey
    access_logs: s3.IBucket
    alarm_topic: sns.ITopic
