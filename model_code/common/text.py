"""Text and a tokenizer to learn from where nothing can be downloaded."""

import pydoc_data.topics
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def text_of_python() -> str:
    """Return the language reference that comes with every Python: some 700 KB of English."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def source_of_python() -> str:
    """Return the source of the library that comes with every Python: some 5 MB."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.glob("*.py"))
    return "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def train_tokenizer(text: str, vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer; its token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer
