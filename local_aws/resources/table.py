"""How a CloudFormation type that the control plane lacks is added to it.

A `Type` says how a resource is made, changed and deleted, each through the service's own API, so
that what a stack made is what a describe call shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError
from ministack.core.responses import get_account_id, get_region
from ministack.services.cloudformation import provisioners, stacks

from local_aws.clients import client, is_gone

Properties = Mapping[str, Any]
Attributes = dict[str, str]


@dataclass(frozen=True)
class Aws:
    """The APIs of the embedded AWS, as the caller of the running stack operation sees them."""

    endpoint: str

    @property
    def account(self) -> str:
        """The account whose stack is being changed."""
        return str(get_account_id())

    @property
    def region(self) -> str:
        """The region whose stack is being changed."""
        return str(get_region())

    def client(self, service: str) -> Any:
        """Return the boto3 client of a service, in that account and region."""
        return client(service, self.endpoint, self.account, self.region)


@dataclass(frozen=True)
class Resource:
    """A resource of a template: its place in the stack, and its resolved properties.

    Args:
        stack: The name of its stack.
        logical_id: Its name in the template.
        properties: As they shall be.
        before: As they were, if it is changed.
    """

    stack: str
    logical_id: str
    properties: Properties
    before: Properties = field(default_factory=dict)

    def name(self, longest: int) -> str:
        """Return the name that CloudFormation gives a resource without one."""
        return str(provisioners._physical_name(self.stack, self.logical_id, max_len=longest))


@dataclass(frozen=True)
class Made:
    """What a resource is after it was made or changed: `Ref`, and what `Fn::GetAtt` gives."""

    physical_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Type:
    """A CloudFormation type.

    Args:
        name: Such as `AWS::EC2::EIP`.
        properties: What of a template is taken over; anything else is refused, never dropped.
        create: Makes the resource, or raises and leaves nothing behind.
        delete: Deletes it; a resource that is gone already is no error.
        update: Changes it in place. If left out, a change makes a new one and deletes the old.
    """

    name: str
    properties: frozenset[str]
    create: Callable[[Aws, Resource], Made]
    delete: Callable[[Aws, str, Properties], object]
    update: Callable[[Aws, str, Resource], Made] | None = None


_own: set[str] = set()
_runs_on_worker_thread = stacks._runs_on_worker_thread
# Our handlers call the APIs of the process that they run in, so they must leave its loop free.
stacks._runs_on_worker_thread = lambda name: name in _own or _runs_on_worker_thread(name)


def register(aws: Aws, kind: Type) -> None:
    """Teach the control plane a type, in place of what it had under that name."""

    def check(properties: Properties) -> None:
        unplayed = sorted(set(properties) - kind.properties)
        if unplayed:
            raise ValueError(f"{kind.name}: {', '.join(unplayed)} is not played here")

    def create(logical_id: str, properties: Properties, stack: str) -> tuple[str, Attributes]:
        check(properties)
        made = kind.create(aws, Resource(stack, logical_id, properties))
        return made.physical_id, made.attributes

    def update(
        physical_id: str, old: Properties, new: Properties, stack: str, logical_id: str
    ) -> tuple[str, Attributes]:
        if kind.update is None:  # the engine deletes the old one once the update has succeeded
            return create(logical_id, new, stack)
        check(new)
        made = kind.update(aws, physical_id, Resource(stack, logical_id, new, old))
        return made.physical_id, made.attributes

    def delete(physical_id: str, properties: Properties) -> None:
        try:
            kind.delete(aws, physical_id, properties)
        except ClientError as error:
            if not is_gone(error):
                raise

    _own.add(kind.name)
    provisioners._RESOURCE_HANDLERS[kind.name] = {
        "create": create,
        "update": update,
        "update_with_logical_id": True,
        "delete": delete,
    }
