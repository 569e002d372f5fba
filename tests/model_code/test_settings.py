"""The server's settings."""

import pytest

from model_code.common.errors import SettingsError
from model_code.common.server.settings import Settings

ENV = {
    "ISOMORPH_MODEL": "m",
    "ISOMORPH_ENGINE": "llama.cpp",
    "ISOMORPH_WEIGHTS": "s3://bucket/gqa/m/0123/",
    "ISOMORPH_WEIGHTS_SHA256": "ab" * 32,
    "STATE_DIRECTORY": "/var/lib/isomorph",
    "ISOMORPH_PORT": "8080",
}


def test_a_node_s_server_listens_everywhere_and_one_with_an_own_port_on_loopback_only() -> None:
    node = Settings.from_environment(ENV)
    assert (node.host, node.port) == ("0.0.0.0", 8080)  # noqa: S104
    local = Settings.from_environment(ENV | {"ISOMORPH_PORT_OVERRIDE": "9001"})
    assert (local.host, local.port) == ("127.0.0.1", 9001)


def test_draining_takes_longer_than_any_request_unless_told_otherwise() -> None:
    settings = Settings.from_environment(ENV | {"ISOMORPH_DEADLINE_S": "90"})
    assert (settings.deadline_s, settings.drain_s) == (90, 95)
    assert Settings.from_environment(ENV | {"ISOMORPH_DRAIN_S": "3"}).drain_s == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ISOMORPH_MODEL": ""}, "ISOMORPH_MODEL is missing; set it in the server's environment"),
        ({"ISOMORPH_ENGINE": "tgi"}, "ISOMORPH_ENGINE is 'tgi'; allowed: llama.cpp, native, vllm"),
        ({"ISOMORPH_ENGINE": ""}, "ISOMORPH_ENGINE is missing"),
        ({"ISOMORPH_DTYPE": "int3"}, "ISOMORPH_DTYPE is 'int3'; allowed: auto, float32, bfloat16"),
        (
            {"ISOMORPH_QUANTIZATION": "int3"},
            "ISOMORPH_QUANTIZATION is 'int3'; allowed: none, int8, int4",
        ),
        ({"ISOMORPH_SLOTS": "0"}, "ISOMORPH_SLOTS is '0'; allowed: whole numbers from 1 to 256"),
        ({"ISOMORPH_SLOTS": "eight"}, "ISOMORPH_SLOTS is 'eight'"),
        ({"ISOMORPH_SLOTS": "²"}, "ISOMORPH_SLOTS is '²'"),
        ({"ISOMORPH_CONTEXT": "9" * 5000}, "ISOMORPH_CONTEXT is '9999"),
        ({"ISOMORPH_PORT": "70000"}, "ISOMORPH_PORT is '70000'; allowed: whole numbers from 1 to"),
        ({"ISOMORPH_WEIGHTS": ""}, "ISOMORPH_WEIGHTS is missing"),
        ({"ISOMORPH_WEIGHTS_SHA256": "abc"}, "ISOMORPH_WEIGHTS_SHA256 is 'abc'; it must be the"),
        ({"STATE_DIRECTORY": ""}, "ISOMORPH_STATE is missing"),
    ],
)
def test_fails_when_a_setting_is_missing_or_wrong(change: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(ENV | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
