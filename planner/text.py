"""A plan as text: every choice with its formula and numbers."""

from model_code.common.architecture import BITS, SPARSE
from planner.catalogue import GIB, vendor_figures
from planner.placements import Placement
from planner.planning import Plan
from planner.ranking import Candidate
from planner.savings import Saving


def render(plan: Plan) -> str:
    """Return the plan as lines for a terminal."""
    parts = [_model(plan), _innovations(plan), _load(plan), _placements(plan), _ranking(plan)]
    parts += [_savings(plan), _floor(plan), _vendor(), _warnings(plan)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _model(plan: Plan) -> str:
    model = plan.architecture
    kinds = sorted({layer.attention.kind.upper() for layer in model.layers})
    total, active = model.parameters, model.active_parameters
    lines = [
        f"{model.name} ({model.family}): {len(model.layers)} layers, {', '.join(kinds)}",
        f"  parameters  {total:,} in all; {active:,} a token ({active / total:.1%})",
        f"  cache       {model.kv_bytes_per_token():,} bytes a token in bf16"
        + "".join(f"; {n:,} tokens {_size(model.kv_bytes(n))}" for n in plan.contexts),
        "  weights     "
        + "; ".join(f"{d} {_size(model.weight_bytes(d))}" for d in [*BITS, SPARSE] if d != "fp16"),
        f"  operations  {model.prefill_flops(plan.load.prompt):.3g} for the prompt of "
        f"{plan.load.prompt:,}; {model.decode_flops(plan.load.context):.3g} a token at "
        f"{plan.load.context:,}",
    ]
    sparse = [layer.feed_forward for layer in model.layers if layer.feed_forward.experts]
    if sparse:
        shared = sparse[0].shared_width // sparse[0].width
        lines.append(
            f"  experts     {sparse[0].experts} routed and {shared} shared in each of "
            f"{len(sparse)} layers; {sparse[0].active + shared} active a token"
        )
    if model.mtp_parameters:
        lines.append(f"  apart       {model.mtp_parameters:,} predict further tokens")
    return "\n".join(lines)


def _innovations(plan: Plan) -> str:
    found = plan.architecture.innovations
    if not found:
        return "Innovations: none of the map's; the ranking below is what serves it"
    lines = [f"  {slug:<16}{_spans(layers)}" for slug, layers in found.items()]
    return "\n".join(["Innovations, and their layers", *lines])


def _load(plan: Plan) -> str:
    load = plan.load
    return (
        f"Load in {plan.region}: {load.concurrent} sequences in flight of {load.context:,} tokens "
        f"({load.output:,} of them the answer), {load.requests_per_s:.3g} requests/s, at least "
        f"{load.tokens_per_s:g} tokens/s each; weights {load.dtype}, cache {load.kv_dtype}; "
        f"cached prompts live {load.ttl_s:g} s; training {load.train_tokens:,} tokens of "
        f"{load.sequence:,} in {load.train_days:g} days; {load.hours:g} hours a month"
    )


def _placements(plan: Plan) -> str:
    lines = ["Placements"]
    for row in plan.placements:
        lines.append(
            f"  {row.slug}: {row.service}: {row.count} x {row.instance_type}, "
            f"{_usd(row, plan.load.hours)}"
        )
        lines += [f"    - {reason}" for reason in row.reasons]
    for refusal in plan.refusals:
        lines.append(f"  {refusal.slug}: {refusal.service}: {refusal.instance_type} refused")
        lines += [f"    - {refusal.reason}", f"    - what would: {refusal.remedy}"]
    return "\n".join(lines) if len(lines) > 1 else ""


def _ranking(plan: Plan) -> str:
    lines = ["What can serve it, best first (modelled; $/M tokens at this load, and full)"]
    lines += [_candidate(row) for row in plan.candidates]
    if not plan.candidates:
        lines.append("  nothing fits")
    lines += [f"  {row.instance:<20} no: {row.reason}; {row.remedy}" for row in plan.misfits]
    return "\n".join(lines)


def _candidate(row: Candidate) -> str:
    layout = row.layout
    if row.cost.usd_per_hour is None:
        price = "no public price (plan)" if layout.instance.capacity == "plan" else "no price"
    else:
        price = (
            f"{row.cost.usd_per_hour:.4g} $/h, {row.usd_per_million_tokens:.3g} $/M, "
            f"{row.usd_per_million_tokens_full:.3g} full"
        )
    pace = layout.speed
    return (
        f"  {layout.instance.name:<20} x {layout.count:<3} {layout.tokens_per_s:8.3g} tokens/s "
        f"each (bound {1 / pace.bound_s:.3g}), first token {pace.prefill_s:.3g} s; {price}"
    )


def _savings(plan: Plan) -> str:
    lines = [_saving(row) for row in plan.savings]
    return "\n".join(["Against the same model without it", *lines]) if lines else ""


def _saving(row: Saving) -> str:
    text = f"  {row.slug:<16}{row.quantity}: {row.saved:.1%} ({row.confidence})"
    if row.claim:
        low, high = row.claim
        span = f"{low:.0%}" if low == high else f"{low:.0%}-{high:.0%}"
        text += f"; the map says {span}: {'reached' if row.reached else 'not reached here'}"
    inputs = ", ".join(f"{key} {value}" for key, value in row.inputs.items())
    return f"{text}\n    {row.formula}: {row.with_it:,.0f} / {row.without:,.0f}; {inputs}"


def _floor(plan: Plan) -> str:
    lines = ["Idle floor: what bills while nobody asks"]
    for what, count, usd in plan.floor.rows:
        lines.append(f"  {count:>4} {what}: {'no price' if usd is None else f'{usd:.4g} $/h'}")
    usd = plan.floor.usd_per_hour
    rest = f", and what has no price ({len(plan.floor.unpriced)})" if plan.floor.unpriced else ""
    return "\n".join([*lines, f"  in all {usd:.4g} $/h, {usd * 730:,.0f} $ a month{rest}"])


def _vendor() -> str:
    lines = [
        f"  {row['of']}: {row['claim']}"
        + (f" against {row['against']}" if row["against"] else "")
        + f" (vendor: {row['source']})"
        for row in vendor_figures()
    ]
    return "\n".join(["The map's figures that stay the vendor's", *lines])


def _warnings(plan: Plan) -> str:
    return "\n".join(f"warning: {text}" for text in plan.warnings)


def _usd(row: Placement, hours: float) -> str:
    usd = row.cost.usd_per_hour
    if usd is not None:
        return f"{usd:.4g} $/h, {usd * hours:,.0f} $ a month"
    least = row.cost.at_least_usd_per_hour
    return "no price" if least is None else f"no price, at least {least:.4g} $/h"


def _size(count: int) -> str:
    if count >= GIB:
        return f"{count / GIB:,.1f} GiB"
    return f"{count / 2**20:,.1f} MiB"


def _spans(layers: tuple[int, ...]) -> str:
    """Return `0-2, 5` for 0, 1, 2, 5, and the count."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans[:12])
    more = ", ..." if len(spans) > 12 else ""
    return f"{text}{more} ({len(layers)} layers)"
