"""What a training run is given, and how its texts get to the cluster."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from isomorph.environments import Environment
from isomorph.errors import UserError
from isomorph.paths import ROOT

CONFIGS = ROOT / "model_code" / "moe" / "train" / "configs"
PYTHON = "python-reference"  # the shards that the trainer makes of Python's own reference


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as train.sh and ranks.sh read it: a variable JOB_NAME for each field `name`.

    Args:
        config: A name in the trainer's configs, or a .json file below the data folder.
        data: Folder below the data folder, with shards or with texts to make them of.
        texts: How many texts must have come through from the bucket.
        vocabulary: Of the tokenizer that is trained, where none is given.
        held_out: Tokens that are kept from learning.
        steps: The last step's number.
        ranks: Of one node.
        restarts: How often torchrun starts ranks again that died.
        checkpoint_every: Steps between checkpoints.
        expert_parallel: Ranks that share the experts; 0 leaves it to the config.
        batch: Sequences of a step; 0 leaves it to the config.
        seed: Of the weights and of the order of the data.
        peak_tflops: Of one device, for the utilization; 0 for none.
    """

    config: str
    data: str
    texts: int
    vocabulary: int
    held_out: int
    steps: int
    ranks: int
    restarts: int
    checkpoint_every: int
    expert_parallel: int
    batch: int
    seed: int
    peak_tflops: float

    def words(self) -> list[str]:
        """Return the words NAME=VALUE of job.sh."""
        return [f"JOB_{each.name.upper()}={getattr(self, each.name)}" for each in fields(self)]


def config_of(config: str) -> dict[str, Any]:
    """Return a config of the trainer, by name or from a file.

    Raises:
        UserError: there is no such config, or it is no JSON object with a model.
    """
    path = Path(config) if config.endswith(".json") else CONFIGS / f"{config}.json"
    try:
        found = json.loads(path.read_text())
        found["model"]["vocab_size"]
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in CONFIGS.glob("*.json")))
        raise UserError(f"no config {config!r}; there are {known}, or name a .json file") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f'{path} is no config; it must be {{"model": a config.json, "training": {{...}}}}'
        ) from None
    return dict(found)


def upload(
    environment: Environment,
    url: str,
    *,
    config: str,
    texts: Sequence[Path],
    tokenizer: Path | None,
) -> tuple[str, str]:
    """Put what only this machine has into the data bucket; return config and data as nodes see it.

    The file system of the cluster is linked to the bucket: what is below `url` is below its data
    folder within seconds. Names are digests, so that other content is another folder.

    Args:
        environment: Whose AWS it is.
        url: s3:// prefix of the data folder.
        config: Name, or a .json file.
        texts: UTF-8 files to learn from; none: Python's own reference.
        tokenizer: A tokenizer.json; left out, one is trained on the texts.

    Raises:
        UserError: a file that cannot be read, or an upload that failed.
    """
    wanted: dict[str, bytes] = {}
    if config.endswith(".json"):
        content = _read(Path(config))
        config = f"configs/{hashlib.sha256(content).hexdigest()[:16]}.json"
        wanted[config] = content
    data = PYTHON
    if texts or tokenizer:
        contents = {path.name: _read(path) for path in texts}
        if len(contents) != len(texts):
            raise UserError("two texts have the same name; give each its own")
        given = _read(tokenizer) if tokenizer else b""
        digest = hashlib.sha256(json.dumps(sorted(contents)).encode())
        for content in (given, *(contents[name] for name in sorted(contents))):
            digest.update(hashlib.sha256(content).digest())
        data = f"text-{digest.hexdigest()[:16]}"
        if given:  # before the texts: once those are there, the shards are made
            wanted[f"{data}/tokenizer.given"] = given
        wanted |= {f"{data}/text/{name}": content for name, content in contents.items()}
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    s3 = environment.client("s3")
    for key, content in wanted.items():
        try:
            s3.put_object(Bucket=bucket, Key=prefix + key, Body=content)
        except (ClientError, BotoCoreError) as error:
            raise UserError(f"{key} could not be put into {bucket}: {error}") from None
    return config, data


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path} is empty")
    return content
