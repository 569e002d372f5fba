"""Fit of serving, training, cache and functions, against sums done by hand."""

import dataclasses
import math

import pytest

from planner.caching import CacheFit, fit_cache, tokens_held
from planner.catalogue import GIB, instances
from planner.functions import RUNTIME_MIB, FunctionFit, fit_function
from planner.load import Load, parse_load
from planner.roofline import BANDWIDTH_SHARE, Demand, speed
from planner.serving import Layout, Misfit, fit
from planner.training import STATE_BYTES, TrainingFit, fit_training
from tests.planner.common import NAMES, model


def demand(name: str, load: Load) -> tuple[Demand, Load]:
    asked = load.of(model(name))
    found = Demand(model(name), dtype=asked.dtype, kv_dtype=asked.kv_dtype, context=asked.context)
    return found, asked


def served(name: str, instance: str, text: str = "") -> Layout:
    found = fit(*demand(name, parse_load(text)), instances()[instance])
    assert isinstance(found, Layout), found
    return found


def refused(name: str, instance: str, text: str = "") -> Misfit:
    found = fit(*demand(name, parse_load(text)), instances()[instance])
    assert isinstance(found, Misfit), found
    return found


def test_one_step_of_a_dense_model_reads_its_weights_once() -> None:
    found, asked = demand("llama-3-8b", Load())
    llama = model("llama-3-8b")
    pace = speed(found, instances()["c7i.48xlarge"], devices=1, batch=1, prompt=asked.prompt)
    read = 2 * (llama.parameters - llama.embedding_parameters) + llama.kv_bytes(4096)
    assert pace.bound_s == pytest.approx(read / (192 * 3.2e9))
    assert pace.step_s == pytest.approx(pace.bound_s / BANDWIDTH_SHARE)
    assert pace.limit == "memory"


def test_a_step_reads_more_experts_the_more_tokens_it_has_and_never_more_than_all() -> None:
    found, _ = demand("mixtral-8x7b", Load())
    mixtral = model("mixtral-8x7b")
    unread = mixtral.embedding_parameters
    assert found.touched_bytes(1) == pytest.approx(2 * (mixtral.active_parameters - unread))
    assert found.touched_bytes(2) > found.touched_bytes(1)
    assert found.touched_bytes(10_000) == pytest.approx(2 * (mixtral.parameters - unread))


def test_a_large_batch_is_bound_by_arithmetic() -> None:
    found, asked = demand("llama-3-8b", Load(context=16, output=8))
    pace = speed(found, instances()["inf2.xlarge"], devices=1, batch=2000, prompt=asked.prompt)
    assert pace.limit == "arithmetic"


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_that_fits_stays_within_each_devices_memory(name: str) -> None:
    found, asked = demand(name, Load())
    for instance in instances().values():
        layout = fit(found, asked, instance)
        if isinstance(layout, Layout):
            used = layout.weight_bytes + layout.kv_bytes + layout.activation_bytes
            assert used <= layout.usable_bytes <= instance.device_bytes
            assert layout.replicas * layout.batch >= asked.concurrent
            assert layout.batch <= layout.slots
            assert layout.tokens_per_s >= asked.tokens_per_s
            assert 1 / layout.speed.bound_s >= layout.tokens_per_s


def test_deepseek_v3_in_fp8_fits_one_p5en_and_in_bf16_takes_two() -> None:
    # 671 GB and 1,342 GB against 8 x 141 GB, of which 90% are usable.
    assert served("deepseek-v3", "p5en.48xlarge", "dtype=fp8").count == 1
    assert served("deepseek-v3", "p5en.48xlarge", "dtype=bf16").count == 2


def test_llama_405b_in_bf16_spans_two_machines_of_p5() -> None:
    layout = served("llama-3.1-405b", "p5.48xlarge")
    assert (layout.stages, layout.devices, layout.count) == (2, 8, 2)


def test_heads_divide_among_devices() -> None:
    layout = served("mixtral-8x7b", "inf2.48xlarge", "concurrent=1")
    assert layout.kind == "expert" or 32 % layout.devices == 0


def test_key_value_heads_bound_how_far_a_cache_is_split() -> None:
    # Gemma-3-1B has one key/value head: each of its four devices holds all of the cache.
    layout = served("gemma-3-1b", "p5.48xlarge", "concurrent=1")
    assert layout.devices == 4
    assert layout.kv_bytes == model("gemma-3-1b").kv_bytes(4096)


def test_twice_the_sequences_take_no_fewer_machines() -> None:
    counts = [
        served("olmo-2-7b", "inf2.xlarge", f"concurrent={n}").count for n in (4, 8, 16, 32, 64)
    ]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_what_is_too_large_says_by_how_much_and_what_would_fit() -> None:
    misfit = refused("llama-3-8b", "c7i.large")
    weights = model("llama-3-8b").weight_bytes("bf16") / GIB
    assert f"{weights:,.1f} weights in bf16" in misfit.reason
    assert "it has 3.2 usable" in misfit.reason
    assert misfit.remedy.endswith("GiB more, or a smaller dtype")


def test_what_is_too_slow_says_how_many_times_and_what_would_do() -> None:
    misfit = refused("llama-3-8b", "c7i.48xlarge", "tokens_per_s=1000")
    assert "asked is 1000: " in misfit.reason
    assert "times the bandwidth" in misfit.remedy


def test_a_slow_machine_takes_smaller_batches_before_it_is_refused() -> None:
    loaded = served("llama-3-8b", "c7i.48xlarge", "concurrent=64,context=8192")
    assert loaded.batch < 64
    assert loaded.count > 1


def test_heads_that_cannot_be_shared_out_are_told_from_memory_that_is_short() -> None:
    odd = dataclasses.replace(
        model("llama-3-8b"),
        layers=tuple(
            dataclasses.replace(
                layer, attention=dataclasses.replace(layer.attention, heads=31, kv_heads=31)
            )
            for layer in model("llama-3-8b").layers
        ),
    )
    found = Demand(odd, dtype="fp32", kv_dtype="bf16", context=4096)
    misfit = fit(found, Load().of(odd), instances()["inf2.48xlarge"])
    assert isinstance(misfit, Misfit)
    assert "heads must divide among them" in misfit.remedy


def test_a_load_that_nothing_holds_is_no_plan() -> None:
    misfit = refused("llama-3-8b", "inf2.xlarge", "concurrent=100000000")
    assert "is no plan" in misfit.reason


def test_neuron_does_not_serve_int4() -> None:
    misfit = refused("llama-3-8b", "inf2.xlarge", "dtype=int4")
    assert misfit.reason == "its runtime does not compute with int4 weights"


def test_training_takes_sixteen_bytes_a_parameter_over_all_devices() -> None:
    llama, p5 = model("llama-3-8b"), instances()["p5.48xlarge"]
    found = fit_training(llama, Load().of(llama), p5)
    assert isinstance(found, TrainingFit)
    assert found.state_bytes == STATE_BYTES * llama.parameters / (found.nodes * 8)
    used = found.state_bytes + found.gathered_bytes + found.activation_bytes
    assert used <= found.usable_bytes


def test_training_takes_the_nodes_that_its_days_take() -> None:
    llama, p5 = model("llama-3-8b"), instances()["p5.48xlarge"]
    slow = fit_training(llama, Load(train_tokens=10**12, train_days=30).of(llama), p5)
    fast = fit_training(llama, Load(train_tokens=10**12, train_days=3).of(llama), p5)
    assert isinstance(slow, TrainingFit)
    assert isinstance(fast, TrainingFit)
    assert fast.nodes > slow.nodes
    assert slow.days <= 30
    assert fast.days <= 3
    # Six operations a parameter and token, and attention's scores.
    assert slow.flops == pytest.approx(6e12 * llama.parameters, rel=0.15)
    peak = slow.nodes * 8 * 989e12
    assert slow.bound_days == pytest.approx(slow.flops / peak / 86_400)


def test_experts_spread_over_devices_that_divide_them() -> None:
    mixtral, p5en = model("mixtral-8x7b"), instances()["p5en.48xlarge"]
    found = fit_training(mixtral, Load().of(mixtral), p5en)
    assert isinstance(found, TrainingFit)
    assert 8 % found.expert_parallel == 0


@pytest.mark.parametrize(
    ("text", "instance", "reason"),
    [
        ("sequence=131072", "trn1.2xlarge", "one layer and a sequence of 131,072 take"),
        ("train_tokens=1000000000000000", "p5.48xlarge", "7 days would take"),
        ("", "trn1.2xlarge", "and it has no EFA to join them"),
    ],
)
def test_training_that_does_not_fit_says_why(text: str, instance: str, reason: str) -> None:
    llama = model("llama-3.1-8b")
    found = fit_training(llama, parse_load(text).of(llama), instances()[instance])
    assert isinstance(found, Misfit)
    assert reason in found.reason


def test_a_cache_holds_the_prompts_of_its_time_to_live() -> None:
    deepseek = model("deepseek-v3")
    load = Load(requests_per_s=1, ttl_s=600, context=4096, output=96).of(deepseek)
    assert tokens_held(load) == 600 * 4000
    found = fit_cache(deepseek, load, "us-east-1")
    assert isinstance(found, CacheFit)
    assert found.bytes == 600 * 4000 * 70_272
    held = found.shards * found.node.usable_gib * GIB * 0.8
    assert held >= found.bytes
    assert found.nodes == 2 * found.shards
    assert found.usd_per_hour is not None
    # A prompt's bytes, written once and read once.
    assert found.gbps == pytest.approx(2 * 4000 * 70_272 * 8 / 1e9)


def test_a_cache_holds_what_is_in_flight_though_nothing_is_kept() -> None:
    deepseek = model("deepseek-v3")
    assert tokens_held(Load(concurrent=9, ttl_s=1e-3, context=1000).of(deepseek)) == 9000


def test_a_cache_without_a_price_takes_the_fewest_nodes() -> None:
    deepseek = model("deepseek-v3")
    found = fit_cache(deepseek, Load().of(deepseek), "eu-west-1")
    assert isinstance(found, CacheFit)
    assert found.usd_per_hour is None
    assert found.nodes == 2


def test_a_cache_that_is_too_large_says_what_would_fit() -> None:
    deepseek = model("deepseek-v3")
    load = Load(requests_per_s=1000, ttl_s=86_400).of(deepseek)
    found = fit_cache(deepseek, load, "us-east-1")
    assert isinstance(found, Misfit)
    seconds = int(found.remedy.split("ttl_s=")[1].split(",")[0])
    again = fit_cache(deepseek, dataclasses.replace(load, ttl_s=seconds), "us-east-1")
    assert isinstance(again, CacheFit)


def test_a_function_holds_weights_cache_and_runtime() -> None:
    gemma = model("gemma-3-270m")
    found = fit_function(gemma, Load().of(gemma), "us-east-1")
    assert isinstance(found, FunctionFit)
    need = (gemma.weight_bytes("bf16") + gemma.kv_bytes(4096)) / 2**20 + RUNTIME_MIB
    assert need <= found.memory_mib <= 10_240
    assert found.dtype == "bf16"
    assert found.usd_per_request == pytest.approx(
        0.0000166667 * found.seconds * found.memory_mib / 1024 + 0.2 / 1e6
    )
    assert found.usd_per_million == pytest.approx(1e6 * found.usd_per_request)


def test_a_function_of_a_given_memory_has_its_share_of_the_processors() -> None:
    gemma = model("gemma-3-270m")
    load = Load(dtype="int8", context=2048).of(gemma)
    most, two = (fit_function(gemma, load, "us-east-1", memory) for memory in (None, 3538))
    assert isinstance(most, FunctionFit)
    assert isinstance(two, FunctionFit)
    assert two.memory_mib == 3538
    assert two.tokens_per_s == pytest.approx(most.tokens_per_s / 3, rel=0.05)
    assert two.ephemeral_mib == 512


def test_the_weights_of_a_larger_model_need_a_larger_tmp() -> None:
    gemma = model("gemma-3-1b")
    found = fit_function(gemma, Load(dtype="int8", context=2048).of(gemma), "us-east-1")
    assert isinstance(found, FunctionFit)
    assert found.ephemeral_mib == -(-found.weight_bytes // 2**20) + 80


def test_a_function_that_is_given_too_little_memory_says_how_much_is_enough() -> None:
    gemma = model("gemma-3-270m")
    found = fit_function(gemma, Load(dtype="int4").of(gemma), "us-east-1", 300)
    assert isinstance(found, Misfit)
    assert "the function is given 300" in found.reason
    enough = int(found.remedy.removeprefix("memory_mib=").partition(",")[0])
    load = Load(dtype="int4", tokens_per_s=0.1).of(gemma)
    assert isinstance(fit_function(gemma, load, "us-east-1", enough), FunctionFit)


def test_a_function_falls_back_to_a_smaller_dtype_and_says_so() -> None:
    gemma = model("gemma-3-1b")
    found = fit_function(gemma, Load(tokens_per_s=10).of(gemma), "us-east-1")
    assert isinstance(found, FunctionFit)
    assert found.dtype == "int8"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gemma-3-27b", "", "MiB in int4 (weights, 4,096 tokens of cache, 256 MiB runtime)"),
        ("gemma-3-1b", "context=32768,output=30000,tokens_per_s=1", "Lambda stops after 900"),
        ("gemma-3-1b", "tokens_per_s=500", "asked is 500"),
    ],
)
def test_a_function_that_does_not_fit_says_why(name: str, text: str, reason: str) -> None:
    found = fit_function(model(name), parse_load(text).of(model(name)), "us-east-1")
    assert isinstance(found, Misfit)
    assert reason in found.reason
    assert found.remedy


def test_an_image_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, float] = {"memory_mib": 10**6, "image_gb": 1, "vcpus": 6, "timeout_s": 900}
    monkeypatch.setattr("planner.functions.limits", lambda service: small)
    found = fit_function(model("gemma-3-1b"), Load().of(model("gemma-3-1b")), "us-east-1")
    assert isinstance(found, FunctionFit)
    small["image_gb"] = 0.6
    found = fit_function(model("gemma-3-1b"), Load().of(model("gemma-3-1b")), "us-east-1")
    assert isinstance(found, Misfit)
    assert "its image would be" in found.reason
    assert math.isfinite(float(found.reason.split()[4]))
