"""Mixture of experts: two halves, each with a stack of its own, each deployed without the other."""

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from config import EnvironmentConfig, InnovationSettings
from stacks.moe_serving_settings import MoeServingSettings
from stacks.moe_training_settings import MoeTrainingSettings


class MoeSettings(InnovationSettings):
    """`innovations.moe` of an environment file."""

    training: MoeTrainingSettings | None = Field(
        default=None, description="the cluster that trains; left out: none"
    )
    serving: MoeServingSettings | None = Field(
        default=None, description="the pools and the endpoint that serve; left out: none"
    )

    @model_validator(mode="after")
    def _one_half_is_there(self) -> Self:
        if not self._halves():
            raise ValueError(
                "neither half is there; add training, with the settings of a cluster, or serving, "
                "with those of pools and an endpoint"
            )
        return self

    def wants(self, stack_id: str) -> bool:
        """Tell whether the half of a stack, such as moe-training, is there."""
        return stack_id.removeprefix("moe-") in self._halves()

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield what does not fit the environment, of both halves."""
        for name, half in self._halves().items():
            for key, text in half.conflicts(environment, self.model):
                yield f"{name}.{key}", text

    def remarks(self, region: str) -> Iterator[str]:
        """Yield what is likely to be a mistake, of both halves."""
        for name, half in self._halves().items():
            for remark in half.remarks(region, self.model):
                yield f"{name}: {remark}"

    def _halves(self) -> dict[str, MoeTrainingSettings | MoeServingSettings]:
        halves = {"training": self.training, "serving": self.serving}
        return {name: half for name, half in halves.items() if half is not None}
