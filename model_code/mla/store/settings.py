"""The store's settings, read from the server's environment (a node keeps it in fleet.env)."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from model_code.common.errors import SettingsError
from model_code.mla.store.blocks import STORED_DTYPES
from model_code.mla.store.resp import Address

# Prompts are read in chunks of one block, so more than this would stall those who decode.
LONGEST_BLOCK = 256
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where the store is, and how blocks are cut.

    Args:
        secret: ARN of a secret of Secrets Manager with username and password; empty for no AUTH.
        ca: File with the authorities to trust; empty for the machine's.
        tenant: Whose blocks these are. A request has no say in it.
        dtype: What blocks are stored in; auto is what the model computes in.
    """

    address: Address
    tls: bool
    cluster: bool
    secret: str
    ca: str
    block: int
    ttl_s: int
    tenant: str
    dtype: str = "auto"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "StoreSettings | None":
        """Read and check the ISOMORPH_LATENT_* variables; None if no store is set."""
        if not (url := env.get("ISOMORPH_LATENT_STORE_URL", "").strip()):
            return None
        tls, address = _read_url(url)
        secret = env.get("ISOMORPH_LATENT_STORE_SECRET", "").strip()
        if secret and not tls:
            raise SettingsError(
                "ISOMORPH_LATENT_STORE_URL begins with redis://, which would send the password of "
                "ISOMORPH_LATENT_STORE_SECRET unencrypted; allowed with a secret: rediss://"
            )
        ca = env.get("ISOMORPH_LATENT_STORE_CA", "").strip()
        cls._check_ca(ca)
        cluster = env.get("ISOMORPH_LATENT_STORE_CLUSTER", "").strip() or "0"
        if cluster not in ("0", "1"):
            raise SettingsError(f"ISOMORPH_LATENT_STORE_CLUSTER is {cluster[:40]!r}; allowed: 0, 1")
        tenant = env.get("ISOMORPH_TENANT", "").strip() or "default"
        if not _TENANT.fullmatch(tenant):
            raise SettingsError(
                f"ISOMORPH_TENANT is {tenant[:80]!r}; allowed: 1 to 64 letters, digits and ._-"
            )
        return cls(
            address=address, tls=tls, cluster=cluster == "1", secret=secret, ca=ca,
            block=_read_block(env), ttl_s=_read_ttl(env), tenant=tenant, dtype=_read_dtype(env),
        )  # fmt: skip

    @staticmethod
    def _check_ca(ca: str) -> None:
        if ca:
            try:
                ssl.create_default_context(cafile=ca)
            except OSError as error:  # ssl.SSLError is one
                raise SettingsError(
                    f"ISOMORPH_LATENT_STORE_CA is {ca!r}; it must be a file of PEM certificates: "
                    f"{error.strerror or error}"
                ) from error

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what checks the store's certificate and its name; None without TLS."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _read_url(url: str) -> tuple[bool, Address]:
    try:
        parts = urlsplit(url)
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
        if plain and parts.scheme in ("redis", "rediss") and parts.hostname:
            return parts.scheme == "rediss", Address(parts.hostname, parts.port or 6379)
    except ValueError:  # a port that is none
        pass
    # What was given may hold a password: do not repeat it.
    raise SettingsError(
        "ISOMORPH_LATENT_STORE_URL is no address of a store; allowed: rediss://HOST:PORT, the "
        "user and password being in ISOMORPH_LATENT_STORE_SECRET"
    )


def _read_block(env: Mapping[str, str]) -> int:
    given = env.get("ISOMORPH_LATENT_BLOCK", "").strip() or str(LONGEST_BLOCK)
    whole = given.isascii() and given.isdigit() and len(given) < 6
    if not whole or not 16 <= int(given) <= LONGEST_BLOCK or LONGEST_BLOCK % int(given):
        raise SettingsError(
            f"ISOMORPH_LATENT_BLOCK is {given[:40]!r}; blocks must divide {LONGEST_BLOCK} tokens: "
            f"allowed are 16, 32, 64, 128 and 256"
        )
    return int(given)


def _read_dtype(env: Mapping[str, str]) -> str:
    given = env.get("ISOMORPH_LATENT_DTYPE", "").strip() or "auto"
    if given not in STORED_DTYPES:
        raise SettingsError(
            f"ISOMORPH_LATENT_DTYPE is {given[:40]!r}; allowed: {', '.join(STORED_DTYPES)}"
        )
    return given


def _read_ttl(env: Mapping[str, str]) -> int:
    given = env.get("ISOMORPH_LATENT_TTL_S", "").strip() or "3600"
    if not (
        given.isascii() and given.isdigit() and len(given) < 9 and 1 <= int(given) <= 30 * _DAY_S
    ):
        raise SettingsError(
            f"ISOMORPH_LATENT_TTL_S is {given[:40]!r}; allowed: whole numbers from 1 to "
            f"{30 * _DAY_S}"
        )
    return int(given)
