"""The header of GGUF files."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common.errors import SettingsError, WeightsError
from model_code.common.gguf_header import read_header
from model_code.common.gguf_model import architecture_of, check_context, config_of, find_gguf
from tests.model_code.gguf_file import gguf, text

SMALL = gguf(
    {"general.architecture": "llama", "a.list": ["x", "y"], "a.kinds": [1, 2, 3], "flag": True},
    {"token_embd.weight": ((4, 2), 0, bytes(32)), "b": ((64,), 2, bytes(36))},
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    header = read_header(write(tmp_path, SMALL))
    assert header.metadata == {
        "general.architecture": "llama", "a.list": ["x", "y"], "a.kinds": [1, 2, 3], "flag": True,
    }  # fmt: skip
    embedding, other = header.tensors.values()
    assert (embedding.name, embedding.shape, embedding.type_name) == (
        "token_embd.weight", (4, 2), "F32",
    )  # fmt: skip
    assert (other.nbytes, other.offset - embedding.offset) == (36, 32)
    assert header.chat_template is None


def test_smollm2_is_a_llama_with_nine_query_and_three_key_value_heads(weights: Path) -> None:
    header = read_header(find_gguf(weights))
    architecture = architecture_of(header)
    attention = architecture.layers[0].attention
    assert (len(architecture.layers), attention.heads, attention.kv_heads) == (30, 9, 3)
    assert architecture.parameters == 134_515_008
    assert architecture.kv_bytes_per_token("fp16") == 30 * 2 * 3 * 64 * 2
    assert architecture.context == 8192
    assert "<|im_start|>" in (header.chat_template or "")
    with pytest.raises(SettingsError, match="ISOMORPH_CONTEXT is 8193; the model was made for at"):
        check_context(8193, architecture)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: 0 bytes are too few"),
        (b"PK\3\4" + bytes(40), r"is no GGUF file: starts with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1 is unknown; 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "truncated: the header goes on after"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"\xff" * 12, "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xfe", "a text in the header is no"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 99),
         "metadata of unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 2**60),
         "truncated: an array of 1152921504606846976 values is cut"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 9), "t has 9 dim"),
        (gguf({}, {"t": ((4,), 77, bytes(16))}), "t has unknown type 77; known: F32, F16"),
        (gguf({"general.alignment": 0}, {}), "damaged: alignment 0"),
        (SMALL[:-40], r"truncated: b ends at byte \d+, the file has \d+"),
    ],
)  # fmt: skip
def test_fails_when_the_file_is_cut_or_no_gguf_and_names_it(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        read_header(write(tmp_path, content))
    assert str(caught.value).startswith(f"{tmp_path}/model.gguf: ")
    assert "\n" not in str(caught.value)


def test_fails_when_the_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone.gguf: cannot be read: No such file"):
        read_header(tmp_path / "gone.gguf")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255), st.booleans())
def test_a_file_with_any_byte_changed_or_cut_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: bool
) -> None:
    content = SMALL[:at] if cut else SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        read_header(path)
        refused = None
    except WeightsError as error:
        refused = str(error)
    assert refused is None or str(path) in refused


def test_fails_when_the_folder_has_no_gguf_file_or_two(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must hold exactly one .gguf file, found none"):
        find_gguf(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"found a.gguf, b.gguf"):
        find_gguf(tmp_path)


def test_fails_when_the_family_is_unknown_or_dimensions_are_missing(tmp_path: Path) -> None:
    mamba = gguf({"general.architecture": "mamba"}, {})
    with pytest.raises(WeightsError, match="architecture 'mamba' is unknown; known: llama"):
        config_of(read_header(write(tmp_path, mamba)))
    with pytest.raises(WeightsError, match=r"token_embd.weight is missing"):
        config_of(read_header(write(tmp_path, gguf({"general.architecture": "llama"}, {}))))
    with pytest.raises(WeightsError, match="metadata lacks hidden_size, intermediate_size,"):
        config_of(read_header(write(tmp_path, SMALL)))
