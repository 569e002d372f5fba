"""The network of the contract."""

from tests.local_aws.templates import ZONES, Template, attribute, ref, resource

NETWORK: Template = {
    "Vpc": resource("EC2::VPC", CidrBlock="10.0.0.0/16", EnableDnsHostnames=True),
    "Public": resource(
        "EC2::Subnet", VpcId=ref("Vpc"), CidrBlock="10.0.0.0/24", AvailabilityZone=ZONES[0]
    ),
    "Private": resource(
        "EC2::Subnet", VpcId=ref("Vpc"), CidrBlock="10.0.1.0/24", AvailabilityZone=ZONES[1]
    ),
    "Gateway": resource("EC2::InternetGateway", Tags=[{"Key": "Name", "Value": "gateway"}]),
    "GatewayToVpc": resource(
        "EC2::VPCGatewayAttachment", VpcId=ref("Vpc"), InternetGatewayId=ref("Gateway")
    ),
    "Routes": resource("EC2::RouteTable", VpcId=ref("Vpc")),
    "ToInternet": resource(
        "EC2::Route",
        after="GatewayToVpc",
        RouteTableId=ref("Routes"),
        DestinationCidrBlock="0.0.0.0/0",
        GatewayId=ref("Gateway"),
    ),
    "RoutesOfPublic": resource(
        "EC2::SubnetRouteTableAssociation", RouteTableId=ref("Routes"), SubnetId=ref("Public")
    ),
    "Address": resource("EC2::EIP", Domain="vpc", Tags=[{"Key": "Name", "Value": "nat"}]),
    "Nat": resource(
        "EC2::NatGateway",
        SubnetId=ref("Public"),
        AllocationId=attribute("Address", "AllocationId"),
        Tags=[{"Key": "Name", "Value": "nat"}],
    ),
    "PrivateRoutes": resource("EC2::RouteTable", VpcId=ref("Vpc")),
    "ToNat": resource(
        "EC2::Route",
        RouteTableId=ref("PrivateRoutes"),
        DestinationCidrBlock="0.0.0.0/0",
        NatGatewayId=ref("Nat"),
    ),
    "ServerGroup": resource(
        "EC2::SecurityGroup", GroupDescription="servers", VpcId=ref("Vpc"), SecurityGroupEgress=[]
    ),
    "BalancerGroup": resource(
        "EC2::SecurityGroup",
        GroupDescription="balancer",
        VpcId=ref("Vpc"),
        SecurityGroupIngress=[
            {
                "IpProtocol": "tcp",
                "FromPort": 80,
                "ToPort": 80,
                "CidrIp": attribute("Vpc", "CidrBlock"),
            }
        ],
    ),
    "FromBalancer": resource(
        "EC2::SecurityGroupIngress",
        GroupId=attribute("ServerGroup", "GroupId"),
        IpProtocol="tcp",
        FromPort=8080,
        ToPort=8080,
        SourceSecurityGroupId=attribute("BalancerGroup", "GroupId"),
        Description="from the load balancer",
    ),
    "ToServers": resource(
        "EC2::SecurityGroupEgress",
        GroupId=attribute("BalancerGroup", "GroupId"),
        IpProtocol="tcp",
        FromPort=8080,
        ToPort=8080,
        DestinationSecurityGroupId=attribute("ServerGroup", "GroupId"),
    ),
    "S3Endpoint": resource(
        "EC2::VPCEndpoint",
        ServiceName="com.amazonaws.us-east-1.s3",
        VpcEndpointType="Gateway",
        VpcId=ref("Vpc"),
        RouteTableIds=[ref("PrivateRoutes")],
    ),
    "SsmEndpoint": resource(
        "EC2::VPCEndpoint",
        ServiceName="com.amazonaws.us-east-1.ssm",
        VpcEndpointType="Interface",
        PrivateDnsEnabled=True,
        VpcId=ref("Vpc"),
        SubnetIds=[ref("Private")],
        SecurityGroupIds=[attribute("ServerGroup", "GroupId")],
    ),
    "FlowLogs": resource(
        "EC2::FlowLog",
        ResourceId=ref("Vpc"),
        ResourceType="VPC",
        TrafficType="ALL",
        LogDestinationType="cloud-watch-logs",
        LogGroupName=ref("Logs"),
        DeliverLogsPermissionArn=attribute("Role", "Arn"),
        MaxAggregationInterval=60,
        Tags=[{"Key": "Name", "Value": "flows"}],
    ),
}
