"""Chooses a pool for a text, from what the model measured. The standard library is enough.

A linear classifier over a text's letters, three at a time: how often each of 1,024 hashed trigrams
is there, times a weight for each pool. `measure` fits the weights to the experts that the model
itself visits.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_code.common.errors import WeightsError

POOLS_FILE = "pools.json"
POOL_HEADER = "x-isomorph-pool"
BUCKETS = 1024
_READ = 4000  # characters of a text that are looked at, from its end: what comes next follows them
_VERSION = 1
_MAX_BYTES = 1 << 24


def features(text: str) -> dict[int, float]:
    """Return the share of each trigram's bucket among all trigrams of a text's end."""
    data = text[-_READ:].encode("utf-8", "replace")
    counts: dict[int, int] = {}
    for at in range(max(len(data) - 2, 0)):
        bucket = zlib.crc32(data[at : at + 3]) % BUCKETS
        counts[bucket] = counts.get(bucket, 0) + 1
    total = sum(counts.values())
    return {bucket: count / total for bucket, count in counts.items()}


@dataclass(frozen=True)
class PoolRouter:
    """What was measured: `weights` has a list of BUCKETS numbers for each pool.

    Args:
        measured: How well it does on texts that it was not fitted to; see `measure`.
    """

    pools: tuple[str, ...]
    bias: tuple[float, ...]
    weights: Sequence[Sequence[float]]
    measured: Mapping[str, float] = field(default_factory=dict)

    def scores(self, text: str) -> dict[str, float]:
        """Return each pool's score; the highest is chosen."""
        found = features(text)
        return {
            pool: bias + sum(row[bucket] * share for bucket, share in found.items())
            for pool, bias, row in zip(self.pools, self.bias, self.weights, strict=True)
        }

    def pool(self, text: str) -> str:
        """Return the pool for a text; of equal ones the first."""
        scores = self.scores(text)
        return max(scores, key=scores.__getitem__)

    def dump(self) -> str:
        """Return pools.json."""
        value = {
            "version": _VERSION, "pools": self.pools, "bias": [round(b, 4) for b in self.bias],
            "weights": [[round(number, 2) for number in row] for row in self.weights],
            "measured": self.measured,
        }  # fmt: skip
        return json.dumps(value, separators=(",", ":")) + "\n"

    @classmethod
    def read(cls, path: Path) -> "PoolRouter":
        """Read what `dump` wrote.

        Raises:
            WeightsError: The file is missing, or damaged.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(
                f"{path}: cannot be read: {error.strerror}; python -m model_code.moe.route.measure "
                f"makes it"
            ) from error
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes")
            value = json.loads(data)
            if value["version"] != _VERSION:
                raise ValueError(f"version {value['version']!r} is not {_VERSION}")
            pools = tuple(str(pool) for pool in value["pools"])
            bias = tuple(float(number) for number in value["bias"])
            weights = [[float(number) for number in row] for row in value["weights"]]
            if not pools or not len(pools) == len(bias) == len(weights):
                raise ValueError("pools, bias and weights differ in length")
            if any(len(row) != BUCKETS for row in weights):
                raise ValueError(f"weights are not {BUCKETS} a pool")
            measured = {str(name): float(number) for name, number in value["measured"].items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path}: is damaged: {' '.join(str(error).split())}") from error
        return cls(pools, bias, weights, measured)
