"""How far a run is, among the figures of the Ray node that it runs on: there Prometheus finds it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

_HELP = {
    "rows_total": "Rows there will be.",
    "rows_done": "Rows finished, resumed ones included.",
    "rows_ok": "Rows of this start with an answer.",
    "rows_error": "Rows of this start with an error.",
    "in_flight": "Requests that are with a server.",
    "prompt_tokens": "Tokens of prompts, of this start.",
    "generated_tokens": "Tokens generated, of this start.",
    "cost_usd": "What this start cost.",
}
_LABELS = ("run", "run_id")


def exporter(name: str, run_id: str) -> Callable[[Mapping[str, float]], None]:
    """What takes the records of `Progress.metrics`; it does nothing in a process that isn't connected to Ray.

    Ray gives them the names `ray_matrix_run_...`. All are gauges, counts too: Ray forgets a gauge when its process has
    ended, and would tell a counter until its node ends.

    Args:
        name: Name of the experiment, the label `run`.
        run_id: The label of that name.
    """
    if "ray" not in sys.modules:
        return lambda _: None
    import ray

    if not ray.is_initialized():
        return lambda _: None
    from ray.util.metrics import Gauge

    labels = dict(zip(_LABELS, (name, run_id), strict=True))
    gauges = {key: Gauge(f"matrix_run_{key}", text, _LABELS) for key, text in _HELP.items()}

    def export(record: Mapping[str, float]) -> None:
        for key, gauge in gauges.items():
            if key in record:
                gauge.set(record[key], labels)

    return export
