"""How far a run is, among the figures of the Ray node that it runs on: there Prometheus finds it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from matrix.run.progress import Progress

_RUN = {
    "rows_total": "Rows there will be.",
    "rows_done": "Rows finished, resumed ones included.",
    "rows_ok": "Rows of this start with an answer.",
    "rows_error": "Rows of this start with an error.",
    "in_flight": "Requests that are with a server.",
    "prompt_tokens": "Tokens of prompts, of this start.",
    "generated_tokens": "Tokens generated, of this start.",
    "cost_usd": "What this start cost.",
}
_TEAM = {
    "workflows": "Workflows in flight.",
    "oldest_s": "Seconds that the oldest of them has been under way.",
}
_ROLE = {
    "in_flight": "Turns that are being taken.",
    "turns": "Turns taken, of this start.",
    "turn_s": "Seconds of all these turns.",
    "calls": "Calls of models and tools, of this start.",
    "call_s": "Seconds of all these calls.",
    "prompt_tokens": "Tokens of prompts, of this start.",
    "completion_tokens": "Tokens of answers, of this start.",
}
_LABELS = ("run", "run_id")
_BY_ROLE = (*_LABELS, "role")


def exporter(name: str, run_id: str, progress: Progress) -> Callable[[Mapping[str, float]], None]:
    """What takes the records of `Progress.metrics`; it does nothing in a process that isn't connected to Ray.

    Ray gives them the names `ray_matrix_run_...`, `ray_matrix_team_...` and `ray_matrix_role_...`. All are gauges,
    counts too: Ray forgets a gauge when its process has ended, and would tell a counter until its node ends.

    Args:
        name: Name of the experiment, the label `run`.
        run_id: The label of that name.
        progress: Knows how the team is doing, if there is one.
    """
    if "ray" not in sys.modules:
        return lambda _: None
    import ray

    if not ray.is_initialized():
        return lambda _: None
    from ray.util.metrics import Gauge

    labels = dict(zip(_LABELS, (name, run_id), strict=True))
    of_run = {key: Gauge(f"matrix_run_{key}", text, _LABELS) for key, text in _RUN.items()}
    of_team = {key: Gauge(f"matrix_team_{key}", text, _LABELS) for key, text in _TEAM.items()}
    of_role = {key: Gauge(f"matrix_role_{key}", text, _BY_ROLE) for key, text in _ROLE.items()}

    def export(record: Mapping[str, float]) -> None:
        for key, gauge in of_run.items():
            if key in record:
                gauge.set(record[key], labels)
        team = progress.pulse()
        if team is None:
            return
        of_team["workflows"].set(team.rows, labels)
        of_team["oldest_s"].set(max((age_s for age_s, _, _ in team.slowest), default=0), labels)
        for role, count in team.roles.items():
            for key, gauge in of_role.items():
                gauge.set(getattr(count, key), {**labels, "role": role})

    return export
