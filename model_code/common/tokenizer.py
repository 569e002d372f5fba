"""Text to tokens and back, with the vocabulary that a GGUF file or a tokenizer.json carries."""

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from model_code.common.config_fields import ModelError, load_json
from model_code.common.errors import WeightsError
from model_code.common.gguf_header import GGUFHeader

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "\u2581"  # what SentencePiece writes for a space
# Tokens that end an answer besides the one that the file names, in the families that we read.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>", "<end_of_turn>")
# What splits the text before merging, by GGUF's name. SmolLM's digits are always single.
_SPLITS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2_split()]
    ),
    "gpt-2": lambda: _gpt2_split(),
}
_KNOWN = [*(f"gpt2/{name}" for name in _SPLITS), "llama/default"]


class TextTokenizer(Protocol):
    """What an engine needs of a tokenizer. `ends` are the tokens that end an answer."""

    ends: set[int]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, in which special tokens are recognised."""
        ...

    def stream(self) -> "TextStream":
        """Return what turns one token after the other into text."""
        ...


class TextStream(Protocol):
    """Gives out text as soon as its characters are whole."""

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes."""
        ...

    def flush(self) -> str:
        """Return what an unfinished character at the end amounts to."""
        ...


class GGUFTokenizer:
    """The tokenizer in a GGUF file: byte-level BPE, or SentencePiece's BPE with scores."""

    def __init__(self, header: GGUFHeader) -> None:
        meta = {
            key.removeprefix("tokenizer.ggml."): value for key, value in header.metadata.items()
        }
        kind, split = meta.get("model"), meta.get("pre", "gpt-2" if meta.get("model") == "gpt2"
                                                  else "default")  # fmt: skip
        if f"{kind}/{split}" not in _KNOWN:
            raise WeightsError(
                f"{header.path}: tokenizer {kind}/{split} is unknown to the native engine; known: "
                f"{', '.join(_KNOWN)}; set ISOMORPH_ENGINE=llama.cpp"
            )
        tokens, kinds = meta.get("tokens", []), meta.get("token_type", [])
        if len(tokens) != len(kinds) or not tokens:
            raise WeightsError(f"{header.path}: damaged: {len(tokens)} tokens, {len(kinds)} kinds")
        byte_level = kind == "gpt2"
        try:
            self.tokenizer = _byte_level(meta, split) if byte_level else _sentence_piece(meta)
            unicode_bytes = _unicode_bytes() if byte_level else None
            self._bytes = [
                _token_bytes(token, kind, unicode_bytes)
                for token, kind in zip(tokens, kinds, strict=True)
            ]
        except (TypeError, ValueError, KeyError) as error:
            named = "byte-level BPE" if byte_level else "SentencePiece model"
            raise WeightsError(
                f"{header.path}: damaged: its merges or tokens are no {named}"
            ) from error
        known = [(t, k) for t, k in zip(tokens, kinds, strict=True)
                 if k in (_CONTROL, _USER_DEFINED)]  # fmt: skip
        self.tokenizer.add_tokens(
            [AddedToken(t, special=k == _CONTROL, normalized=False) for t, k in known]
        )
        self.start = [meta["bos_token_id"]] if meta.get("add_bos_token") else []
        # Only control tokens: in Gemma's vocabulary </s> is a tag of HTML.
        self.ends = {index for index, token in enumerate(tokens)
                     if token in _ENDS and kinds[index] == _CONTROL}  # fmt: skip
        self.ends |= {meta[key] for key in ("eos_token_id", "eot_token_id") if key in meta}

    def encode(self, text: str) -> list[int]:
        """See `TextTokenizer`."""
        return self.start + self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[index] for index in ids).decode(errors="replace")

    def stream(self) -> "ByteStream":
        """See `TextTokenizer`."""
        return ByteStream(self._bytes)


class ByteStream:
    """A `TextStream` over tokens that stand for known bytes."""

    def __init__(self, token_bytes: list[bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """See `TextStream`."""
        return self._decoder.decode(self._token_bytes[token])

    def flush(self) -> str:
        """See `TextStream`."""
        return self._decoder.decode(b"", final=True)


class FolderTokenizer:
    """The tokenizer.json of a Hugging Face folder.

    Args:
        vocabulary: The model's: a tokenizer with more tokens belongs to another one.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsError(f"{folder}: tokenizer.json is missing; it comes with the weights")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            words = " ".join(str(error).split())
            raise WeightsError(f"{path}: cannot be read: {words:.200}") from error
        largest = max(self.tokenizer.get_vocab().values(), default=-1)
        if largest >= vocabulary:
            raise WeightsError(
                f"{path}: has token {largest:,}, the model's vocabulary is {vocabulary:,}: it is "
                f"the tokenizer of another model"
            )
        self.ends = _folder_ends(folder, self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """See `TextTokenizer`."""
        return self.tokenizer.encode(text).ids

    def stream(self) -> "DecodeStream":
        """See `TextTokenizer`."""
        return DecodeStream(self.tokenizer)


class DecodeStream:
    """A `TextStream` for any decoder: what a token adds to the text of a few before it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # from some place on where characters were whole
        self._whole = 0  # how many of them made up the last text of whole characters
        self._given = 0  # characters of their text that were given out

    def feed(self, token: int) -> str:
        """See `TextStream`."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # Up to three bytes of a character that is not whole are each shown as U+FFFD, or together.
        unsure = next((n for n in range(3) if not text[: len(text) - n].endswith("\ufffd")), 3)
        new = text[self._given : len(text) - unsure]
        self._given += len(new)
        if not unsure:  # earlier tokens may be forgotten; one group stays, for what joins words
            self._ids = self._ids[self._whole :]
            self._whole = len(self._ids)
            self._given = len(self._tokenizer.decode(self._ids))
        return new

    def flush(self) -> str:
        """See `TextStream`."""
        rest = self._tokenizer.decode(self._ids)[self._given :]
        self._given += len(rest)
        return rest


def _folder_ends(folder: Path, tokenizer: Tokenizer) -> set[int]:
    added = tokenizer.get_added_tokens_decoder()
    ends = {index for index, token in added.items() if token.special and token.content in _ENDS}
    for name in ("generation_config.json", "config.json"):
        if not (folder / name).is_file():
            continue
        try:
            given = load_json(folder / name).get("eos_token_id")
        except ModelError as error:
            raise WeightsError(str(error)) from error
        ends |= {end for end in (given if isinstance(given, list) else [given])
                 if type(end) is int}  # fmt: skip
    return ends


def _byte_level(meta: dict[str, Any], split: str) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(meta["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("merges", [])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = _SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gpt2_split() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _sentence_piece(meta: dict[str, Any]) -> Tokenizer:
    """Return BPE that merges as SentencePiece does: what has the best score, first."""
    tokens, kinds, scores = meta["tokens"], meta["token_type"], meta["scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merged = (_NORMAL, _USER_DEFINED)
    find = vocabulary.get  # nearly two million times for Gemma
    merges = [
        (-score, left, right)
        for token, kind, score in zip(tokens, kinds, scores, strict=True)
        if kind in merged
        for at in range(1, len(token))
        if (left := find(token[:at])) is not None and (right := find(token[at:])) is not None
    ]
    merges.sort()
    unknown = tokens[meta.get("unknown_token_id", 0)]
    pairs = [(tokens[left], tokens[right]) for _, left, right in merges]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces: normalizers.Normalizer = normalizers.Replace(" ", _SPACE)
    if meta.get("add_space_prefix", True):
        spaces = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _token_bytes(token: str, kind: int, unicode_bytes: dict[str, int] | None) -> bytes:
    """Return what a token stands for in the text; a control token for nothing."""
    if kind in (_CONTROL, _UNKNOWN):
        return b""
    if kind == _USER_DEFINED and unicode_bytes:
        return token.encode()
    if kind == _BYTE:
        return bytes([int(token[3:5], 16)])  # <0x0A>
    if unicode_bytes is None:
        return token.replace(_SPACE, " ").encode()
    return bytes(unicode_bytes[letter] for letter in token)


def _unicode_bytes() -> dict[str, int]:
    """Return GPT-2's table: printable bytes stand for themselves, others for later letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
