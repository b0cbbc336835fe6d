"""The summary on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table


def show_summary(name: str, run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Print scores and totals of a run to standard output."""
    out = RichConsole(highlight=False)
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, score in summary["scores"].items():
        for key, text in _score_lines(score):
            table.add_row(f"{label} {key}", text)
    if "agents" in summary:
        for label, text in _team_lines(summary):
            table.add_row(label, text)
    rows, tokens, time_s = summary["rows"], summary["tokens"], summary["time_s"]
    table.add_section()
    table.add_row("rows", f"{rows['ok']} ok, {rows['error']} errors")
    if "executed" in summary:
        table.add_row("programs", ", ".join(f"{count} {status}" for status, count in summary["executed"].items()))
    table.add_row("generated tokens", f"{tokens['completion']} ({summary['speed']['generated_tokens_per_s']:.1f}/s)")
    if summary["cost_usd"] is not None:
        table.add_row("cost", f"{summary['cost_usd']:.4f} USD")
    table.add_row("time", f"{time_s['total']:.1f} s ({time_s['until_ready']:.1f} s until the engine was ready)")
    table.add_row("run dir", _short(run_dir))
    out.print(table)


def _score_lines(score: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for key, value in score.items():
        if key == "accuracy" and value is not None:
            error = "" if score["stderr"] is None else f" ± {score['stderr']:.4f}"
            lines.append((key, f"{value:.4f}{error}"))
        elif "@" in key and score["k"] > 1:
            lines.append((key, f"{value:.4f}"))
    lines.append(("unparsed", f"{score['unparsed']} of {score['samples']}"))
    if "statuses" in score:
        lines.append(("statuses", ", ".join(f"{status} {count}" for status, count in score["statuses"].items())))
    return lines


def _team_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, metric in summary["metrics"].items():
        error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
        rows = "" if metric["count"] == summary["rows"]["total"] else f" (n = {metric['count']})"
        lines.append((name, f"{metric['mean']:.4f}{error}{rows}"))
    lines.append(("ended by", ", ".join(f"{reason} {count}" for reason, count in summary["terminations"].items())))
    for role, did in summary["agents"].items():
        parts = [f"{did['turns']} turns"]
        if did["turn_s"] is not None:
            parts.append(f"{did['turn_s']['mean']:.3g} s each")
        if did["prompt_tokens"] or did["completion_tokens"]:
            parts.append(f"{did['prompt_tokens']} + {did['completion_tokens']} tokens")
        if did.get("cost_usd") is not None:
            parts.append(f"{did['cost_usd']:.4f} USD")
        lines.append((role, ", ".join(parts)))
    return lines


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
