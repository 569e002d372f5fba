"""What all tests share: who goes first, how patient generated tests are, what clients have read."""

import functools
import gc
from pathlib import Path

import botocore.session
import httpx._transports.default
import pytest
from hypothesis import HealthCheck, settings

# Until all tests are found, and with them torch, transformers or the CDK imported: the collector
# goes through what was imported so far again and again, though all of it stays.
gc.disable()

# A machine that is busy is no reason to fail.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Each session of boto3 reads the descriptions of its services, megabytes of JSON; tests make many.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

# Each request of httpx outside a client reads the certificates of all authorities, which takes ten
# times as long as the rest; tests ask in loops.
httpx._transports.default.create_ssl_context = functools.cache(
    httpx._transports.default.create_ssl_context
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that may take long, as their marks say; the order within a file stays.

    A file goes to one worker whole: were it the last, the other workers would idle.
    """
    places: dict[Path, tuple[bool, float]] = {}
    for item in items:
        slow, timeout = item.get_closest_marker("slow"), item.get_closest_marker("timeout")
        place = (slow is None, -timeout.args[0] if timeout else 0)
        places[item.path] = min(place, places.get(item.path, place))
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave what was imported out of every collection to come; also where workers run the tests."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()
