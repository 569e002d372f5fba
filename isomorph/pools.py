"""Which pool a prompt goes to: what the router beside the deployed weights says."""

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from isomorph.environments import Environment
from isomorph.errors import UserError
from model_code.common.errors import WeightsError
from model_code.moe.route import POOLS_FILE, PoolRouter


def pools(outputs: dict[str, str]) -> list[str]:
    """Return the names of a stack's pools."""
    return outputs["Pools"].split(",") if "Pools" in outputs else []


def choose_pool(environment: Environment, stack: str, prompt: str, asked: str | None) -> str:
    """Return the pool that is asked for, else the router's choice, else the stack's default.

    Raises:
        UserError: there is no such pool, or the router's file cannot be read.
    """
    outputs = environment.outputs(stack)
    there = pools(outputs)
    if asked is not None:
        if asked not in there:
            raise UserError(
                f"no pool {asked!r}; {environment.stack(stack)} has: {', '.join(there)}"
            )
        return asked
    router = _router(environment, outputs.get("Weights", ""))
    chosen = router.pool(prompt) if router else ""
    return chosen if chosen in there else outputs["DefaultPool"]


def _router(environment: Environment, weights: str) -> PoolRouter | None:
    """Return the router that was pushed with the weights; None if there was none."""
    from botocore.exceptions import ClientError

    where = urlsplit(weights.partition("#")[0])
    if where.scheme != "s3":
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / POOLS_FILE
        try:
            client = environment.client("s3")
            content = client.get_object(Bucket=where.netloc, Key=where.path[1:] + POOLS_FILE)
            path.write_bytes(content["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise UserError(f"AWS refused to read {POOLS_FILE} beside {weights}: {error}") from None
        try:
            return PoolRouter.read(path)
        except WeightsError as error:
            raise UserError(f"{weights}: {error}") from None
