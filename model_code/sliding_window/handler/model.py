"""The model of one execution environment: fetched, checked and mapped once, used until it ends."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_code.common.chat import ChatTemplate
from model_code.common.engine import Generation
from model_code.common.engine.llama_cpp import LlamaCppEngine
from model_code.common.errors import SettingsError, UserError, WeightsError
from model_code.common.server.asked import generation
from model_code.common.server.requests import Ask
from model_code.common.weights import fetch

_MIB = 2**20


class NotReadyError(Exception):
    """The model could not be loaded; the message is one line and says why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the function's environment says.

    Args:
        weights: s3://bucket/prefix/#sha256=DIGEST, a folder, or `none` before there are any.
        context: Tokens of a request with its answer.
        memory_mib: What the function was given.
    """

    model: str
    weights: str
    context: int
    namespace: str
    memory_mib: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the variables that the construct sets, and Lambda's own."""
        try:
            return cls(
                model=environment["ISOMORPH_MODEL"],
                weights=environment["ISOMORPH_WEIGHTS"],
                context=int(environment["ISOMORPH_CONTEXT"]),
                namespace=environment.get("ISOMORPH_METRIC_NAMESPACE", "Isomorph/sliding_window"),
                memory_mib=int(environment.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "0")),
            )
        except KeyError as error:
            raise SettingsError(f"{error.args[0]} is not set; WindowFunction sets it") from error
        except ValueError as error:
            raise SettingsError(f"ISOMORPH_CONTEXT or the memory is no number: {error}") from error


class Model:
    """Loads once. What failed is tried again with the next request.

    The weights lie in /tmp and are mapped into memory by llama.cpp, so pages come in as they are
    used. Nothing else outlives a request.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.load_seconds = 0.0
        self.served = 0
        self._engine: LlamaCppEngine | None = None
        self._template = ChatTemplate()

    def warm(self) -> bool:
        """Load while Lambda initializes; on failure say why in one line and go on."""
        try:
            self.engine()
        except NotReadyError:
            return False
        return True

    def engine(self) -> LlamaCppEngine:
        """Return the engine, loaded if need be.

        Raises:
            NotReadyError: There are no weights, or they cannot be fetched or used.
        """
        if self._engine is None:
            start = time.monotonic()
            try:
                self._engine = self._load()
            except UserError as error:
                _say("ERROR", str(error))
                raise NotReadyError(str(error)) from error
            self.load_seconds = time.monotonic() - start
            _say("INFO", f"loaded {self.settings.model} in {self.load_seconds:.2f} s")
        return self._engine

    def _load(self) -> LlamaCppEngine:
        source, _, digest = self.settings.weights.partition("#sha256=")
        if source in ("", "none"):
            raise WeightsError("no weights have been pushed yet: run `isomorph weights push`")
        folder = fetch(source, digest, Path(tempfile.gettempdir()) / "isomorph")
        engine = LlamaCppEngine(folder, slots=1, context=self.settings.context)
        self._template = ChatTemplate(engine.chat_template)
        return engine

    def generation(self, ask: Ask) -> Generation:
        """Return what the engine is asked for."""
        return generation(
            ask,
            model=self.settings.model,
            template=self._template,
            place="function",
            has_experts=False,
        )

    def headroom_mib(self) -> float:
        """Return the memory that is left of the function's, in MiB; 0 where it is not known."""
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, ValueError):
            return 0.0
        used = pages * os.sysconf("SC_PAGE_SIZE") / _MIB
        return max(0.0, self.settings.memory_mib - used)


def _say(level: str, message: str) -> None:
    print(json.dumps({"level": level, "message": message}), file=sys.stderr, flush=True)
