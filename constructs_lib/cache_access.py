"""Who may use a latent cache: a user, or one AUTH token, whose password is in Secrets Manager."""

from typing import Literal

from aws_cdk import RemovalPolicy, SecretValue, Stack
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

Engine = Literal["valkey", "redis"]
Access = Literal["user", "token"]

PASSWORD_LENGTHS = range(16, 129)  # what ElastiCache takes
# What nodes send, and what lets a cluster's client find its shards. Nothing that empties the
# cache, reads its settings or lists its keys.
_MAY = (
    "on ~* resetchannels -@all +@read +@write +@connection -@dangerous "
    "+info +cluster|slots +cluster|shards +cluster|nodes"
)
_NOBODY = "off -@all"


class CacheAccess(Construct):
    """A login of the cache: JSON with `username` and `password` in a secret, under a key.

    Args:
        engine: Of the cache. Redis insists on a user `default`, which is switched off.
        access: `user`: a user that may do only what nodes do; `token`: one AUTH token.
        password_length: Characters of the password, 16 to 128.
        key: Encrypts the secret.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        engine: Engine,
        access: Access,
        password_length: int,
        key: kms.IKey,
    ) -> None:
        super().__init__(scope, construct_id)
        if password_length not in PASSWORD_LENGTHS:
            raise ValueError(
                f"password_length cannot be {password_length}; ElastiCache takes 16 to 128 "
                f"characters"
            )
        self._engine, self._key = engine, key
        self.username = "node" if access == "user" else "default"
        self.secret = secretsmanager.Secret(
            self,
            "Secret",
            description="login of the latent cache",
            encryption_key=key,
            removal_policy=RemovalPolicy.DESTROY,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template=f'{{"username":"{self.username}"}}',
                generate_string_key="password",
                password_length=password_length,
                exclude_punctuation=True,  # no escape in a URL, which other clients want
            ),
        )
        self.user: elasticache.CfnUser | None = None
        self.group: elasticache.CfnUserGroup | None = None
        if access == "user":
            self.user = self._user("Node", self.username, _MAY, [self._password])
            users = [self.user]
            if engine == "redis":
                users.append(self._user("Default", "default", _NOBODY, []))
            self.group = elasticache.CfnUserGroup(
                self,
                "Group",
                engine=engine,
                user_group_id=_id(self, "nodes"),
                user_ids=[user.ref for user in users],
            )

    @property
    def token(self) -> str | None:
        """The AUTH token as a reference that CloudFormation resolves; None with users."""
        return self._password if self.user is None else None

    @property
    def _password(self) -> str:
        # A dynamic reference: the template has the secret's name and field, never its value.
        return SecretValue.secrets_manager(
            self.secret.secret_arn, json_field="password"
        ).unsafe_unwrap()

    def _user(
        self, construct_id: str, name: str, may: str, passwords: list[str]
    ) -> elasticache.CfnUser:
        mode = {"Type": "password", "Passwords": passwords} if passwords else None
        return elasticache.CfnUser(
            self,
            construct_id,
            engine=self._engine,
            user_id=_id(self, name),
            user_name=name,
            access_string=may,
            authentication_mode=mode or {"Type": "no-password-required"},
        )

    def read_statements(self) -> list[iam.PolicyStatement]:
        """Return what a reader of the password needs: the secret, and its key for that alone."""
        region = Stack.of(self).region
        for_secrets = {"StringEquals": {"kms:ViaService": f"secretsmanager.{region}.amazonaws.com"}}
        return [
            iam.PolicyStatement(
                actions=["secretsmanager:GetSecretValue"], resources=[self.secret.secret_arn]
            ),
            iam.PolicyStatement(
                actions=["kms:Decrypt"], resources=[self._key.key_arn], conditions=for_secrets
            ),
        ]


def _id(scope: Construct, name: str) -> str:
    """Return an id of the account and region: these two types have no generated ones."""
    return f"{Stack.of(scope).stack_name}-{name}".lower()[:40]
