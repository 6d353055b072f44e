# Two main commands: `make demo` and `make test`. Both create the environment on first use.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null))
VENV ?= .venv
CORES ?= all
CONFIG ?= config/config.yaml
DEVICE ?= auto
# A variable's value as one word of the shell, whatever it contains. Values of a YAML file are never read here, only by
# scripts (scripts/show.py).
quoted = '$(subst ','\'',$(value $(1)))'
ifneq ($(shell test -f $(call quoted,CONFIG) && echo there),there)
$(error no such config file: $(value CONFIG); see config/ for the available configs)
endif
BIN := $(VENV)/bin
LOCKS := envs/lock.txt envs/lock-nodeps.txt
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# Jobs declare their memory; only as many start as fit.
MEM_MB ?= $(shell awk '/MemAvailable/ {print int($$2 / 1024 * 0.9)}' /proc/meminfo)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# One driver at a time. The kernel frees this lock when a driver dies, so a killed run leaves no stale lock, unlike
# Snakemake's own. A job that outlives its driver holds the lock on its outputs (stage.py).
ALONE := flock --nonblock --conflict-exit-code 75 .run.lock
# -P: no imports from the folder that make is called in.
RUN := $(BIN)/python -P
SNAKEMAKE := $(ALONE) $(RUN) -m snakemake --nolock --configfile $(call quoted,CONFIG)
BUSY = rc=$$?; if [ $$rc = 75 ]; then echo "error: another run is at work in this folder; wait for it, or stop it (pgrep -af snakemake)" >&2; fi; exit $$rc
SHOW := $(RUN) scripts/show.py --config $(call quoted,CONFIG)

.PHONY: help env env-dev demo interpret probe survey analyse explore test test-slurm check tables partial report keep prefetch plan
.PHONY: doctor format docs crate lock

help:
	@echo "make demo      the benchmark on MovieLens-100K: tables, plots and results/report.html"
	@echo "make interpret measures CONFIG's profiles: faithful, readable, steerable; judges; added to the report"
	@echo "make probe     what CONFIG's untrained encoders have memorised of its datasets"
	@echo "make explore   a page to read and edit the profiles of CONFIG's results, and see the ranking change"
	@echo "make survey    questionnaires for people about CONFIG's profiles; make analyse SURVEY=folder RESPONSES=folder"
	@echo "make test      all tests; those on a local SLURM cluster only if slurm is installed"
	@echo "make test-slurm  only the tests on the local SLURM cluster (as root; .ci/run installs it)"
	@echo "make check     formatting and lint only"
	@echo "make plan      what CONFIG still has to compute: jobs, hours and disk (DEVICE=cpu or gpu)"
	@echo "make doctor    what this machine offers and what is missing for CONFIG"
	@echo "make prefetch  download the models of CONFIG to local folders"
	@echo "make partial   tables of the finished runs"
	@echo "make keep      CONFIG's tables, figures and per-session metrics in a small folder for git: make keep TO=folder"
	@echo "make crate     an RO-Crate of finished results: make crate FOLDER=results/ml-100k"
	@echo "make report    the HTML report of CONFIG's results"
	@echo "Settings: CONFIG="$(call quoted,CONFIG)" CORES=$(CORES) PYTHON=$(PYTHON) VENV=$(VENV)"

env: $(READY)
env-dev: $(READY_DEV)

$(READY): $(LOCKS) pyproject.toml
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	  echo "error: Python 3.11 is needed, found '$(PYTHON)'; install it or set PYTHON=/path/to/python3.11" >&2; exit 2
	fi
	if [ ! -x $(BIN)/python ] && ! "$(PYTHON)" -m venv $(VENV); then
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3.11-venv" >&2; exit 2
	fi
	echo "installing the locked environment into $(VENV) (once)"
	# torch is installed first and alone: this takes a CPU build if the package index or PIP_FIND_LINKS offers one.
	$(PIP) torch==2.13.0
	$(PIP) -r envs/lock.txt
	$(PIP) --no-deps -r envs/lock-nodeps.txt
	$(PIP) --no-deps --editable .
	touch $@

$(READY_DEV): $(READY) envs/lock-dev.txt envs/lock-dev-nodeps.txt
	@$(PIP) -r envs/lock-dev.txt
	$(PIP) --no-deps -r envs/lock-dev-nodeps.txt
	touch $@

demo: env
	@$(SNAKEMAKE) --cores $(CORES) --resources mem_mb=$(MEM_MB) --quiet rules || { $(BUSY); }
	$(ALONE) $(SHOW) report || { $(BUSY); }
	$(SHOW) tables

interpret: env
	@$(SNAKEMAKE) --cores $(CORES) --resources mem_mb=$(MEM_MB) --quiet rules -- interpretability || { $(BUSY); }
	$(ALONE) $(SHOW) report || { $(BUSY); }
	$(SHOW) interpretability

probe: env
	@$(SNAKEMAKE) --cores $(CORES) --resources mem_mb=$(MEM_MB) --quiet rules -- memorisation || { $(BUSY); }
	$(SHOW) memorisation

survey: env
	@$(SNAKEMAKE) --cores $(CORES) --resources mem_mb=$(MEM_MB) --quiet rules -- survey || { $(BUSY); }
	$(SHOW) surveys

analyse: env
	@if [ -z $(call quoted,SURVEY) ]; then
	  echo "error: SURVEY is not set: make analyse SURVEY=folder-with-codebook.json RESPONSES=folder-of-responses" >&2; exit 2
	fi
	$(RUN) scripts/analyse_survey.py --survey $(call quoted,SURVEY) --responses $(if $(value RESPONSES),$(call quoted,RESPONSES),$(call quoted,SURVEY)/responses)

explore: env
	@$(RUN) scripts/explore.py --config $(call quoted,CONFIG) $(if $(value PORT),--port $(call quoted,PORT))

report: env
	@$(ALONE) $(SHOW) report || { $(BUSY); }

tables: env
	@$(SNAKEMAKE) --cores $(CORES) --resources mem_mb=$(MEM_MB) tables || { $(BUSY); }

partial: env
	@$(SNAKEMAKE) --cores 1 --quiet all --forcerun compare_partial -- partial || { $(BUSY); }
	$(SHOW) partial

keep: env
	@if [ -z $(call quoted,TO) ]; then
	  echo "error: TO is not set: make keep TO=results/reference/name" >&2; exit 2
	fi
	$(RUN) scripts/keep.py --config $(call quoted,CONFIG) --to $(call quoted,TO)

crate: env-dev
	@if [ -z $(call quoted,FOLDER) ]; then
	  echo "error: FOLDER is not set: make crate FOLDER=results/ml-100k" >&2; exit 2
	fi
	$(RUN) scripts/crate.py --folder $(call quoted,FOLDER)

prefetch: env
	@$(SNAKEMAKE) --cores 1 prefetch || { $(BUSY); }

plan: env
	@$(RUN) scripts/plan.py --config $(call quoted,CONFIG) --device $(call quoted,DEVICE)

doctor: env
	@$(RUN) scripts/doctor.py --config $(call quoted,CONFIG)

# Three processes for two cores: that of the cluster's tests mostly waits for a queue. tests/conftest.py decides which tests
# share a process, and their order.
test: env-dev check
	@$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

test-slurm: env-dev
	@$(BIN)/python -m pytest -m slurm tests/slurm

check: env-dev
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint >/dev/null

format: env-dev
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# Run this after a change of the locks: it copies them into the files of `--sdm conda`.
lock:
	@sed -i '/==/d' envs/jobs.yaml
	sed -n 's/^[^#].*/      - &/p' envs/lock.txt >> envs/jobs.yaml
	sed -i "s/^python -m pip .*/python -m pip install --no-deps $$(sed '/^#/d' envs/lock-nodeps.txt | xargs)/" envs/jobs.post-deploy.sh

docs: env
	@$(RUN) -m langptune.config.document > config/README.md
