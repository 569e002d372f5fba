import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import Load, Plan, PlanError, plan, render
from planner.catalogue import regions
from planner.planning import MODELS, VERSION
from planner.savings import multi_head
from tests.planner.common import NAMES, TODAY, finite, model

ROOT = Path(__file__).parents[2]


def made(name: str, load: str = "", region: str = "us-east-1") -> Plan:
    return plan(name, load, region=region, today=TODAY)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_model_has_a_plan_of_finite_numbers(name: str) -> None:
    found = made(name)
    shape = found.to_json()
    assert finite(shape)
    assert json.loads(found.dumps()) == json.loads(json.dumps(shape))
    assert shape["version"] == VERSION
    assert {row["slug"] for row in shape["placements"]} <= set(shape["innovations"])
    served = {row["slug"] for row in [*shape["placements"], *shape["refusals"]]}
    assert served == set(shape["innovations"])


def test_the_json_says_what_other_tools_read() -> None:
    shape = plan("deepseek-v3", contexts=[100_000], today=TODAY).to_json()
    assert shape["model"]["family"] == "deepseek_v3"
    assert shape["parameters"]["total"] == 671_026_404_352
    assert shape["parameters"]["active"] == 37_552_282_624
    assert shape["kv_cache"]["bytes_per_token"] == 70_272
    assert shape["kv_cache"]["bytes_at"]["100000"] == 100_000 * 70_272
    assert shape["weights"]["bytes"]["fp8"] == 671_026_404_352
    assert shape["innovations"] == {"moe": list(range(3, 61)), "mla": list(range(61))}
    assert shape["model"]["experts"] == {"routed": 256, "shared": 1, "active_per_token": 9}
    for row in shape["placements"]:
        assert {"slug", "service", "instance_type", "count", "usd_per_hour", "confidence",
                "reasons"} <= set(row)  # fmt: skip
        assert row["confidence"] in ("measured", "modelled", "bound")
        assert row["reasons"]
        assert row["count"] >= 1


@pytest.mark.parametrize(
    ("name", "slug", "service", "family"),
    [
        ("qwen3-30b-a3b", "moe", "SageMaker endpoint", "ml.inf2"),
        ("qwen3-30b-a3b", "moe", "SageMaker HyperPod", "ml.p5e"),
        ("deepseek-v3", "mla", "ElastiCache", "cache.r7g"),
        ("llama-3-8b", "gqa", "EC2 Auto Scaling with AMX", "c7i"),
        ("gemma-3-1b", "sliding_window", "EC2 high memory bandwidth", "r7i"),
        ("gemma-3-1b", "sliding_window", "Lambda", "lambda"),
        ("olmo-2-7b", "normalization", "SageMaker training job", "ml.p5en"),
    ],
)
def test_an_innovation_goes_where_the_map_says(
    name: str, slug: str, service: str, family: str
) -> None:
    # us-east-2 has every type of the map on demand or as plans.
    rows = made(name, region="us-east-2").placements
    assert [
        row for row in rows
        if (row.slug, row.service) == (slug, service) and row.instance_type.startswith(family)
    ], rows  # fmt: skip


def test_where_the_maps_choice_does_not_fit_the_plan_says_so_and_offers_another() -> None:
    found = made("deepseek-v3")
    refusal = next(row for row in found.refusals if "inf2" in row.service)
    assert "it has 345.6 usable" in refusal.reason
    [offered] = [row for row in found.placements if row.service == "SageMaker endpoint"]
    assert not offered.instance_type.startswith("ml.inf2")


def test_the_ranking_has_every_kind_of_machine_in_one_list() -> None:
    found = made("llama-3-8b", region="us-east-2")
    listed = {row.layout.instance.runtime for row in found.candidates}
    assert listed == {"cuda", "neuron", "cpu"}
    names = {row.layout.instance.family for row in found.candidates}
    names |= {row.instance.split(".")[0] for row in found.misfits}
    assert {"inf2", "trn2", "p5e", "p5en", "p6-b200", "c7i", "r7i"} <= names


def test_the_ranking_goes_by_price_and_then_by_machines() -> None:
    rows = made("mixtral-8x7b").candidates
    prices = [row.cost.usd_per_hour for row in rows]
    known = [usd for usd in prices if usd is not None]
    assert prices == [*sorted(known), *([None] * (len(prices) - len(known)))]


def test_what_a_region_does_not_sell_is_a_misfit_with_the_regions_that_do() -> None:
    misfit = next(row for row in made("llama-3-8b").misfits if row.instance == "trn2.48xlarge")
    assert misfit.reason == "not sold in us-east-1"
    assert "us-east-2" in misfit.remedy


def test_a_model_without_innovations_is_ranked_all_the_same() -> None:
    found = plan(multi_head(model("llama-3-8b")), today=TODAY)
    assert found.placements == ()
    assert found.candidates
    assert "none of the map's" in render(found)


def test_a_load_that_nothing_fits_is_a_plan_of_refusals() -> None:
    found = made("llama-3-8b", "tokens_per_s=1000000")
    assert found.candidates == ()
    assert found.refusals
    text = render(found)
    assert "nothing fits" in text
    assert "times too slow" in text


def test_old_prices_warn_once_each() -> None:
    found = made("qwen3-30b-a3b", "dtype=int8")
    assert len(set(found.warnings)) == len(found.warnings)
    assert any(
        "days old" in text for text in plan("llama-3-8b", today=TODAY.replace(year=2027)).warnings
    )


def test_text_tells_numbers_formulas_and_claims() -> None:
    text = render(made("deepseek-v3"))
    for part in (
        "671,026,404,352 in all; 37,552,282,624 a token (5.6%)",
        "70,272 bytes a token in bf16",
        "moe             3-60 (58 layers)",
        "360,000 tokens x 70,272 bytes = 23.6 GiB",
        "the map says 85%: reached",
        "Trn2 UltraServer: 83 petaflops dense against 64 Trainium2 chips, FP8 (vendor: ",
        "Idle floor",
    ):
        assert part in text


@pytest.mark.parametrize("name", NAMES)
def test_text_is_made_for_every_model(name: str) -> None:
    text = render(made(name))
    assert text.endswith("\n")
    assert "nan" not in text.lower().split()


def test_a_model_is_a_name_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((MODELS / "llama-3-8b.json").read_text())
    by_folder = plan(tmp_path, today=TODAY)
    by_file = plan(str(tmp_path / "config.json"), today=TODAY)
    assert by_folder.architecture == by_file.architecture
    assert by_folder.architecture.parameters == made("llama-3-8b").architecture.parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no-such-model", "no model 'no-such-model': not a folder, not a file, and not one of"),
        ("config", "the folder has no config.json"),
        ("\0", "no model '\\\\x00': not a folder"),
        ("x" * 5000, "cannot be a path"),
        ("", "the folder has no config.json"),
    ],
)
def test_fails_when_the_model_is_nowhere(
    monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(PlanError, match=message):
        plan(given)


def test_fails_when_the_region_is_unknown() -> None:
    with pytest.raises(PlanError, match="region 'us-east-9' is not known; allowed is us-east-1"):
        plan("llama-3-8b", region="us-east-9")


def test_fails_when_a_context_cannot_be() -> None:
    with pytest.raises(PlanError, match="context -1 cannot be; allowed is a whole number from 1"):
        plan("llama-3-8b", contexts=[-1])


def test_importing_the_planner_loads_no_torch_no_cdk_and_no_boto3() -> None:
    code = (
        "import sys, planner; heavy = {'torch', 'aws_cdk', 'boto3', 'botocore', 'pandas', 'numpy',"
        " 'ruamel', 'pydantic'}; print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_the_planner_imports_of_the_project_only_the_architecture() -> None:
    own = {"config", "stacks", "constructs_lib", "isomorph", "local_aws", "bench", "model_code"}
    for path in (ROOT / "planner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in own:
                assert node.module == "model_code.common.architecture", path


def test_the_document_of_the_json_names_every_key() -> None:
    text = (ROOT / "docs" / "plan-json.md").read_text()
    shape = made("qwen3-30b-a3b").to_json()
    for key in _keys(shape):
        assert f"`{key}`" in text, key


def _keys(shape: dict[str, Any]) -> set[str]:
    """Return the keys of the first two levels, and of rows in lists."""
    found = set(shape)
    for key, value in shape.items():
        if isinstance(value, dict) and key not in ("innovations", "load"):
            found |= {f"{key}.{inner}" for inner in value}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found |= {f"{key}[].{inner}" for inner in value[0]}
    return found


LOADS = st.fixed_dictionaries(
    {},
    optional={
        "concurrent": st.integers(-1, 10**16),
        "context": st.integers(-1, 2**20),
        "output": st.integers(-1, 2**20),
        "requests_per_s": st.floats(),
        "tokens_per_s": st.floats(),
        "dtype": st.sampled_from(["bf16", "fp8", "int8", "int4", "fp32", "fp16", "x"]),
        "kv_dtype": st.sampled_from(["bf16", "fp8", "int8"]),
        "ttl_s": st.floats(0, 1e16),
        "train_tokens": st.integers(0, 10**16),
        "train_days": st.floats(0, 1e16),
        "hours": st.floats(0, 1000),
        "sequence": st.integers(0, 2**20),
    },
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "vocab_size", "max_position_embeddings", "sliding_window",
         "head_dim", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank"]
    ),
    st.integers(-1, 2**21),
    max_size=3,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    load=LOADS,
    region=st.sampled_from([*sorted(regions()), "mars-1"]),
    fields=FIELDS,
)
def test_any_model_load_and_region_give_a_plan_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    load: dict[str, Any],
    region: str,
    fields: dict[str, int],
) -> None:
    config = json.loads((MODELS / f"{name}.json").read_text())
    (config.get("text_config") or config).update(fields)
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(config))
    found, refusal = _planned(folder, load, region)
    if found is None:
        assert refusal
        assert "\n" not in refusal
        return
    assert finite(found.to_json())
    assert found.dumps()
    assert "nan" not in render(found).lower().split()


def _planned(folder: Path, load: dict[str, Any], region: str) -> tuple[Plan | None, str]:
    try:
        return plan(folder, load, region=region, today=TODAY), ""
    except PlanError as error:
        return None, str(error)


def test_the_load_of_a_plan_is_complete() -> None:
    load = made("llama-3-8b").load
    assert isinstance(load, Load)
    assert load.output
    assert load.sequence
    assert load.requests_per_s > 0
