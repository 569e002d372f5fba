"""A byte-level BPE tokenizer made from the vocabulary that a GGUF file carries."""

import codecs
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from model_code.common.errors import WeightsError
from model_code.common.gguf_header import GGUFHeader

_CONTROL, _USER_DEFINED = 3, 4
# Tokens that end an answer besides the one that the file names, in the families that we read.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
# What splits the text before merging, by GGUF's name. SmolLM's digits are always single.
_SPLITS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2_split()]
    ),
    "gpt-2": lambda: _gpt2_split(),
}


class GGUFTokenizer:
    """Text to token ids and back, without transformers."""

    def __init__(self, header: GGUFHeader) -> None:
        meta = {
            key.removeprefix("tokenizer.ggml."): value for key, value in header.metadata.items()
        }
        kind, split = meta.get("model"), meta.get("pre", "gpt-2")
        if kind != "gpt2" or split not in _SPLITS:
            raise WeightsError(
                f"{header.path}: tokenizer {kind}/{split} is unknown to the native engine; known: "
                f"{', '.join('gpt2/' + name for name in _SPLITS)}; set ISOMORPH_ENGINE=llama.cpp"
            )
        tokens, kinds = meta.get("tokens", []), meta.get("token_type", [])
        if len(tokens) != len(kinds) or not tokens:
            raise WeightsError(f"{header.path}: damaged: {len(tokens)} tokens, {len(kinds)} kinds")
        vocabulary = {token: index for index, token in enumerate(tokens)}
        unicode_bytes = _unicode_bytes()
        try:
            merges = [tuple(merge.split(" ", 1)) for merge in meta.get("merges", [])]
            self._tokenizer = Tokenizer(models.BPE(vocabulary, merges))
            self._bytes = [
                _token_bytes(token, kind, unicode_bytes)
                for token, kind in zip(tokens, kinds, strict=True)
            ]
        except (TypeError, ValueError, KeyError) as error:
            raise WeightsError(
                f"{header.path}: damaged: its merges or tokens are no byte-level BPE"
            ) from error
        self._tokenizer.pre_tokenizer = _SPLITS[split]()
        self._tokenizer.add_special_tokens(
            [AddedToken(t, special=True, normalized=False)
             for t, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
        )  # fmt: skip
        self._start = [meta["bos_token_id"]] if meta.get("add_bos_token") else []
        self.ends = {vocabulary[end] for end in _ENDS if end in vocabulary}
        self.ends |= {meta[key] for key in ("eos_token_id", "eot_token_id") if key in meta}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, in which special tokens are recognised."""
        return self._start + self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[index] for index in ids).decode(errors="replace")

    def stream(self) -> "TextStream":
        """Return a decoder that takes one token after the other."""
        return TextStream(self._bytes)


class TextStream:
    """Gives out text as soon as its characters are whole."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes."""
        return self._decoder.decode(self._token_bytes[token])

    def flush(self) -> str:
        """Return what an unfinished character at the end amounts to."""
        return self._decoder.decode(b"", final=True)


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _token_bytes(token: str, kind: int, unicode_bytes: dict[str, int]) -> bytes:
    """Return what a token stands for in the text; a control token for nothing."""
    if kind == _CONTROL:
        return b""
    if kind == _USER_DEFINED:
        return token.encode()
    return bytes(unicode_bytes[letter] for letter in token)


def _unicode_bytes() -> dict[str, int]:
    """Return GPT-2's table: printable bytes stand for themselves, others for later letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
