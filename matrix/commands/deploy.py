"""`matrix deploy_applications`."""

from __future__ import annotations

import sys
import time
from typing import Any, get_args

from matrix.api import Action, Cli
from matrix.commands.arguments import flag, split
from matrix.errors import ConfigError, Problem, did_you_mean

HELP = """\
usage: matrix deploy_applications [--action add|replace|remove] [app=NAME,...] [wait=false] [plan=true] [OVERRIDES]

Deploy the apps of a config so that they stay: the one that engine= and model= describe, and any more under apps.
With cluster=local (the default) Ray is started on this machine if it isn't there; with cluster=slurm the cluster
of that id, inside which the command then runs. matrix stop_cluster ends it.

  --action add       deploy those that aren't there (the default); the others on the cluster are left alone
           replace   bring those that run with another spec to this one; requests under way are finished
           remove    remove them; requests under way are finished
  app      only these of the config's apps; with remove: any that are running
  wait     false: return at once instead of waiting until they are healthy
  plan     true: say what would be started where, and start nothing

  matrix deploy_applications model=smollm2
  matrix deploy_applications model=llama70b engine.replicas.min=1 engine.replicas.max=4 cluster=attach ...
  matrix deploy_applications apps.judge.model=llama8b apps.judge.engine=vllm app=judge
  matrix deploy_applications engine=simulated model=api model.name=pretend
  matrix deploy_applications --action remove app=judge

Afterwards: matrix status, matrix check_health app=NAME, matrix inference app=NAME ..., python run.py cluster=attach ...
"""


_OWN = {"app": "", "wait": "true", "plan": "false"}


def main(arguments: list[str]) -> int:
    """Run it; returns the exit code."""
    typed = arguments
    action, arguments = _action(arguments)
    own, overrides = split(arguments, _OWN, overrides=True, switches=("--action",))
    names = own["app"].split(",") if own["app"] else None
    wait = flag(own, "wait")
    if not flag(own, "plan"):
        from matrix.compose import compose_spec
        from matrix.run.remote import elsewhere, run_there

        there = elsewhere(compose_spec([*overrides, "tracker=none"]).cluster)
        if there is not None:
            return run_there(there, ["deploy_applications", *typed], stays=True)
    else:
        from matrix.compose import compose_spec
        from matrix.run.planning import show_plan

        spec = compose_spec([*overrides, "tracker=none", "plan=true"])
        return show_plan(spec.cluster, {n: app for n, app in spec.all_apps().items() if names is None or n in names})
    live = _Live()
    try:
        with Cli() as cli:
            done = cli.deploy_applications(
                overrides, action=action, names=names, wait=wait, say=live.say, on_status=live.show
            )
    except KeyboardInterrupt:
        live.say("\nInterrupted. What was asked for by then goes on: matrix status shows it, --action remove ends it.")
        raise
    for what in ("added", "replaced", "removed", "unchanged"):
        listed: list[str] = getattr(done, what)
        if listed:
            print(f"{what}: {', '.join(listed)}")
    if done.front_door:
        print(f"front door: {done.front_door}/v1 (each app alone: {done.front_door}/NAME/v1)")
        print("key: matrix status --key prints it; export OPENAI_API_KEY=$(matrix status --key)")
    return 0


def _action(arguments: list[str]) -> tuple[Action, list[str]]:
    rest = list(arguments)
    value = "add"
    for number, argument in enumerate(arguments):
        if argument == "--action" and number + 1 < len(arguments):
            value = arguments[number + 1]
            rest = arguments[:number] + arguments[number + 2 :]
        elif argument.startswith("--action="):
            value = argument.partition("=")[2]
            rest = arguments[:number] + arguments[number + 1 :]
    actions: list[Any] = list(get_args(Action))
    if value not in actions:
        raise ConfigError(
            [Problem("--action", value, "no such action", did_you_mean(value, actions))], "Nothing was started."
        )
    action: Action = actions[actions.index(value)]
    return action, rest


class _Live:
    """A line for each app while a deploy waits: rewritten on a terminal, else written when it changes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = 0
        self._last: dict[str, tuple[str, int]] = {}
        self._said_at: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line that stays."""
        self._drawn = 0
        print(text, file=sys.stderr, flush=True)

    def show(self, statuses: list[Any]) -> None:
        """How far the apps are."""
        now = time.monotonic()
        if sys.stderr.isatty():
            up = f"\x1b[{self._drawn}F" if self._drawn else ""
            lines = "".join(f"\x1b[2K{now - self._began:4.0f} s  {status}\n" for status in statuses)
            print(up + lines, end="", file=sys.stderr, flush=True)
            self._drawn = len(statuses)
            return
        for status in statuses:
            is_news = self._last.get(status.name) != (status.phase, status.ready)
            if is_news or (status.phase != "healthy" and now - self._said_at[status.name] > 10):
                self._last[status.name], self._said_at[status.name] = (status.phase, status.ready), now
                print(f"{now - self._began:4.0f} s  {status}", file=sys.stderr, flush=True)
