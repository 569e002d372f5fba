"""The part of the contract's template that a cache and its login are made of."""

from tests.local_aws.templates import Template, assumed_by, attribute, ref, resource

PASSWORD = {"Fn::Sub": "{{resolve:secretsmanager:${Login}:SecretString:password}}"}
_NOTHING = "def handler(event, context):\n    return event\n"

CACHE: Template = {
    "Login": resource(
        "SecretsManager::Secret",
        KmsKeyId=attribute("Key", "Arn"),
        GenerateSecretString={
            "SecretStringTemplate": '{"username": "node"}',
            "GenerateStringKey": "password",
            "PasswordLength": 32,
            "ExcludePunctuation": True,
        },
    ),
    "Node": resource(
        "ElastiCache::User",
        Engine="valkey",
        UserId="contract-node",
        UserName="node",
        AccessString="on ~* resetchannels -@all +@read +@write +@connection -@dangerous +info",
        AuthenticationMode={"Type": "password", "Passwords": [PASSWORD]},
    ),
    "Nodes": resource(
        "ElastiCache::UserGroup",
        Engine="valkey",
        UserGroupId="contract-nodes",
        UserIds=[ref("Node")],
    ),
    "CacheSubnets": resource(
        "ElastiCache::SubnetGroup", Description="contract", SubnetIds=[ref("Private")]
    ),
    "CacheParameters": resource(
        "ElastiCache::ParameterGroup",
        CacheParameterGroupFamily="valkey8",
        Description="contract",
        Properties={
            "cluster-enabled": "yes",
            "maxmemory-policy": "allkeys-lru",
            "activedefrag": "yes",
        },
    ),
    "Cache": resource(
        "ElastiCache::ReplicationGroup",
        ReplicationGroupDescription="contract",
        Engine="valkey",
        EngineVersion="8.0",
        CacheNodeType="cache.r7g.large",
        NumNodeGroups=1,
        ReplicasPerNodeGroup=1,
        ClusterMode="enabled",
        AutomaticFailoverEnabled=True,
        MultiAZEnabled=True,
        CacheSubnetGroupName=ref("CacheSubnets"),
        CacheParameterGroupName=ref("CacheParameters"),
        TransitEncryptionEnabled=True,
        TransitEncryptionMode="required",
        AtRestEncryptionEnabled=True,
        KmsKeyId=attribute("Key", "Arn"),
        UserGroupIds=[ref("Nodes")],
    ),
    "RotationRole": resource("IAM::Role", AssumeRolePolicyDocument=assumed_by("lambda")),
    "RotationCode": resource(
        "Lambda::Function",
        Runtime="python3.14",
        Handler="index.handler",
        Role=attribute("RotationRole", "Arn"),
        Code={"ZipFile": _NOTHING},
    ),
    "RotationLeave": resource(
        "Lambda::Permission",
        Action="lambda:InvokeFunction",
        FunctionName=ref("RotationCode"),
        Principal="secretsmanager.amazonaws.com",
    ),
    "Rotation": resource(
        "SecretsManager::RotationSchedule",
        after="RotationLeave",
        SecretId=ref("Login"),
        RotationLambdaARN=attribute("RotationCode", "Arn"),
        RotationRules={"AutomaticallyAfterDays": 30},
        RotateImmediatelyOnUpdate=False,
    ),
}
