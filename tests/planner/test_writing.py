from pathlib import Path

import pytest

from planner import PlanError, plan, write
from planner.savings import multi_head
from tests.planner.common import TODAY, model

ENVIRONMENT = """\
# The smallest that is real.
aws: account
account: "012345678901"  # quoted: YAML reads a leading 0 as octal
region: us-east-1

innovations:
  # What answers.
  gqa:
    model: smollm2-135m-instruct  # the name in the bucket
    instance_type: c7i.large
    slots: 4  # sequences at once
    certificate_arn: arn:aws:acm:us-east-1:111122223333:certificate/0
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    path = tmp_path / "dev.yaml"
    path.write_text(ENVIRONMENT)
    return path


def test_sizes_are_written_and_comments_quotes_and_other_keys_kept(environment: Path) -> None:
    changes = write(plan("smollm2-135m", "concurrent=8", today=TODAY), environment)
    text = environment.read_text()
    for kept in (
        "# The smallest that is real.",
        'account: "012345678901"  # quoted: YAML reads a leading 0 as octal',
        "# What answers.",
        "model: smollm2-135m-instruct  # the name in the bucket",
        "slots: 8  # sequences at once",
        "certificate_arn: arn:aws:acm:us-east-1:111122223333:certificate/0",
    ):
        assert kept in text
    found = {change.key: (change.before, change.after) for change in changes}
    assert found["innovations.gqa.instance_type"] == ("c7i.large", "c7i.xlarge")
    assert found["innovations.gqa.slots"] == (4, 8)
    assert found["innovations.gqa.min_capacity"] == (None, 1)
    assert "innovations.gqa.model" not in found


def test_writing_twice_changes_nothing(environment: Path) -> None:
    made = plan("smollm2-135m", today=TODAY)
    write(made, environment)
    before = environment.read_bytes()
    assert write(made, environment) == []
    assert environment.read_bytes() == before


def test_a_section_that_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "dev.yaml"
    path.write_text("region: us-east-1\n")
    write(plan("gemma-3-270m", today=TODAY), path, slugs=["sliding_window"])
    assert "sliding_window:\n    model: gemma-3-270m\n    memory_mib:" in path.read_text()
    assert "gqa" not in path.read_text()


def test_a_section_inside_of_a_section_keeps_its_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "dev.yaml"
    path.write_text("innovations:\n  mla:\n    cache: {access: token, shards: 1}  # ours\n")
    changes = write(plan("deepseek-v3", today=TODAY), path, slugs=["mla"])
    keys = {change.key for change in changes}
    assert {"innovations.mla.model", "innovations.mla.cache.node_type"} <= keys
    text = path.read_text()
    assert "access: token" in text
    assert "# ours" in text
    assert "node_type: cache.r7g." in text


def test_the_file_keeps_its_mode_and_leaves_nothing_beside_it(environment: Path) -> None:
    environment.chmod(0o640)
    write(plan("smollm2-135m", today=TODAY), environment)
    assert environment.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in environment.parent.iterdir()] == ["dev.yaml"]


def test_a_write_that_fails_leaves_the_old_file(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(PlanError, match=r"dev\.yaml: cannot be written: No space left on device"):
        write(plan("smollm2-135m", today=TODAY), environment)
    assert environment.read_text() == ENVIRONMENT
    assert [path.name for path in environment.parent.iterdir()] == ["dev.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("innovations: [1", "not valid YAML: while parsing"),
        ("[1, 2]\n", "an environment holds keys and values"),
        ("innovations: 3\n", "innovations holds a section for each slug"),
        ("innovations: {gqa: 3}\n", "innovations.gqa holds keys and values"),
    ],
)
def test_fails_when_the_file_is_no_environment(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dev.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=message) as caught:
        write(plan("smollm2-135m", today=TODAY), path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_fails_when_the_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file or directory"):
        write(plan("smollm2-135m", today=TODAY), tmp_path / "dev.yaml")


def test_fails_when_the_file_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "dev.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="cannot be read: not UTF-8 text"):
        write(plan("smollm2-135m", today=TODAY), tmp_path / "dev.yaml")


def test_fails_when_there_is_nothing_to_write(environment: Path) -> None:
    with pytest.raises(PlanError, match="the plan sizes nothing to write for llama-3-8b"):
        write(plan(multi_head(model("llama-3-8b")), today=TODAY), environment)
