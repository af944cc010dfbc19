# make demo and make test are all that a newcomer needs; the environment in .venv is made by itself.
#   make PYTHON=python3.13 demo      with another interpreter
#   make test TESTS=tests/losses     some of the tests

ifndef PYTHON
PYTHON := $(firstword $(foreach name,python3.12 python3.13 python3.11 python3,$(if $(shell $(name) --version 2>/dev/null),$(name))) python3)
endif
VENV ?= .venv
TESTS ?= tests
# Two test processes: on a small machine more would only share its cores. Each takes one half of the tests in order, so that
# a directory's session fixtures are made once, and whichever is done first takes over part of the other's.
WORKERS ?= 2
# LLVM's: tests compile sooner at 0; programs of a run are compiled at 3.
LEVEL ?= 0
LLVM = XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=$(1)"

SHELL := /bin/bash
BIN := $(VENV)/bin
INPUTS := setup.cfg pyproject.toml $(wildcard constraints/*.txt)
STAMP := $(VENV)/.installed-$(shell cat $(INPUTS) | cksum | cut -d ' ' -f 1)
DEFAULT_MARKS := not slow and not tpu_backend and not peers and not gpu
PYTEST = $(call LLVM,$(LEVEL)) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10

PEERS := build/peers

.PHONY: help install demo low-resource self-supervised adaptation test test-extended test-slow peers test-peers bench-transducer bench-input bench-train bench-evaluation lint docs format clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with the exact versions of constraints/

demo: $(STAMP)  ## from this clone to a trained model, its transcripts and a report, on a CPU
	@$(BIN)/maestro demo

low-resource: $(STAMP)  ## what pretraining is worth to a language with 24 transcribed utterances, on a CPU
	@$(BIN)/maestro demo --experiment low_resource

self-supervised: $(STAMP)  ## what w2v-BERT and BEST-RQ learn from an hour of untranscribed speech, on a CPU
	@$(BIN)/maestro demo --experiment self_supervised

adaptation: $(STAMP)  ## a new domain, of which there is text alone: text, synthesised speech and both, on a CPU
	@$(BIN)/maestro demo --experiment adaptation

test: $(STAMP)  ## the default test suite
	@$(PYTEST) -m "$(DEFAULT_MARKS) and not extended" $(TESTS)

test-extended: $(STAMP)  ## the tests that the default suite leaves out to take ten minutes
	@$(PYTEST) -m "$(DEFAULT_MARKS) and extended" $(TESTS)

test-slow: $(STAMP)  ## the tests that take longer than half a minute each
	@$(call LLVM,3) $(BIN)/python -m pytest -m "slow and not peers and not gpu and not tpu_backend" $(TESTS)

peers: $(PEERS)/.installed  ## an environment in build/peers with PyTorch's libraries, to compare with

test-peers: $(PEERS)/.installed  ## the tests that compare with them
	@$(call LLVM,3) $(PEERS)/bin/python -m pytest -m peers $(TESTS)

# Without make peers it says which comparisons are left out.
bench-transducer: $(STAMP)  ## time and memory of the transducer, beside the peers if they are there
	@MAESTRO_PEERS_PYTHON=$(firstword $(wildcard $(PEERS)/bin/python) $(BIN)/python) \
	  $(BIN)/python benchmarks/transducer.py

bench-input: $(STAMP)  ## how fast speech is read and how much of it is padding, beside the peers
	@MAESTRO_PEERS_PYTHON=$(firstword $(wildcard $(PEERS)/bin/python) $(BIN)/python) \
	  $(BIN)/python benchmarks/input_pipeline.py

bench-train: $(STAMP)  ## utilisation of a training step, and a Conformer layer beside transformers'
	@MAESTRO_PEERS_PYTHON=$(firstword $(wildcard $(PEERS)/bin/python) $(BIN)/python) \
	  $(BIN)/python benchmarks/train_step.py

bench-evaluation: $(STAMP)  ## how fast a test set is decoded and scored, beside transformers' pipeline
	@MAESTRO_PEERS_PYTHON=$(firstword $(wildcard $(PEERS)/bin/python) $(BIN)/python) \
	  $(BIN)/python benchmarks/evaluation.py

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(STAMP)  ## build the documentation into build/site; a broken link or an unknown name is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove what make made, .venv included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis demo_output low_resource_output self_supervised_output adaptation_output

# The stamp's name changes with what is to be installed, so a second run installs nothing.
$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: '$(PYTHON)' is not Python 3.11 or later: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: '$(PYTHON) -m venv' failed: install its venv module (on Debian and Ubuntu the package python3-venv)" >&2; exit 2; }
	@version=$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])'); \
	  constraints=constraints/py$$version.txt; \
	  test -f $$constraints || \
	    { echo "error: there are no tested versions for Python $$version in constraints/: use Python 3.11, 3.12 or 3.13 (make clean, then make PYTHON=python3.12 $(MAKECMDGOALS))" >&2; exit 2; }; \
	  test $$version != 313 || command -v c++ >/dev/null || \
	    { echo "error: editdistance, which seqio needs, has no wheel for Python 3.13: install a C++ compiler and Python's headers (on Debian and Ubuntu the packages g++ and python3-dev), or use Python 3.12" >&2; exit 2; }; \
	  echo "Installing into $(VENV) under $$constraints: some minutes the first time"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $$constraints -e '.[minivox,dev,docs]'
	@rm -f $(VENV)/.installed-*; touch $@

$(PEERS)/.installed: setup.cfg constraints/peers.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@version=$$($(PEERS)/bin/python -c 'import sys; print("%d%d" % sys.version_info[:2])'); \
	  echo "Installing into $(PEERS): PyTorch is large"; \
	  $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints/py$$version.txt -c constraints/peers.txt -e '.[peers,minivox,dev]'
	@touch $@
