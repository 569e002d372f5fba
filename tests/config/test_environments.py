import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field
from ruamel.yaml import YAML

from config import (
    ConfigError,
    EnvironmentConfig,
    InnovationSettings,
    Override,
    innovation_settings,
    load_environments,
)

GOOD = {
    "aws": "account",
    "account": "111122223333",
    "region": "us-east-1",
    "availability_zones": ["us-east-1a", "us-east-1b", "us-east-1d"],
    "s3_prefix_list": "pl-63a5400a",
    "data": "disposable",
    "budget": {"monthly_usd": 10, "email": "someone@example.com"},
}


class TinySettings(InnovationSettings):
    slots: int = Field(default=8, ge=1, description="requests at once")

    def conflicts(self, environment: EnvironmentConfig) -> Iterator[tuple[str, str]]:
        if environment.data == "retained" and self.slots == 1:
            yield "slots", "one is too few where data is retained"


SETTINGS = {"tiny": TinySettings, "later": None}


@pytest.fixture
def write(tmp_path):
    def save(stem: str = "dev", text: str | None = None, **changes: object) -> Path:
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        keep = {key: value for key, value in {**GOOD, **changes}.items() if value != "LEFT OUT"}
        with (folder / f"{stem}.yaml").open("w") as file:
            if text is None:
                YAML(typ="safe").dump(keep, file)
            else:
                file.write(text)
        return folder

    return save


def lines_of(folder: Path, **arguments: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_environments(folder=folder, settings=SETTINGS, **arguments)
    return str(caught.value).splitlines()


def test_every_shipped_environment_loads():
    assert [each.name for each in load_environments()] == ["dev", "local", "prod"]


def test_the_name_of_the_file_is_the_name_of_the_environment(write):
    [environment] = load_environments(folder=write("blue"))
    assert environment.name == "blue"


def test_only_the_named_environment_is_read(write):
    folder = write("broken", text="{")
    write("dev")
    assert [each.name for each in load_environments("dev", folder=folder)] == ["dev"]


def test_a_zone_may_be_any_of_its_region(write):
    [environment] = load_environments(folder=write())
    assert environment.availability_zones[2] == "us-east-1d"


def test_nothing_reaches_the_web_unless_asked(write):
    [environment] = load_environments(folder=write())
    assert environment.nat_gateways == 0


def test_an_environment_cannot_be_changed(write):
    [environment] = load_environments(folder=write())
    with pytest.raises(ValueError, match="frozen"):
        environment.region = "eu-west-1"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"aws": "acount"}, "aws: got 'acount'; allowed: 'embedded', 'account'"),
        (
            {"account": 12345},
            "account: got the number 12345; put the account in quotes, or YAML drops leading zeros",
        ),
        ({"account": "1234"}, r"account: got '1234'; must match ^\d{12}$"),
        (
            {"account": "000000000000"},
            "account: got '000000000000' with aws: account; the embedded AWS is account "
            "'000000000000', and no real account is",
        ),
        (
            {"aws": "embedded"},
            "account: got '111122223333' with aws: embedded; the embedded AWS is account "
            "'000000000000', and no real account is",
        ),
        (
            {"region": "eu-west-9"},
            "region: no such region 'eu-west-9'; allowed: eu-west-1, eu-west-2, eu-west-3",
        ),
        (
            {"availability_zones": ["us-east-1a", "us-east-1b"]},
            "availability_zones: got us-east-1a, us-east-1b; must be three different zones of "
            "us-east-1, such as us-east-1a, us-east-1b, us-east-1c",
        ),
        (
            {"availability_zones": ["us-east-1a", "us-east-1b", "us-east-2c"]},
            "availability_zones: got us-east-1a, us-east-1b, us-east-2c; must be three different "
            "zones of us-east-1, such as us-east-1a, us-east-1b, us-east-1c",
        ),
        (
            {"availability_zones": ["us-east-1a", "us-east-1a", "us-east-1c"]},
            "availability_zones: got us-east-1a, us-east-1a, us-east-1c; must be three different "
            "zones of us-east-1, such as us-east-1a, us-east-1b, us-east-1c",
        ),
        ({"s3_prefix_list": "s3"}, "s3_prefix_list: got 's3'; must match ^pl-[0-9a-f]{8,17}$"),
        ({"data": "kept"}, "data: got 'kept'; allowed: 'disposable', 'retained'"),
        ({"data": "LEFT OUT"}, "data: missing; add it (what happens to buckets, keys and logs "
         "when the stack is destroyed)"),
        ({"nat_gateways": True}, "nat_gateways: got True; should be a valid integer"),
        ({"nat_gateways": 4}, "nat_gateways: got 4; should be less than or equal to 3"),
        ({"tags": {"aws:x": "1"}}, "tags: tag 'aws:x' cannot be used; allowed: keys of 1 to 128 "
         "characters that do not start with aws:, values of up to 256"),
        ({"budget": {"monthly_usd": 5}}, "budget: email is missing; add the address that hears "
         "of overspending"),
        ({"budget": {"monthly_usd": 0, "email": "a@b.c"}},
         "budget.monthly_usd: got 0; should be greater than 0"),
        ({"budget": {"monthly_usd": float("inf"), "email": "a@b.c"}},
         "budget.monthly_usd: got inf; should be a finite number"),
        ({"budget": {"monthly_usd": 5, "email": "nobody"}},
         r"budget.email: got 'nobody'; must match ^[^@\s]+@[^@\s]+\.[^@\s]+$"),
        ({"budget": {"monthly_usd": 5, "mail": "a@b.c"}},
         "budget.mail: unknown key; allowed: email, monthly_usd"),
        ({"regoin": "x"}, "regoin: unknown key; allowed: account, availability_zones, aws, "
         "budget, data, innovations, nat_gateways, region, s3_prefix_list, tags"),
        ({"name": "dev"}, "name: unknown key; the file's name is the environment's name"),
        ({"innovations": {"tny": {"model": "m"}}},
         "innovations.tny: no such innovation; allowed: tiny"),
        ({"innovations": {"later": {"model": "m"}}},
         "innovations.later: planned, it has no stack yet; allowed: tiny"),
        ({"innovations": {"tiny": {"slots": 2}}},
         "innovations.tiny.model: missing; add it (name of the model that it serves, such as "
         "smollm2-135m-instruct)"),
        ({"innovations": {"tiny": {"model": "m", "slot": 2}}},
         "innovations.tiny.slot: unknown key; allowed: model, slots"),
        ({"innovations": {"tiny": {"model": "m", "slots": "two"}}},
         "innovations.tiny.slots: got 'two'; should be a valid integer, unable to parse string "
         "as an integer"),
        ({"innovations": {"tiny": {"model": "A B"}}},
         "innovations.tiny.model: got 'A B'; must match ^[a-z0-9][a-z0-9._-]{0,62}$"),
        ({"innovations": {"tiny": None}},
         "innovations.tiny: got None; should be a valid dictionary"),
        ({"data": "retained", "innovations": {"tiny": {"model": "m", "slots": 1}}},
         "innovations.tiny.slots: one is too few where data is retained"),
    ],
)  # fmt: skip
def test_fails_when_a_key_is_wrong(write, changes, line):
    assert lines_of(write(**changes)) == [f"config/dev.yaml: {line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("aws: account\naws: embedded\n", r"config/dev\.yaml:2: not valid YAML: .*duplicate key.*"),
        ("aws: account\nregion: [us\n", r"config/dev\.yaml:\d: not valid YAML: .+"),
        ("- aws\n", r"config/dev\.yaml: must be keys and values, such as `region: us-east-1`"),
        ("", r"config/dev\.yaml: must be keys and values, such as `region: us-east-1`"),
        ("aws: \x00\n", r"config/dev\.yaml: not valid YAML: .+"),
    ],
)
def test_fails_when_the_file_is_not_yaml(write, text, line):
    [found] = lines_of(write(text=text))
    assert re.fullmatch(line, found)


def test_every_mistake_of_every_file_is_reported_at_once(write):
    write("a", data="kept", nat_gateways=9, innovations={"tiny": {}})
    write("b", text="{")
    folder = write("c", region="nowhere-1")
    found = [line.split(": ")[:2] for line in lines_of(folder)]
    assert found == [
        ["config/a.yaml", "data"],
        ["config/a.yaml", "nat_gateways"],
        ["config/a.yaml", "innovations.tiny.model"],
        ["config/b.yaml:1", "not valid YAML"],
        ["config/c.yaml", "region"],
    ]


def test_fails_when_the_environment_is_unknown(write):
    folder = write("dev")
    write("prod")
    assert lines_of(folder, only="stage") == ["unknown environment 'stage'; config/ has: dev, prod"]


def test_an_override_replaces_a_setting_and_is_read_as_yaml(write):
    folder = write(innovations={"tiny": {"model": "m", "slots": 4}})
    [environment] = load_environments(
        folder=folder, settings=SETTINGS, overrides=(Override("tiny", "slots", "16"),)
    )
    assert environment.innovations["tiny"]["slots"] == 16


def test_a_wrong_override_is_blamed_on_the_command_line(write):
    folder = write(innovations={"tiny": {"model": "m"}})
    assert lines_of(folder, overrides=(Override("tiny", "slots", "0"),)) == [
        "-c tiny.slots=0: innovations.tiny.slots: got 0; should be greater than or equal to 1"
    ]


def test_fails_when_an_override_finds_its_innovation_nowhere(write):
    folder = write()
    assert lines_of(folder, overrides=(Override("tiny", "slots", "2"),)) == [
        "-c tiny.slots=2: 'tiny' is not switched on in any environment; add it under `innovations`"
    ]


def test_settings_come_back_typed(write):
    [environment] = load_environments(folder=write(innovations={"tiny": {"model": "m"}}))
    assert innovation_settings(environment, SETTINGS) == {"tiny": TinySettings(model="m")}


def test_fails_when_settings_of_a_made_up_environment_are_wrong():
    environment = EnvironmentConfig(name="made", **GOOD, innovations={"tiny": {}})
    with pytest.raises(ConfigError, match=r"config/made\.yaml: innovations\.tiny\.model: missing"):
        innovation_settings(environment, SETTINGS)
