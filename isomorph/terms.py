"""Terms of use that must be accepted before a model's weights are downloaded."""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime

from isomorph.errors import UserError
from isomorph.paths import CACHE

ACCEPTED = CACHE.parent / "accepted-terms.json"  # kept by `isomorph down`
_YES = {"1", "true", "yes"}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Someone's terms of use.

    Args:
        title: What they are called.
        urls: Where they are to be read.
        gist: What who accepts them takes on, for the terminal; the page is what binds.
        flag: The command line's option that accepts them.
        variable: The environment variable that does, where nobody types (CI).
    """

    title: str
    urls: tuple[str, ...]
    gist: str
    flag: str
    variable: str

    @property
    def notice(self) -> str:
        """What is shown before they are accepted."""
        return f"{self.title}: {' and '.join(self.urls)}\n{self.gist}"


TERMS = {
    "gemma": Terms(
        title="Gemma Terms of Use, with Google's Prohibited Use Policy",
        urls=(
            "https://ai.google.dev/gemma/terms",
            "https://ai.google.dev/gemma/prohibited_use_policy",
        ),
        gist=(
            "They allow use, change and redistribution, forbid what the policy lists, and must be "
            "handed on with the weights; a copy is kept beside them."
        ),
        flag="--accept-gemma-terms",
        variable="ISOMORPH_ACCEPT_GEMMA_TERMS",
    ),
}


def accept(name: str) -> None:
    """Remember, in this checkout, that the terms were accepted."""
    ACCEPTED.parent.mkdir(parents=True, exist_ok=True)
    row = {"urls": TERMS[name].urls, "accepted": datetime.now(UTC).isoformat(timespec="seconds")}
    ACCEPTED.write_text(json.dumps({**_remembered(), name: row}, indent=2) + "\n")


def accepted(name: str) -> bool:
    """Tell whether the terms were accepted, here before or by the environment's variable."""
    said = os.environ.get(TERMS[name].variable, "").strip().lower()
    return said in _YES or name in _remembered()


def require(name: str, model: str) -> None:
    """Refuse to go on before the terms are accepted.

    Raises:
        UserError: They are not; the message says what they are and how to accept them.
    """
    if accepted(name):
        return
    terms = TERMS[name]
    raise UserError(
        f"{model} comes under the {terms.title} ({', '.join(terms.urls)}), which are not accepted; "
        f"read them, then run `isomorph up {terms.flag}`, or set {terms.variable}=1"
    )


def _remembered() -> dict[str, object]:
    try:
        found = json.loads(ACCEPTED.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
