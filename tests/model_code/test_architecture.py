import ast
import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_code.common.architecture import BITS, SPARSE, Architecture, ModelError, parse, read

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "config" / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.json"))


def model(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((MODELS / f"{name}.json").read_text())
    return config


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-235b-a22b", 235_093_634_560),
        ("llama-3-8b", 8_030_261_248),
        ("gemma-3-1b", 999_885_952),
        ("smollm2-135m", 134_515_008),
        ("deepseek-v3", 671_026_404_352),
    ],
)
def test_parameters_are_the_published_count(name: str, total: int) -> None:
    assert read(MODELS / f"{name}.json").parameters == total


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("deepseek-v3", "671B", "37B"), ("mixtral-8x7b", "46B", "12B"),
     ("qwen3-235b-a22b", "235B", "22B"),
     ("qwen3-30b-a3b", "30B", "3B"), ("glm-4.5-air", "106B", "13B"), ("kimi-k2", "1026B", "32B")],
)  # fmt: skip
def test_active_parameters_are_those_in_the_models_name(name: str, total: str, active: str) -> None:
    architecture = read(MODELS / f"{name}.json")
    assert f"{architecture.parameters // 10**9}B" == total
    assert f"{architecture.active_parameters // 10**9}B" == active


@pytest.mark.parametrize(
    ("name", "size"),
    [("deepseek-v3", 70_272), ("llama-3.1-405b", 516_096), ("qwen2.5-72b", 327_680)],
)
def test_kv_bytes_a_token_are_the_published_ones(name: str, size: int) -> None:
    assert read(MODELS / f"{name}.json").kv_bytes_per_token() == size


def test_a_window_bounds_the_cache_of_its_layers_and_of_no_other() -> None:
    gemma = read(MODELS / "gemma-3-1b.json")
    one = 2 * 256 * 2  # one head of 256, keys and values, bf16
    assert gemma.kv_bytes(8192) == 22 * 512 * one + 4 * 8192 * one
    assert gemma.kv_bytes(100) == 100 * gemma.kv_bytes_per_token()


@pytest.mark.parametrize("name", NAMES)
def test_innovations_name_layers_that_exist(name: str) -> None:
    architecture = read(MODELS / f"{name}.json")
    for layers in architecture.innovations.values():
        assert set(layers) <= set(range(len(architecture.layers)))


@pytest.mark.parametrize(
    ("name", "slugs"),
    [
        ("deepseek-v3", {"moe": 58, "mla": 61}),
        ("gemma-3-27b", {"gqa": 62, "sliding_window": 52, "normalization": 62}),
        ("olmo-2-7b", {"normalization": 32}),
        ("gpt-oss-20b", {"moe": 24, "gqa": 24, "sliding_window": 12}),
        ("llama-3-8b", {"gqa": 32}),
    ],
)
def test_innovations_are_found_in_as_many_layers(name: str, slugs: dict[str, int]) -> None:
    found = read(MODELS / f"{name}.json").innovations
    assert {slug: len(layers) for slug, layers in found.items()} == slugs


def test_decode_costs_as_much_as_one_more_token_of_the_prompt() -> None:
    llama = read(MODELS / "llama-3-8b.json")
    longer, shorter = llama.prefill_flops(101), llama.prefill_flops(100)
    assert llama.decode_flops(100) == longer - shorter + 2 * llama.embedding_parameters


def test_prefill_in_two_parts_costs_as_much_as_at_once_but_for_the_second_head() -> None:
    gemma = read(MODELS / "gemma-3-1b.json")
    parts = gemma.prefill_flops(700) + gemma.prefill_flops(900, cached=700)
    assert parts - gemma.prefill_flops(1600) == 2 * gemma.embedding_parameters


def test_flops_of_a_dense_model_are_two_a_parameter_and_token_at_short_context() -> None:
    llama = read(MODELS / "llama-3-8b.json")
    matrices = llama.parameters - llama.embedding_parameters
    assert llama.decode_flops(1) == pytest.approx(2 * matrices, rel=1e-3)


def test_weight_bytes_follow_the_dtype() -> None:
    llama = read(MODELS / "llama-3-8b.json")
    assert {dtype: llama.weight_bytes(dtype) for dtype in ("fp32", "bf16", "fp8", "int8")} == {
        "fp32": 4 * llama.parameters,
        "bf16": 2 * llama.parameters,
        "fp8": llama.parameters,
        "int8": llama.parameters,
    }
    assert llama.weight_bytes("int4") * 2 == llama.parameters
    matrices = llama.parameters - 2 * llama.embedding_parameters - 65 * 4096
    assert llama.weight_bytes(SPARSE) == 2 * (llama.parameters - matrices) + matrices * 5 // 8


def test_an_experts_bytes_are_its_three_matrices() -> None:
    assert read(MODELS / "deepseek-v3.json").expert_bytes("fp8") == 3 * 7168 * 2048


def test_prediction_of_more_tokens_and_buffers_are_counted_apart() -> None:
    deepseek = read(MODELS / "deepseek-v3.json")
    assert deepseek.buffers == 58 * 256
    assert deepseek.mtp_parameters == pytest.approx(11.5e9, rel=0.02)


def test_only_the_standard_library_is_imported() -> None:
    for path in (ROOT / "model_code" / "common").glob("*.py"):
        if path.stem not in {
            "architecture",
            "config_fields",
            "config_layers",
            "families",
            "layers",
        }:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                )
                for name in names:
                    assert name.split(".")[0] in {*sys.stdlib_module_names, "model_code"}, path


# What is wrong, and what of the message tells it.
LLAMA = model("llama-3-8b")
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama-3-8b", {"model_type": "mamba"}, "model_type is 'mamba'; known families are llama"),
    ("llama-3-8b", {"model_type": None}, "model_type is missing; known families"),
    ("llama-3-8b", {"model_type": ["llama"]}, "model_type is \\['llama'\\]"),
    ("llama-3-8b", {"hidden_size": None}, "hidden_size is missing; it must be a whole number"),
    ("llama-3-8b", {"hidden_size": 0}, "hidden_size is 0; allowed is a whole number from 1"),
    ("llama-3-8b", {"hidden_size": -4096}, "hidden_size is -4096"),
    ("llama-3-8b", {"hidden_size": 1e30}, "hidden_size is 1e\\+30"),
    ("llama-3-8b", {"hidden_size": 10**30}, "hidden_size is 10000"),
    ("llama-3-8b", {"hidden_size": True}, "hidden_size is True"),
    ("llama-3-8b", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
    ("llama-3-8b", {"vocab_size": "many"}, "vocab_size is 'many'"),
    ("llama-3-8b", {"num_key_value_heads": 5}, "num_key_value_heads is 5; it must divide num_att"),
    ("llama-3-8b", {"num_attention_heads": 30, "num_key_value_heads": 30}, "it must divide hidden"),
    ("llama-3-8b", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; allowed is true or fal"),
    ("llama-3-8b", {"hidden_act": "step"}, "hidden_act is 'step'; allowed is silu"),
    ("llama-3-8b", {"rope_theta": -1}, "rope_theta is -1; allowed is above 0"),
    ("llama-3-8b", {"rope_theta": "big"}, "rope_theta is 'big'; allowed is a number"),
    ("llama-3-8b", {"rope_scaling": 8}, "rope_scaling is 8; allowed is an object"),
    ("llama-3-8b", {"rope_scaling": {"type": "magic"}}, "rope_type is 'magic'; allowed is default"),
    ("llama-3-8b", {"rope_scaling": {"factor": "x"}}, "factor is 'x'; allowed is a number or a"),
    ("llama-3-8b", {"max_position_embeddings": None}, "max_position_embeddings is missing"),
    ("llama-3-8b", {"mystery": 1}, "field 'mystery' is not known in this family; nothing is gue"),
    ("mistral-7b", {"attention_bias": True}, "attention_bias is true, but this family has no"),
    ("qwen2.5-72b", {"attention_bias": False}, "attention_bias is false, but this family always"),
    ("llama-3-8b", {"use_qk_norm": True}, "field 'use_qk_norm' is not known"),
    ("llama-3-8b", {"sliding_window": 512}, "field 'sliding_window' is not known"),
    ("mixtral-8x7b", {"n_shared_experts": 1}, "field 'n_shared_experts' is not known"),
    ("qwen3-8b", {"mlp_bias": True}, "mlp_bias is true, but this family has no biases there"),
    ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9; it cannot exceed num"),
    ("mixtral-8x7b", {"num_experts": 16}, "num_local_experts and num_experts differ"),
    ("deepseek-v3", {"num_key_value_heads": 64}, "latent attention shares one latent"),
    ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank is missing"),
    ("deepseek-v3", {"n_group": 7}, "n_group is 7 and topk_group 4"),
    ("deepseek-v3", {"first_k_dense_replace": 99}, "first_k_dense_replace is 99; it cannot exceed"),
    ("deepseek-v3", {"first_k_dense_replace": None}, "first_k_dense_replace is missing"),
    ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq is not 1"),
    ("qwen3-30b-a3b", {"mlp_only_layers": ["x"]}, "mlp_only_layers is not a list of layer numbers"),
    ("gemma-3-1b", {"layer_types": ["full_attention"]}, "layer_types is 1 entries; allowed is a"),
    ("gemma-3-1b", {"layer_types": "full"}, "layer_types is 'full'; allowed is a list of 26"),
    ("gemma-3-1b", {"layer_types": ["linear_attention"] * 26}, "layer_types has 'linear_att"),
    ("gemma-3-1b", {"sliding_window": None}, "layer_types has sliding_attention, but sliding_win"),
    ("gemma-3-1b", {"sliding_window": 0}, "sliding_window is 0; allowed is a whole number from 1"),
    ("gemma-3-1b", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
    ("gemma-3-27b", {"text_config": 3}, "text_config is 3; allowed is an object"),
    ("gemma-3-27b", {"audio_config": {}}, "field 'audio_config' is not known"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_fails_when_a_field_is_wrong(name: str, change: dict[str, Any], message: str) -> None:
    config = {**model(name), **change}
    config = {
        key: value for key, value in config.items() if value is not None or key in model(name)
    }
    with pytest.raises(ModelError, match=message) as caught:
        parse(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama", "hidden', "not valid JSON at line 1; is the file truncated"),
        ("[1]", "a config.json holds an object, this holds"),
        ('{"hidden_size": NaN}', "NaN is not a number that a model can have"),
        ("[" * 100_000, "not valid JSON"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_fails_when_the_file_is_not_a_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        read(tmp_path)


def test_fails_when_the_file_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read: not UTF-8 text"):
        read(tmp_path)


def test_fails_when_the_file_is_a_checkpoint(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ModelError, match="larger than 16 MiB"):
        read(tmp_path)


def test_fails_when_the_folder_has_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder has no config\.json"):
        read(tmp_path)


def test_fails_when_the_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read(tmp_path / "none.json")


def test_fails_when_a_dtype_is_unknown() -> None:
    with pytest.raises(ValueError, match="dtype is 'fp2'; allowed is fp32, bf16"):
        read(MODELS / "llama-3-8b.json").weight_bytes("fp2")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.just(1e30), st.just(0), st.lists(st.integers(), max_size=3), st.just({"x": [1]}),
)  # fmt: skip


def parsed(config: dict[str, Any]) -> tuple[Architecture | None, str]:
    try:
        return parse(config), ""
    except ModelError as error:
        return None, str(error)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_change_of_any_field_gives_a_model_or_one_line(name: str, data: st.DataObject) -> None:
    config = copy.deepcopy(model(name))
    target = config.get("text_config") or config
    for key in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=3)):
        target[key] = data.draw(VALUES)
    architecture, refusal = parsed(config)
    if architecture is None:
        assert refusal.count("\n") == 0 < len(refusal)
        return
    assert architecture.parameters >= architecture.active_parameters > 0
    assert architecture.kv_bytes(1000) <= 1000 * architecture.kv_bytes_per_token()
    assert all(architecture.weight_bytes(dtype) > 0 for dtype in [*BITS, SPARSE])
    assert architecture.decode_flops(100) > 0
