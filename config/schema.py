"""What an environment file may say. A key that is not here is refused, so no typo is a default."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from config.regions import regions

EMBEDDED_ACCOUNT = "000000000000"
Count = Annotated[int, Field(strict=True)]  # 8, and neither "8" nor true
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_EMAIL = r"^[^@\s]+@[^@\s]+\.[^@\s]+$"


class Section(BaseModel):
    """A part of an environment file: frozen, typed, closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Budget(Section):
    """The most that an environment should cost, and who hears when it does not keep to that."""

    monthly_usd: Amount = Field(gt=0, description="US dollars a month")
    email: str | None = Field(
        default=None, pattern=_EMAIL, description="hears of overspending and of alarms"
    )


def _must_be_quoted(value: object) -> object:
    if isinstance(value, int):
        raise ValueError(
            f"got the number {value}; put the account in quotes, or YAML drops leading zeros"
        )
    return value


class EnvironmentConfig(Section):
    """One file in `config/`. The file's name is the environment's name."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,19}$", exclude=True, description="the file's name"
    )
    aws: Literal["embedded", "account"] = Field(
        description="embedded: the AWS that runs on this machine; account: the real one"
    )
    account: Annotated[
        str,
        BeforeValidator(_must_be_quoted),
        Field(pattern=r"^\d{12}$", description="the account's 12 digits, in quotes"),
    ]
    region: str = Field(description="AWS region, such as us-east-1")
    availability_zones: tuple[str, ...] = Field(
        description="three zones of the region; named here so that synthesis asks no network"
    )
    s3_prefix_list: str = Field(
        pattern=r"^pl-[0-9a-f]{8,17}$",
        description="id of the managed prefix list com.amazonaws.REGION.s3: "
        "aws ec2 describe-managed-prefix-lists",
    )
    data: Literal["disposable", "retained"] = Field(
        description="what happens to buckets, keys and logs when the stack is destroyed"
    )
    nat_gateways: Count = Field(default=0, ge=0, le=3, description="0: nodes cannot reach the web")
    tags: dict[str, str] = Field(default_factory=dict, description="put on every resource")
    budget: Budget = Field(description="monthly_usd and email")
    innovations: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what is switched on, by slug, with its settings"
    )

    @field_validator("region")
    @classmethod
    def _region_exists(cls, region: str) -> str:
        if region not in regions():
            area, continent = region.rpartition("-")[0] + "-", region[:3]
            near = [name for name in regions() if name.startswith(area)]
            near = near or [name for name in regions() if name.startswith(continent)]
            near = sorted(near or regions())
            raise ValueError(f"no such region {region!r}; allowed: {', '.join(near)}")
        return region

    @field_validator("tags")
    @classmethod
    def _tags_are_allowed(cls, tags: dict[str, str]) -> dict[str, str]:
        for key, value in tags.items():
            if key.lower().startswith("aws:") or not 1 <= len(key) <= 128 or len(value) > 256:
                raise ValueError(
                    f"tag {key!r} cannot be used; allowed: keys of 1 to 128 characters that do "
                    f"not start with aws:, values of up to 256"
                )
        return tags

    @field_validator("account")
    @classmethod
    def _account_is_where_aws_is(cls, account: str, info: ValidationInfo) -> str:
        aws = info.data.get("aws")
        if aws and (aws == "embedded") != (account == EMBEDDED_ACCOUNT):
            raise ValueError(
                f"got {account!r} with aws: {aws}; the embedded AWS is account "
                f"{EMBEDDED_ACCOUNT!r}, and no real account is"
            )
        return account

    @field_validator("availability_zones")
    @classmethod
    def _zones_are_in_the_region(
        cls, zones: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        region = info.data.get("region")
        inside = [zone for zone in zones if region and re.fullmatch(f"{region}[a-z]", zone)]
        if region and (len(set(inside)) != 3 or len(zones) != 3):
            raise ValueError(
                f"got {', '.join(zones) or 'none'}; must be three different zones of {region}, "
                f"such as {region}a, {region}b, {region}c"
            )
        return zones

    @field_validator("budget")
    @classmethod
    def _someone_hears_of_overspending(cls, budget: Budget, info: ValidationInfo) -> Budget:
        if info.data.get("aws") == "account" and budget.email is None:
            raise ValueError("email is missing; add the address that hears of overspending")
        return budget


class InnovationSettings(Section):
    """What every innovation's section has. The innovation's own settings extend it."""

    model: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="name of the model that it serves, such as smollm2-135m-instruct",
    )

    def wants(self, stack_id: str) -> bool:
        """Tell whether these settings ask for a stack of the innovation; one with a single does."""
        return True

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong) where these settings do not fit the environment."""
        yield from ()

    def remarks(self, region: str) -> Iterator[str]:
        """Yield what is allowed and yet likely to be a mistake, such as a size below its load."""
        yield from ()
