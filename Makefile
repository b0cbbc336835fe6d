# Set-up is scripts/setup.py; it does nothing when there is nothing to do. PYTHON=... picks the interpreter of .venv.
SHELL := /bin/bash
PY := .venv/bin/python
ARGS ?=
# Processes that share the tests (pytest-xdist)
WORKERS ?= 2
OPENWANDB := .cache/openwandb/bin/openwandb
export PYTHON

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run test lint unit integration slurm config lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Create .venv with the packages of requirements.lock (every target below does that first)
	@$(or $(PYTHON),python3) scripts/setup.py

run: setup  ## Run the main job; ARGS="pipeline=gsm8k trials=2" changes it
	@$(PY) run.py $(ARGS)

# One pytest for all: the integration tests and Slurm's are a queue each, side by side, and the unit tests fill up the rest
# (tests/conftest.py).
test: lint $(OPENWANDB)  ## Run everything that CI runs: lint, then all tests, WORKERS=2 side by side
	MATRIX_OPENWANDB=$(abspath $(OPENWANDB)) $(PY) -m pytest -n $(WORKERS) $(ARGS)

lint: setup  ## Check style and types: ruff, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

unit: setup  ## Run the unit tests (seconds); ARGS="-k rows -x" goes to pytest
	$(PY) -m pytest -m "not integration and not slurm" $(ARGS)

integration: setup $(OPENWANDB)  ## Run the tests with real Ray and vLLM (minutes); ARGS goes to pytest
	MATRIX_OPENWANDB=$(abspath $(OPENWANDB)) $(PY) -m pytest -m integration $(ARGS)

slurm: setup  ## Run the tests on a real Slurm, which they start (minutes; as root); ARGS goes to pytest
	$(PY) -m pytest -m slurm $(ARGS)

# A W&B-compatible server for the tests of the online path: no dependency of matrix, so in an environment of its own.
$(OPENWANDB):
	$(PY) -m venv .cache/openwandb
	.cache/openwandb/bin/pip install -q --disable-pip-version-check openwandb==0.5.25

config: setup  ## Write docs/default_config.yaml, the composed default config, anew
	$(PY) -m matrix.compose > .venv/default_config.yaml
	mv .venv/default_config.yaml docs/default_config.yaml

lock:  ## Write requirements.lock anew from pyproject.toml (needs the network)
	bash scripts/lock.sh

clean:  ## Remove .venv and what tools leave behind; run dirs in outputs/ and downloaded models stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build *.egg-info
	find . -name __pycache__ -type d -not -path './outputs/*' -prune -exec rm -rf {} +
