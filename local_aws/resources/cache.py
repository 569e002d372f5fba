"""The types of ElastiCache whose servers are played by a runner."""

from collections.abc import Callable, Mapping
from typing import Any

from ministack.services import elasticache as records
from ministack.services.cloudformation import provisioners

from local_aws.caches.authority import NAME
from local_aws.caches.runner import Caches, Wanted
from local_aws.caches.server import Login
from local_aws.resources.table import Attributes, Aws, Made, Properties, Resource, Type

GROUP, USER = "AWS::ElastiCache::ReplicationGroup", "AWS::ElastiCache::User"
_GROUP = frozenset(
    {
        "AtRestEncryptionEnabled",
        "AuthToken",
        "AutoMinorVersionUpgrade",
        "AutomaticFailoverEnabled",
        "CacheNodeType",
        "CacheParameterGroupName",
        "CacheSubnetGroupName",
        "ClusterMode",
        "Engine",
        "EngineVersion",
        "KmsKeyId",
        "LogDeliveryConfigurations",
        "MultiAZEnabled",
        "NotificationTopicArn",
        "NumNodeGroups",
        "Port",
        "ReplicasPerNodeGroup",
        "ReplicationGroupDescription",
        "SecurityGroupIds",
        "SnapshotRetentionLimit",
        "Tags",
        "TransitEncryptionEnabled",
        "TransitEncryptionMode",
        "UserGroupIds",
    }
)
_USER = frozenset(
    {"AccessString", "AuthenticationMode", "Engine", "Passwords", "Tags", "UserId", "UserName"}
)
_EVERYTHING = "on ~* &* +@all"


def keep_passwords() -> None:
    """Let the control plane keep the passwords of users, which it only counts."""
    for name in ("_create_user", "_modify_user"):
        setattr(records, name, _keeping(getattr(records, name)))


def _keeping(action: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def keep(query: Any) -> Any:
        answer = action(query)
        given = []
        for prefix in ("Passwords", "AuthenticationMode.Passwords"):
            number = 1
            while value := records._p(query, f"{prefix}.member.{number}"):
                given.append(value)
                number += 1
        user = records._users.get(records._p(query, "UserId"))
        if given and user is not None:
            user["_passwords"] = tuple(given)
            user["Authentication"] = {"Type": "password", "PasswordCount": len(given)}
        return answer

    return keep


def _logins(account: str, region: str, group_id: str) -> list[Login]:
    """Return who a replication group lets in, as its users or its AUTH token have it now."""
    group = records._replication_groups.get_scoped(account, region, group_id)
    if group is None:
        return []
    if group["_auth_tokens"]:
        return [Login("default", _EVERYTHING, tuple(group["_auth_tokens"]))]
    if not group["UserGroupIds"]:
        return [Login("default", _EVERYTHING)]
    found = []
    for name in group["UserGroupIds"]:
        users = records._user_groups.get_scoped(account, region, name)["UserIds"]
        for user_id in users:
            user = records._users.get_scoped(account, region, user_id)
            if user is not None:
                passwords = user.get("_passwords", ())
                found.append(Login(user["UserName"], user["AccessString"], passwords))
    return found


def _parameters(aws: Aws, name: str) -> dict[str, str]:
    pages = aws.client("elasticache").get_paginator("describe_cache_parameters")
    found = pages.paginate(CacheParameterGroupName=name, Source="user")
    rows = [row for page in found for row in page["Parameters"]]
    return {row["ParameterName"]: row["ParameterValue"] for row in rows}


class Groups:
    """Makes, changes and deletes replication groups with their servers."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches

    def create(self, aws: Aws, resource: Resource) -> Made:
        """Make a group; whoever asks where it is hears the port of its TLS front."""
        _refuse_plain(resource.properties)
        group_id, _ = provisioners._ec_rg_create(
            resource.logical_id, dict(resource.properties), resource.stack
        )
        try:
            return Made(group_id, self._play(aws, group_id, resource.properties))
        except Exception:
            self.delete(aws, group_id, resource.properties)
            raise

    def update(self, aws: Aws, group_id: str, resource: Resource) -> Made:
        """Change a group in place; other shards or parameters begin with an empty cache."""
        _refuse_plain(resource.properties)
        changed, _ = provisioners._ec_rg_update(
            group_id, resource.before, resource.properties, resource.stack, resource.logical_id
        )
        return Made(changed, self._play(aws, changed, resource.properties))

    def delete(self, aws: Aws, group_id: str, properties: Properties) -> None:
        """Delete a group with its servers."""
        self._caches.end((aws.account, aws.region, group_id))
        provisioners._ec_rg_delete(group_id, properties)

    def _play(self, aws: Aws, group_id: str, properties: Properties) -> Attributes:
        account, region = aws.account, aws.region
        record = records._replication_groups[group_id]
        cluster = record["ClusterMode"] == "enabled"
        wanted = Wanted(
            shards=len(record["NodeGroups"]),
            parameters=_parameters(aws, properties["CacheParameterGroupName"]),
            cluster=cluster,
            logins=lambda: _logins(account, region, group_id),
        )
        ports = self._caches.play((account, region, group_id), wanted)
        for shard, port in zip(record["NodeGroups"], ports, strict=True):
            endpoint = {"Address": NAME, "Port": port}
            shard |= {"PrimaryEndpoint": endpoint, "ReaderEndpoint": endpoint}
            for member in shard["NodeGroupMembers"]:
                member["ReadEndpoint"] = endpoint
                records._clusters[member["CacheClusterId"]]["CacheNodes"][0]["Endpoint"] = endpoint
        record["ClusterEnabled"] = cluster
        record["ConfigurationEndpoint"] = record["NodeGroups"][0]["PrimaryEndpoint"]
        if not cluster:
            record["ConfigurationEndpoint"] = None
        return dict(provisioners._ec_rg_attrs(group_id))


def _refuse_plain(properties: Mapping[str, Any]) -> None:
    if str(properties.get("TransitEncryptionEnabled")).lower() != "true":
        raise ValueError(f"{GROUP}: without TransitEncryptionEnabled it is not played here")


def _create_user(_: Aws, resource: Resource) -> Made:
    user_id, attributes = provisioners._ec_user_create(
        resource.logical_id, _flat(resource.properties), resource.stack
    )
    return Made(user_id, attributes)


def _update_user(_: Aws, user_id: str, resource: Resource) -> Made:
    before, after = _flat(resource.before), _flat(resource.properties)
    changed, attributes = provisioners._ec_user_update(
        user_id, before, after, resource.stack, resource.logical_id
    )
    return Made(changed, attributes)


def _flat(properties: Properties) -> dict[str, Any]:
    """Return a user's properties with the passwords where the API has them too."""
    mode = properties.get("AuthenticationMode", {})
    rest = {name: value for name, value in properties.items() if name != "AuthenticationMode"}
    return {**rest, "Passwords": mode["Passwords"]} if mode.get("Passwords") else rest


def _delete_user(_: Aws, user_id: str, properties: Properties) -> None:
    provisioners._ec_user_delete(user_id, properties)


def caches_types(caches: Caches) -> tuple[Type, ...]:
    """Return the types whose resources are played by a runner of caches."""
    groups = Groups(caches)
    return (
        Type(GROUP, _GROUP, groups.create, groups.delete, groups.update),
        Type(USER, _USER, _create_user, _delete_user, _update_user),
    )
