"""What the decoder reads of a config.json beside sizes."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_code.common.architecture import Architecture, parse, read

MODELS = Path(__file__).parents[2] / "config" / "models"


def changed(name: str, **fields: Any) -> Architecture:
    return parse({**json.loads((MODELS / f"{name}.json").read_text()), **fields})


def test_yarn_raises_the_scale_of_latent_attention_and_of_no_other() -> None:
    # DeepSeek-V3: factor 40, mscale_all_dim 1; (0.1 ln 40 + 1)^2 = 1.8738.
    scale = read(MODELS / "deepseek-v3.json").layers[0].attention.scale
    assert scale == pytest.approx(192**-0.5 * 1.8738, rel=1e-4)
    assert changed("deepseek-v3", rope_scaling=None).layers[0].attention.scale == 192**-0.5
    assert read(MODELS / "gpt-oss-20b.json").layers[0].attention.scale == 64**-0.5


def test_deepseek_s_pairs_lie_side_by_side_unless_the_file_says_otherwise() -> None:
    assert read(MODELS / "deepseek-v3.json").layers[0].attention.rope.interleaved
    halves = changed("deepseek-v3", rope_interleave=False)
    assert not halves.layers[0].attention.rope.interleaved
    assert not read(MODELS / "llama-3-8b.json").layers[0].attention.rope.interleaved


def test_gpt_oss_bounds_its_gates_and_no_other_family_knows_the_fields() -> None:
    part = read(MODELS / "gpt-oss-20b.json").layers[0].feed_forward
    assert (part.slope, part.clamp) == (1.702, 7.0)
    part = changed("gpt-oss-20b", swiglu_limit=5.0, swiglu_alpha=2.0).layers[0].feed_forward
    assert (part.slope, part.clamp) == (2.0, 5.0)
    with pytest.raises(ValueError, match="field 'swiglu_limit' is not known in this family"):
        changed("llama-3-8b", swiglu_limit=5.0)


def test_greedy_choice_knows_no_groups() -> None:
    fields: dict[str, Any] = {
        "model_type": "deepseek_v2", "scoring_func": "softmax", "n_group": 8, "topk_group": 3,
    }  # fmt: skip
    groups = [
        changed("deepseek-v3", **fields, topk_method=method).layers[-1].feed_forward.router
        for method in ("greedy", "group_limited_greedy")
    ]
    assert [(router.groups, router.kept_groups) for router in groups if router] == [(1, 1), (8, 3)]


def test_phi_s_original_length_is_part_of_its_rope() -> None:
    factors = [1.0] * 64
    rope = changed(
        "phi-4", original_max_position_embeddings=4096,
        rope_scaling={"type": "longrope", "long_factor": factors, "short_factor": factors},
    ).layers[0].attention.rope  # fmt: skip
    assert dict(rope.parameters)["original_max_position_embeddings"] == 4096


def test_norms_of_olmo_2_are_reordered() -> None:
    assert {layer.norms for layer in read(MODELS / "olmo-2-7b.json").layers} == {"reordered"}
