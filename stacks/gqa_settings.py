"""Settings of grouped-query attention."""

from typing import ClassVar, Literal

from pydantic import Field

from stacks.fleet_settings import LoadedFleetSettings


class GqaSettings(LoadedFleetSettings):
    """`innovations.gqa` of an environment file."""

    FAMILY: ClassVar[str] = "c7i"  # its cores have AMX

    # docs/engines.md: what measured best.
    engine: Literal["llama.cpp", "native"] = Field(
        default="native", description="what decodes: llama.cpp, or our own code on torch"
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        default="int8", description="what native keeps its matrices in; none: as dtype says"
    )
    instance_type: str = Field(default="c7i.large", description="EC2 instance type, of family c7i")
