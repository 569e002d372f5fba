"""Checkpoints: sharded, written while training goes on, and whole or not there at all.

    FOLDER/.step-00000100.saving/    while it is written; nothing reads it, a start removes it
    FOLDER/step-00000100/            its name once every byte is on the disk
        __R_0.distcp, .metadata      PyTorch's Distributed Checkpoint: every rank's parts
        checkpoint.json              what it is of, and the size of each file beside it
        tokenizer.json               of the data, for `export`

Each tensor is stored by its place in the whole, so that any number of ranks reads it.
"""

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from model_code.moe.train.data import TOKENIZER
from model_code.moe.train.optimizer import AdamW
from model_code.moe.train.ranks import Ranks
from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.safe_reader import SafeReader

# Of one process without a group that is what is wanted, each time.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or")
MARKER = "checkpoint.json"
_VERSION = 1
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a checkpoint is of, besides its tensors.

    Args:
        step: Steps that were made.
        sequences: Sequences that they read: the number of the next one.
        seed: Of the order of the data.
        data: Digest of the shards.
        tokenizer: Digest of their tokenizer.json.
        name: Of the config.
        model: Its config.json.
        ranks: That wrote it; it may be read by another number.
    """

    step: int
    sequences: int
    seed: int
    data: str
    tokenizer: str
    name: str
    model: Mapping[str, Any]
    ranks: int


class Checkpoints:
    """The checkpoints of a run in one folder, which all ranks see.

    Args:
        keep: How many stay; older ones are removed when a new one is whole.
        announce: Told on the first rank of each that is whole, and of each that failed.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, *, keep: int = 2, tokenizer: bytes | None = None,
        announce: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.folder, self._ranks, self._keep = folder, ranks, keep
        self._tokenizer, self._announce = tokenizer, announce
        self._pending: tuple[Future, Progress] | None = None
        self.last_whole = time.monotonic()
        if ranks.first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for stale in folder.glob(".step-*.saving"):
                    shutil.rmtree(stale)
            except OSError as error:
                raise TrainingError(f"--checkpoints {folder}: {error.strerror}") from error

    def save(self, tensors: Tensors, progress: Progress) -> None:
        """Copy the tensors and begin to write them; training may change them at once."""
        self.finish()
        scratch = self._scratch(progress)
        future = async_save(
            tensors, checkpoint_id=scratch, process_group=self._ranks.files,
            no_dist=self._ranks.count == 1,
        )  # fmt: skip
        assert isinstance(future, Future)  # noqa: S101  (its staging is not asynchronous)
        self._pending = future, progress

    def poll(self) -> None:
        """Publish what has become whole in the meantime."""
        if self._pending and self._pending[0].done():
            self.finish()

    def finish(self) -> str | None:
        """Wait for what is being written, and publish it; return what went wrong, if anything."""
        if self._pending is None:
            return None
        (future, progress), self._pending = self._pending, None
        try:
            future.result()
            if self._ranks.first:
                self._publish(progress)
        except (CheckpointException, OSError, RuntimeError) as error:
            words = f"checkpoint of step {progress.step} was not written: {_reason(error)}"
            if self._ranks.first:
                shutil.rmtree(self._scratch(progress), ignore_errors=True)
                self._announce("checkpoint_failed", {"step": progress.step, "error": words})
            return words
        self.last_whole = time.monotonic()
        return None

    def _publish(self, progress: Progress) -> None:
        """Give a checkpoint that every rank has written its marker and its name."""
        scratch, final = self._scratch(progress), self.folder / name_of(progress.step)
        if self._tokenizer is not None:
            _write(scratch / TOKENIZER, self._tokenizer)
        sizes = {path.name: path.stat().st_size for path in scratch.iterdir()}
        words = {"version": _VERSION, "files": sizes, **asdict(progress)}
        _write(scratch / MARKER, json.dumps(words, sort_keys=True).encode())
        _sync(scratch)
        if final.exists():  # of a run that was started again with less behind it
            shutil.rmtree(final)
        scratch.rename(final)
        _sync(self.folder)
        for old in whole(self.folder)[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        self._announce("checkpoint", {"step": progress.step, "path": str(final)})

    def _scratch(self, progress: Progress) -> Path:
        return self.folder / f".{name_of(progress.step)}.saving"


def name_of(step: int) -> str:
    """Return the folder's name of the checkpoint after a step."""
    return f"step-{step:08}"


def whole(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that are whole, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / MARKER).read_bytes())["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder, or the folder if it is one."""
    if (folder / MARKER).is_file():
        return folder if _is_whole(folder) else None
    found = whole(folder)
    return found[-1] if found else None


def read_progress(path: Path) -> Progress:
    """Return what a checkpoint is of."""
    try:
        words = json.loads((path / MARKER).read_bytes())
        version, _ = words.pop("version"), words.pop("files")
        progress = Progress(**words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: {MARKER} cannot be read: {error!s:.120}") from error
    if version != _VERSION:
        raise TrainingError(f"{path}: is of version {version}; this trainer reads {_VERSION}")
    return progress


def read_tensors(path: Path, tensors: Tensors, group: dist.ProcessGroup | None = None) -> None:
    """Fill tensors, or this rank's parts of them, with those of a checkpoint."""
    try:
        load(tensors, storage_reader=SafeReader(path), process_group=group, no_dist=group is None)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"{path}: damaged: {_reason(error)}; remove it to go on from the one before"
        ) from error


def check_same(path: Path, progress: Progress, wanted: Progress) -> None:
    """Refuse a checkpoint of another model or other data."""
    for key in sorted({*progress.model, *wanted.model}):
        there, here = progress.model.get(key), wanted.model.get(key)
        if there != here:
            raise TrainingError(
                f"{path}: is of another config ({progress.name}): {key} is {json.dumps(there)} "
                f"there and {json.dumps(here)} in {wanted.name}; give each its own --checkpoints"
            )
    if progress.tokenizer != wanted.tokenizer:
        raise TrainingError(
            f"{path}: vocabulary mismatch: it was trained with tokenizer "
            f"{progress.tokenizer:.16}..., the data's is {wanted.tokenizer:.16}..."
        )
    if (progress.data, progress.seed) != (wanted.data, wanted.seed):
        raise TrainingError(
            f"{path}: read other data (or with another --seed): its place in them means nothing "
            f"here; give the same --data and --seed, or new --checkpoints"
        )


def _reason(error: BaseException) -> str:
    """Return the innermost cause in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    # torch's own writer of files says it in words.
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full; the last whole checkpoint is kept"
    words = " ".join(str(error).split()).rpartition("metadata read failed: ")[2]
    return words[:200] or type(error).__name__


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tensors_of(
    named: Sequence[tuple[str, nn.Parameter]], buffers: Sequence[tuple[str, Tensor]],
    optimizer: AdamW,
) -> Tensors:  # fmt: skip
    """Return what a checkpoint holds: parameters, what the optimizer knows of each, and buffers.

    AdamW's count of steps is the checkpoint's own. Only tensors: other objects would be pickled.
    """
    found = {f"model.{name}": tensor.detach() for name, tensor in [*named, *buffers]}
    for name, parameter in named:
        found[f"exp_avg.{name}"] = optimizer.mean[parameter]
        found[f"exp_avg_sq.{name}"] = optimizer.square[parameter]
    return found
