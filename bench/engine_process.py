"""An engine in a process of its own: threads of two engines in one get in each other's way."""

import asyncio
import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from bench.row import seconds_of
from model_code.common.engine import Engine, Generation, load_engine


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What `load_engine` is given."""

    name: str
    folder: Path
    slots: int
    context: int
    dtype: str = "auto"
    quantization: str = "none"


@dataclass(frozen=True)
class EngineProcess:
    """An engine that has loaded."""

    told: Connection

    def seconds(self, requests: int, tokens: int) -> float:
        """Return how long so many requests at once took, by the engine's own process."""
        self.told.send((requests, tokens))
        return _answer(self.told)


@contextmanager
def running(what: Loaded) -> Iterator[EngineProcess]:
    """Start a process, and end it.

    Raises:
        RuntimeError: The engine could not be loaded, or an answer was too short.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, what))  # no daemon: vLLM has children
    process.start()
    theirs.close()
    try:
        _answer(ours)
        yield EngineProcess(ours)
    finally:
        ours.close()
        process.join()


def _answer(told: Connection) -> float:
    found = told.recv()
    if isinstance(found, str):
        raise RuntimeError(found)
    return float(found)


def _serve(told: Connection, what: Loaded) -> None:
    """Load, then time what is asked for until nobody asks any more."""
    try:
        given = asdict(what)
        engine = load_engine(given.pop("name"), given.pop("folder"), **given)
    except Exception:
        told.send(traceback.format_exc())
        return
    try:
        told.send(0.0)
        while True:
            requests, tokens = told.recv()
            told.send(seconds_of(lambda: asyncio.run(ask_all(engine, requests, tokens))))  # noqa: B023
    except EOFError:
        pass
    except Exception:
        told.send(traceback.format_exc())
    finally:
        engine.close()


async def ask_all(engine: Engine, requests: int, tokens: int) -> None:
    """Ask for so many answers at once; one that is shorter is a RuntimeError."""

    async def ask(number: int) -> None:
        # Counting goes on for all tokens, where prose might end.
        request = Generation(
            prompt=f"{number} {number + 1} {number + 2}", max_tokens=tokens, temperature=0
        )
        found = 0
        async for piece in engine.generate(request):
            found = piece.completion_tokens
        if found != tokens:
            raise RuntimeError(f"{engine.name}: {found} tokens instead of {tokens}")

    await asyncio.gather(*(ask(number) for number in range(requests)))
