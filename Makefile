# `make help` lists the targets. Python 3.11 or newer, git and make are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= pinned
JOBS ?= 2
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help env answer browser demo demo-short test test-ci test-all test-chaos test-cluster check format figures pretrain
.PHONY: methods golden

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.ready ## the environment in .venv, exact versions; TORCH=existing keeps the torch that this Python has

# torch first and alone: left to itself pip resolves the newest one, with several GB of CUDA packages on any machine.
$(VENV)/.ready: pyproject.toml constraints.txt
	@rm -f $@
ifeq ($(TORCH),existing)
	$(PYTHON) -c "import torch; print('keeping torch', torch.__version__)"
	$(PYTHON) -m venv --system-site-packages $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
else
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
	PIP_CONSTRAINT=$(VENV)/constraints.txt $(BIN)/pip install --quiet torch
endif
	PIP_CONSTRAINT=$(VENV)/constraints.txt $(BIN)/pip install --quiet --editable '.[wandb,analysis,peft,tune,dev]'
	@touch $@

demo: env ## the embedded study: tuned, confirmed, analysed, drawn and reported; offline
	@$(BIN)/ablora run -m +sweeps=demo study=demo
	@$(MAKE) --no-print-directory answer STUDY=demo
	@echo; echo "Open studies/demo/report.html. Figures and tables: studies/demo/figures/. Each run is a folder in runs/."

demo-short: env ## the same on one data set with fewer steps, for continuous integration
	@$(BIN)/ablora run -m +sweeps=demo study=demo_short dataset=arithmetic train.max_steps=6 eval.every=3
	@$(MAKE) --no-print-directory answer STUDY=demo_short

answer: env ## STUDY=NAME: its tables, measures, figures and report, from the run folders
	@$(BIN)/ablora collect $(STUDY)
	@$(BIN)/ablora analyse $(STUDY)
	@$(BIN)/ablora figures $(STUDY) > /dev/null
	@$(BIN)/ablora report $(STUDY)

browser: ## what the tests of the report need: Chromium and its driver, from Debian's packages
	tests/browser/up.sh

test: env ## the test suite but for what is long (tests/long.txt) or slow, or needs a cluster or a GPU
	$(BIN)/python -m pytest -n $(JOBS) -m "not long and not slow and not cluster and not gpu"

test-ci: env ## that and what is long: what continuous integration runs
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not cluster and not gpu"

test-all: env ## everything that this machine can run
	$(BIN)/python -m pytest -n $(JOBS)

# With SEED alone: 200 faults on a real SLURM, which needs what test-cluster needs, and root for a small disk.
test-chaos: env ## SEED=1: 200 faults on a real SLURM, resumable (LOG=FILE); KILLS=100 SEED=0: SIGKILL of local studies
ifneq ($(and $(SEED),$(if $(KILLS),,1)),)
	tests/cluster/up.sh
	PYTHONPATH=tests $(BIN)/python -m cluster.campaign --seed $(SEED) \
	    --log $(or $(LOG),tests/cluster/campaign_seed_$(SEED).jsonl)
else
	KILLS=$(or $(KILLS),100) SEED=$(or $(SEED),0) $(BIN)/python -m pytest -s -m slow tests/test_kill.py
endif

# Where SLURM cannot be had, up.sh says why and the tests skip; in continuous integration a skip is a failure.
test-cluster: env ## studies and faults on a real SLURM, which it starts on this machine (root, Debian's packages)
	tests/cluster/up.sh || true
	$(BIN)/python -m pytest -m cluster tests/cluster

check: env ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: env ## rewrite the sources in the house's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: env ## every figure and table of every study, from the run folders
	$(BIN)/ablora figures

pretrain: env ## train the embedded base again, into ./pico (about an hour)
	$(BIN)/ablora pretrain

methods: env ## write docs/methods.md anew, from the presets and the docstrings of the axis values
	$(BIN)/python -m ablora.config.catalogue > docs/methods.md

golden: env ## write the golden numbers anew, after raising a revision
	$(BIN)/python tests/golden/make.py
