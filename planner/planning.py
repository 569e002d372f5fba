"""One plan: what a model is, where its innovations go, what that costs and saves."""

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_code.common.architecture import BITS, SPARSE, Architecture, ModelError, read
from planner.catalogue import regions, vendor_figures
from planner.errors import PlanError
from planner.load import Load, parse_load
from planner.placements import Placement, Placer, Refusal
from planner.pricing import Foundation, IdleFloor, idle_floor
from planner.ranking import Candidate, layout_details, notes
from planner.savings import Saving, savings
from planner.serving import Misfit

VERSION = 1
MODELS = Path(__file__).parents[1] / "config" / "models"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `isomorph plan` prints; `docs/plan-json.md` documents its JSON."""

    architecture: Architecture
    load: Load
    region: str
    date: datetime.date
    contexts: tuple[int, ...]
    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]
    candidates: tuple[Candidate, ...]
    misfits: tuple[Misfit, ...]
    savings: tuple[Saving, ...]
    floor: IdleFloor

    @property
    def warnings(self) -> tuple[str, ...]:
        """Old prices among those that the plan uses, each once."""
        costs = [p.cost for p in self.placements] + [c.cost for c in self.candidates]
        found = [text for cost in costs for text in cost.warnings]
        return tuple(dict.fromkeys([*found, *self.floor.warnings]))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, in the documented shape."""
        model = self.architecture
        return {
            "version": VERSION,
            "date": self.date.isoformat(),
            "region": self.region,
            "model": {
                "name": model.name,
                "family": model.family,
                "model_type": model.model_type,
                "layers": len(model.layers),
                "hidden": model.hidden,
                "vocabulary": model.vocabulary,
                "context": model.context,
                "attention": [layer.attention.kind for layer in model.layers],
                "windows": [layer.attention.window for layer in model.layers],
                "experts": _experts(model),
            },
            "parameters": {
                "total": model.parameters,
                "active": model.active_parameters,
                "embedding": model.embedding_parameters,
                "head": model.head_parameters,
                "experts": model.expert_parameters,
                "multi_token_prediction": model.mtp_parameters,
                "buffers": model.buffers,
            },
            "kv_cache": {
                "bytes_per_token": model.kv_bytes_per_token("bf16"),
                "dtype": "bf16",
                "bytes_at": {str(n): model.kv_bytes(n, "bf16") for n in self.contexts},
            },
            "weights": {
                "bytes": {dtype: model.weight_bytes(dtype) for dtype in [*BITS, SPARSE]},
                "expert_bytes": {dtype: model.expert_bytes(dtype) for dtype in BITS},
            },
            "flops": {
                "prefill": model.prefill_flops(self.load.prompt),
                "decode": model.decode_flops(self.load.context),
            },
            "innovations": {slug: list(layers) for slug, layers in model.innovations.items()},
            "load": asdict(self.load),
            "placements": [_placement(row, self.load.hours) for row in self.placements],
            "refusals": [asdict(row) for row in self.refusals],
            "candidates": [_candidate(row) for row in self.candidates],
            "misfits": [asdict(row) for row in self.misfits],
            "savings": [
                {
                    "slug": row.slug,
                    "quantity": row.quantity,
                    "without": row.without,
                    "with": row.with_it,
                    "saved": row.saved,
                    "claim": list(row.claim) if row.claim else None,
                    "reached": row.reached,
                    "confidence": row.confidence,
                    "formula": row.formula,
                    "inputs": row.inputs,
                }
                for row in self.savings
            ],
            "idle_floor": {
                "usd_per_hour": self.floor.usd_per_hour,
                "usd_per_month": self.floor.usd_per_hour * 730,
                "rows": [
                    {"what": what, "count": count, "usd_per_hour": usd}
                    for what, count, usd in self.floor.rows
                ],
                "unpriced": list(self.floor.unpriced),
            },
            "vendor": [dict(row) for row in vendor_figures()],
            "warnings": list(self.warnings),
        }

    def dumps(self) -> str:
        """Return the JSON as text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)


def _experts(model: Architecture) -> dict[str, int] | None:
    """Return the experts of a layer, and how many of them a token visits; None without."""
    parts = [layer.feed_forward for layer in model.layers if layer.feed_forward.experts]
    if not parts:
        return None
    shared = parts[0].shared_width // parts[0].width
    return {
        "routed": parts[0].experts,
        "shared": shared,
        "active_per_token": parts[0].active + shared,
    }


def _placement(row: Placement, hours: float) -> dict[str, Any]:
    usd = row.cost.usd_per_hour
    return {
        "slug": row.slug,
        "service": row.service,
        "instance_type": row.instance_type,
        "count": row.count,
        "usd_per_hour": usd,
        "usd_per_month": None if usd is None else usd * hours,
        "usd_per_hour_at_least": row.cost.at_least_usd_per_hour,
        "purchase": {"on_demand": usd, "plan": None, "spot": None},
        "always_on": row.always_on,
        "confidence": row.confidence,
        "reasons": list(row.reasons),
        "details": row.details,
    }


def _candidate(row: Candidate) -> dict[str, Any]:
    return {
        "instance_type": row.layout.instance.name,
        "count": row.layout.count,
        "capacity": row.layout.instance.capacity,
        "usd_per_hour": row.cost.usd_per_hour,
        "usd_per_million_tokens": row.usd_per_million_tokens,
        "usd_per_million_tokens_full": row.usd_per_million_tokens_full,
        "confidence": "modelled",
        "notes": [*row.cost.notes, *notes(row.layout.instance)],
        **layout_details(row.layout),
    }


def plan(
    model: Architecture | str | Path,
    load: str | Iterable[str] | Mapping[str, Any] | Load | None = None,
    *,
    region: str = "us-east-1",
    contexts: Iterable[int] = (),
    foundation: Foundation | None = None,
    today: datetime.date | None = None,
) -> Plan:
    """Return the plan of a model: a record, a name in config/models, a file or a folder.

    Args:
        model: What to plan for.
        load: What is asked of it, such as `concurrent=64,context=8192`.
        region: Where.
        contexts: Lengths to tell the cache's bytes at, besides the usual ones.
        foundation: What the environment has anyway; left out: six endpoints, no NAT.
        today: What prices are old against; left out: today.
    """
    architecture = resolve(model)
    if region not in regions():
        near = sorted(name for name in regions() if name[:3] == str(region)[:3])
        known = ", ".join(near or sorted(regions()))
        raise PlanError(f"region {ascii(region)[:40]} is not known; allowed is {known}")
    asked = parse_load(load).of(architecture)
    day = today or datetime.datetime.now(datetime.UTC).date()
    usual = [n for n in (1024, 4096, 8192, 32_768) if n <= architecture.context]
    lengths = sorted({*usual, asked.context, architecture.context, *_lengths(contexts)})
    placer = Placer(architecture, asked, region, day)
    placer.place()
    always_on = [
        (f"{row.slug}: {row.service}, {row.instance_type}", row.count, row.cost.usd_per_hour)
        for row in placer.placements
        if row.always_on
    ]
    return Plan(
        architecture=architecture,
        load=asked,
        region=region,
        date=day,
        contexts=tuple(lengths),
        placements=tuple(placer.placements),
        refusals=tuple(placer.refusals),
        candidates=tuple(placer.candidates),
        misfits=tuple(placer.misfits),
        savings=tuple(savings(architecture, asked)),
        floor=idle_floor(foundation or Foundation(), always_on, region=region, today=day),
    )


def _lengths(contexts: Iterable[int]) -> list[int]:
    found = list(contexts)
    for length in found:
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= 2**30:
            raise PlanError(
                f"context {ascii(length)[:40]} cannot be; allowed is a whole number from 1"
            )
    return found


def resolve(model: Architecture | str | Path) -> Architecture:
    """Return the model of a record, a name in config/models, a file or a folder."""
    if isinstance(model, Architecture):
        return model
    path = Path(model)
    shipped = MODELS / f"{model}.json"
    try:
        if path.name == str(model) and not path.exists() and shipped.is_file():
            path = shipped
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in MODELS.glob("*.json")))
            raise PlanError(
                f"no model {ascii(str(model))[:80]}: not a folder, not a file, "
                f"and not one of {known}"
            )
        return read(path)
    except (OSError, ValueError) as error:
        if isinstance(error, PlanError | ModelError):
            raise PlanError(str(error)) from error
        raise PlanError(f"{ascii(str(model))[:80]} cannot be a path") from error
