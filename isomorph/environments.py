"""An environment as commands see it: its file, and the AWS that it lives in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from config import EnvironmentConfig, load_environments
from isomorph.errors import UserError
from isomorph.paths import state

if TYPE_CHECKING:
    from boto3.session import Session


@dataclass(frozen=True)
class Environment:
    """One environment file and how to reach its account."""

    config: EnvironmentConfig

    @property
    def name(self) -> str:
        """Return the environment's name, which is its file's."""
        return self.config.name

    @property
    def embedded(self) -> bool:
        """Return whether the environment lives in the embedded AWS."""
        return self.config.aws == "embedded"

    @cached_property
    def variables(self) -> dict[str, str]:
        """Return the variables that lead the CDK CLI and boto3 to this environment's AWS.

        Raises:
            UserError: the embedded AWS does not run.
        """
        if not self.embedded:
            return {"AWS_REGION": self.config.region}
        from local_aws import daemon

        running = daemon.status(state())
        if running is None:
            raise UserError("the embedded AWS does not run; start it with `isomorph up`")
        return daemon.environment(running, account=self.config.account, region=self.config.region)

    @cached_property
    def session(self) -> "Session":
        """Return a boto3 session: the embedded AWS, or the caller's own credentials."""
        import boto3

        if not self.embedded:
            return boto3.Session(region_name=self.config.region)
        return boto3.Session(
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            region_name=self.config.region,
        )

    def client(self, service: str) -> Any:
        """Return a boto3 client in this environment's account and region."""
        from botocore.config import Config

        return self.session.client(
            service,
            endpoint_url=self.variables.get("AWS_ENDPOINT_URL"),
            config=Config(retries={"max_attempts": 3, "mode": "standard"}, connect_timeout=10),
        )

    def stack(self, slug: str) -> str:
        """Return the CloudFormation name of a stack of this environment."""
        from stacks.innovation import stack_name

        return stack_name(self.name, slug)

    def stack_ids(self) -> list[str]:
        """Return the ids of the stacks that the environment turns on, without the foundation."""
        from stacks.innovation import status_of
        from stacks.map_data import INNOVATIONS

        on = self.config.innovations
        stacks = [
            stack for row in INNOVATIONS if row.slug in on for stack in row.stacks_of(on[row.slug])
        ]
        return [stack for stack in stacks if status_of(stack) == "real"]

    def stacks_of(self, name: str) -> list[str]:
        """Return the stacks that a name on the command line means: an innovation's, or one."""
        return [stack for stack in self.stack_ids() if name in (stack, slug_of(stack))]

    @contextmanager
    def aws_errors(self) -> Iterator[None]:
        """Turn what AWS says to a refused or unanswered call into one line."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise UserError(f"AWS refused in {self.name}: {error}") from None
        except BotoCoreError as error:
            said = " ".join(str(error).split())
            raise UserError(f"AWS could not be asked in {self.name}: {said}") from None

    def describe(self, stack: str) -> dict[str, Any] | None:
        """Return a stack as CloudFormation describes it, or None when it is not deployed."""
        from botocore.exceptions import ClientError

        with self.aws_errors():
            try:
                [found] = self.client("cloudformation").describe_stacks(
                    StackName=self.stack(stack)
                )["Stacks"]
            except ClientError as error:
                if "does not exist" in str(error):
                    return None
                raise
        return {
            "status": found["StackStatus"],
            "outputs": {row["OutputKey"]: row["OutputValue"] for row in found.get("Outputs", [])},
        }

    def outputs(self, stack: str) -> dict[str, str]:
        """Return the outputs of a deployed stack.

        Raises:
            UserError: the stack is not deployed, or AWS refuses the caller.
        """
        found = self.describe(stack)
        if found is None:
            deploy = f"npx cdk deploy -c env={self.name} {self.name}/{stack}"
            raise UserError(f"{self.stack(stack)} is not deployed; deploy it with `{deploy}`")
        outputs: dict[str, str] = found["outputs"]
        return outputs


def slug_of(stack: str) -> str:
    """Return the innovation that a stack is of: itself, or that of one of several stacks."""
    from stacks.map_data import INNOVATIONS

    return next((row.slug for row in INNOVATIONS if stack in row.stack_ids), stack)


def load(name: str) -> Environment:
    """Return the environment `name`; a mistake in its file, or in its name, is a ConfigError."""
    [config] = load_environments(name)
    return Environment(config)
