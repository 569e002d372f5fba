"""Measurements, each beside a named peer or limit in one run. `isomorph bench` prints them."""

import os
from collections.abc import Callable, Iterable

from bench.row import Row

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the engines have it, for all alike


def _gqa_attention() -> Iterable[Row]:
    from bench import gqa

    return gqa.attention()


def _gqa_server() -> Iterable[Row]:
    from bench import gqa_server

    return gqa_server.requests()


def _gqa_decode() -> Iterable[Row]:
    from bench import gqa

    return gqa.decode()


BENCHES: dict[str, Callable[[], Iterable[Row]]] = {
    "gqa-attention": _gqa_attention,
    "gqa-decode": _gqa_decode,
    "gqa-server": _gqa_server,
}
