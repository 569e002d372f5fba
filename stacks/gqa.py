"""Grouped-query attention: CPU nodes that decode, behind an internal load balancer."""

from aws_cdk import Stack
from constructs import Construct

from stacks.base import Base
from stacks.fleet import decode_fleet
from stacks.gqa_settings import GqaSettings


class GqaStack(Stack):
    """A fleet of C7i nodes that serves one model."""

    def __init__(self, scope: Construct, slug: str, *, settings: GqaSettings, base: Base) -> None:
        super().__init__(scope, slug)
        decode_fleet(self, slug, settings=settings, base=base)
