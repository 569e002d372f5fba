"""Shards of tokens: how they are made, read in order, and refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model_code.common.aws import client
from model_code.common.text import text_of_python, train_tokenizer
from model_code.moe.train import shards
from model_code.moe.train.data import Sequences, open_data
from model_code.moe.train.recipe import TrainingError
from model_code.moe.train.token_file import MAGIC, dtype_for, open_tokens, read_header, write
from tests.model_code.with_torch.moe_runs import make_data, tokens

pytestmark = pytest.mark.torch
TEXT = text_of_python()[:20_000]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of a text, with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text").write_text(TEXT)
    out = folder / "out"
    arguments = [str(folder / "text"), "--out", str(out), "--vocabulary", "300"]
    assert shards.main([*arguments, "--shard-tokens", "4000", "--held-out", "500"]) == 0
    return out


def test_the_command_cuts_a_text_into_shards_that_give_it_back(made: Path) -> None:
    data = open_data(str(made))
    assert data.held_out is not None
    parts = [
        open_tokens(each.fetch(), each.header, each.start)
        for each in (*data.shards, data.held_out)
    ]  # fmt: skip
    assert [len(part) for part in parts[:-2]] == [4000] * (len(parts) - 2)
    assert len(parts[-1]) == 500
    ids = np.concatenate(parts).tolist()
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert ids[-1] == tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.decode(ids[:-1]) == TEXT


def test_the_command_takes_a_tokenizer_and_says_whose_tokens_they_are(
    tmp_path: Path, made: Path
) -> None:
    (tmp_path / "text").write_text(TEXT[:2000])
    given = made / "tokenizer.json"
    arguments = [str(tmp_path / "text"), "--out", str(tmp_path / "out"), "--tokenizer", str(given)]
    assert shards.main(arguments) == 0
    header = open_data(str(tmp_path / "out")).shards[0].header
    assert header.tokenizer == hashlib.sha256(given.read_bytes()).hexdigest()
    assert header.vocabulary == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocabulary", "256"], "--vocabulary is 256; allowed are whole numbers from 257"),
        (["--shard-tokens", "1"], "--shard-tokens is 1; allowed are whole numbers from 2"),
        (["--held-out", "-1"], "--held-out is -1; allowed are whole numbers from 0"),
        (["--held-out", "999999"], "--held-out is 999999; the text has "),
        (["--tokenizer", "text"], "--tokenizer text is no tokenizer.json: "),
        (["--out", "."], "--out . is not empty; name a folder that is, or a new one"),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT[:2000])
    assert shards.main(["text", "--out", "out", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"shards: {message}")
    assert error.count("\n") == 1


def test_a_text_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards.main([str(tmp_path / "x"), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"shards: {tmp_path}/x cannot be read as UTF-8: ")


def test_a_vocabulary_that_fits_takes_two_bytes_a_token() -> None:
    assert [dtype_for(size) for size in (1 << 16, (1 << 16) + 1)] == ["uint16", "uint32"]


def test_tokens_beyond_16_bits_come_back(tmp_path: Path) -> None:
    given = np.array([0, 70_000, 129_279], dtype=np.uint32)
    header = write(tmp_path / "a.tokens", given, tokenizer="a" * 64, vocabulary=129_280)
    beginning = (tmp_path / "a.tokens").read_bytes()
    _, start = read_header(beginning, len(beginning), "a")
    assert open_tokens(tmp_path / "a.tokens", header, start).tolist() == given.tolist()


def first(folder: Path) -> Path:
    return folder / "train-00000.tokens"


def with_bytes(path: Path, place: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)


def rewritten(path: Path, **words: object) -> None:
    """Replace words of a shard's header, which stays as long as it was."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header = json.dumps(json.loads(data[12 : 12 + length]) | words, sort_keys=True).encode()
    path.write_bytes(
        MAGIC + len(header).to_bytes(4, "little") + header
        + bytes(-(12 + len(header)) % 64) + data[12 + length + -(12 + length) % 64 :]
    )  # fmt: skip


def test_a_shard_with_a_wrong_byte_is_refused_before_it_is_used(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    with_bytes(first(folder), first(folder).stat().st_size - 1, b"\x07")
    sequences = Sequences(open_data(str(folder)).shards, tokens=16, seed=None)
    with pytest.raises(
        TrainingError,
        match=r"^/.*train-00000\.tokens: damaged: sha256 of its tokens is \w{16}\.\.\., its header "
        r"says \w{16}\.\.\.; make or copy the shard again$",
    ):
        sequences.batch(0, 1)


def test_a_shard_whose_tokens_exceed_its_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", shards=1)
    rewritten(first(folder), vocabulary=9)
    rewritten(folder / "held-out.tokens", vocabulary=9)
    sequences = Sequences(open_data(str(folder)).shards, tokens=16, seed=None)
    with pytest.raises(TrainingError, match=r"damaged: has token 63, its vocabulary ends at 8$"):
        sequences.batch(0, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: with_bytes(path, 0, b"x"), "is no shard of tokens, version 1; "),
        (lambda path: with_bytes(path, 7, b"\x02"), "is no shard of tokens, version 1; "),
        (lambda path: with_bytes(path, 8, b"\xff\xff"), "is no shard of tokens, version 1; "),
        (lambda path: path.write_bytes(b""), "is no shard of tokens, version 1; "),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "damaged: has 1,053 bytes, its "),
        (lambda path: with_bytes(path, 13, b"\xff"), "damaged: its header cannot be read; "),
        (lambda path: rewritten(path, count=-1), "damaged: its header cannot be read; "),
        (lambda path: rewritten(path, dtype="float64"), "damaged: its header cannot be read; "),
        (lambda path: rewritten(path, sha256="../.."), "damaged: its header cannot be read; "),
        (lambda path: rewritten(path, other=1), "damaged: its header cannot be read; "),
    ],
)
def test_a_damaged_header_is_refused_by_its_files_name(
    tmp_path: Path, damage: "object", message: str
) -> None:
    folder = make_data(tmp_path / "data")
    assert callable(damage)
    damage(first(folder))
    with pytest.raises(TrainingError) as error:
        open_data(str(folder))
    assert str(error.value).startswith(f"{first(folder)}: {message}")


def test_shards_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    write(folder / "train-9.tokens", tokens(40), tokenizer="b" * 64, vocabulary=64)
    with pytest.raises(
        TrainingError,
        match=r"vocabulary mismatch: train-00001\.tokens and train-9\.tokens were made with different "
        r"tokenizers; make all shards of a folder with one$",
    ):
        open_data(str(folder))


def test_a_tokenizer_that_made_none_of_the_shards_is_refused(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"vocabulary mismatch: the shards were made with "):
        open_data(str(folder))


def test_a_model_with_fewer_tokens_than_the_shards_is_refused(tmp_path: Path) -> None:
    data = open_data(str(make_data(tmp_path / "data")))
    data.check_vocabulary(64)
    with pytest.raises(
        TrainingError,
        match=r"vocabulary mismatch: the shards' tokenizer has 64 tokens, the model's vocab_size "
        r"is 63; make shards with the model's tokenizer, or a config whose vocab_size is 64 or",
    ):
        data.check_vocabulary(63)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no \*\.tokens; `python -m .*` makes them$"):
        open_data(str(tmp_path))
    with pytest.raises(TrainingError, match=r"^--data is '.*/x'; allowed are a folder or s3://"):
        open_data(str(tmp_path / "x"))


def test_sequences_longer_than_every_shard_are_refused(tmp_path: Path) -> None:
    data = open_data(str(make_data(tmp_path / "data")))
    with pytest.raises(TrainingError, match=r"hold no sequence of 400 tokens and one more; make"):
        Sequences(data.shards, tokens=400, seed=0)


def sequences_of(folder: Path, seed: int | None = 0) -> Sequences:
    return Sequences(open_data(str(folder)).shards, tokens=16, seed=seed)


def test_an_epoch_has_every_sequence_once_and_no_epoch_the_order_of_another(
    tmp_path: Path,
) -> None:
    folder = make_data(tmp_path / "data", shards=3)
    shuffled, plain = sequences_of(folder), sequences_of(folder, None)
    total = shuffled.total
    assert total == 3 * (399 // 16)
    epochs = [shuffled.batch(start, total).tolist() for start in (0, total)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(plain.batch(0, total).tolist())


def test_a_sequence_has_the_same_number_however_it_is_come_to(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", shards=3)
    whole = sequences_of(folder).batch(0, 200)
    single = torch.cat([sequences_of(folder).batch(number, 1) for number in (0, 40, 77, 199)])
    assert torch.equal(whole[[0, 40, 77, 199]], single)


def test_seeds_give_different_orders(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    orders = [sequences_of(folder, seed).batch(0, 48) for seed in (0, 1)]
    assert not torch.equal(*orders)


def test_a_sequence_ends_with_the_token_that_the_next_one_begins_with(tmp_path: Path) -> None:
    plain = sequences_of(make_data(tmp_path / "data"), None)
    one, other = plain.batch(0, 2)
    assert len(one) == 17
    assert one[-1] == other[0]


def test_shards_come_from_s3_one_after_the_other(tmp_path: Path, aws: None) -> None:
    folder, s3 = make_data(tmp_path / "data", shards=6), client("s3")
    s3.create_bucket(Bucket="texts")
    for path in folder.iterdir():
        s3.upload_file(str(path), "texts", f"text/{path.name}")
    data = open_data("s3://texts/text/", cache=tmp_path / "cache")
    assert data.digest == open_data(str(folder)).digest
    assert data.tokenizer == (folder / "tokenizer.json").read_bytes()
    assert not (tmp_path / "cache").exists()
    remote = Sequences(data.shards, tokens=16, seed=3)
    assert torch.equal(remote.batch(0, 200), sequences_of(folder, 3).batch(0, 200))
    assert len(list((tmp_path / "cache").iterdir())) <= 3


def test_a_prefix_that_is_no_folder_is_refused(aws: None) -> None:
    with pytest.raises(
        TrainingError, match=r"^--data is 's3://texts/x'; allowed are a folder or s3:"
    ):
        open_data("s3://texts/x")


def test_a_bucket_that_is_not_there_is_named(aws: None) -> None:
    with pytest.raises(TrainingError, match=r"^s3://texts/text/: .*bucket does not exist$"):
        open_data("s3://texts/text/")


def test_a_shard_that_went_away_is_named(tmp_path: Path, aws: None) -> None:
    folder, s3 = make_data(tmp_path / "data", shards=1), client("s3")
    s3.create_bucket(Bucket="texts")
    s3.upload_file(str(first(folder)), "texts", "text/train-00000.tokens")
    data = open_data("s3://texts/text/", cache=tmp_path / "cache")
    s3.delete_object(Bucket="texts", Key="text/train-00000.tokens")
    with pytest.raises(
        TrainingError, match=r"^s3://texts/text/train-00000\.tokens into /.*: .*404"
    ):
        Sequences(data.shards, tokens=16, seed=3).batch(0, 1)


def test_a_made_tokenizer_ends_texts_with_its_token_0() -> None:
    assert train_tokenizer(TEXT, 300).token_to_id("<|endoftext|>") == 0
