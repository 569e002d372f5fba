"""Recipes, the command, dry runs, and models that leave training for serving."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_code.moe.train import export as export_command
from model_code.moe.train.__main__ import main
from model_code.moe.train.dry_run import Weight, weigh
from model_code.moe.train.meeting import agreed
from model_code.moe.train.optimizer import AdamW, rate_of
from model_code.moe.train.parallel import check_ranks
from model_code.moe.train.recipe import Training, TrainingError, load_recipe
from model_code.moe.train.records import Step
from model_code.moe.train.run import Trained, train
from model_code.moe.train.sinks import StepFile
from tests.model_code.conftest import ROOT
from tests.model_code.with_torch import moe_runs
from tests.model_code.with_torch.families import logits, relative

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A run of some steps, and where its checkpoints are."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(moe_runs.recipe(), data=data, steps=30, checkpoints=folder)


def test_a_model_learns(run: tuple[Path, Trained]) -> None:
    _, trained = run
    assert trained.losses[0] == pytest.approx(4.16, abs=0.1)  # of 64 tokens by chance
    assert trained.held_out is not None
    assert trained.held_out < 2.0  # two tokens are possible at each place: 0.69 at best


@pytest.fixture(scope="module")
def exported(run: tuple[Path, Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert export_command.main([str(run[0]), str(folder)]) == 0
    return folder


@torch.no_grad()
def test_an_exported_model_says_the_same_in_transformers(
    exported: Path, run: tuple[Path, Trained]
) -> None:
    tokens = torch.from_numpy(moe_runs.tokens(40, 7).astype("int64"))
    theirs = AutoModelForCausalLM.from_pretrained(exported)
    expected = theirs(tokens[None]).logits[0]
    ours = logits(run[1].decoder.eval(), tokens[:16], [])
    assert relative(ours, expected[:16]) < 1e-5
    assert theirs.dtype == torch.float32


def test_an_export_holds_the_corrections_and_the_tokenizer(exported: Path) -> None:
    assert (exported / "tokenizer.json").read_bytes() == moe_runs.TOKENIZER
    theirs = AutoModelForCausalLM.from_pretrained(exported)
    [correction] = [b for n, b in theirs.named_buffers() if n.endswith("correction_bias")]
    assert correction.abs().max() > 0


def test_an_exported_model_trains_on(exported: Path, data: Path, run: tuple[Path, Trained]) -> None:
    more = train(moe_runs.recipe(), data=data, steps=1, weights=exported)
    assert more.losses[0] < run[1].losses[0] / 2


def test_weights_change_only_where_a_hook_lets_them(exported: Path, data: Path) -> None:
    def keep_zero(decoder: Any) -> None:
        with torch.no_grad():
            decoder.layers[0].feed_forward.down.weight[:, 0] = 0

    tuned = train(moe_runs.recipe(), data=data, steps=2, weights=exported, on_update=keep_zero)
    layer: Any = tuned.decoder.layers[0]
    assert layer.feed_forward.down.weight[:, 0].abs().sum() == 0


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("nothing", "new", "nothing: holds no whole checkpoint"),
        ("run", "full", "full is not empty"),
    ],
)
def test_export_refuses(
    run: tuple[Path, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], source: str, out: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("")
    given = str(run[0]) if source == "run" else source
    assert export_command.main([given, out]) == 1
    assert capsys.readouterr().err.startswith(f"export: {message}")


@pytest.mark.parametrize("name", ["tiny", "dense-tiny", "small", "base-16b", "deepseek-v3"])
def test_every_config_can_be_trained(name: str) -> None:
    recipe = load_recipe(name)
    ranks = recipe.training.expert_parallel * (4 if name == "deepseek-v3" else 1)
    assert check_ranks(recipe, ranks) >= 1


def test_tiny_and_dense_tiny_have_as_many_active_parameters() -> None:
    tiny, dense = (load_recipe(name).architecture for name in ("tiny", "dense-tiny"))
    assert tiny.active_parameters == dense.active_parameters == dense.parameters
    assert tiny.parameters > 1.9 * tiny.active_parameters


def test_deepseek_v3_is_the_model_that_was_published() -> None:
    published = json.loads((ROOT / "config/models/deepseek-v3.json").read_text())
    published.pop("_source")
    assert dict(load_recipe("deepseek-v3").model) == published


def written(folder: Path, **changes: Any) -> str:
    content: dict[str, Any] = {
        "model": moe_runs.MODEL,
        "training": {"context": 16, "batch": 8, "micro_batch": 2, "rate": 0.01},
    }
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            content[part] = content[part] | {field: value}
        else:
            content[part] = value
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__context": 0}, "training.context is 0; allowed is a whole number, more than 0"),
        ({"training__rate": "fast"}, 'training.rate is "fast"; allowed is a number, more than 0'),
        ({"training__gamma": -1}, "training.gamma is -1; allowed is a number, 0 or more"),
        ({"training__recompute": 1}, "training.recompute is 1; allowed is true or false"),
        ({"training__dtype": "fp8"}, 'training.dtype is "fp8"; allowed is float32 or bfloat16'),
        ({"training__speed": 1}, "training.speed is unknown; known: context, batch, "),
        ({"training": {"context": 16}}, "training.batch is missing"),
        ({"training": None}, "holds model; allowed are model and training"),
        ({"training__context": 65}, "training.context is 65; the model's max_position_embeddings "),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as error:
        load_recipe(written(tmp_path, **changes))
    assert str(error.value).startswith(f"{tmp_path}/config.json: {message}")


def test_layers_with_a_window_are_refused() -> None:
    model = json.loads((ROOT / "config/models/gemma-3-1b.json").read_text())
    recipe = moe_runs.recipe()
    object.__setattr__(recipe, "model", model)
    with pytest.raises(TrainingError, match=r"^small\.json: model has layers with a window; this "):
        recipe.architecture  # noqa: B018


DATA = ["--data", "data", "--checkpoints", "run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "huge"], "--config is 'huge'; allowed are base-16b, deepseek-v3, dense-tiny"),
        (["--config", "tiny"], "--data is missing; only --dry-run does without"),
        (["--config", "tiny", *DATA], "--steps is missing; only --dry-run does without"),
        (["--config", "tiny", *DATA, "--steps", "1"], "--data is 'data'; allowed are a folder or"),
        (["--config", "tiny", "--batch", "0"], "--batch is 0; allowed are numbers above 0"),
        (["--config", "tiny", "--expert-parallel", "-1"], "--expert-parallel is -1; allowed are "),
        (["--config", "tiny", "--dry-run", "--ranks", "0"], "--ranks is 0; allowed are whole num"),
        (["--config", "tiny", "--dry-run", "--ranks", "9"], "/model_code/moe/train/configs/tiny."),
        (["--config", "tiny", *DATA, "--steps", "1", "--device", "cuda"], "--device is cuda, and "),
    ],
)
def test_the_command_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.replace(str(ROOT), "").startswith(f"train: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["steps", "checkpoint_every", "keep"])
def test_nothing_to_do_is_refused(data: Path, option: str) -> None:
    options: dict[str, Any] = {"steps": 1} | {option: 0}
    with pytest.raises(TrainingError, match=r"--steps is \d.*; allowed are whole numbers from 1$"):
        train(moe_runs.recipe(), data=data, **options)


def test_ranks_that_cut_experts_into_uneven_parts_are_refused() -> None:
    with pytest.raises(
        TrainingError,
        match=r"3 ranks with training\.expert_parallel 1 cut each expert's rows into 3, which must "
        r"divide hidden_size 32 and twice its width 16; raise expert_parallel$",
    ):
        check_ranks(moe_runs.recipe(batch=6), 3)


def test_a_loss_that_is_no_number_ends_the_run_and_changes_nothing(
    data: Path, tmp_path: Path
) -> None:
    seen: list[Step] = []

    class Sink:
        def record(self, step: Step) -> None:
            seen.append(step)

        def close(self) -> None:
            pass

    def spoil(decoder: Any) -> None:
        with torch.no_grad():
            decoder.norm.weight.fill_(torch.inf)

    with pytest.raises(
        TrainingError, match=r"^step 2: loss is nan .*; nothing of this step was ke"
    ):
        train(moe_runs.recipe(), data=data, steps=4, checkpoints=tmp_path, sinks=[Sink()],
              on_update=spoil)  # fmt: skip
    assert [step.step for step in seen] == [1, 2]
    assert not list(tmp_path.iterdir())


def test_records_say_what_a_step_was(data: Path, tmp_path: Path) -> None:
    file = StepFile(tmp_path / "steps.jsonl")
    (tmp_path / "steps.jsonl").write_text('{"step": 2, "loss": 9}\n{"step"')
    trained = train(moe_runs.recipe(), data=data, steps=2, sinks=[file], peak_flops=1e12)
    one, two = (json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines())
    assert [one["loss"], two["loss"]] == trained.losses
    assert (one["step"], two["step"], one["dropped_tokens"]) == (1, 2, 0)
    assert 1 <= one["expert_load"] <= 4  # at most all tokens at one of 8 experts, 2 a token
    flops = moe_runs.recipe().architecture.training_flops(16) / 16
    expected = 100 * flops * one["tokens_per_second"] / 1e12
    assert one["mfu_percent"] == pytest.approx(expected)


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    training = Training(context=1, batch=1, micro_batch=1, rate=1.0, warm_up=4)
    rates = [rate_of(step, 20, training) for step in (0, 3, 4, 12, 20, 30)]
    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_parameters_change_as_torch_s_adamw_changes_them_and_vectors_do_not_decay() -> None:
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(ours, Training(context=1, batch=1, micro_batch=1, rate=1.0, decay=0.5))
    groups = [{"params": [theirs.weight], "weight_decay": 0.5},
              {"params": [theirs.bias], "weight_decay": 0.0}]  # fmt: skip
    expected = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for rate in (0.1, 0.2, 0.3):
        for each in (ours, theirs):
            each(torch.full((1, 3), rate)).square().sum().backward()
        for group in expected.param_groups:
            group["lr"] = rate
        expected.step()
        expected.zero_grad()
        optimizer.step(rate)
    assert optimizer.steps == 3
    assert [each.grad for each in ours.parameters()] == [None, None]
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert torch.equal(optimizer.square[ours.bias], expected.state[theirs.bias]["exp_avg_sq"])


FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


def weighed(ranks: int, **training: Any) -> Weight:
    return weigh(moe_runs.recipe(model=FOUR_HEADS, batch=64, **training), ranks)


def test_a_dry_run_adds_up_what_all_ranks_hold_to_the_model() -> None:
    weight, alone = weighed(4, expert_parallel=2), weighed(1)
    whole = moe_runs.recipe(model=FOUR_HEADS).architecture.parameters
    assert (weight.whole_parameters, alone.parameters) == (whole, 4 * whole)
    assert weight.parameters == alone.parameters / 4
    assert weight.optimizer == 2 * weight.gradients == 2 * weight.parameters


def test_a_dry_run_takes_less_where_more_ranks_share_the_experts() -> None:
    gathered = [weighed(4, expert_parallel=shared).gathered for shared in (1, 2, 4)]
    part = moe_runs.recipe().architecture.layers[1].feed_forward
    experts = part.experts * part.expert_parameters(32) * 4
    assert [gathered[0] - each for each in gathered[1:]] == [experts / 2, experts * 3 / 4]


def test_a_dry_run_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "small", "--dry-run", "--ranks", "8", "--memory-gb", "1"]) == 1
    assert capsys.readouterr().out.endswith("of 1: does not fit\n")


@pytest.mark.slow
def test_the_whole_of_deepseek_v3_is_weighed_in_bounded_time_and_memory() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from model_code.moe.train.__main__ import main\n"
        "for shared in ('64', '16'):\n"
        "    assert main(['--config', 'deepseek-v3', '--dry-run', '--ranks', '256',\n"
        "                 '--expert-parallel', shared]) == 0\n"
        "    print('--')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stdout.split("--\n")
    assert found[0].startswith("deepseek-v3: 671,026,404,352 parameters over 256 ranks")
    assert "gathered to compute, bfloat16          6.113" in found[0]
    assert "gathered to compute, bfloat16          6.113" not in found[1]


class _Store(dict[str, bytes]):
    """What `agreed` uses of torch's store, for threads."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        while key not in self:
            pass
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def test_ranks_agree_on_a_word_that_the_dead_never_had() -> None:
    from concurrent.futures import ThreadPoolExecutor

    store: Any = _Store()
    words = []
    for _ in range(3):  # each attempt finds what the one before left in the store
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(lambda rank: agreed(store, rank, 3), range(3)))
        assert len(set(found)) == 1
        words.append(found[0])
    assert len(set(words)) == 3
