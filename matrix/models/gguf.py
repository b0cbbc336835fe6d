"""Makes a plain Hugging Face folder (safetensors in bf16, tokenizer, chat template) of a GGUF file.

    python -m matrix.models.gguf GGUF_FILE OUT_DIR

vLLM serves such a folder; what transformers makes of the GGUF file alone it doesn't (rounded numbers in the config, a
tokenizer that splits text in another way than the model learned). The same file gives the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matrix.models.base import write_json
from matrix.models.weights import as_json, combined, file_record, sha256, weight_files

CONVERTER = 1
"""Counts up with every change of what comes out; part of the name of the converted folder."""
RECORD = "matrix.json"
"""File in the converted folder: from what it was made, and what its files were then."""

DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
"""`tokenizer.ggml.pre` whose tokenizers take digits one by one, then split like GPT-2 (llama.cpp: llama-vocab.cpp)."""
GPT2 = {"default", "gpt-2"}
"""Those that split like GPT-2 and no more; transformers takes every name that it doesn't know for one of them."""


def convert(gguf: Path, out: Path, package: str | None = None) -> None:
    """Convert a GGUF file; `out` appears as a whole or not at all.

    Args:
        gguf: The file; a byte-level BPE tokenizer and an architecture that transformers knows.
        out: The folder to make; must not exist.
        package: Where the file comes from (`NAME==VERSION`), for the record.

    Raises:
        FileExistsError: There is an `out` already.
        ValueError: It is no GGUF file, or its tokenizer or architecture is none that can be converted faithfully.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that doesn't, or remove it")
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{gguf} is not a GGUF file (or a pointer to one, as Git LFS leaves it): fetch it again")
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent, ignore_cleanup_errors=True) as partial:
        folder = Path(partial) / "model"
        folder.mkdir()
        _write_model(gguf, folder)
        _write_tokenizer(gguf, folder)
        _write_record(gguf, folder, package)
        folder.rename(out)


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    loaded = load_gguf_checkpoint(str(gguf))["config"]
    config = AutoConfig.for_model(**_cleaned(loaded))
    # On the meta device the model is only names and shapes; the GGUF's tensors become its weights without a copy.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16)
    model.load_state_dict(weights["tensors"], strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, weight in model.named_parameters() if weight.is_meta]
    if missing:
        raise ValueError(f"{gguf} lacks {len(missing)} tensors of {type(model).__name__}, such as {missing[0]}")
    ids = {name: loaded.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def _cleaned(loaded: dict[str, Any]) -> dict[str, Any]:
    """The config without names that only GGUF knows, and with numbers as they were before GGUF made them float32."""
    kept = {key: value for key, value in loaded.items() if key not in ("_model_name_or_path", "unk_token_id")}
    return {key: _shortest(value) if isinstance(value, float) else value for key, value in kept.items()}


def _shortest(value: float) -> float:
    """The number with the fewest digits that is the same float32: 1e-05 for 9.999999747378752e-06."""
    packed = struct.pack("<f", value)
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next(number for number in candidates if struct.pack("<f", number) == packed)


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer, read_gguf_metadata
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    architecture, vocabulary, settings = get_gguf_tokenizer(str(gguf))
    metadata, _ = read_gguf_metadata(str(gguf))
    kind, split = vocabulary.get("tokenizer_type"), vocabulary.get("pre_tokenizer_type", "default")
    if kind != "gpt2" or split not in DIGITS | GPT2 | set(GGUF_PRE_TOKENIZER_SPLITS):
        raise ValueError(f"{gguf} has a tokenizer ({kind}, pre={split}) that cannot be converted faithfully")
    backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    if split in DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=metadata[f"{architecture}.context_length"],
        add_bos_token=metadata.get("tokenizer.ggml.add_bos_token", False),
        clean_up_tokenization_spaces=False,
        **settings,
    )
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    saved = json.loads(path.read_text())
    for key in ("is_local", "local_files_only", "backend"):  # how it was loaded here, of no use to who loads it next
        saved.pop(key, None)
    # The name that every version of transformers knows for "what tokenizer.json says".
    write_json(path, saved | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _write_record(gguf: Path, folder: Path, package: str | None) -> None:
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which a cache shared by several users cannot have
    files = {file.name: file_record(file) for file in sorted(folder.iterdir())}
    record = {
        "source": {"package": package, "file": gguf.name, "sha256": sha256(gguf)},
        "converter": CONVERTER,
        "made_with": {name: version(name) for name in ("torch", "transformers", "gguf")},
        "checksum": combined({file.name: files[file.name] for file in weight_files(folder)}),
        "files": as_json(files),
    }
    write_json(folder / RECORD, record)


def main(argv: list[str] | None = None) -> None:
    """The command line: `GGUF_FILE OUT_DIR [--package NAME==VERSION]`."""
    parser = argparse.ArgumentParser(prog="python -m matrix.models.gguf", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf_file", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--package", help="where the file comes from, for the record: NAME==VERSION")
    given = parser.parse_args(argv)
    convert(given.gguf_file.absolute(), given.out_dir.absolute(), given.package)


if __name__ == "__main__":
    main()
