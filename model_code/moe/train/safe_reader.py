"""Reads Distributed Checkpoints without running what a forged one may hold.

Their index, `.metadata`, is a pickle, which may name any function to be called. This reader knows
the few classes that an index consists of, and refuses all others. The tensors themselves are read
with torch's `weights_only`.
"""

import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

_CLASSES = {
    "pathlib": {"PosixPath", "Path"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


def _member(kind: Any, name: Any) -> Enum:
    """Stand for getattr, by which Python 3.11.2 names a member of an enumeration."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise ValueError("its index names builtins.getattr, which is no part of a checkpoint")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a class of an index; refuse everything else."""
        if (module, name) == ("builtins", "getattr"):
            return _member
        plain_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if plain_dtype or name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"its index names {module}.{name}, which is no part of a checkpoint")


class SafeReader(FileSystemReader):
    """PyTorch's reader of a folder, with an index of known classes only."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the index of the checkpoint."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as error:
                raise ValueError("its index cannot be read") from error
        if not isinstance(metadata, Metadata):
            raise ValueError("its index is none")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
