"""Our C++ kernels beside torch's own operations, and how they are built."""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_code.common import kernels
from model_code.common.errors import SettingsError
from model_code.common.kernels import build, one_mixture
from model_code.common.kernels.build import BuildError
from model_code.common.quantize import Int4Weight, Int8Weight

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("two_threads")]
SIZES = st.integers(1, 70)
KINDS = st.sampled_from(["float32", "bfloat16", "int8", "int4"])


def weight(kind: str, outputs: int, inputs: int) -> tuple[kernels.Weight, torch.Tensor]:
    """Return a random weight as a kernel takes it, and the floats that it stands for."""
    dense = torch.randn(outputs, inputs)
    if kind == "int8":
        eight = Int8Weight(dense)
        return eight.tensors, eight.dense(slice(None))
    if kind == "int4":
        four = Int4Weight(dense)
        return four.tensors, four.dense(slice(None))
    numbers = dense.to(getattr(torch, kind))
    return (numbers,), numbers.float()


def sizes_of(kind: str, outputs: int, inputs: int) -> tuple[int, int]:
    return (16 * outputs, 32 * inputs) if kind == "int4" else (outputs, inputs)


def as_it_counts(kind: str, x: torch.Tensor) -> torch.Tensor:
    """Beside weights of few bits, inputs are rounded."""
    return kernels.rounded(x) if kind in ("int8", "int4") else x


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_this_machine_has_a_compiler_so_that_the_kernels_are_tested() -> None:
    assert kernels.loaded() is not None


@settings(max_examples=30, deadline=None)
@given(
    KINDS, st.integers(1, 5), st.integers(1, 20), st.integers(250, 2500), st.integers(0, 99)
)  # fmt: skip
@example("int4", 2, 1, 2149, 99)  # an input between two whole numbers by less than 1e-5
@torch.inference_mode()
def test_long_outputs_that_are_read_along_do_too(
    kind: str, rows: int, outputs: int, inputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    outputs, inputs = sizes_of(kind, outputs, inputs)
    made, floats = weight(kind, outputs, inputs)
    x = torch.randn(rows, inputs)
    expected = as_it_counts(kind, x) @ floats.t()
    assert relative(kernels.multiply(x, made), expected) < 1e-5


@torch.inference_mode()
def test_callers_at_the_same_time_do_not_get_in_each_other_s_way() -> None:
    (made, floats), found = weight("float32", 900, 900), {}
    given = [torch.randn(1, 900) for _ in range(4)]

    def call(index: int) -> None:
        with torch.inference_mode():
            found[index] = [kernels.multiply(given[index], made) for _ in range(50)]

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    for index, x in enumerate(given):
        assert all(relative(each, x @ floats.t()) < 1e-5 for each in found[index])


@torch.inference_mode()
def test_a_process_that_was_forked_works_with_threads_of_its_own() -> None:
    made, _ = weight("float32", 900, 900)
    x = torch.randn(1, 900)
    expected = kernels.multiply(x, made)  # this process has its threads
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(kernels.multiply(x, made), expected) else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


@torch.inference_mode()
def test_any_number_of_threads_gives_the_same_bits() -> None:
    made, _ = weight("int8", 999, 1100)
    x, found = torch.randn(3, 1100), []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found.append(kernels.multiply(x, made))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@settings(max_examples=60, deadline=None)
@given(KINDS, st.integers(1, 10), SIZES, SIZES, st.integers(0, 99))
def test_a_product_equals_torch_s_at_any_shape(
    kind: str, rows: int, outputs: int, inputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    outputs, inputs = (
        sizes_of(kind, min(outputs, 9), inputs) if kind == "int4" else (outputs, inputs)
    )
    packed, dense = weight(kind, outputs, inputs)
    x = torch.randn(rows, inputs)
    expected = (as_it_counts(kind, x).double() @ dense.double().t()).float()
    # What stands for zero is not nothing: the sum of magnitudes is what rounding is relative to.
    size = float((x.abs() @ dense.abs().t()).max())
    assert float((kernels.multiply(x, packed) - expected).abs().max()) < 1e-6 * size


@settings(max_examples=25, deadline=None)
@given(KINDS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 60), st.integers(1, 40))
def test_experts_equal_each_one_alone_at_any_shape(
    kind: str, tokens: int, chosen: int, width: int, inner: int
) -> None:
    torch.manual_seed(tokens)
    if kind == "int4":
        width, inner = 32 * (width % 3 + 1), 32 * (inner % 2 + 1)
    count = chosen + 3
    gate_up, up_dense = weight(kind, count * 2 * inner, width)
    down, down_dense = weight(kind, count * width, inner)
    x = torch.randn(tokens, width)
    shares, choices = torch.rand(tokens, count).topk(chosen)
    expected = torch.zeros(tokens, width)
    for token in range(tokens):
        for share, expert in zip(shares[token], choices[token].tolist(), strict=True):
            row = as_it_counts(kind, x[token, None])[0]
            gate, value = (up_dense.view(count, 2 * inner, width)[expert] @ row).chunk(2)
            made = as_it_counts(kind, (torch.nn.functional.silu(gate) * value)[None])[0]
            expected[token] += share * (down_dense.view(count, width, inner)[expert] @ made)
    # A number between two steps may be rounded to either: a step of one input in hundreds.
    most = 2e-5 if kind in ("float32", "bfloat16") else 2e-2
    assert relative(one_mixture.experts(x, choices, shares, gate_up, down), expected) < most


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 200])
def test_inputs_are_rounded_by_half_a_step_of_their_group_at_most(inputs: int) -> None:
    torch.manual_seed(inputs)
    x = torch.randn(3, inputs) * torch.logspace(-3, 3, inputs)
    x[1] = 0.0
    groups = torch.nn.functional.pad(x, (0, -inputs % 32)).unflatten(1, (-1, 32))
    step = (groups.abs().amax(2, keepdim=True) / 127).expand_as(groups).flatten(1)[:, :inputs]
    assert ((kernels.rounded(x) - x).abs() <= 0.501 * step).all()
    assert (kernels.rounded(x)[1] == 0).all()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_whole_numbers_are_added_up_without_overflow(kind: str, rows: int) -> None:
    x = torch.full((rows, 64), -1.0)
    packed = (torch.full((5, 64), -128, dtype=torch.int8), torch.ones(5))
    expected = 128.0 * 64
    if kind == "int4":
        packed = (
            torch.full((5, 32), 0xFF, dtype=torch.uint8),
            torch.tensor([1.0, -3.0]).bfloat16().expand(5, 2, 2).contiguous(),
        )
        expected = -12.0 * 64
    assert torch.allclose(kernels.multiply(x, packed), torch.tensor(expected))


def test_gates_far_from_zero_neither_overflow_nor_turn_to_nan() -> None:
    gates = torch.tensor([-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 1e30])
    gate_up = torch.cat([gates, torch.ones(8)])[:, None].contiguous()
    for row in range(8):
        chosen = torch.zeros(1, 8)
        chosen[0, row] = 1
        found = one_mixture.experts(
            torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1),
            (gate_up,), (chosen,),
        )  # fmt: skip
        expected = torch.nn.functional.silu(gates[row])
        assert torch.allclose(found[0, 0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inputs", [37, 64])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_stock_operations_give_the_same(stock: None, kind: str, inputs: int) -> None:
    assert kernels.loaded() is None
    torch.manual_seed(0)
    packed, dense = weight(kind, 19, inputs)
    x = torch.randn(5, inputs)
    assert relative(kernels.multiply(x, packed), x @ dense.t()) < 1e-2
    gate_up, _ = weight(kind, 6 * 2 * 5, 7)
    down, _ = weight(kind, 6 * 7, 5)
    shares, choices = torch.rand(4, 6).topk(3)
    call = (torch.randn(4, 7), choices, shares, gate_up, down)
    without = one_mixture.experts(*call)
    os.environ["ISOMORPH_KERNELS"] = "auto"
    kernels.loaded.cache_clear()
    assert relative(one_mixture.experts(*call), without) < 2e-2


X, W = torch.ones(2, 64), torch.ones(3, 64)
CHOICES, SHARES = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
UP, DOWN = torch.ones(4, 64), torch.ones(64, 2)


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        (X.double(), (W,), r"torch.float64 \(2, 64\) on cpu, strides \(64, 1\); it takes "),
        (X, (W[:, :60],), r"got torch.float32 \(3, 60\).*it takes torch.float32 \(3, 64\) without"),
        (X, (torch.ones(64, 3).t(),), r"strides \(1, 3\); it takes"),
        (X, (W.half(),), r"a weight is torch.float16; allowed: torch.float32, torch.bfloat16"),
        (X, (W.to(torch.int8), torch.ones(2)), r"it takes torch.float32 \(3,\) without gaps"),
        (X, (torch.ones(3, 32, dtype=torch.uint8), torch.ones(3, 1, 2)), r"16 \(3, 2, 2"),
        (torch.ones(2, 40), (torch.ones(3, 20, dtype=torch.uint8),), r"of 32 inputs, got 40"),
        (X, (torch.ones(3, 64, device="meta"),), "on meta"),
    ],
)  # fmt: skip
def test_fails_before_a_kernel_would_read_what_is_not_there(
    x: torch.Tensor, given: kernels.Weight, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.multiply(x, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices_TK": CHOICES + 1}, "an expert is chosen that is not one of 0 to 0"),
        ({"choices_TK": CHOICES - 1}, "an expert is chosen that is not one of 0 to 0"),
        ({"choices_TK": CHOICES.int()}, "torch.int32"),
        ({"shares_TK": SHARES[:1]}, r"\(1, 1\) on cpu"),
        ({"gate_up": (UP[:2],)}, r"\(64, 2\) on cpu, strides \(2, 1\); it takes .* \(64, 1\)"),
        ({"gate_up": (UP.bfloat16(),)}, "experts are torch.bfloat16 and torch.float32; one of"),
    ],
)
def test_fails_when_experts_do_not_fit_together(changes: dict[str, object], message: str) -> None:
    given = {"x_TD": X, "choices_TK": CHOICES, "shares_TK": SHARES, "gate_up": (UP,),
             "down": (DOWN,), **changes}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        one_mixture.experts(**given)  # type: ignore[arg-type]


def test_what_needs_gradients_is_left_to_torch() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    assert not kernels.usable(x)
    with torch.no_grad():
        assert kernels.usable(x)
    assert not kernels.usable(torch.ones(1, device="meta"))


def test_int4_in_our_layout_says_that_it_takes_our_kernels(stock: None) -> None:
    with pytest.raises(ValueError, match="int4 in this layout takes our kernels, which are not"):
        kernels.multiply(torch.ones(1, 32), weight("int4", 16, 32)[0])


def test_the_log_says_once_which_is_used(caplog: pytest.LogCaptureFixture, stock: None) -> None:
    with caplog.at_level(logging.INFO):
        kernels.loaded()
        kernels.loaded()
    assert caplog.messages == ["matrices: torch's own operations (ISOMORPH_KERNELS is off)"]


def test_fails_when_the_setting_is_not_known() -> None:
    with pytest.raises(SettingsError, match="ISOMORPH_KERNELS is 'fast'; allowed: auto, off"):
        build.load({"ISOMORPH_KERNELS": "fast"})


def test_it_is_compiled_once_and_kept_in_the_server_s_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernels.loaded()
    assert made is not None
    target = Path(made._name)
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    shutil.copy(target, folder / target.name)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("it is there already"))
    again = build.load({"STATE_DIRECTORY": str(tmp_path)})
    assert Path(again._name).parent == folder
    told = {"ISOMORPH_KERNELS_CACHE": "/k", "STATE_DIRECTORY": str(tmp_path)}
    assert build.cache_folder(told) == Path("/k")
    assert build.cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/isomorph/kernels")
    assert build.cache_folder({"HOME": "/h"}) == Path("/h/.cache/isomorph/kernels")


def test_servers_that_start_at_once_compile_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kernels.loaded()
    assert made is not None
    compiler = tmp_path / "c++"
    kept = f'echo once >>{tmp_path}/calls; sleep 0.3; while [ "$1" != -o ]; do shift; done; cp'
    compiler.write_text(f'#!/bin/sh\n{kept} {made._name} "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with ThreadPoolExecutor(2) as servers:
        loaded = list(servers.map(build.load, [{"ISOMORPH_STATE": str(tmp_path)}] * 2))
    assert loaded[0]._name == loaded[1]._name
    assert (tmp_path / "calls").read_text() == "once\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo 'no room' >&2; exit 1", r"/c\+\+ failed: no room"), ("exit 1", "failed: no message"),
     ("sleep 9", r"c\+\+ took more than 0.2 s")],
)  # fmt: skip
def test_stock_operations_are_used_when_the_compiler_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake = tmp_path / "c++"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(build, "_TIMEOUT_S", 0.2)
    with pytest.raises(BuildError, match=message):
        build.load({"ISOMORPH_STATE": str(tmp_path)})
    assert not list((tmp_path / "kernels").iterdir())


def test_stock_operations_are_used_where_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"none of c\+\+, g\+\+, clang\+\+ is on the path"):
        build.load({"ISOMORPH_STATE": str(tmp_path)})


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BuildError, match="kernels can be written by others"):
        build.load({"ISOMORPH_STATE": str(tmp_path)})


def test_a_library_that_is_none_is_not_used(tmp_path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, build._COMPILERS)))
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    digest = build.digest(compiler, Path(build.__file__).with_name("kernels.cpp"))
    (folder / f"{digest}.so").write_bytes(b"no library")
    with pytest.raises(BuildError, match=r"invalid ELF header|file too short"):
        build.load({"ISOMORPH_STATE": str(tmp_path)})


def test_kernels_that_disagree_with_torch_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = kernels.loaded()
    assert library is not None
    right = kernels._multiply
    monkeypatch.setattr(kernels, "_multiply", lambda *given: right(*given) * 1.01)
    with pytest.raises(BuildError, match="the compiled kernels do not agree with torch"):
        kernels._check_itself(library)


def test_a_change_of_any_source_makes_another_library() -> None:
    folder = Path(build.__file__).parent
    assert {path.name for path in folder.iterdir() if path.suffix in (".h", ".cpp")} == {
        *build.HEADERS, "kernels.cpp",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["sapphirerapids", "alderlake", "x86-64"])
def test_the_kernels_compile_for_cpus_that_this_one_is_not(tmp_path: Path, cpu: str) -> None:
    compiler = next(filter(None, map(shutil.which, build._COMPILERS)))
    # What a CPU lacks is refused at any level; the highest takes ten times as long.
    flags = [flag.replace("native", cpu).replace("-O3", "-O0") for flag in build._FLAGS]
    source = Path(build.__file__).with_name("kernels.cpp")
    made = tmp_path / "kernels.so"
    subprocess.run([compiler, *flags, "-o", str(made), str(source)], check=True)
    assert made.stat().st_size > 10_000
