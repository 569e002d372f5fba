"""Fixtures around a real Valkey."""

from collections.abc import Iterator

import pytest

from tests.model_code.mla.valkey import Valkey


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server that tests which leave it as it was may share."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()
