"""Two servers answer while their store fails in every way: no wrong answer, no failed request.

The store is a real cluster of Valkey, two primaries and a replica; requests come all the while.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import pytest

from tests.model_code.conftest import ServerProcess
from tests.model_code.mla.valkey import Front, Valkey, make_cluster, wait_until
from tests.model_code.with_torch.conftest import Start

pytestmark = [pytest.mark.torch, pytest.mark.slow]
Change = Callable[[], object]
_FRESH = count()


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """More blocks than a server keeps at hand (24), so that it asks the store all the time."""
    from model_code.common.text import text_of_python

    text = text_of_python()
    return [text[at : at + 600] for at in range(0, 160_000, 10_000)]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    nodes = make_cluster([tmp_path_factory.mktemp(name) for name in "abc"])
    yield nodes
    for node in nodes:
        node.kill()


def ask(server: ServerProcess, prompt: str) -> tuple[str, int]:
    answer = server.complete(prompt, temperature=0, max_tokens=8)
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], cached


class Clients:
    """Ask both servers without a pause, and note every answer that is not the expected one."""

    def __init__(self, servers: Sequence[ServerProcess], expected: dict[str, str]) -> None:
        self.servers, self.expected = servers, expected
        self.answers, self.problems = 0, list[str]()

    def ask_all(self) -> None:
        """Wait until as many more answers have come as there are prompts for each server."""
        enough = self.answers + len(self.servers) * len(self.expected)
        wait_until(lambda: self.problems or self.answers >= enough, 60)

    @contextmanager
    def asking(self) -> Iterator[None]:
        stop = threading.Event()

        def work(server: ServerProcess, first: int) -> None:
            prompts = [*self.expected]
            for turn in count(first):
                if stop.is_set():
                    return
                prompt = prompts[turn % len(prompts)]
                try:
                    text, _ = ask(server, prompt)
                except Exception as error:
                    self.problems.append(f"{type(error).__name__}: {error}")
                    continue
                self.answers += 1
                if text != self.expected[prompt]:
                    self.problems.append(f"{text!r} instead of {self.expected[prompt]!r}")

        with ThreadPoolExecutor(4) as threads:
            for number in range(4):  # two of a server: one begins with the other's second half
                half = number // 2 * len(self.expected) // 2
                threads.submit(work, self.servers[number % 2], half)
            try:
                yield
            finally:
                stop.set()


def shared_again(one: ServerProcess, other: ServerProcess) -> bool:
    """Whether what one server computes reaches the other one through the store."""
    prompt = f"{next(_FRESH)} {'what nobody has asked so far ' * 12}"
    computed, _ = ask(one, prompt)
    time.sleep(0.3)
    found, cached = ask(other, prompt)
    assert found == computed
    return cached > 0


def each(nodes: Sequence[Valkey], *words: str) -> Change:
    return lambda: [node.admin(*words) for node in nodes]


def damage(nodes: Sequence[Valkey]) -> None:
    """Change the last bytes of every value."""
    for node in nodes:
        for key in node.admin("KEYS", "isomorph:latent:*"):
            size = node.admin("STRLEN", key.decode())
            node.admin("SETRANGE", key.decode(), str(size - 9), "\x7f\x7f\x7f")


def test_zero_wrong_answers_and_zero_failed_requests_whatever_befalls_the_store(
    start: Start, cluster: list[Valkey], prompts: list[str]
) -> None:
    first, second, replica = cluster
    primaries = [first, second]
    store = {
        "LATENT_STORE_URL": f"redis://127.0.0.1:{first.address.port}", "LATENT_STORE_CLUSTER": 1,
    }  # fmt: skip
    one, other = servers = start(**store), start(**store)
    for server in servers:
        server.wait_until_ready(240)
    clients = Clients(servers, {prompt: ask(one, prompt)[0] for prompt in prompts})
    wait_until(lambda: shared_again(one, other), 30)

    def fail_over() -> None:  # the replica takes the place of a primary that is well
        replica.admin("CLUSTER", "FAILOVER")
        wait_until(lambda: b"role:master" in replica.admin("INFO", "replication"))

    def back() -> None:
        wait_until(lambda: b"master_link_status:up" in first.admin("INFO", "replication"))
        first.admin("CLUSTER", "FAILOVER")
        wait_until(lambda: b"role:master" in first.admin("INFO", "replication"))

    def kill() -> None:
        wait_until(lambda: b"master_link_status:up" in replica.admin("INFO", "replication"))
        first.kill()
        replica.admin("CLUSTER", "FAILOVER", "TAKEOVER")

    nothing: Change = lambda: None  # noqa: E731
    faults: dict[str, tuple[Change, Change]] = {
        "pause": (each(cluster, "CLIENT", "PAUSE", "3000", "ALL"), nothing),
        "full": (
            each(primaries, "CONFIG", "SET", "maxmemory", "1"),
            each(primaries, "CONFIG", "SET", "maxmemory", "0"),
        ),
        "refused": (
            each(cluster, "ACL", "SETUSER", "default", "-get", "-set"),
            each(cluster, "ACL", "SETUSER", "default", "+get", "+set"),
        ),
        "damaged": (lambda: damage(primaries), nothing),
        "lost": (each(primaries, "FLUSHALL"), nothing),
        "failover": (fail_over, back),
        "killed": (kill, first.start),
    }
    for name, (begin, end) in faults.items():
        with clients.asking():
            begin()
            clients.ask_all()
            end()
        assert clients.problems == [], name
        # The breaker lets a store that failed alone for up to half a minute.
        wait_until(lambda: shared_again(one, other), 90)
    for server in servers:
        assert server.metric("isomorph_latent_store_errors_total") > 0
        assert server.metric("isomorph_latent_fetched_bytes_total") > 0
        assert server.process.poll() is None


def test_five_seconds_of_latency_delay_few_answers_and_spoil_none(
    start: Start, cluster: list[Valkey], prompts: list[str]
) -> None:
    front = Front(cluster[0].address)
    server = start(LATENT_STORE_URL=f"redis://127.0.0.1:{front.address.port}")
    server.wait_until_ready(240)
    front.delay_s = 5.0
    expected = [ask(server, prompt)[0] for prompt in prompts]  # three deadlines, then none
    since = time.monotonic()
    assert [ask(server, prompt)[0] for prompt in prompts] == expected
    assert time.monotonic() - since < 5.0
    assert server.metric('isomorph_latent_store_left_alone{direction="read"}') == 1
    assert server.metric('isomorph_requests_total{code="200"}') == 2 * len(prompts)
    front.close()
