"""A run of training: steps from the newest checkpoint, or from the start, to the last.

    from model_code.moe.train.recipe import load_recipe
    from model_code.moe.train.run import train
    trained = train(load_recipe("tiny"), data="shards/", steps=60)

Shape letters: M mixtures, E experts.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_code.common.decoder import Decoder
from model_code.moe.train import checkpoints as saved
from model_code.moe.train.checkpoints import Checkpoints, Progress
from model_code.moe.train.data import Data, Sequences, open_data
from model_code.moe.train.experts import mixtures
from model_code.moe.train.language_model import (
    LanguageModel,
    initialize,
    load_weights,
    named,
    place,
)
from model_code.moe.train.optimizer import AdamW, rate_of
from model_code.moe.train.parallel import check_ranks, clip, recompute_layers, shard
from model_code.moe.train.ranks import ALONE, Ranks
from model_code.moe.train.recipe import Recipe, TrainingError
from model_code.moe.train.records import Sink, Step

Announce = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is told besides its recipe and its data; `train` says what each means."""

    steps: int
    seed: int = 0
    checkpoints: Path | None = None
    checkpoint_every: int = 50
    keep: int = 2
    weights: Path | None = None
    peak_flops: float | None = None
    sinks: Sequence[Sink] = ()
    on_update: Callable[[Decoder], None] = lambda _: None
    announce: Announce = lambda *_: None
    stopping: Callable[[], bool] = lambda: False


@dataclass
class Trained:
    """What came out of a run.

    Args:
        decoder: With its experts; on one rank `decoder(tokens, cache, span)` serves.
        losses: Of the steps that this run made.
        held_out: Loss on the held-out shard; None when the data has none, or the run was stopped.
        step: The last one that was made.
    """

    decoder: Decoder
    losses: list[float] = field(default_factory=list)
    held_out: float | None = None
    step: int = 0


def train(recipe: Recipe, *, data: str | Path, ranks: Ranks = ALONE, **options: Any) -> Trained:
    """Train a model and return it.

    Args:
        recipe: The model and how to train it.
        data: A folder with shards, or s3://bucket/prefix/.
        ranks: Those that train together; this process alone if left out.
        options: Fields of `Options`. `steps` is the last step's number; `checkpoints` a folder to
            go on from and to write to; `weights` a Hugging Face folder to begin with; `peak_flops`
            those of one device; `on_update` is called after each update of the weights;
            `stopping` is asked after each step whether to end early.

    Raises:
        TrainingError: The recipe, the data or the checkpoint cannot be used.
    """
    return _Run(recipe, open_data(str(data)), ranks, Options(**options)).train()


class _Run:
    def __init__(self, recipe: Recipe, data: Data, ranks: Ranks, options: Options) -> None:
        if options.steps < 1 or options.checkpoint_every < 1 or options.keep < 1:
            raise TrainingError(
                f"--steps is {options.steps}, --checkpoint-every {options.checkpoint_every} and "
                f"--keep {options.keep}; allowed are whole numbers from 1"
            )
        self.recipe, self.data, self.ranks, self.options = recipe, data, ranks, options
        self.micro_batches = check_ranks(recipe, ranks.count)
        data.check_vocabulary(recipe.architecture.vocabulary)
        context, seed = recipe.training.context, options.seed
        self.sequences = Sequences(data.shards, tokens=context, seed=seed)
        self.model = self._model()
        self.optimizer = AdamW(self.model, recipe.training)
        self.mixtures = list(mixtures(self.model))
        self.checkpoints = self._checkpoints()
        self.step, self.next_sequence = 0, 0
        self._resume()

    def train(self) -> Trained:
        """Make the steps that are left."""
        trained = Trained(self.model.decoder, step=self.step)
        stopped = False
        while self.step < self.options.steps and not stopped:
            record, stopped = self._one_step()
            trained.losses.append(record.loss)
            trained.step = self.step
            self._save_if_due(last=stopped or self.step == self.options.steps)
        if not stopped and self.data.held_out:
            trained.held_out = self._held_out()
        return trained

    def _checkpoints(self) -> Checkpoints | None:
        if (folder := self.options.checkpoints) is None:
            return None
        return Checkpoints(
            folder, self.ranks, keep=self.options.keep, tokenizer=self.data.tokenizer,
            announce=self.options.announce,
        )  # fmt: skip

    def _model(self) -> LanguageModel:
        model = LanguageModel(self.recipe, self.micro_batches)
        if self.recipe.training.recompute:
            recompute_layers(model)
        if self.ranks.count > 1:
            shard(model, self.recipe, self.ranks.count, self.ranks.device.type)
        place(model, self.ranks.device)
        initialize(model, self.recipe, self.options.seed)
        if self.options.weights:
            if self.ranks.count > 1:
                raise TrainingError("--weights is for one rank; start several from a checkpoint")
            load_weights(model, self.options.weights)
        return model

    def _one_step(self) -> tuple[Step, bool]:
        since, training = time.perf_counter(), self.recipe.training
        loss = self._backward()
        sums = self._summed(loss, self.options.stopping())
        norm = clip(list(self.model.parameters()), training.clip, self.ranks)
        mean_loss, visits_ME = sums[0].item() / self.ranks.count, sums[2:]
        finite = math.isfinite(mean_loss) and math.isfinite(norm)
        if finite:
            self._update(visits_ME)
        self.step += 1
        self.next_sequence += training.batch
        record = self._record(mean_loss, norm, visits_ME, time.perf_counter() - since)
        for sink in self.options.sinks if self.ranks.first else ():
            sink.record(record)
        if not finite:
            raise TrainingError(
                f"step {self.step}: loss is {mean_loss} and the gradient's norm {norm}; nothing of "
                f"this step was kept; lower training.rate ({training.rate}) or training.clip"
            )
        return record, bool(sums[1].item() > 0)

    def _backward(self) -> Tensor:
        """Go forward and back over this rank's sequences; return their mean loss."""
        size = self.recipe.training.micro_batch
        first = self.next_sequence + self.ranks.index * size
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for number in range(self.micro_batches):
            tokens = self.sequences.batch(first + number * size * self.ranks.count, size)
            loss = self.model(tokens.to(self.ranks.device)) / self.micro_batches
            loss.backward()
            total += loss.detach()
        return total

    def _summed(self, loss: Tensor, stopping: bool) -> Tensor:
        """Return over all ranks: loss, who wants to stop, then the visits of each expert."""
        visits = [each.router.visits_E for each in self.mixtures]
        for each in self.mixtures:
            each.router.visits_E = None
        parts = [loss[None], loss.new_tensor([float(stopping)])]
        return self.ranks.add(torch.cat(parts + [v.double() for v in visits if v is not None]))

    def _update(self, visits: Tensor) -> None:
        self.optimizer.step(rate_of(self.step, self.options.steps, self.recipe.training))
        for each, visits_E in zip(self.mixtures, self._by_mixture(visits), strict=True):
            each.router.correct(visits_E, self.recipe.training.gamma)
        self.options.on_update(self.model.decoder)

    def _by_mixture(self, visits: Tensor) -> list[Tensor]:
        return list(visits.split([each.experts.part.experts for each in self.mixtures]))

    def _record(self, loss: float, norm: float, visits: Tensor, seconds: float) -> Step:
        training, architecture = self.recipe.training, self.recipe.architecture
        speed = training.batch * training.context / seconds
        flops = architecture.training_flops(training.context) / training.context * speed
        peak = self.options.peak_flops
        loads = [(each.max() / each.mean()).item() for each in self._by_mixture(visits)]
        expected = sum(training.batch * training.context * m.router.active for m in self.mixtures)
        age = time.monotonic() - self.checkpoints.last_whole if self.checkpoints else 0.0
        return Step(
            step=self.step, loss=loss, tokens_per_second=speed,
            mfu=flops / (peak * self.ranks.count) if peak else None,
            expert_load=max(loads, default=1.0), grad_norm=norm, checkpoint_age_s=age,
            dropped_tokens=expected - round(visits.sum().item()),
        )  # fmt: skip

    @torch.no_grad()
    def _held_out(self) -> float:
        """Return the loss on the held-out shard: as many whole batches as it has, at least one."""
        assert self.data.held_out is not None  # noqa: S101
        training, count = self.recipe.training, self.ranks.count
        sequences = Sequences([self.data.held_out], tokens=training.context, seed=None)
        size = training.micro_batch
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        rounds = max(sequences.total // training.batch, 1) * self.micro_batches
        for number in range(rounds):
            tokens = sequences.batch((number * count + self.ranks.index) * size, size)
            total += self.model(tokens.to(self.ranks.device))
        return self.ranks.add(total).item() / (rounds * count)

    def _progress(self) -> Progress:
        tokenizer = self.data.shards[0].header.tokenizer
        return Progress(
            step=self.step, sequences=self.next_sequence,
            seed=self.options.seed, data=self.data.digest, tokenizer=tokenizer,
            name=self.recipe.name, model=dict(self.recipe.model), ranks=self.ranks.count,
        )  # fmt: skip

    def _tensors(self) -> saved.Tensors:
        return saved.tensors_of(named(self.model), list(self.model.decoder.named_buffers()),
                                self.optimizer)  # fmt: skip

    def _save_if_due(self, *, last: bool) -> None:
        if self.checkpoints is None:
            return
        self.checkpoints.poll()
        if last or self.step % self.options.checkpoint_every == 0:
            self.checkpoints.save(self._tensors(), self._progress())
        if last and (problem := self.checkpoints.finish()):
            raise TrainingError(problem)

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        path = self._newest()
        if path is None:
            return
        progress = saved.read_progress(path)
        saved.check_same(path, progress, self._progress())
        saved.read_tensors(path, self._tensors(), self.ranks.files)
        self.optimizer.steps = progress.step
        self.step, self.next_sequence = progress.step, progress.sequences
        self.options.announce("resumed", {"step": progress.step, "path": str(path)})

    def _newest(self) -> Path | None:
        """Return what the first rank finds to be the newest, so that all take the same."""
        if self.checkpoints is None:
            return None
        path = saved.newest(self.checkpoints.folder) if self.ranks.first else None
        step = saved.read_progress(path).step if path else -1
        own = torch.tensor([step if self.ranks.first else 0], device=self.ranks.device)
        chosen = int(self.ranks.add(own).item())
        return None if chosen < 0 else self.checkpoints.folder / saved.name_of(chosen)
