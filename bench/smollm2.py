"""SmolLM2-135M's weights as other measurements want them, and text to read."""

import os
from pathlib import Path
from pydoc_data.topics import topics

ROOT = Path(__file__).parents[1]
_WEIGHTS = ROOT / ".isomorph/cache/weights/smollm2-135m-instruct"


def weights() -> Path:
    """Return the folder with SmolLM2's GGUF file, Q4_1."""
    return Path(os.environ.get("ISOMORPH_TEST_WEIGHTS", _WEIGHTS))


def text() -> str:
    """Return English prose that every Python has: its own reference."""
    return "\n".join(topics[name] for name in sorted(topics))
