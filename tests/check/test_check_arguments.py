"""Rules on `engine.args`: the names are those of the installed engine."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from matrix.check.arguments import argument_names, sglang_files, vllm_files
from tests.check.specs import MODEL, SLURM, on_gpus, problems

SERVER_ARGS = """
class ServerArgs:
    model_path: A[str, Arg(help="...", aliases=["--model"])]
    tp_size: A[int, Arg(help="See --nothing.", aliases=["--tensor-parallel-size"])] = 1
    _private: int = 0

    def add_cli_args(parser):
        parser.add_argument("--reasoning-parser", type=str)


class Other:
    not_an_argument: int = 0
"""


@pytest.fixture
def sglang(tmp_path: Path) -> Path:
    """Play an environment that SGLang is installed in; return its interpreter."""
    folder = tmp_path / "lib" / "python3.12" / "site-packages" / "sglang" / "srt"
    folder.mkdir(parents=True)
    (folder / "server_args.py").write_text(SERVER_ARGS)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch(0o755)
    return python


needs_vllm = pytest.mark.skipif(not vllm_files(), reason="vLLM is not installed")


@needs_vllm
def test_an_unknown_argument_is_named_with_near_ones() -> None:
    said = on_gpus({"args": {"max_num_seq": 3}}, {"args": {"trust-remote-cod": True}})
    assert len(said) == 2
    assert said[0].startswith(
        "engine.args.max_num_seq=3: the installed vLLM has no such argument (did you mean engine.args.max_num_seqs"
    )
    assert said[1].startswith("model.args.trust-remote-cod=True: ")
    assert "model.args.trust_remote_code" in said[1]
    (app,) = problems(cluster=SLURM, apps={"a": {"engine": {"kind": "vllm", "args": {"xyzzy_q": 1}}, "model": MODEL}})
    assert app == "apps.a.engine.args.xyzzy_q=1: the installed vLLM has no such argument"


@needs_vllm
def test_arguments_that_vllm_has() -> None:
    args = {
        "max-num-seqs": 3, "max_num_batched_tokens": 9, "enable_prefix_caching": False, "no_enable_prefix_caching": True,
        "chat_template": "x", "hf_overrides": {"a": 1}, "compilation_config.mode": 3, "enable_lora": True,
        "lora_modules": ["a=b"], "tool_call_parser": None,
    }  # fmt: skip
    assert on_gpus({"args": args}) == []


def test_what_matrix_gives_itself_and_what_is_no_number() -> None:
    said = on_gpus({"args": {"host": "0.0.0.0", "api-key": "secret", "gpu_memory_utilization": "much"}})
    assert [line.partition(":")[0] for line in said] == [
        "engine.args.host", "engine.args.api-key", "engine.args.gpu_memory_utilization=much",
    ]  # fmt: skip
    assert "secret" not in "".join(said)


@needs_vllm
def test_the_look_costs_little_more_than_reading_the_files() -> None:
    files = vllm_files()

    def best_of_three(work: Callable[[], object]) -> float:
        took = []
        for _ in range(3):
            argument_names.cache_clear()
            started = time.process_time()
            work()
            took.append(time.process_time() - started)
        return min(took)

    parsing = best_of_three(lambda: [ast.parse(file.read_text()) for file in files])
    assert len(argument_names(files)) > 200
    assert best_of_three(lambda: argument_names(files)) < 2 * parsing


def test_sglang_in_an_environment_of_its_own(sglang: Path) -> None:
    assert argument_names(sglang_files(str(sglang))) == {
        "model_path",
        "model",
        "tp_size",
        "tensor_parallel_size",
        "reasoning_parser",
    }
    engine = {"kind": "sglang", "python": str(sglang), "args": {"tp-size": 2, "reasoning_parser": "x", "tp_sise": 2}}
    # The model's arguments are vLLM's.
    (said,) = problems(cluster=SLURM, engine=engine, model=MODEL | {"args": {"trust_remote_code": True}})
    assert (
        said == "engine.args.tp_sise=2: the installed SGLang has no such argument (did you mean engine.args.tp_size?)"
    )


def test_what_can_not_be_found_is_not_checked(sglang: Path) -> None:
    (sglang.parent.parent / "lib/python3.12/site-packages/sglang/srt/server_args.py").unlink()
    assert sglang_files(str(sglang)) == ()
    engine = {"kind": "sglang", "python": str(sglang), "args": {"whatever": 2}}
    assert problems(cluster=SLURM, engine=engine, model=MODEL) == []


@pytest.mark.integration
@needs_vllm
def test_the_names_are_those_of_vllms_own_parser() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    real = {flag.lstrip("-").replace("-", "_") for flag in flags}
    found = argument_names(vllm_files())
    # Every boolean also has its `--no-` form, which is `false` here.
    assert {name for name in real - found if name.removeprefix("no_") not in found} == set()
    assert found <= real
