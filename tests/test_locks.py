"""Locked lists have what their packages want on every Python, not only on the one that locked."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]
LOCKS += [path.with_suffix(".txt") for path in ROOT.glob("model_code/*/*/requirements.in")]
PYTHONS = ["3.11.0", "3.11.2", "3.11.14", "3.12.0", "3.13.0", "3.14.0"]
SYSTEMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]


def places() -> Iterator[dict[str, str]]:
    """Yield what markers are asked about, for each Python on each system."""
    for python in PYTHONS:
        for system in SYSTEMS:
            minor = ".".join(python.split(".")[:2])
            yield {"python_version": minor, "python_full_version": python, "extra": "", **system}


def holds(requirement: Requirement, place: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(place)


@pytest.mark.parametrize("lock", sorted(str(path.relative_to(ROOT)) for path in LOCKS))
def test_what_a_package_wants_is_locked_for_every_python(lock: str) -> None:
    lines = re.findall(r"^[A-Za-z0-9].*?(?= \\$)", (ROOT / lock).read_text(), re.M)
    locked = [Requirement(line) for line in lines]
    missing, seen = set(), 0
    for place in places():
        here = {canonicalize_name(each.name) for each in locked if holds(each, place)}
        for name in here:
            try:
                wanted = distribution(name).requires or []
            except PackageNotFoundError:
                continue  # not for this Python or system
            seen += 1
            for want in map(Requirement, wanted):
                if holds(want, place) and canonicalize_name(want.name) not in here:
                    missing.add(f"{name} wants {want}")
    assert seen > len(PYTHONS)
    assert not missing, f"{lock}: run `make lock`: {sorted(missing)}"
