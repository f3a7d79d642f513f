# `make help` lists the targets. Everything runs in .venv, made on first use and kept while
# pyproject.toml and constraints.txt stay the same.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FRAMEWORKS := .venv-frameworks
FRAMEWORKS_READY := $(FRAMEWORKS)/.ready
# What DeepSpeed compiles when it is first used; a run that was killed leaves a lock that all after it wait for.
EXTENSIONS := $(FRAMEWORKS)/torch_extensions
# MindSpore has bfloat16 in numpy 1 only, so it has an environment of its own, without torch.
MINDSPORE := .venv-mindspore
MINDSPORE_READY := $(MINDSPORE)/.ready
# Megatron-Bridge, verl and transformers, to compare with; what they want with CUDA is not installed.
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
# Nor does transformers of today know TensorFlow: 4.57 is the last release that does.
TENSORFLOW := .venv-tensorflow
TENSORFLOW_READY := $(TENSORFLOW)/.ready
# DeepSpeed's build imports torch, so the build tools come first and it is built without isolation.
# -qq: pip warns of every local index it does not find.
PIP_INSTALL := -m pip install -qq --disable-pip-version-check -c constraints.txt

KILLS ?= 20
DAMAGE ?= 40
FUZZ_SECONDS ?= 1800
FUZZ_TARGETS ?= unpickler torch protobuf safetensors dcp hdf5 tf1 yaml config arguments

# What the demo needs, and no more: ckptconv, torch and transformers.
DEMO := .venv-demo
DEMO_READY := $(DEMO)/.ready
DEMO_RUN := fixtures/demo-run/checkpoint-2
DEMO_OUT := demo-out

.PHONY: help demo package test faults fuzz test-ray lint format bench bench-full test-frameworks clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_READY)  ## convert a small ZeRO-3 run, load the model and generate a few tokens
	@echo "== 1 of 4: what is in $(DEMO_RUN), which DeepSpeed wrote on two ranks? (metadata alone is read)"
	$(DEMO)/bin/ckptconv inspect $(DEMO_RUN)
	@echo; echo "== 2 of 4: convert it, and compare every element with its source"
	$(DEMO)/bin/ckptconv deepspeed-to-hf $(DEMO_RUN) $(DEMO_OUT) --overwrite --verify
	@echo; echo "== 3 of 4: are the files those that were verified?"
	$(DEMO)/bin/ckptconv check $(DEMO_OUT)
	@echo; echo "== 4 of 4: load it with transformers, and let it write"
	$(DEMO)/bin/python examples/generate.py $(DEMO_OUT)

test: $(READY)  ## run the tests, on all cores
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-ray: $(READY)  ## run a Ray cluster on this machine, and kill its nodes
	$(BIN)/python -m pytest -q -m ray tests/engine

faults: $(READY)  ## kill, damage and starve conversions of every kind, and print what became of them
	PYTHONPATH=tests $(BIN)/python tests/faults/long.py --times $(KILLS) --damage $(DAMAGE)
	$(if $(CASES),PYTHONPATH=tests $(BIN)/python tests/faults/flips.py $(CASES))

fuzz: $(READY)  ## fuzz the parsers, all at once, for FUZZ_SECONDS each
	$(BIN)/python $(PIP_INSTALL) -e '.[fuzz]'
	for target in $(FUZZ_TARGETS); do \
		PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py $$target --seconds $(FUZZ_SECONDS) >.fuzz-$$target.log 2>&1 & \
		running+=($$!); \
	done; \
	failed=0; for one in $${running[@]}; do wait $$one || failed=1; done; \
	tail -n 5 .fuzz-*.log; exit $$failed

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-cache --no-logo

package:  ## build wheel and sdist, install both in an environment of their own, and convert with it
	PYTHON=$(PYTHON) bash .ci/package

format: $(READY)  ## rewrite the sources in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(FRAMEWORKS_READY) $(MINDSPORE_READY) $(PEERS_READY)  ## measure every conversion at 1 GB against cp and the tools in use today
	$(FRAMEWORKS)/bin/python benchmarks/run.py

bench-full: $(FRAMEWORKS_READY) $(MINDSPORE_READY) $(PEERS_READY)  ## the same at 8 GB (needs 30 GB of disk, 24 GB of memory)
	$(FRAMEWORKS)/bin/python benchmarks/run.py --full

test-frameworks: $(FRAMEWORKS_READY) $(MINDSPORE_READY) $(TENSORFLOW_READY)  ## make fresh checkpoints with the real frameworks and convert them
	rm -f $(EXTENSIONS)/*/*/lock
	TORCH_EXTENSIONS_DIR=$(CURDIR)/$(EXTENSIONS) $(FRAMEWORKS)/bin/python -m pytest -q -m frameworks tests/frameworks
	$(MINDSPORE)/bin/python -m pytest -q -m frameworks tests/frameworks/test_mindspore.py
	$(TENSORFLOW)/bin/python -m pytest -q -m frameworks tests/frameworks/test_tensorflow.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(DEMO) $(FRAMEWORKS) $(MINDSPORE) $(PEERS) $(TENSORFLOW) $(DEMO_OUT) build dist .fuzz .fuzz-*.log .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	@touch $@

$(DEMO_READY): pyproject.toml constraints.txt
	@echo "== making $(DEMO) with ckptconv, torch and transformers: some minutes, once"
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP_INSTALL) '.[transformers]'
	@touch $@

$(FRAMEWORKS_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python $(PIP_INSTALL) torch numpy ninja setuptools wheel hatchling editables
	$(FRAMEWORKS)/bin/python $(PIP_INSTALL) --no-build-isolation -e '.[test,frameworks,bench]' megatron-core
	@touch $@

$(MINDSPORE_READY): pyproject.toml
	$(PYTHON) -m venv $(MINDSPORE)
	$(MINDSPORE)/bin/python -m pip install -qq --disable-pip-version-check \
		mindspore==2.10.0 numpy==1.26.4 'ml_dtypes<0.6' safetensors xxhash isal huggingface_hub pyyaml pytest hypothesis
	$(MINDSPORE)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

# A tool that does not install is left out of the tables.
$(PEERS_READY): benchmarks/peers.txt benchmarks/peers-alone.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check -r benchmarks/peers.txt \
		|| echo "Megatron-Bridge, verl and transformers are left out"
	$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --ignore-requires-python \
		-r benchmarks/peers-alone.txt || echo "Megatron-Bridge and verl are left out"
	@touch $@

$(TENSORFLOW_READY): pyproject.toml
	$(PYTHON) -m venv $(TENSORFLOW)
	$(TENSORFLOW)/bin/python -m pip install -qq --disable-pip-version-check \
		tensorflow-cpu==2.21.0 tf-keras==2.21.0 transformers==4.57.6 torch==2.13.0 h5py safetensors ml_dtypes \
		xxhash isal pyyaml rich typer pytest hypothesis
	$(TENSORFLOW)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@
