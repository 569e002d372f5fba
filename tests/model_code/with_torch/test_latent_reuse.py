"""Answers with the store of latents, and with all that can befall it: always the same answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from model_code.common.architecture import parse
from model_code.common.batch import Batch, Sequence
from model_code.common.cache import KVCache
from model_code.common.decoder import Decoder
from model_code.common.errors import SettingsError
from model_code.mla.prefixes import LatentPrefixes, block_layout
from model_code.mla.store.blocks import key_of
from model_code.mla.store.client import Client
from model_code.mla.store.latents import LatentStore
from model_code.mla.store.metrics import LatentMetrics
from model_code.mla.store.resp import Address, Credentials
from tests.model_code.mla.valkey import Front, Valkey, credentials, wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]  # half a minute: the file goes early

BLOCK, CONTEXT = 16, 128
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 97,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
PROMPTS = [[(7 * n + at * at) % 97 for at in range(70 + n)] for n in range(4)]


@pytest.fixture(
    scope="module",
    params=[(torch.float32, "auto"), (torch.bfloat16, "auto"), (torch.bfloat16, "fp8")],
    ids=["float32", "bfloat16", "fp8"],
)
def dtypes(request: pytest.FixtureRequest) -> tuple[torch.dtype, str]:
    """What is computed in, and what blocks are stored in."""
    given: tuple[torch.dtype, str] = request.param
    return given


@pytest.fixture(scope="module")
def decoder(dtypes: tuple[torch.dtype, str]) -> Decoder:
    torch.manual_seed(1)
    made = Decoder(parse(CONFIG), context=CONTEXT, dtype=dtypes[0]).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 if parameter.dim() > 1 else 1)
    return made


class Node:
    """What one server has: a batch, and its side of the store."""

    def __init__(
        self, decoder: Decoder, address: Address, *, tenant: str = "t", model: str = "m",
        password: Callable[[bool], Credentials] = credentials, deadline_s: float = 0.5,
        ttl_s: int = 60, stored: str = "auto",
    ) -> None:  # fmt: skip
        self.registry = CollectorRegistry()
        metrics = LatentMetrics(self.registry)
        layout = block_layout(
            decoder.architecture, decoder.dtype, model=model, block=BLOCK, tenant=tenant,
            stored=stored,
        )  # fmt: skip
        connect = partial(Client, address, cluster=False, tls=None, credentials=password)
        self.store = LatentStore(
            layout, connect, metrics, arena_blocks=16, ttl_s=ttl_s, deadline_s=deadline_s
        )
        self.prefixes = LatentPrefixes(self.store, decoder.architecture, decoder.dtype, metrics)
        self.batch = Batch(decoder, slots=2, context=CONTEXT)
        self.batch.prefixes = self.prefixes

    def ask(self, prompt: list[int]) -> tuple[list[torch.Tensor], int]:
        """Return the logits of four tokens, and how many tokens of the prompt were reused."""
        digests = asyncio.run(self.prefixes.fetch(prompt))
        return answer(self.batch, prompt, digests)

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"isomorph_latent_{name}_total") or 0.0

    def stored(self, blocks: int) -> None:
        wait_until(lambda: self.count("stored_bytes") >= blocks * self.store.layout.value_bytes)


def answer(batch: Batch, prompt: list[int], digests: list[bytes]) -> tuple[list[torch.Tensor], int]:
    logits: list[torch.Tensor] = []

    def sampler(given: torch.Tensor, _: list[int]) -> int:
        logits.append(given.clone())
        return int(given.argmax())

    sequence = Sequence(
        prompt=prompt, limit=4, sampler=sampler, ends=set(), digests=digests  # type: ignore[arg-type]
    )  # fmt: skip
    batch.add(sequence)
    while sequence.finish is None:
        list(batch.step())
    return logits, sequence.reused


@pytest.fixture(scope="module")
def expected(decoder: Decoder, dtypes: tuple[torch.dtype, str]) -> list[list[torch.Tensor]]:
    """The answers without any store; prompts are read in the same chunks, rounded or not."""

    class Nothing:
        block = BLOCK

        def load(self, *_: Any) -> int:
            return 0

        def save(self, sequence: Sequence, cache: KVCache, slot: int) -> None:
            start, rest = sequence.cached - BLOCK, sequence.cached % BLOCK
            if dtypes[1] == "fp8" and not rest:
                data = cache.export_tokens(slot, start, sequence.cached)
                cache.import_tokens(slot, start, rounded(data.view(-1, 16)).view(-1))

    batch = Batch(decoder, slots=2, context=CONTEXT)
    batch.prefixes = Nothing()  # type: ignore[assignment]
    return [answer(batch, prompt, [])[0] for prompt in PROMPTS]


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Round latents to fp8 in torch's own words; keys, the last four of a row, stay."""
    latents = rows[:, :12].double()
    scales = torch.exp2((latents.abs().amax(-1, keepdim=True) / 448).log2().ceil())
    latents = (latents / scales).float().to(torch.float8_e4m3fn).double() * scales
    return torch.cat([latents.to(rows.dtype), rows[:, 12:].bfloat16()], dim=-1)


@pytest.fixture
def node(decoder: Decoder, dtypes: tuple[torch.dtype, str]) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(address: Address, **options: Any) -> Node:
        made.append(Node(decoder, address, **({"stored": dtypes[1]} | options)))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    if "valkey" in request.fixturenames:
        request.getfixturevalue("valkey").admin("FLUSHALL")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


Nodes = Callable[..., Node]
Expected = list[list[torch.Tensor]]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_prompt_computed_on_one_node_is_a_hit_on_another_bit_for_bit(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    one, other = node(valkey.address), node(valkey.address)
    logits, reused = one.ask(PROMPTS[0])
    assert reused == 0
    assert same(logits, expected[0])
    one.stored(4)
    logits, reused = other.ask(PROMPTS[0])
    assert reused == 64
    assert same(logits, expected[0])
    assert other.count("hits") == 4
    assert other.count("reused_tokens") == 64
    assert other.count("fetched_bytes") == 4 * other.store.layout.value_bytes
    assert other.count("stored_bytes") == 0, "what was fetched is not stored again"


def test_a_longer_prompt_reuses_what_it_shares_and_computes_the_rest(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    one, other = node(valkey.address), node(valkey.address)
    one.ask(PROMPTS[3][:40])
    one.stored(2)
    logits, reused = other.ask(PROMPTS[3])
    assert reused == 32
    assert same(logits, expected[3])


def test_a_prompt_of_whole_blocks_still_computes_its_last_block(
    valkey: Valkey, node: Nodes
) -> None:
    one = node(valkey.address)
    first, _ = one.ask(PROMPTS[0][:64])
    again, reused = one.ask(PROMPTS[0][:64])
    assert reused == 48
    assert same(again, first)


@pytest.mark.parametrize("other", [{"tenant": "u"}, {"model": "n"}])
def test_another_tenant_or_model_finds_nothing(
    valkey: Valkey, node: Nodes, other: dict[str, str]
) -> None:
    one = node(valkey.address)
    one.ask(PROMPTS[0])
    one.stored(4)
    assert node(valkey.address, **other).ask(PROMPTS[0])[1] == 0


def test_blocks_of_one_dtype_are_never_read_as_another(
    valkey: Valkey, node: Nodes, dtypes: tuple[torch.dtype, str]
) -> None:
    one = node(valkey.address)
    one.ask(PROMPTS[0])
    one.stored(4)
    other = node(valkey.address, stored="auto" if dtypes[1] == "fp8" else "fp8")
    assert other.ask(PROMPTS[0])[1] == 0
    assert other.count("store_errors") == 0
    assert node(valkey.address).ask(PROMPTS[0])[1] == 64


def test_without_the_store_a_node_still_reuses_its_own_blocks(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    one = node(Address("127.0.0.1", 1))
    one.ask(PROMPTS[0])
    logits, reused = one.ask(PROMPTS[0])
    assert reused == 64
    assert same(logits, expected[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "empty", "list"])
def test_a_damaged_value_is_a_miss_and_is_mended(
    valkey: Valkey, node: Nodes, expected: Expected, damage: str
) -> None:
    one = node(valkey.address)
    one.ask(PROMPTS[0])
    one.stored(4)
    digests = one.store.layout.digests(PROMPTS[0])
    first, second = (key_of(digest).decode() for digest in digests[:2])
    size = one.store.layout.value_bytes
    commands = {
        "flip": ["SETRANGE", first, str(size - 9), "\x7f\x7f"],
        "cut": ["SET", first, "ISML"],
        "swap": ["COPY", second, first, "REPLACE"],
        "empty": ["SET", first, ""],
        "list": ["LPUSH", first, "x"],
    }
    if damage == "list":
        valkey.admin("DEL", first)
    valkey.admin(*commands[damage])
    other = node(valkey.address)
    logits, reused = other.ask(PROMPTS[0])
    assert reused == 0
    assert same(logits, expected[0])
    assert other.count("store_errors") == (0 if damage in ("cut", "empty") else 1)
    other.stored(1)
    assert node(valkey.address).ask(PROMPTS[0])[1] == 64


def test_blocks_expire(valkey: Valkey, node: Nodes) -> None:
    one = node(valkey.address, ttl_s=1)
    one.ask(PROMPTS[0])
    one.stored(4)
    wait_until(lambda: valkey.admin("DBSIZE") == 0)
    assert node(valkey.address).ask(PROMPTS[0])[1] == 0


def test_requests_for_the_same_prefix_fetch_it_once(valkey: Valkey, node: Nodes) -> None:
    one, other = node(valkey.address), node(valkey.address)
    one.ask(PROMPTS[0])
    one.stored(4)

    async def all_at_once() -> None:
        await asyncio.gather(*(other.prefixes.fetch(PROMPTS[0]) for _ in range(20)))

    asyncio.run(all_at_once())
    assert other.count("fetched_bytes") == 4 * other.store.layout.value_bytes
    assert other.ask(PROMPTS[0])[1] == 64


# Faults. Each prompt is asked through the fault and after it, and timed.


def ask_through(node: Node, expected: Expected, *, within_s: float = 2.0) -> None:
    for prompt, wanted in zip(PROMPTS, expected, strict=True):
        since = time.monotonic()
        logits, _ = node.ask(prompt)
        assert same(logits, wanted)
        assert time.monotonic() - since < within_s


def recovers(node: Node, reader: Node) -> None:
    """Wait until what one node computes reaches another through the store again."""
    fresh = iter(range(1000, 2000))

    def shared() -> bool:
        prompt = [next(fresh) % 97] + PROMPTS[0]
        node.ask(prompt)
        time.sleep(0.1)
        return reader.ask(prompt)[1] == 64

    wait_until(shared, 30)


def test_a_store_that_is_gone_restarted_and_paused(
    decoder: Decoder, node: Nodes, expected: Expected, tmp_path: Path
) -> None:
    own = Valkey(tmp_path)
    one, other = node(own.address), node(own.address)
    ask_through(one, expected)
    own.kill()
    ask_through(other, expected)
    ask_through(one, expected)
    own.start()
    recovers(one, other)
    own.pause()
    slow = node(own.address, deadline_s=0.2)
    ask_through(slow, expected)
    assert slow.count("store_errors") > 0
    own.resume()
    recovers(one, slow)
    own.kill()


def test_five_seconds_of_latency_cost_three_deadlines_and_then_nothing(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    front = Front(valkey.address)
    front.delay_s = 5.0
    slow = node(front.address, deadline_s=0.2)
    ask_through(slow, expected, within_s=1.0)
    since = time.monotonic()
    slow.ask([1, *PROMPTS[0]])
    assert time.monotonic() - since < 0.2, "the breaker is open"
    front.delay_s = 0.0
    recovers(node(valkey.address), slow)
    front.close()


def test_a_full_store_still_gives_what_it_has(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    one, other = node(valkey.address), node(valkey.address)
    one.ask(PROMPTS[0])
    one.stored(4)
    valkey.admin("CONFIG", "SET", "maxmemory", "1")
    try:
        ask_through(other, expected)
        assert other.count("hits") >= 4
        wait_until(lambda: other.count("store_errors") > 0)
    finally:
        valkey.admin("CONFIG", "SET", "maxmemory", "0")
    recovers(other, one)


def test_a_refused_password_and_the_right_one_after_it(
    valkey: Valkey, node: Nodes, expected: Expected
) -> None:
    given = {"password": "wrong"}
    one = node(valkey.address, password=lambda _: Credentials("isomorph", given["password"]))
    ask_through(one, expected)
    assert one.count("stored_bytes") == 0
    assert one.count("store_errors") > 0
    given["password"] = credentials().password
    recovers(one, node(valkey.address))


def test_a_store_that_talks_nonsense(node: Nodes, expected: Expected) -> None:
    listener = __import__("socket").create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    ask_through(node(Address("127.0.0.1", listener.getsockname()[1])), expected)
    listener.close()


def test_a_model_without_latents_is_refused() -> None:
    llama = parse({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 97,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
    }, name="llama")  # fmt: skip
    with pytest.raises(SettingsError, match="llama has layers without latent attention"):
        block_layout(llama, torch.float32, model="m", block=16, tenant="t")
