"""Clusters of several embedded AWSs on one machine."""

import subprocess
import sys

import pytest

from local_aws.clusters import networks

HOLD = "from local_aws.clusters.networks import claim; held = claim(); print(held.number); input()"


def test_two_clusters_never_share_a_network_until_it_is_released() -> None:
    first, second = networks.claim(), networks.claim()
    assert first.number != second.number
    first.release()
    third = networks.claim()
    assert third.number not in (second.number,)
    second.release()
    third.release()


def test_another_process_has_another_network() -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        taken = int(other.stdout.readline())
        mine = networks.claim()
        assert mine.number != taken
        mine.release()
    finally:
        other.communicate("")


def test_fails_when_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    held = networks.claim()
    monkeypatch.setattr(networks, "_FIRST", held.number)
    monkeypatch.setattr(networks, "_LAST", held.number)
    only = rf"127\.{held.number}\.0\.0"
    with pytest.raises(RuntimeError, match=rf"^all networks from {only} to {only} have a cluster"):
        networks.claim()
    held.release()
