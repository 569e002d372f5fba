"""Our own decoder in torch as an engine: one thread steps the batch, requests join in between."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from model_code.common import kernels
from model_code.common.batch import Batch, Decodes, PrefixSource, Sequence
from model_code.common.decoder import Decoder
from model_code.common.engine import Generation, Piece, PromptTooLongError, Visits
from model_code.common.errors import SettingsError
from model_code.common.model_folder import Prepare, load_folder
from model_code.common.quantize import check_quantization
from model_code.common.sampling import Sampler
from model_code.common.tokenizer import TextStream, TextTokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_KV_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(eq=False)
class _Job:
    """A request on its way through the thread."""

    sequence: Sequence
    text: TextStream
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Piece | Exception]"
    cancelled: bool = False

    def deliver(self, piece: Piece | Exception) -> None:
        """Hand a piece to the request's event loop; called by the thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class NativeEngine:
    """Continuous batching over our decoder."""

    name = "native"

    def __init__(
        self, decoder: Decodes, tokenizer: TextTokenizer, chat_template: str | None, *,
        slots: int, context: int,
    ) -> None:  # fmt: skip
        self.slots, self.context, self.chat_template = slots, context, chat_template
        self.kv_bytes_per_token = decoder.architecture.kv_bytes_per_token(_KV_NAMES[decoder.dtype])
        self.architecture, self.dtype = decoder.architecture, decoder.dtype
        self.window = decoder.architecture.window
        # Of a decoder in another form nobody sees which experts work.
        self.has_experts = isinstance(decoder, Decoder) and any(
            layer.feed_forward.experts for layer in self.architecture.layers
        )
        self._tokenizer = tokenizer
        self._batch = Batch(
            decoder, slots=slots, context=context, together=isinstance(decoder, Decoder)
        )
        if isinstance(decoder, Decoder) and self.has_experts:
            from model_code.moe.trace import ExpertTrace

            self.trace = self._batch.observer = ExpertTrace(decoder)
        kernels.loaded()  # compiled now, if that was never done: no request shall wait for it
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._jobs: dict[Sequence, _Job] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="native", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls, folder: Path, *, slots: int, context: int, dtype: str, quantization: str = "none",
        prepare: Prepare | None = None,
    ) -> "NativeEngine":  # fmt: skip
        """Load the GGUF file, or the safetensors files, in `folder`; `prepare`: see load_folder."""
        model = load_folder(
            folder, context=context, dtype=choose_dtype(dtype),
            quantization=check_quantization(quantization), prepare=prepare,
        )  # fmt: skip
        return cls(
            model.decoder, model.tokenizer, model.chat_template, slots=slots, context=context
        )

    def reuse(self, prefixes: PrefixSource) -> None:
        """Take beginnings of prompts from `prefixes`, and give new ones there."""
        self._batch.prefixes = prefixes

    async def generate(self, request: Generation) -> AsyncGenerator[Piece, None]:
        """Yield pieces as the thread makes them."""
        prompt = await asyncio.to_thread(self._tokenizer.encode, request.prompt)
        if len(prompt) >= self.context:
            raise PromptTooLongError(len(prompt), self.context)
        room = self.context - len(prompt)
        sequence = Sequence(
            prompt=prompt,
            limit=room if request.max_tokens is None else min(room, request.max_tokens),
            sampler=Sampler(
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                top_k=request.top_k,
                min_p=request.min_p,
                repetition_penalty=request.repetition_penalty,
            ),
            ends=self._tokenizer.ends,
            experts={} if request.experts and self.has_experts else None,
        )
        if prefixes := self._batch.prefixes:
            sequence.digests = await prefixes.fetch(prompt)
        job = _Job(sequence, self._tokenizer.stream(), asyncio.get_running_loop(), asyncio.Queue())
        self._inbox.put(job)
        try:
            while True:
                piece = await job.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            job.cancelled = True

    def close(self) -> None:
        """Stop the thread after its current step."""
        self._closing = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._take_up()
                for sequence in self._batch.step():
                    self._report(self._jobs[sequence])
            except Exception as error:
                for job in [*self._jobs.values()]:
                    self._drop(job)
                    job.deliver(error)

    def _take_up(self) -> None:
        """Let go of cancelled requests and take new ones; waits if there is nothing to do."""
        for held in [*self._jobs.values()]:
            if held.cancelled:
                self._drop(held)
        while not self._batch.full:
            try:
                job = self._inbox.get(block=not self._jobs)
            except queue.Empty:
                return
            if job is None:  # close() woke us
                return
            if not job.cancelled:
                self._batch.add(job.sequence)
                self._jobs[job.sequence] = job

    def _drop(self, job: _Job) -> None:
        del self._jobs[job.sequence]
        if job.sequence.finish is None:
            self._batch.remove(job.sequence)

    def _report(self, job: _Job) -> None:
        sequence = job.sequence
        text = "" if sequence.finish == "stop" else job.text.feed(sequence.generated[-1])
        if sequence.finish:
            text += job.text.flush()
            self._drop(job)
        job.deliver(
            Piece(
                text=text,
                prompt_tokens=len(sequence.prompt),
                completion_tokens=len(sequence.generated),
                finish=sequence.finish,
                cached_tokens=sequence.reused if self._batch.prefixes else None,
                experts=visits_of(sequence) if sequence.finish else None,
            )
        )


def visits_of(sequence: Sequence) -> Visits | None:
    """Return which experts worked for a sequence, if it asked."""
    if sequence.experts is None:
        return None
    return {
        layer: {expert: int(count) for expert, count in enumerate(counts) if count}
        for layer, counts in sequence.experts.items()
    }


def choose_dtype(name: str) -> torch.dtype:
    """Return the dtype called `name`; auto is bfloat16 where oneDNN has instructions for it.

    Elsewhere its products with more than one row are emulated and far slower than float32's.
    """
    if name == "auto":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise SettingsError(f"ISOMORPH_DTYPE is {name!r}; allowed: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
