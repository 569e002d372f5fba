"""The function's figures, as a line of its log that CloudWatch takes apart.

A call to PutMetricData would cost time and a right; CloudWatch reads this format out of the log
group (CloudWatch's user guide, "Specification: Embedded metric format").
"""

import json
import time

from model_code.sliding_window.handler.model import Model

_UNITS = {
    "ColdStart": "Count",
    "LoadTime": "Seconds",
    "TimeToFirstToken": "Seconds",
    "TokensPerSecond": "Count/Second",
    "WindowOccupancy": "Percent",
    "MemoryHeadroom": "Megabytes",
    "TimedOut": "Count",
}


def record(
    model: Model,
    *,
    first_token_s: float,
    seconds: float,
    prompt_tokens: int,
    completion_tokens: int,
    window: int | None,
    timed_out: bool,
) -> None:
    """Print the figures of one request."""
    cold = model.served == 0
    model.served += 1
    decoding = seconds - first_token_s
    held = prompt_tokens + completion_tokens
    values = {
        "ColdStart": int(cold),
        "LoadTime": round(model.load_seconds, 3) if cold else 0,
        "TimeToFirstToken": round(first_token_s, 4),
        "TokensPerSecond": round((completion_tokens - 1) / decoding, 2)
        if completion_tokens > 1 and decoding > 0
        else 0,
        "WindowOccupancy": round(100 * min(held, window) / window, 1) if window else 100.0,
        "MemoryHeadroom": round(model.headroom_mib(), 1),
        "TimedOut": int(timed_out),
    }
    metrics = [{"Name": name, "Unit": unit} for name, unit in _UNITS.items()]
    directive = {
        "Namespace": model.settings.namespace,
        "Dimensions": [["Model"]],
        "Metrics": metrics,
    }
    line = {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]},
        "Model": model.settings.model,
        **values,
        "PromptTokens": prompt_tokens,
        "CompletionTokens": completion_tokens,
    }
    print(json.dumps(line), flush=True)
