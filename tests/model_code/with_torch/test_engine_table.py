"""The table of engines in docs/engines.md: how it is written."""

from pathlib import Path

import pytest

from bench import engines
from bench.engines import CHOICES, Speed
from isomorph.errors import UserError

pytestmark = pytest.mark.torch
SPEEDS = [Speed(choice=choice, single=10.0 + i, many=40.0 - i) for i, choice in enumerate(CHOICES)]


def test_a_table_has_every_choice_the_best_of_many_requests_first() -> None:
    lines = engines.table(SPEEDS).splitlines()
    assert len(lines) == 2 + len(CHOICES)
    assert lines[2].startswith("| llama.cpp, Q4_1 | `engine: llama.cpp` | 10.0 | 0.62 | 40.0 | **1")
    assert "`quantization: int4` | 15.0 | 0.94 | 35.0 | 0.88 |" in lines[-2]
    assert "`ISOMORPH_ENGINE=vllm`, not of fleets | 16.0 | **1.00** | 34.0 | 0.85 |" in lines[-1]


def test_it_is_written_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "engines.md"
    document.write_text(f"before\n{engines.BEGIN}\nold\n{engines.END}\nafter\n")
    for _ in range(2):
        engines.write(document, "new")
    assert document.read_text() == f"before\n{engines.BEGIN}\nnew\n{engines.END}\nafter\n"
    document.write_text("no marks")
    with pytest.raises(UserError, match=r"engines.md is no document with <!-- engines:begin -->"):
        engines.write(document, "new")


def test_the_row_compares_the_same_bits() -> None:
    single, many, *beside_vllm = engines.rows(SPEEDS)
    assert (single.ours, single.peer) == ("14.0 tokens/s", "llama.cpp, Q8_0: 11.0 tokens/s")
    assert [row.peer for row in beside_vllm] == [
        "vllm, bfloat16: 16.0 tokens/s", "vllm, bfloat16: 34.0 tokens/s",
    ]  # fmt: skip
    assert list(engines.rows(SPEEDS[:-1])) == [single, many]
    assert many.ratio == pytest.approx(36 / 39)
    assert not many.reached
