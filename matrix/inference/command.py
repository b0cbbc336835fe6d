"""The command: its own three arguments become overrides of an ordinary run, and its rows a file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matrix.compose import compose_spec
from matrix.errors import ConfigError, MatrixError, Problem
from matrix.inference.output import ENDINGS, Output
from matrix.inference.target import Target, check_app, find_target, is_url
from matrix.run.remote import elsewhere, run_there
from matrix.spec import RunSpec

HELP = """\
usage: matrix inference app=URL_OR_NAME input=FILES output=FILE [overrides]

Send every row of FILES to a model that is served already; the answers are in the output, in the order of the input.
Or run the program of every row in a sandbox, an app with engine=sandbox.

  app      base URL of any server with OpenAI's API (http://HOST:8000/v1), which needs no cluster; or the name of an app
           on a Ray cluster, or of its model: the cluster of this machine, cluster.address=IP:PORT
           (cluster.token_path=FILE), or cluster=slurm (cluster.id=NAME), inside which the command then runs
  input    .jsonl, .json, .csv or .parquet; a pattern ('data/*.jsonl'); several: input=a.jsonl input=b.jsonl
           A row has chat messages in `messages` or `request.messages`, or text in `text` or `prompt`; for a sandbox a
           program in `code`, and what it gets in `stdin`, `args`, `files`, `timeout`, ...
  output   .jsonl or .parquet: one row for each row of the input, those that failed with their error
           The run dir is beside it: <output>.run. The same command again goes on where it was cut off

  matrix inference app=http://127.0.0.1:8000/v1 input=questions.jsonl output=answers.jsonl
  matrix inference app=llama8b input='data/*.jsonl' output=answers.parquet cluster.address=10.0.0.5:6379
  matrix inference app=code input=programs.jsonl output=outcomes.jsonl
  matrix inference app=https://api.openai.com/v1 engine.api_key_env=OPENAI_API_KEY model.name=gpt-4.1-mini \\
      input=questions.csv pipeline.text_key=question pipeline.system_prompt='Be brief.' output=answers.jsonl

Any override of `matrix run` may follow (matrix run --help lists them):

  pipeline.text_keys=[prompt,canonical_solution,test] pipeline.prompt_template='check({entry_point})'
                                   of a sandbox: columns that make up a row's program, if it isn't in `code`
  model.name=NAME                  what the server calls the model; not needed where it serves only one
  engine.api_key_env=VARIABLE      the environment variable that holds the server's key; none is sent without it
  sampling.temperature=0 sampling.max_tokens=256 trials=4 seed=1
  pipeline.messages_key=... pipeline.text_key=... pipeline.system_prompt=... pipeline.api=completions
  dataset.limit=100 dataset.id_key=id; dataset=hub dataset.hub=ORG/NAME instead of input
  workload.concurrency=64          requests in flight; without it the number is found while the run goes
  workload.retry_errors=true       a resume asks again for the rows that ended in an error
  tracker=wandb                    log to Weights & Biases; off without it

Exit codes: 0; 1 if the run failed or no row has an answer; 2 if nothing was started;
3 if the budget is spent (workload.budget_usd); 130 after Ctrl-C.
"""

_OWN = ("app", "input", "output")
_OF_PROGRAMS = {f"pipeline.{name}" for name in ("text_keys", "prompt_template", "language", "timeout", "memory")}
"""Keys that only pipeline=execute has."""
_KEY_VARIABLE = "MATRIX_APP_API_KEY"
# Stand for what is only asked for when all else is known to be right.
_UNKNOWN = Target(["http://not.asked.yet/v1"], "not-asked-yet")


@dataclass(frozen=True)
class _Command:
    """What was typed.

    Attributes:
        app: A URL or a name.
        inputs: Files and patterns.
        output: The file.
        overrides: The rest.
    """

    app: str
    inputs: list[str]
    output: Path
    overrides: list[str]

    @property
    def run_dir(self) -> str:
        """Where the run is unless `run.dir` says otherwise."""
        return f"{self.output}.run"


def main(arguments: list[str]) -> int:
    """Run `matrix inference` with these arguments; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        return _run(arguments)
    except KeyboardInterrupt as stopped:
        return int(getattr(stopped, "exit_code", 130))
    except MatrixError as error:
        print(error, file=sys.stderr)
        if isinstance(error, ConfigError):
            print("\nmatrix inference --help has examples.", file=sys.stderr)
        return error.exit_code


def _run(arguments: list[str]) -> int:
    command, problems = _parse(arguments)
    spec = _checked(command, problems)
    there = None if is_url(command.app) else elsewhere(spec.cluster)
    if there is not None:
        return run_there(there, ["inference", *arguments], str(Path(spec.run.dir or "").absolute()), start=False)
    target = find_target(command.app, spec, spec.model.name if _names_model(command) else None)
    if _names_execute(command) and not target.executes and not is_url(command.app):
        hint = "an app with engine=sandbox, or no pipeline.text_keys and the like"
        raise ConfigError([Problem("app", command.app, "serves a model and runs no programs", hint)])
    if target.api_key is not None:
        os.environ[_KEY_VARIABLE] = target.api_key
    spec = compose_spec(_overrides(command, target))
    from matrix.run.jobs import Jobs

    jobs = Jobs(["matrix", "inference"], arguments)
    try:
        jobs.run(spec)
    finally:
        jobs.close()
    if spec.plan:
        return jobs.exit_code
    summary = jobs.outcomes[-1].summary
    if summary is None:
        print(f"{command.output} isn't written; what there is lies in {spec.run.dir}", file=sys.stderr)
    elif summary["stopped"]:
        way_out = "the same command with a higher workload.budget_usd goes on"
        print(f"{command.output} is written once all rows are there; {way_out}", file=sys.stderr)
    else:
        _output(command, spec).write()
        print(f"{summary['rows']['total']} rows in {command.output}")
    return jobs.exit_code


def _parse(arguments: Sequence[str]) -> tuple[_Command, list[Problem]]:
    """Take our own arguments out; the problems are those of the arguments alone."""
    own: dict[str, list[str]] = {name: [] for name in _OWN}
    overrides, problems = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            problems.append(
                Problem(argument, None, "no such flag", "matrix run has flags, matrix inference only --help")
            )
        elif key == "engine" and value != "openai":
            hint = "matrix run has engines of its own"
            problems.append(Problem(key, value, "matrix inference asks a model that is served already", hint))
        elif key == "engine.base_url":
            problems.append(Problem(key, value, "app= says who is asked", "app=URL"))
        elif equals and key in own:
            own[key] += [value] if value else []
        else:
            overrides.append(argument)
    from_elsewhere = any(override.startswith(("dataset=", "dataset.path=", "dataset.hub=")) for override in overrides)
    if own["input"] and from_elsewhere:
        problems.append(Problem("input", " ".join(own["input"]), "another data set is given, too", "give one of them"))
    for name, example in (
        ("app", "app=http://HOST:8000/v1, or the name of an app"),
        ("input", "input=FILE.jsonl"),
        ("output", "output=FILE.jsonl"),
    ):
        if not own[name] and not (name == "input" and from_elsewhere):
            problems.append(Problem(name, None, "is missing", example))
        elif len(own[name]) > 1 and name != "input":
            problems.append(Problem(name, " ".join(own[name]), "is given more than once", "give one"))
    app = next(iter(own["app"]), "")
    output = Path(next(iter(own["output"]), "")).expanduser()
    return _Command(app, own["input"], output, overrides), problems + check_app(app)


def _checked(command: _Command, problems: list[Problem]) -> RunSpec:
    """Compose what is known so far.

    Raises:
        ConfigError: With these problems, and those of the config.
    """
    spec: RunSpec | None = None
    try:
        spec = compose_spec(_overrides(command, _UNKNOWN))
    except ConfigError as error:
        typed = {"dataset.path": "input"} if command.inputs else {}
        missing = "dataset.path" if any(problem.key == "input" for problem in problems) else None
        problems = problems + [
            Problem(typed.get(problem.key, problem.key), problem.value, problem.message, problem.hint)
            for problem in error.problems
            if problem.key != missing
        ]
    if not any(problem.key == "output" for problem in problems):
        problems = [*problems, *_output(command, spec).check()]
    if spec is None or problems:
        raise ConfigError(problems)
    return spec


def _output(command: _Command, spec: RunSpec | None) -> Output:
    run_dir = spec.run.dir if spec is not None else None
    return Output(command.output, Path(run_dir or command.run_dir).expanduser())


def _overrides(command: _Command, target: Target) -> list[str]:
    """The overrides of the run: what the user says wins over all but the servers."""
    urls = [quoted(url) for url in target.urls]
    files = [quoted(one) for one in command.inputs]
    return [
        f"pipeline={'execute' if target.executes or _names_execute(command) else 'inference'}",
        "tracker=none",
        "engine=openai",
        "engine.api_key_env=null",
        *([] if is_url(command.app) or _names_cluster(command) else ["cluster=attach"]),
        *([f"dataset.path={_one_or_list(files)}"] if files else []),
        f"run.dir={quoted(command.run_dir)}",
        *([] if _names_model(command) else [f"model.name={quoted(target.model)}"]),
        *command.overrides,
        *([f"run.rows={ending}"] if (ending := command.output.suffix[1:]) in ENDINGS else []),
        f"engine.base_url={_one_or_list(urls)}",
        *([] if target.api_key is None else [f"engine.api_key_env={_KEY_VARIABLE}"]),
    ]


def _names_model(command: _Command) -> bool:
    return any(override.startswith(("model=", "model.name=")) for override in command.overrides)


def _names_execute(command: _Command) -> bool:
    """Whether what is typed is for programs, so that it can be checked before anybody is asked."""
    keys = {override.partition("=")[0].lstrip("+") for override in command.overrides}
    return bool(keys & _OF_PROGRAMS)


def _names_cluster(command: _Command) -> bool:
    return any(override.startswith("cluster=") for override in command.overrides)


def _one_or_list(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"[{','.join(values)}]"


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever is in it."""
    # Backslashes count only before a quote, the closing one included.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
